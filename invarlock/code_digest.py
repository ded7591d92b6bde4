"""Which of our modules a command runs, and their digest.

Snakemake sees only the shell text of a rule. A digest of the modules behind it, as a parameter,
makes a code change rerun exactly the jobs it touches.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from invarlock.files import sha256_bytes, sha256_file

PACKAGE = Path(__file__).resolve().parent
# Data files that a module reads beside its own code.
DATA = {
    "invarlock.documents.kinds": ("data/kinds.json",),
    "invarlock.policy": ("data/tiers.yaml",),
    "invarlock.tokenizer_meaning": ("data/probe_texts.json",),
    "invarlock.reporting.render": ("reporting/templates",),
}
# The body for a type checker, and statements that import from this package. Parsing every module
# took 0.3 of the 1.9 CPU seconds of a plan, and this 0.02; a test holds it to what Python parses.
FOR_TYPES = re.compile(r"^([ \t]*)if TYPE_CHECKING:\n(?:\1[ \t]+.*\n|[ \t]*\n)+", re.M)
IMPORT = re.compile(r"^[ \t]*from (invarlock[\w.]*) import (\([^)]*\)|.*)", re.M)


def package_digest(package: Path = PACKAGE) -> str:
    """SHA-256 over every file of the package and its contracts, in a checkout or installed."""
    contracts = next(p for p in (package / "contracts", package.parent / "contracts") if p.is_dir())
    files = {p.relative_to(package).as_posix(): p for p in package.rglob("*") if p.is_file()}
    lines = [
        f"{name} {sha256_file(path)}"
        for name, path in files.items()
        # which an installed package carries inside; of settings each run keeps its own record
        if not name.startswith(("contracts/", "settings/")) and path.suffix != ".pyc"
    ]
    lines += [f"contracts/{p.name} {sha256_file(p)}" for p in contracts.glob("*.schema.json")]
    return sha256_bytes("\n".join(sorted(lines)).encode())


@functools.cache
def _file_of(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _named(text: str) -> set[str]:
    """Modules of this package that a module names in its imports, inside functions too, and what it
    takes from them; not what only a type checker reads."""
    found: set[str] = set()
    for module, names in IMPORT.findall(FOR_TYPES.sub("", text)):
        given = re.sub(r"#.*", "", names).strip("()").split(",")
        found |= {module, *(f"{module}.{name.split()[0]}" for name in given if name.strip())}
    return found


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """Modules of this package that ``module`` imports."""
    path = _file_of(module)
    if path is None:
        return frozenset()
    found = _named(path.read_text())
    if "invarlock.registry" in found and path.name == "__init__.py":
        # a registry imports every module of its folder by looking there
        found |= {f"{module}.{p.stem}" for p in path.parent.glob("*.py") if p != path}
    ours = {name for name in found if name.startswith("invarlock.") and _file_of(name)}
    return frozenset(ours - {"invarlock.cli"})


@functools.cache
def modules_behind(module: str) -> tuple[str, ...]:
    """``module`` and everything of this package that it imports, directly or not; sorted."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += _imports(name)
    return tuple(sorted(seen))


@functools.cache
def _lines(module: str) -> tuple[str, ...]:
    """A line of each file of a module: its own, and the data that it reads.

    Raises:
        ValueError: a module of that name does not exist.
    """
    path = _file_of(module)
    if path is None:
        raise ValueError(f"no module {module}")
    files = [path]
    for extra in DATA.get(module, ()):
        data = PACKAGE / extra
        files += sorted(data.iterdir()) if data.is_dir() else [data]
    return tuple(f"{module} {f.name} {sha256_file(f)}" for f in files if f.is_file())


@functools.cache
def code_digest(*modules: str) -> str:
    """First 16 hex of SHA-256 over the files behind ``modules``.

    Raises:
        ValueError: a module of that name does not exist.
    """
    behind = sorted({found for module in modules for found in modules_behind(module)})
    lines = [line for name in behind for line in _lines(name)]
    return sha256_bytes("\n".join(lines).encode())[:16]
