"""Evidence packs: build, sign, inspect and verify them, and verify single reports.

Exit codes of the evidence-pack commands (``docs/pack-format.md``): 0 done, 2 usage, 3 pack
incomplete, 4 manifest or build input refused, 5 signature, 6 integrity, 7 reports. Nothing in
this package imports torch, transformers, pandas or Snakemake; numpy only for the replay.
"""

from __future__ import annotations

from enum import IntEnum

from invarlock.errors import InvarlockError

# The variable that turns a missing signature into a warning.
ALLOW_UNSIGNED = "INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE"


class Code(IntEnum):
    """Exit codes of the evidence-pack commands."""

    OK = 0
    USAGE = 2
    INCOMPLETE = 3
    MANIFEST = 4  # for build: an input is refused
    SIGNATURE = 5
    INTEGRITY = 6
    REPORTS = 7

    @property
    def meaning(self) -> str:
        """What ended the command, in the words of the steps (``docs/pack-format.md``)."""
        return "pack incomplete" if self is Code.INCOMPLETE else self.name.lower()


class PackError(InvarlockError):
    """An evidence-pack command cannot go on; ``exit_code`` is one of :class:`Code`."""

    def __init__(self, code: Code, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.exit_code = int(code)


def escape(text: object) -> str:
    """ASCII text that is safe on any terminal: whatever could hide or move text is spelled out."""
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in str(text))
