"""A custom regulariser, added to a copy of the sources as vld/model/README.md says: every line that it takes is here."""

import json
from pathlib import Path

import pytest
from run_command import SMALLEST, changed_copy

ADDED = (
    (
        "vld/config/settings.py",
        "    stochastic_depth: float = option(",
        '    drop_maps: float = option(0.0, "drop each map of each convolution", must.RATE, identity=IF_CHANGED)\n',
    ),
    (
        "vld/model/dropout.py",
        "    _place_stochastic_depth(backbone, settings)\n",
        """    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and settings.drop_maps:
            module.register_forward_hook(lambda its, _, maps: dropout2d(maps, settings.drop_maps, its.training))
""",
    ),
    ("vld/model/dropout.py", "from torch import Tensor, nn\n", "from torch.nn.functional import dropout2d\n"),
)


@pytest.mark.slow
def test_a_regulariser_of_one_s_own(tmp_path: Path, small_glyphs: Path) -> None:
    """It is checked, acts in training, gives the same again, and is part of the id where it is set."""
    run = changed_copy(tmp_path, *((name, before, added + before) for name, before, added in ADDED))
    refused = run("train.py", "backbone.drop_maps=1")
    assert (refused.returncode, refused.stderr) == (2, "backbone.drop_maps=1.0: must be in [0, 1)\n")
    options = (*SMALLEST, f"data_dir={small_glyphs}", "test_domain=chalk", "optim.steps=6", "eval_every=3")
    for folder, rates in (("with", "0,0.5"), ("again", "0.5")):
        out = (f"output_dir={tmp_path / folder}", "wandb.mode=disabled")
        done = run("train.py", "-m", f"backbone.drop_maps={rates}", *options, *out)
        assert done.returncode == 0, done.stderr
    results = {
        folder: {
            result["settings"].get("backbone.drop_maps"): (path.parent.name, result["results"], path.parent)
            for path in (tmp_path / folder / "runs").glob("*/*/*/result.json")
            for result in [json.loads(path.read_text())]
        }
        for folder in ("with", "again")
    }
    assert results["with"].keys() == {None, 0.5}
    losses = {
        rate: json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["train_loss"]
        for rate, (_, _, path) in results["with"].items()
    }
    assert losses[0.5] != losses[None]
    assert results["with"][0.5][:2] == results["again"][0.5][:2]
