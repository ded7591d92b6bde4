"""The errors a user can meet: one line that says what, where, expected, found, what next.

Exit codes of our own commands: 0 done, 1 policy says no (``verify``, ``gate``),
2 usage or configuration, 3 input missing or unreadable. The evidence-pack commands have
their own table in ``invarlock.evidence``.
"""

from __future__ import annotations


class InvarlockError(Exception):
    """Base of every expected failure; ``str(error)`` is the line shown to the user."""

    exit_code = 1

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", found: str = "", hint: str = ""
    ) -> None:
        self.what, self.where, self.expected, self.found, self.hint = (
            what,
            where,
            expected,
            found,
            hint,
        )
        super().__init__(what)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            line += f"; expected {self.expected}"
        if self.found:
            line += f"; found {self.found}"
        if self.hint:
            line += f"; {self.hint}"
        # names and values of other people's files reach terminals and logs
        return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in line)


class ConfigError(InvarlockError):
    """The command line, the configuration or the catalogue asks for something impossible."""

    exit_code = 2


class InputError(InvarlockError):
    """A file or folder that was named is missing, unreadable or damaged."""

    exit_code = 3


class NotACheckpointError(InputError):
    """What was named holds no checkpoint that is read here; that says nothing about an edit."""


class ContractError(InputError):
    """A JSON document does not follow its contract."""


class MeasurementError(InvarlockError):
    """A measurement could not be made (never counted as a detection)."""

    exit_code = 1
