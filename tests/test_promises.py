"""promises.md names tests that there are, and holds every promise by something."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
MARK = re.compile(r"by hand: \S.*|needs a GPU: training/test_gpu\.py::test_\w+|CI itself|open: \S.*")
NAMED = re.compile(r"([\w/]+\.py)::(test_\w+)")


def promises() -> dict[str, list[str]]:
    """What holds each row of the tables, by its section and text."""
    rows: dict[str, list[str]] = {}
    section = ""
    for line in (TESTS / "promises.md").read_text().splitlines():
        if line.startswith("## "):
            section = line
        elif line.startswith("| ") and line != "| promise | held by |":
            promise, held_by = line.removeprefix("| ").removesuffix(" |").split(" | ")
            name = f"{section}: {promise}"
            assert name not in rows, f"twice: {name}"
            rows[name] = held_by.split("<br>")
    return rows


@cache
def functions(file: str) -> set[str]:
    """Those at module level of a file of tests."""
    path = TESTS / file
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall((TESTS / "promises.md").read_text())
    assert len(named) > 100
    assert not [f"{file}::{test}" for file, test in named if test not in functions(file)]


def test_every_promise_is_held_by_a_test_or_says_by_what() -> None:
    rows = promises()
    assert len(rows) > 100
    unheld = {
        name: held_by
        for name, held_by in rows.items()
        if not all(NAMED.fullmatch(one) or MARK.fullmatch(one) for one in held_by)
    }
    assert not unheld
