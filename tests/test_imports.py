"""Which room imports which, what is imported early, and how data is read: by syntax tree."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "bmnas": ROOT / "bmnas",
    "bmnas_export": ROOT / "export" / "bmnas_export",
    "bmnas_serve": ROOT / "serve" / "bmnas_serve",
}
FILES = sorted(path for folder in SOURCES.values() for path in folder.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return the dotted name of a module's file."""
    for package, folder in SOURCES.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join((package, *parts)).removesuffix(".__init__")
    raise AssertionError(path)


MODULES = {name_of(path): path for path in FILES}


def imports_of(nodes: Iterator[ast.AST], package: str) -> set[str]:
    """Return the dotted names that import statements among ``nodes`` ask for."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}: relative import"
            assert node.module is not None
            # `from a import b` may mean the module a.b.
            found |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in MODULES
                else node.module
                for alias in node.names
            }
    return found


def all_imports(name: str) -> set[str]:
    return imports_of(ast.walk(tree_of(MODULES[name])), name)


def early_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is imported, those for type checkers left out."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from early_nodes(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from early_nodes(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from early_nodes(handler.body)


def early_imports(name: str) -> set[str]:
    return imports_of(early_nodes(tree_of(MODULES[name]).body), name)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_the_sources_are_there() -> None:
    assert {"bmnas.spaces.cells.supernet", "bmnas_export.bundle", "bmnas_serve.session"} <= set(
        MODULES
    )


#: The rooms from the ground floor up: each may import from those before it, never from those after.
ROOMS = (
    "machine",
    "tasks",
    "backbones",
    "features",
    "training",
    "spaces",
    "strategies",
    "report",
    "pipeline",
    "lab",
    "cli",
)


def floor_of(module: str) -> int | None:
    """Return the floor of a module's room, None for what lies in no room."""
    parts = module.split(".")
    inside = parts[0] == "bmnas" and len(parts) > 1
    return ROOMS.index(parts[1]) if inside and parts[1] in ROOMS else None


def test_rooms_import_downwards() -> None:
    found = set()
    for name in MODULES:
        own = floor_of(name)
        for imported in all_imports(name):
            other = floor_of(imported)
            if own is not None and other is not None and other > own:
                found.add((name, imported))
    assert not found


def test_every_module_lies_in_a_room() -> None:
    loose = {name for name in MODULES if within(name, "bmnas") and floor_of(name) is None}
    assert loose == {"bmnas", "bmnas.__main__"}


#: From a module or room to what it must not import, at no time.
CLOSED = {
    "bmnas_serve": ["bmnas", "bmnas_export", "torch", "onnx", "tests", "benchmarks"],
    "bmnas_export": ["benchmarks", "tests", "bmnas.cli"],
    "bmnas": ["benchmarks", "examples", "tests"],
    "bmnas.machine.files": ["torch", "numpy"],
    "bmnas.tasks": ["torch"],
    "bmnas.report": ["torch"],
    "bmnas.spaces.cells.supernet": ["bmnas.spaces.cells.network"],
    "bmnas.spaces.cells.network": ["bmnas.spaces.cells.supernet"],
    "bmnas.spaces.cells.genotype": ["torch", "numpy"],
    "bmnas.spaces.cells.derive": ["torch", "numpy"],
    "bmnas.spaces.cells.operations": ["numpy", "bmnas.spaces.cells.primitives"],
    "bmnas.spaces.mfas.genotype": ["torch", "numpy"],
    "bmnas.spaces.mfas.space": ["torch", "numpy"],
    "bmnas.spaces.registry": ["torch", "numpy"],
    "bmnas.spaces.trees.fusion_tree": ["torch", "numpy"],
    "bmnas.spaces.trees.tree": ["torch", "numpy"],
    "bmnas.spaces.trees.space": ["torch", "numpy"],
}


@pytest.mark.parametrize("room", CLOSED)
def test_closed_doors(room: str) -> None:
    inside = [name for name in MODULES if within(name, room)]
    assert inside
    for name in inside:
        for imported in all_imports(name):
            for closed in CLOSED[room]:
                assert not within(imported, closed), f"{name} imports {imported}"


#: How rows are made of files and fields: the same code in training and in serving.
SHARED = {"bmnas_serve.boxes", "bmnas_serve.errors", "bmnas_serve.media", "bmnas_serve.sources"}


def test_the_core_meets_the_server_and_the_export_in_its_commands_and_in_shared_modules() -> None:
    doors = {
        name
        for name in MODULES
        if within(name, "bmnas")
        and any(
            within(imported, room)
            for imported in all_imports(name) - (SHARED if within(name, "bmnas.tasks") else set())
            for room in ("bmnas_serve", "bmnas_export")
        )
    }
    commands = ("export", "predict", "serve", "show", "verify")
    assert doors <= {f"bmnas.cli.{name}" for name in commands}


def test_shared_modules_need_numpy_alone() -> None:
    import sys

    for name in SHARED:
        known = {*sys.stdlib_module_names, "numpy", "bmnas_serve"}
        assert not {i.partition(".")[0] for i in early_imports(name)} - known


STANDARD = {"numpy", "safetensors", "sklearn", "torch", "typer", "rich", "matplotlib"}


def test_the_core_needs_few_packages() -> None:
    """Optional ones are imported by the function that needs them."""
    import sys

    known = {*sys.stdlib_module_names, *SOURCES, *STANDARD}
    for name in MODULES:
        if within(name, "bmnas"):
            outside = {i.partition(".")[0] for i in early_imports(name)} - known
            assert not outside, f"{name} imports {outside} at its top"


HEAVY = {
    "torch",
    "safetensors",
    "sklearn",
    "matplotlib",
    "scipy",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ray",
    "starlette",
    "uvicorn",
}


def test_nothing_heavy_is_imported_by_the_command_line() -> None:
    """Follow what ``bmnas --help`` imports, parents of packages included."""
    waiting = ["bmnas.cli", "bmnas.__main__", "bmnas.cli.workers", "bmnas.tasks"]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in early_imports(name):
            assert imported.partition(".")[0] not in HEAVY, f"{name} imports {imported}"
            parts = imported.split(".")
            waiting += [
                parent
                for end in range(1, len(parts) + 1)
                if (parent := ".".join(parts[:end])) in MODULES
            ]
    assert {f"bmnas.cli.{p.stem}" for p in (ROOT / "bmnas" / "cli").glob("[!_]*.py")} <= seen
    assert len(seen) > 12


#: Modules that run code which lies in the data that they read; pickle's errors may be caught.
UNSAFE = {"cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", FILES, ids=[name_of(path) for path in FILES])
def test_no_data_is_run(path: Path) -> None:
    tree = tree_of(path)
    for imported in imports_of(ast.walk(tree), path.name):
        root = imported.partition(".")[0]
        assert root not in UNSAFE, f"{path}: {imported}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "pickle"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            # To catch what torch raises where weights_only=True refuses a file.
            assert node.attr == "UnpicklingError", f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            check_call(node, path)


def check_call(node: ast.Call, path: Path) -> None:
    """Refuse eval and exec, and loaders without their safe option."""
    called = ast.unparse(node.func)
    place = f"{path}:{node.lineno}: {called}"
    assert called not in ("eval", "exec", "compile", "__import__"), place
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in ("torch.load", "torch.jit.load", "load_state_dict_from_url"):
        assert options.get("weights_only") == "True", place
    if called in ("np.load", "numpy.load"):
        assert options.get("allow_pickle") == "False", place
    if called.endswith((".from_pretrained", ".from_config")):
        assert options.get("trust_remote_code", "False") == "False", place
    assert called not in ("yaml.load", "yaml.unsafe_load", "np.fromregex", "os.system"), place
    assert options.get("shell", "False") == "False", place


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_check_refuses_what_it_is_for(source: str) -> None:
    (node,) = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call))
    with pytest.raises(AssertionError):
        check_call(node, Path("example.py"))


def test_few_files_name_an_operation() -> None:
    """The table, the modules behind it and the known modules; nobody else."""
    named = set()
    for folder in SOURCES.values():
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "linear_glu" in text or "concat_fc" in text:
                named.add(path.name)
    assert named == {"operations.py", "known.py"}
