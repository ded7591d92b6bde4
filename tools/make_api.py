"""Make docs/api.md from the docstrings of the modules that programs import.

``make docs`` writes it; ``--check`` exits with 1 when it is stale.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from generated import write_or_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/api.md"
MODULES = (
    "invarlock.reporting.report_schema",
    "invarlock.reporting.report_builder",
    "invarlock.reporting.html",
    "invarlock.reporting.verify_contract",
    "invarlock.evidence_pack",
)
HEAD = """# Python API

Made by `make docs` from the docstrings of these modules; a test fails when it is stale. Each calls
what its command calls, so both say the same. What raises an error raises an
`invarlock.errors.InvarlockError`: its text is one line, its `exit_code` that of the command.
Everything else in the package may change with any version.

```python
import json
from pathlib import Path

from invarlock import evidence_pack
from invarlock.reporting.html import render_report_html
from invarlock.reporting.verify_contract import verify_reports

path = Path("reports/quant8/evaluation.report.json")
(result,) = verify_reports([path], profile="ci")
print(result.ok, [finding.message for finding in result.findings])
path.with_name("evaluation.html").write_text(render_report_html(json.loads(path.read_text())))
print(evidence_pack.verify(Path("evidence_pack"), strict=True, replay=True).exit_code)
```
"""
SECTION = re.compile(r"^(Args|Returns|Raises):$", re.M)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for name in MODULES for line in module(name))]).rstrip() + "\n"


def module(name: str) -> Iterator[str]:
    """The section of a module: its constants, its functions, and what it hands on."""
    tree = parsed(name)
    yield from (f"## `{name}`", "", prose(ast.get_docstring(tree) or ""), "")
    shown = exported(tree)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                about = inspect.cleandoc(str(after.value.value))
                yield from (f"### `{ast.unparse(target)}`", "", prose(about), "")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield from function(node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in shown:
                    yield from handed_on(str(node.module), alias.name)


def handed_on(module: str, name: str) -> Iterator[str]:
    """What a module shows of another one."""
    for node in parsed(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield from function(node)
        elif isinstance(node, ast.ClassDef) and node.name == name:
            yield from (f"### `{name}`", "", prose(ast.get_docstring(node) or ""), "")
            for part in node.body:
                if isinstance(part, ast.AnnAssign):
                    yield f"- `{ast.unparse(part.target)}`: `{ast.unparse(part.annotation)}`"
                elif isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    about = prose((ast.get_docstring(part) or "").partition("\n\n")[0])
                    is_property = any(ast.unparse(d) == "property" for d in part.decorator_list)
                    yield f"- `{part.name}{'' if is_property else arguments(part)}`: {about}"
            yield ""


def function(node: ast.FunctionDef) -> Iterator[str]:
    """The section of a function."""
    text, *sections = SECTION.split(ast.get_docstring(node) or "")
    yield from (f"### `{node.name}`", "", "```python", signature(node), "```", "")
    yield from (prose(text.strip()), "")
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        lines = inspect.cleandoc(body).strip()
        if title == "Returns":
            yield from (f"Returns: {prose(lines)}", "")
            continue
        yield from (f"{title}:", "")
        for item in re.split(r"\n(?=\S)", lines):
            name, _, about = item.partition(":")
            yield f"- `{name}`: {prose(inspect.cleandoc(about))}"
        yield ""


def signature(node: ast.FunctionDef) -> str:
    """A function as it is called: on one line, or with a line an argument."""
    whole = f"{node.name}{arguments(node)}"
    if len(whole) <= 88:
        return whole
    given = node.args
    defaults = dict(zip(given.args[::-1], given.defaults[::-1], strict=False))
    defaults |= {a: d for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d}
    lines = [argument(a, defaults.get(a)) for a in given.args]
    lines += ["*", *(argument(a, defaults.get(a)) for a in given.kwonlyargs)]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return "\n".join([f"{node.name}(", *(f"    {line}," for line in lines), f"){result}"])


def argument(node: ast.arg, default: ast.expr | None) -> str:
    """An argument with its type and its default."""
    text = f"{node.arg}: {ast.unparse(node.annotation)}" if node.annotation else node.arg
    return text if default is None else f"{text} = {plain(ast.unparse(default))}"


def arguments(node: ast.FunctionDef) -> str:
    """The arguments and the result of a function on one line."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    given = plain(ast.unparse(node.args))
    given = re.sub(r"^self(, )?", "", given)
    return f"({given}){result}"


def plain(text: str) -> str:
    """A default without what keeps it from being changed."""
    return text.replace("MappingProxyType({})", "{}")


def prose(text: str) -> str:
    """A docstring as Markdown: no line break of a paragraph is kept."""
    text = re.sub(r":\w+:(?=`)", "", text)  # what a name is, as Sphinx writes it
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).replace("``", "`")


def parsed(name: str) -> ast.Module:
    """A module's source."""
    path = ROOT / Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def exported(tree: ast.Module) -> list[str]:
    """The names in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


if __name__ == "__main__":
    sys.exit(write_or_check([(PAGE, page())]))
