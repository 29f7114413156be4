"""The house: which room may import which, how large things may be, and that nothing is patched for a whole process."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOORS = {"trainer", "evaluate"}
ROOMS = ("antifraud", "data", "benchmarks", "tools")
FILES = ("trainer.py", "evaluate.py")
CORE = ("antifraud.model", "antifraud.checkpoint", "antifraud.provenance", "antifraud.logits", "antifraud.compiling",
        "antifraud.figures")
OURS = DOORS | {*ROOMS, "notebooks", "tests"}
# What a part of the project may import, of the project; the first that matches counts.
MAY_IMPORT = (
    ("data", ("data",)),
    *((room, ("data", *CORE)) for room in CORE),
    ("antifraud.training", ("data", *CORE, "antifraud.training")),
    ("antifraud.evaluation", ("data", *CORE, "antifraud.evaluation")),
    ("antifraud.demo", ("data", "antifraud", "trainer", "evaluate")),  # it runs what a user runs
    ("antifraud", ("data", "antifraud")),
)


def modules(*folders: str) -> Iterator[tuple[str, Path, ast.Module]]:
    """(dotted name, path, syntax tree) of every module in these folders, and of modules named themselves."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else [ROOT / folder]:
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, ast.parse(path.read_bytes())


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def imported(name: str, path: Path, tree: ast.Module) -> set[str]:
    """Dotted names of what a module imports of the project, inside functions too."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


def too_long(kinds: tuple[type, ...], limit: int) -> list[str]:
    return [f"{name}.{node.name}" for name, _, tree in modules(*ROOMS, *FILES) for node in ast.walk(tree)
            if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > limit]


def n_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_imports_go_one_way():
    found = set()
    for name, path, tree in modules("data", "antifraud"):
        allowed = next(allowed for room, allowed in MAY_IMPORT if within(name, room))
        found |= {f"{name} -> {other}" for other in imported(name, path, tree)
                  if not any(within(other, room) for room in allowed)}
    assert found == set()


def test_imports_inside_the_library_are_relative():
    assert [name for name, _, tree in modules("antifraud") for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and not node.level and within(node.module, "antifraud")] == []


def test_an_import_the_other_way_would_be_found():
    tree = ast.parse("def late():\n    from ..evaluation import scoring\n    import trainer")
    path = ROOT / "antifraud" / "training" / "loop.py"
    assert imported("antifraud.training.loop", path, tree) == {"antifraud.evaluation.scoring", "trainer"}


def test_the_root_holds_the_two_doors_and_no_other_module():
    assert {path.stem for path in ROOT.glob("*.py")} == DOORS
    assert [door for door in DOORS if n_lines(ROOT / f"{door}.py") > 250] == []


def test_files_functions_and_classes_fit_their_limits():
    assert [str(path.relative_to(ROOT)) for _, path, _ in modules(*ROOMS) if n_lines(path) > 400] == []
    assert too_long((ast.FunctionDef, ast.AsyncFunctionDef), 60) == []
    assert too_long((ast.ClassDef,), 150) == []


def test_nothing_is_patched_at_import():
    assert [name for name, _, tree in modules(*ROOMS, *FILES)
            if any(map(_mocks_or_overrides, ast.walk(tree))) or _assigns_to_foreign(tree)] == []


def test_a_patch_would_be_found():
    for text in ("from unittest.mock import patch", "def f():\n    import unittest.mock",
                 "AttentionInterface.register('sdpa', attention)"):
        assert any(map(_mocks_or_overrides, ast.walk(ast.parse(text)))), text
    assert _assigns_to_foreign(ast.parse("import torch\ntorch.load = None"))
    assert not _assigns_to_foreign(ast.parse("class A: pass\nA.x = 1\ny = 2"))


def _mocks_or_overrides(node: ast.AST) -> bool:
    """Whether a node imports a mocking library, or registers something in the place of transformers' own attention."""
    if isinstance(node, ast.Import):
        return any(within(alias.name, "unittest") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return within(node.module or "", "unittest")
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "register"
            and any(isinstance(arg, ast.Constant) and arg.value in ("sdpa", "eager") for arg in node.args[:1]))


def _assigns_to_foreign(tree: ast.Module) -> bool:
    """Whether a module, on being imported, sets an attribute or an entry of what it has not defined itself."""
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    targets = [target for node in tree.body for target in getattr(node, "targets", [getattr(node, "target", None)])]
    return any(isinstance(target, (ast.Attribute, ast.Subscript)) and _owner(target) not in defined
               for target in targets)


def _owner(target: ast.expr) -> str | None:
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else None


def test_benchmarks_are_seven_modules_and_results_thirty_files_at_most():
    assert len(list((ROOT / "benchmarks").glob("[!_]*.py"))) <= 7
    assert sum(path.is_file() for path in (ROOT / "results").rglob("*")) <= 30
