"""Custom regularisers, added to a copy of the sources as vld/model/README.md says: every line that they take is here."""

import json
from pathlib import Path

import pytest
from run_command import SMALLEST, changed_copy

# (file, what stands there, what the regulariser puts before it)
WITHIN_THE_BACKBONE = (
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
OF_WEIGHTS = (
    (
        "vld/model/weight_noise.py",
        "",
        """import torch
from torch import Tensor, nn
from torch.func import functional_call

from vld.config.errors import UserError
from vld.config.settings import Config


class WeightNoise:
    def __init__(self, backbone: nn.Module, config: Config) -> None:
        self.size, self.parameters = config.weight_noise, dict(backbone.named_parameters())

    @staticmethod
    def check(backbone: nn.Module, config: Config) -> list[str]:
        if config.image_size > 16:
            raise UserError("weight_noise: for small images")
        return ["weight_noise: to be read before training"]

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(len(its), generator=generator) for its in self.parameters.values()]

    def __call__(self, backbone: nn.Module, drawn: list[Tensor], images: Tensor) -> Tensor:
        noise = {name: 1 + self.size * its for name, its in zip(self.parameters, drawn, strict=True)}
        weights = {name: its * noise[name].view(-1, *[1] * (its.dim() - 1)) for name, its in backbone.named_parameters()}
        return functional_call(backbone, weights, (images,))
""",
    ),
    (
        "vld/config/settings.py",
        "    mixout: float = option(",
        '    weight_noise: float = option(0.0, "relative noise of weights", must.RATE, identity=IF_CHANGED)\n',
    ),
    ("vld/config/names.py", '"mixout",)\n', '"weight_noise", '),
    ("vld/model/regularisers.py", '"mixout": Mixout}\n', '"weight_noise": WeightNoise, '),
    ("vld/model/regularisers.py", "\n\nclass ", "from vld.model.weight_noise import WeightNoise\n"),
)
Added = tuple[tuple[str, str, str], ...]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "added"), [("backbone.drop_maps", WITHIN_THE_BACKBONE), ("weight_noise", OF_WEIGHTS)])
def test_a_regulariser_of_one_s_own(tmp_path: Path, small_glyphs: Path, name: str, added: Added) -> None:
    """It is checked, acts in training, gives the same again, and is part of the id where it is set."""
    run = changed_copy(tmp_path, *((file, before, added + before) for file, before, added in added))
    refused = run("train.py", f"{name}=1")
    assert (refused.returncode, refused.stderr) == (2, f"{name}=1.0: must be in [0, 1)\n")
    if added is OF_WEIGHTS:
        refused = run("train.py", "weight_noise=0.1", "mixout=0.8")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert refused.stderr.startswith("weight_noise, mixout: each has weights stand in")
        refused = run("train.py", "weight_noise=0.1", "backbone.tuning=head")
        assert refused.stderr.startswith(
            "weight_noise=0.1: acts on weights that are trained; needs backbone.tuning=full"
        )
    options = (*SMALLEST, f"data_dir={small_glyphs}", "test_domain=chalk", "optim.steps=6", "eval_every=3")
    if added is OF_WEIGHTS:
        refused = run("train.py", "weight_noise=0.1", *options, "image_size=32", "dry_run=true")
        assert (refused.returncode, refused.stderr) == (2, "weight_noise: for small images\n")
    for folder, rates in (("with", "0,0.5"), ("again", "0.5")):
        out = (f"output_dir={tmp_path / folder}", "wandb.mode=disabled")
        done = run("train.py", "-m", f"{name}={rates}", *options, *out)
        assert done.returncode == 0, done.stderr
        assert ("to be read before training" in done.stdout) is (added is OF_WEIGHTS)
    results = {
        folder: {
            result["settings"].get(name): (path.parent.name, result["results"], path.parent)
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
