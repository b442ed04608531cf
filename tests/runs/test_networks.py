"""Combinations and analyses evaluate networks as training does: compiled where `compile` has it, images on the device."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_command import SMALLEST, script, tiny_weights, train
from torch import Tensor

from vld.data.views import EvaluationViews
from vld.machine.device import MemoryBudget
from vld.model.classifier import Classifier
from vld.runs.run import Session
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

    def counted(function: Callable[..., Tensor], graphs: bool = False) -> Callable[..., Tensor]:  # noqa: ARG001
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


@pytest.mark.parametrize("command", ["train.py", "combine.py", "analyse.py"])
def test_nothing_of_one_is_left_for_the_next(
    command: str, small_glyphs: Path, runs: tuple[str, ...], tmp_path: Path
) -> None:
    """Neither networks nor images, which would keep a GPU's memory. No collection comes by itself here."""
    options = {
        "train.py": (*SMALLEST, *MEMBERS[1:], f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "seed=2"),
        "combine.py": (*SMALLEST, *runs, "method=model_soup", *MEMBERS),
        "analyse.py": runs[:2],
    }
    gc.collect()
    gc.disable()
    try:
        done = script(command, *options[command])
        left = {type(one).__name__ for one in gc.get_objects() if type(one) in (Session, Classifier, EvaluationViews)}
    finally:
        gc.enable()
    assert done.returncode == 0, done.stderr
    assert not left
