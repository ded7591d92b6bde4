"""What published verifiers (0.10 to 0.12.1) check and what published packs look like.

All that is here follows a published document or program and changes only with one of those: the
check matrix of a report and the recomputed point (``report_checks``), strict assurance
(``assurance``), the runtime manifest (``provenance``), verdicts of packs without scenarios and
outcomes (``believed_verdict``), the sidecars of deployable subjects (``deployable``), and packs of
the older format (``proof_pack``) with their OpenPGP signatures (``gpg``).
"""
