"""The Architecture section of the README is how the code is: imports point one way."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

from commands import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
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


def layers() -> list[list[str]]:
    """The modules and folders in each row of the README's table, from the top."""
    [table] = re.findall(r"## Architecture\n.*?\n\| layer [^\n]*\n((?:\|[^\n]*\n)+)", README, re.S)
    return [re.findall(r"`(\w+)/?`", row.split("|")[2]) for row in table.splitlines()[1:]]


def layer_of(module: str) -> int | None:
    top = module.split(".")[1] if "." in module else None
    return next((number for number, names in enumerate(layers()) if top in names), None)


def test_every_module_has_its_layer() -> None:
    listed = [name for row in layers() for name in row]
    there = {name.split(".")[1] for name in modules() if "." in name}
    assert sorted(listed) == sorted(there)


def test_imports_point_down_or_stay_within_a_layer_and_never_in_circles() -> None:
    files = modules()
    uses = {name: imports(file) & files.keys() - {name} for name, file in files.items()}
    upward = [
        f"{name} imports {used}"
        for name, its in uses.items()
        for used in its
        if (here := layer_of(name)) is not None and (there := layer_of(used)) is not None and there < here
    ]
    assert not upward
    packages = {
        name for name, file in files.items() if file.name == "__init__.py"
    }  # a folder's own module imports from it
    order = TopologicalSorter({name: its - packages for name, its in uses.items()})
    assert len(list(order.static_order())) >= len(files) - len(packages)  # raises CycleError, which names the circle


def test_the_training_loop_knows_no_hydra_no_w_and_b_and_no_terminal() -> None:
    """Nor what it is made from: everything in its layer and below."""
    training = layer_of("vld.training")
    assert training is not None
    below = {
        name: file for name, file in modules().items() if (layer := layer_of(name)) is not None and layer >= training
    }
    assert {"vld.model", "vld.data.store", "vld.settings"} <= below.keys()
    knows = {name: {used.split(".")[0] for used in imports(file)} & KNOWS_NOTHING_OF for name, file in below.items()}
    assert not {name: its for name, its in knows.items() if its}
