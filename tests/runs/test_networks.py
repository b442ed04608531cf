"""Combinations and analyses evaluate networks as training does: compiled where `compile` has it, images on the device."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_command import SMALLEST, script, tiny_weights, train
from torch import Tensor

from vld.machine.device import MemoryBudget
from vld.training import compiled

MEMBERS = ('method.members=["seed=0,1"]', "optim.steps=2", "test_domain=chalk")
NETWORKS = {"model_soup": 1, "greedy_soup": 2, "connectivity": 13}
"""That are evaluated."""


@pytest.fixture(scope="module")
def runs(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    output_dir = tmp_path_factory.mktemp("outputs")
    here = (f"data_dir={small_glyphs}", f"output_dir={output_dir}", tiny_weights(output_dir))
    done = train("-m", *SMALLEST, *here, *MEMBERS[1:], "seed=0,1")
    assert done.returncode == 0, done.stderr
    return here


def numbers(output_dir: Path) -> list[dict[str, Any]]:
    """Of what has been made, which is removed, so that it is made again."""
    found: list[dict[str, Any]] = []
    for path in (*output_dir.glob("combined/*/*/*/result.json"), *sorted(output_dir.glob("runs/*/*/*/analysis.json"))):
        content = json.loads(path.read_text())
        analyses = [analysis[side] for analysis in content.get("analyses", {}).values() for side in ("iid", "ood")]
        # Of more images at once, which round otherwise in the last digits.
        found += [{name: round(its, 4) for name, its in one.items()} for one in analyses] or content["results"]
        path.unlink()
    return found


@pytest.mark.parametrize("what", [*NETWORKS, "analysis"])
def test_they_are_compiled_and_their_images_held_as_in_training(
    what: str, runs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    held: list[str] = []

    def counted(function: Callable[..., Tensor], graphs: bool) -> Callable[..., Tensor]:  # noqa: ARG001
        return lambda backbone, images, *others: (seen.append(len(images)), function(backbone, images, *others))[1]

    monkeypatch.setattr(compiled, "_compiled", counted)
    monkeypatch.setattr(MemoryBudget, "on_device", lambda self, what, *_: not held.append(what))  # noqa: ARG005
    made = []
    for how in ("compile=true", "compile=false"):
        if what == "analysis":
            done = script("analyse.py", *runs[:2], how)
        else:
            done = script("combine.py", *SMALLEST, *runs, f"method={what}", *MEMBERS, how)
        assert done.returncode == 0, done.stderr
        made.append(numbers(Path(runs[1].removeprefix("output_dir="))))
    assert made[0] == made[1] != []
    # One to try it out; of each of two runs that are analysed, and the images of its probe.
    assert seen == [64] * (2 * (1 + 1 + 1) if what == "analysis" else 1 + NETWORKS[what])
    assert held == ["evaluation images"] * (4 if what == "analysis" else 2)
