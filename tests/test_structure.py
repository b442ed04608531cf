"""The Architecture section of the README is how the code is: imports point one way."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from run_command import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
FILE_LINES, FUNCTION_LINES, PARAMETERS = 350, 70, 7
BEYOND = {
    "vld.commands.benchmark.figures and vld.report.figures: one name",
}
"""What is larger than that. This may only become shorter."""
KNOWS_NOTHING_OF = {"hydra", "omegaconf", "wandb", "rich", "pandas"}
"""The training loop, and what it is made from."""


def modules() -> dict[str, Path]:
    files = (REPOSITORY / "vld").rglob("*.py")
    names = {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }
    return {name: names[name] for name in sorted(names)}


def imports(file: Path) -> set[str]:
    """Everything that a file imports, wherever in it: a.b, and a.b.c of `from a.b import c`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms() -> list[str]:
    """In the order of the README's table, from the top."""
    [table] = re.findall(r"## Architecture\n.*?\n\| room [^\n]*\n((?:\|[^\n]*\n)+)", README, re.S)
    return re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)


def room_of(module: str) -> int:
    """How far down; what stands beside the rooms is below them all."""
    name = module.split(".")[1] if "." in module else ""
    return rooms().index(name) if name in rooms() else len(rooms())


def test_the_top_level_is_as_prescribed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    entries = {path.split("/")[0] for path in tracked.splitlines()}
    prescribed = {"conf", "vld", "scripts", "tests", "data", "outputs", "pyproject.toml", "README.md"}
    assert {entry for entry in entries if not entry.startswith(".")} == prescribed


def test_the_rooms_of_the_readme_are_all_there_is() -> None:
    entries = {path.name for path in (REPOSITORY / "vld").iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__.py", *rooms()}
    assert len(rooms()) <= 10
    for room in rooms():
        docstring = ast.get_docstring(ast.parse((REPOSITORY / "vld" / room / "__init__.py").read_text()))
        assert docstring and len(docstring) > 40, f"vld/{room}/__init__.py does not say what lives there"


def test_what_the_documents_name_in_a_file_is_there() -> None:
    """`name` in `file.py`, and `file` (`name`): as a function, a class or a table."""
    named = set()
    for page in (README, *(path.read_text() for path in sorted((REPOSITORY / "vld").glob("*/README.md")))):
        named |= {(file, name) for name, file in re.findall(r"`(\w+)` in\s+`([\w/]+\.py)`", page)}
        named |= {(f"{file}.py", name) for file, name in re.findall(r"`(\w+/\w+)` \(`(\w+)`", page)}
    assert len(named) > 5
    for file, name in named:
        defined = rf"^(def|class) {name}\b|^{name}\b.* = "
        paths = [path for path in modules().values() if f"/{path}".endswith(f"/{file}")]
        assert any(re.search(defined, path.read_text(), re.MULTILINE) for path in paths), f"{name} is not in {file}"


def test_tests_lie_in_the_rooms_that_they_are_about() -> None:
    folders = {file.parent.name for file in (REPOSITORY / "tests").glob("*/test_*.py")}
    assert folders == set(rooms())


def test_imports_point_down_or_stay_within_a_room_and_never_in_circles() -> None:
    files = modules()
    uses = {name: imports(file) & files.keys() - {name} for name, file in files.items()}
    upward = {(name, used) for name, its in uses.items() for used in its if room_of(used) < room_of(name)}
    assert not upward
    packages = {
        name for name, file in files.items() if file.name == "__init__.py"
    }  # a folder's own module imports from it
    order = TopologicalSorter({name: its - packages for name, its in uses.items()})
    assert len(list(order.static_order())) >= len(files) - len(packages)  # raises CycleError, which names the circle


def test_the_training_loop_knows_no_hydra_no_w_and_b_and_no_terminal() -> None:
    """Nor does anything that the training room imports, from wherever."""
    files = modules()
    seen: set[str] = set()
    to_look_at = {name for name in files if name.startswith("vld.training.")}
    while to_look_at:
        name = to_look_at.pop()
        seen.add(name)
        to_look_at |= imports(files[name]) & files.keys() - seen
    assert {"vld.model.classifier", "vld.data.augment", "vld.config.settings"} <= seen
    knows = {name: {used.split(".")[0] for used in imports(files[name])} & KNOWS_NOTHING_OF for name in seen}
    assert not {name: its for name, its in knows.items() if its}


def test_many_runs_and_what_is_below_know_no_hydra_but_for_the_jobs() -> None:
    below = {name: file for name, file in modules().items() if room_of(name) >= rooms().index("study")}
    knowing = {
        name for name, file in below.items() if {"hydra", "omegaconf"} & {used.split(".")[0] for used in imports(file)}
    }
    assert knowing == {"vld.study.jobs", "vld.study.member_axes", "vld.study.typed_settings", "vld.study.words"}


def test_the_settings_need_no_library() -> None:
    used = {name for module, file in modules().items() if module.startswith("vld.config") for name in imports(file)}
    assert {name.split(".")[0] for name in used} <= {"vld", *sys.stdlib_module_names}
    assert all(name.startswith("vld.config") for name in used if name.split(".")[0] == "vld")


def functions(tree: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """With their full names."""
    for node in ast.iter_child_nodes(tree):
        inner = f"{name}.{node.name}" if isinstance(node, ast.ClassDef | ast.FunctionDef) else name
        if isinstance(node, ast.FunctionDef):
            yield inner, node
        yield from functions(node, inner)


def test_files_functions_and_their_parameters_stay_few_enough_to_read() -> None:
    """A file that is read in one go, a function on one screen, and a name that says which module is meant."""
    beyond: set[str] = set()
    by_stem: dict[str, list[str]] = {}
    for module, file in modules().items():
        source = file.read_text()
        by_stem.setdefault(file.stem, []).append(module)
        if (lines := source.count("\n")) > FILE_LINES:
            beyond.add(f"{module}: {lines} lines")
        for name, function in functions(ast.parse(source), module):
            given = function.args
            names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > FUNCTION_LINES:
                beyond.add(f"{name}: {lines} lines")
            if parameters > PARAMETERS:
                beyond.add(f"{name}: {parameters} parameters")
    del by_stem["__init__"]
    beyond |= {f"{' and '.join(sorted(names))}: one name" for names in by_stem.values() if len(names) > 1}
    assert beyond == BEYOND
