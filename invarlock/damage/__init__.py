"""Deliberate damage: controls that a guard must catch, streamed like edits.

``specs`` names the injectors and their parameters, ``targets`` finds what they hit, ``plans``
(``probes`` for the small damage aimed at one guard) turns each into a change of the checkpoint
and ``inject`` writes it.
"""
