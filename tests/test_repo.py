"""What holds for the whole repository: layers, contracts, and what the verifier imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from repository_copy import ROOT, in_a_new_python, quiet_environment

PACKAGE = ROOT / "invarlock"
# The order of the parts: a part imports only parts of the lines above its own.
LAYERS = (
    ("errors", "severity", "counts", "shown", "numpy_on_use", "library_log", "modalities"),
    ("files", "variables", "deployment", "progress"),
    ("loading_faults", "forecast", "differences"),
    ("documents", "schemas", "progress_line", "effective_config"),
    (
        "registry",
        "shards",
        "contracts",
        "policy",
        "code_digest",
        "output_locks",
        "digests",
        "shipped_files",
        "template_files",
    ),
    ("formats",),
    ("folders",),
    ("scenarios", "models", "written"),
    ("tuned",),
    ("subject_metadata", "config"),
    ("architecture",),
    ("library_classes",),
    ("module_graph",),
    ("roles", "records", "tokenizer_meaning"),
    ("checkpoints", "begin_of_text", "pictures"),
    ("model_folder", "wiring"),
    ("windows", "sources", "alignment"),
    ("pages",),
    ("metrics",),
    ("edits", "guards"),
    ("preset",),
    ("damage", "run"),
    ("reporting",),
    ("verdict",),
    ("evidence",),
    ("evidence_pack",),
    ("preflight", "superseded", "sweep"),
    ("cli",),
    ("__main__", "workflow"),
)
# Broad handlers that are right: module, function.
BROAD = {
    ("invarlock.tokenizer_meaning", "read_tokenizer"),  # the tokenizers library raises Exception
    ("invarlock.guards.tokenizer_settings", "resolve"),  # so does transformers' loader with it
    ("invarlock.loading_faults", "library"),  # models and the packages they ask for raise anything
    ("invarlock.evidence.keys", "generate"),  # removes half a key pair, then raises again
}
VAGUE = {"helper", "helpers", "util", "utils", "manager", "common", "misc", "base", "core"}
# Imported only by what measures or runs the workflow.
HEAVY = ("torch", "transformers", "tokenizers", "pandas", "snakemake", "datasets", "pyarrow",
         "jsonschema")  # fmt: skip
# A guard is one module: the verifier reads its judgement, a run calls its probe; so is a format.
# Only functions that a run calls import these: ``test_light_commands_import_nothing_heavy``.
# So does jsonschema's, for the words of an error.
WITH_PROBES = ("invarlock.guards.", "invarlock.checkpoints", "invarlock.formats.kinds.",
               "invarlock.schemas", "invarlock.module_graph", "invarlock.library_log")  # fmt: skip


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Modules under names that users know, which stand above what they call; see docs/api.md.
NAMED_BY_USERS = {"invarlock.reporting.verify_contract": "evidence_pack"}


def part_of(module: str) -> str:
    """The part of the package a module belongs to; the package itself holds only the version."""
    for named, part in NAMED_BY_USERS.items():
        if module == named or module.startswith(named + "."):
            return part
    return [*module.split("."), "version"][1]


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    return {module_name(p): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node of a module that runs: not what stands under ``if TYPE_CHECKING``."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            todo += ast.iter_child_nodes(node)


def imports(nodes: Iterator[ast.AST]) -> set[str]:
    """Every module that is named in an import, at any depth (a name from a package too)."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "invarlock"}


# --- structure --------------------------------------------------------------------------------


PUBLISHED = "invarlock.evidence.published"
# Who may ask for something that follows a published format: verification, and its commands.
DOORS = {
    "invarlock.evidence.report_verify",
    "invarlock.evidence.consistency",
    "invarlock.evidence.collect",
    "invarlock.cli.gate",
    "invarlock.cli.proof_pack",
    "invarlock.cli.runtime_verify",
}


def test_published_formats_are_asked_for_at_few_places() -> None:
    """Whatever measures, judges or writes knows nothing of published formats."""
    asking = {
        module
        for module, tree in sources().items()
        for target in imports(ast.walk(tree))
        if target.startswith(PUBLISHED) and not module.startswith(PUBLISHED)
    }
    assert asking == DOORS


def test_imports_only_go_to_lower_layers() -> None:
    """A part imports itself and parts of lower layers, never its own layer or a higher one."""
    rank = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    rank["version"] = rank["__version__"] = -1
    wrong = [
        f"{module} imports {target}"
        for module, tree in sources().items()
        for target in imports(ast.walk(tree))
        if part_of(target) != part_of(module) and rank[part_of(target)] >= rank[part_of(module)]
    ]
    assert not wrong


def test_the_layer_table_is_the_package() -> None:
    """Every part of the package stands in the table once, and the table holds nothing else."""
    listed = [part for parts in LAYERS for part in parts]
    assert sorted(listed) == sorted({part_of(m) for m in sources()} - {"version"})


def test_no_cycles() -> None:
    """Within a part, too, no modules import each other in a circle."""
    graph = {
        module: {
            target if target in sources() else target.rpartition(".")[0]
            for target in imports(statements(tree))
        }
        & set(sources())
        for module, tree in sources().items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module] - {module}):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_whoever_needs_guards_names_none() -> None:
    """A guard stands in its own module: what judges, replays, reads and shows reports goes over
    the registry."""
    from invarlock.guards import GUARDS

    names = {guard.name for guard in GUARDS} | {guard.flag for guard in GUARDS if guard.flag}
    modules = {
        "run.report",
        *(f"verdict.{name}" for name in ("detectors", "guard_value", "repeats")),
    }
    wrong = [
        f"{module}:{node.lineno}: {node.value}"
        for module, tree in sources().items()
        if module.startswith(("invarlock.reporting.", "invarlock.pages."))
        or module.removeprefix("invarlock.") in modules
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not wrong


def test_broad_handlers_are_listed() -> None:
    """`except Exception` and its like stand only where the table says why."""
    found = {
        (module, function.name)
        for module, tree in sources().items()
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    }
    everywhere = sum(
        isinstance(node, ast.ExceptHandler) and is_broad(node)
        for tree in sources().values()
        for node in ast.walk(tree)
    )
    assert found == BROAD
    assert everywhere == len(BROAD)  # none outside a function, none twice


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything."""
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


def test_no_vague_file_names() -> None:
    """A file is named after what it does."""
    vague = [m for m in sources() if set(m.split(".")[-1].split("_")) & VAGUE]
    assert not vague


def test_modules_and_public_functions_are_documented() -> None:
    """Every module with code and every public function or class of the package has a docstring."""
    bare = [m for m, tree in sources().items() if tree.body and not ast.get_docstring(tree)]
    bare += [
        f"{module}.{node.name}"
        for module, tree in sources().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


# --- contracts ----------------------------------------------------------------------------------

CONTRACTS = {
    path.name.removesuffix(".schema.json"): path
    for path in sorted((ROOT / "contracts").glob("*.schema.json"))
}


def properties(schema: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every described property of a schema, at any depth, with its pointer."""
    if isinstance(schema, dict):
        named = schema.get("properties")
        if isinstance(named, dict):
            for name, part in named.items():
                yield f"{at}/properties/{name}", part
        for key, part in schema.items():
            if key not in ("enum", "const", "examples", "default", "required"):
                yield from properties(part, f"{at}/{key}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from properties(part, f"{at}/{number}")


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts_are_valid_and_described(name: str) -> None:
    """Each contract is a valid 2020-12 schema, and every property says what it is."""
    schema = json.loads(CONTRACTS[name].read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    assert schema.get("title")
    bare = [
        pointer
        for pointer, part in properties(schema)
        if "description" not in part and "$ref" not in part and not is_condition(pointer)
    ]
    assert not bare


def is_condition(pointer: str) -> bool:
    """Whether a property only narrows one that is described elsewhere (if, then, anyOf ...)."""
    return bool(set(pointer.split("/")) & {"if", "then", "else", "not", "allOf", "anyOf", "oneOf"})


def test_every_contract_is_used_and_every_used_contract_exists() -> None:
    """The package names each contract somewhere, and names none that is missing."""
    words = {
        node.value.replace("_", "-").removesuffix("-v1")
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    unused = {name.removesuffix("-v1") for name in CONTRACTS} - words
    assert unused == {"evidence_pack_manifest", "proof_pack_manifest"}  # for people alone
    called = {
        node.args[1].value
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("validate", "check", "violations")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    }
    assert called
    assert called <= set(CONTRACTS)


# --- what the verifier needs --------------------------------------------------------------------


LIGHT = (
    "--version", "verify --help", "gate --help", "report --help", "verdict --help",
    "evaluate --help", "advanced evidence-pack verify --help", "advanced proof-pack verify --help",
    "advanced runtime-verify --help",
)  # fmt: skip


def test_light_commands_import_nothing_heavy() -> None:
    """Verifying, judging and asking for help start without torch and its like."""
    program = (
        "import sys\n"
        "from invarlock.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n        main(line.split())\n"
        "    except SystemExit:\n        pass\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not heavy, (line, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *LIGHT],
        cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: invarlock") == len(LIGHT) - 1


def test_numpy_is_loaded_by_what_computes_with_it() -> None:
    """A pack that holds no windows is verified without the time that importing it takes."""
    program = (
        "import sys\n"
        "import invarlock.evidence.consistency, invarlock.verdict.verdict\n"
        "from invarlock import numpy_on_use\n"
        "import invarlock.reporting.replay\n"
        "from invarlock.metrics.bootstrap import cluster_sums\n"
        "assert 'numpy' not in sys.modules\n"
        "one = numpy_on_use.ones(1)\n"
        "assert list(cluster_sums(['a'], one, one)[0]) == [1.0]\n"
    )
    in_a_new_python(program)


def test_a_small_pack_is_verified_without_openssl() -> None:
    """Its hashes take 3.5 MB of the 40 that a verification may; libsodium is there anyway."""
    program = (
        "import sys\n"
        "from invarlock.cli import main\n"
        "words = 'advanced evidence-pack verify --strict'.split()\n"
        "assert main([*words, 'tests/packs/v1-single']) == 0\n"
        "assert 'hashlib' not in sys.modules\n"
        "from invarlock.files import FEW_BYTES, sha256_bytes\n"
        "sizes = (0, 1, 55, 56, 63, 64, 65, 100_000, FEW_BYTES)\n"
        "few = [sha256_bytes(b'a' * size) for size in sizes]\n"
        "many = sha256_bytes(b'a' * (FEW_BYTES + 1))\n"
        "import hashlib\n"
        "assert few == [hashlib.sha256(b'a' * size).hexdigest() for size in sizes]\n"
        "assert many == hashlib.sha256(b'a' * (FEW_BYTES + 1)).hexdigest()\n"
    )
    in_a_new_python(program)


def test_no_module_of_the_verifier_names_a_heavy_one() -> None:
    """Nothing that the pack verifier can reach imports a heavy module, not even in a function."""
    from invarlock.code_digest import modules_behind

    verbs = ("verify", "evidence_pack", "proof_pack", "runtime_verify", "gate", "verdict", "report")
    reached = {m for verb in verbs for m in modules_behind(f"invarlock.cli.{verb}")}
    wrong = [
        f"{module}: {name}"
        for module in reached
        for node in statements(sources()[module])
        for name in imported_tops(node)
        if name in (*HEAVY, "safetensors") and not module.startswith(WITH_PROBES)
    ]
    assert not wrong


def imported_tops(node: ast.AST) -> list[str]:
    """Top-level names of an import statement."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module.split(".")[0]]
    return []
