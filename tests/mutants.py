"""The checks of the verifier by name, and source in which some of them are switched off.

A check has its name where it stands: a comment ``# check: NAME`` on a line of the statement, or
alone on the line above it. Production code thus pays nothing, and only who can change the code
can switch a check off. Without a check

* the condition of an ``if`` or ``elif`` never holds,
* any other statement is not made,
* an element of a list or tuple, or an argument of a call, is left out.

The rows of ``attacks_*.py`` name the check that stops them. ``make mutants`` (``tools/mutants.py``)
shows that they get through without it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

NAME = re.compile(r"# check: ([a-z0-9_]+\.[a-z0-9_]+)")
# Checks without which an attack would still be refused by another one of the same step: those have
# to be off as well. A name that stands nowhere in the package is that of several checks at once.
CLAIMS = ("claims.compare", "claims.readme", "claims.folder", "claims.manifest")
EVIDENCE = ("report.replay", "report.unreadable", "report.recompute", "matrix.ratio",
            "identity.shared")  # fmt: skip
EXPECTATION = ("matrix.lints", "expectation.fails")
ALSO_OFF: dict[str, tuple[str, ...]] = {
    "open.folder": ("open.control",),
    "tree.file_size": ("tree.pack_size", "tree.parsed"),
    "tree.parsed": ("tree.pack_size",),
    "checksums.control": ("checksums.changed",),
    # the member that is no JSON is none of a runtime manifest either
    **dict.fromkeys(
        ("json.constant", "json.overflow", "json.digits", "json.depth"), ("runtime.contract",)
    ),
    "manifest.old": ("manifest.contract",),
    "signature.base64": ("signature.verify",),
    "keys.canonical": ("keys.point", "signature.verify"),
    "keys.point": ("signature.verify",),
    "claims.compare": CLAIMS,
    "claims.two": ("claims.compare",),
    "claims.number": CLAIMS,
    "claims.contract": CLAIMS,
    "claims.outcomes": CLAIMS,
    "claims.folder": CLAIMS,
    "verdict.asked": ("claims.manifest",),
    "verdict.runs": ("claims.manifest",),
    "scenarios.reserved": ("claims.manifest",),
    "identity.same": ("identity.shared",),
    "report.schema": (*EVIDENCE, *EXPECTATION),
    "report.evidence": EVIDENCE,
    "report.flags": ("report.replay", *EXPECTATION),
    "report.draws": ("report.replay", "identity.shared"),
    "matrix.ratio": ("report.replay",),
    "matrix.interval": ("report.replay",),
    "matrix.tokenizer": ("report.replay",),
    "matrix.pairing": ("report.replay",),
    "run.schema": ("run.parity",),
    "said.profile": ("said.same",),
    "runtime.mode": ("report.replay",),
    "runtime.container": ("report.assurance",),
}


def names_in(package: Path) -> Counter[str]:
    """The names of all checks of a package, with the number of places where each stands."""
    sources = sorted(package.rglob("*.py"))
    return Counter(name for path in sources for name in NAME.findall(path.read_text()))


def switch_off(check: str, package: Path) -> None:
    """Switch a check, and those that have to be off as well, off in a copy of the package."""
    names = {check, *ALSO_OFF.get(check, ())}
    for path in package.rglob("*.py"):
        source = path.read_text()
        if names & set(NAME.findall(source)):
            path.write_text(without(source, names))


def without(source: str, names: Collection[str]) -> str:
    """A module's source without the checks of these names.

    Raises:
        ValueError: a name is on a line of no statement.
    """
    tree = ast.parse(source)
    lines = [line for line, name in _named_lines(source) if name in names]
    return ast.unparse(_Without([_named(tree, line) for line in lines]).visit(tree))


def _named_lines(source: str) -> Iterator[tuple[int, str]]:
    """Each name with the line that it is about."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (found := NAME.search(token.string)):
            alone = not token.line[: token.start[1]].strip()
            yield token.start[0] + alone, found[1]


def _named(tree: ast.Module, line: int) -> ast.AST:
    """The shortest part of a module on a line that can be left out; of equal ones the outermost."""
    found: list[tuple[int, ast.AST]] = []
    for node in ast.walk(tree):  # breadth first, so that outer nodes come first
        for part in _parts(node):
            last = part.test.end_lineno if isinstance(part, ast.If) else part.end_lineno
            first = part.lineno
            if last is not None and first <= line <= last:
                found.append((last - first, part))
    if not found:
        raise ValueError(f"line {line} names a check and holds no statement")
    return min(found, key=lambda pair: pair[0])[1]


def _parts(node: ast.AST) -> list[ast.stmt | ast.expr]:
    """What can be left out of a node."""
    if isinstance(node, ast.List | ast.Tuple):
        return [*node.elts]
    if isinstance(node, ast.Call):
        return [*node.args]
    blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
    simple = (ast.If, ast.Assign, ast.AugAssign, ast.Expr, ast.Raise, ast.Return)
    return [s for block in blocks if isinstance(block, list) for s in block
            if isinstance(s, simple)]  # fmt: skip


class _Without(ast.NodeTransformer):
    """Leaves parts out of a module."""

    def __init__(self, parts: list[ast.AST]) -> None:
        self.parts = parts

    def visit(self, node: ast.AST) -> ast.AST | None:
        if not any(node is part for part in self.parts):
            return self.generic_visit(node)
        if isinstance(node, ast.If):
            node.test = ast.Constant(False)
            return self.generic_visit(node)
        return ast.Pass() if isinstance(node, ast.stmt) else None
