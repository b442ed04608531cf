"""Every preset in conf/ composes, and one's own; what no other test trains with trains."""

import json
import re
from pathlib import Path

import pytest
import yaml
from composed import composed
from run_command import REPOSITORY, TINY_NETWORK, train

PRESETS = sorted(path for path in (REPOSITORY / "conf").glob("*/*.yaml") if path.parent.name != "study")
SMALL = ("dataset=glyphs", "test_domain=0", "image_size=32", "batch_size=1", "dropout=0.5", "keep=[]")
SMALL += ("optim.steps=3", "eval_every=1", "warm_start=1", "averaging.start=2")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_preset_composes(path: Path) -> None:
    group, preset = path.parent.name, path.stem
    named = preset in ("folder", "timm")  # any dataset, any network: its name has to be said
    extra = [f"{group}.name=mine"] if named else []
    assert getattr(composed(f"{group}={preset}", *extra), group).name == ("mine" if extra else preset)


@pytest.mark.parametrize(
    ("recipe", "dataset", "steps", "eval_every", "threshold"),
    [
        ("swad", "pacs", 5000, 100, 1.3),
        ("swad", "vlcs", 5000, 50, 1.2),
        ("swad", "domain_net", 15000, 500, 1.3),
        ("domainbed", "vlcs", 5000, 300, 1.3),
        ("domainbed", "domain_net", 15000, 1000, 1.3),
        ("erm_plus_plus", "pacs", 20000, 300, 1.3),
        ("erm_plus_plus", "domain_net", 60000, 300, 1.3),
        ("high_rate_mixout", "office_home", 10000, 300, 1.3),
        ("high_rate_mixout", "domain_net", 15000, 300, 1.3),
        ("paper", "glyphs", 10000, 300, 1.3),
        ("paper", "domain_net", 30000, 1000, 1.3),
    ],
)
def test_a_recipe_follows_the_dataset(recipe: str, dataset: str, steps: int, eval_every: int, threshold: float) -> None:
    config = composed(f"recipe={recipe}", f"dataset={dataset}")
    assert (config.optim.steps, config.eval_every, config.swad.threshold) == (steps, eval_every, threshold)


@pytest.mark.parametrize(
    ("backbone", "mixout", "kind", "weight_decay"),
    [("resnet50", 0.8, "filter", 1e-4), ("vit_b_16", 0.9, "point", 1e-6), ("vit_l_16", 0.9, "point", 1e-6)],
)
def test_mixout_s_recipe_follows_the_backbone(backbone: str, mixout: float, kind: str, weight_decay: float) -> None:
    config = composed("recipe=high_rate_mixout", f"backbone={backbone}")
    assert (config.mixout, config.mixout_kind, config.optim.weight_decay) == (mixout, kind, weight_decay)


def test_options_win_over_a_recipe_s() -> None:
    config = composed("recipe=high_rate_mixout", "optim=sgd", "optim.steps=7", "mixout=0.5")
    assert (config.optim.name, config.optim.steps, config.mixout) == ("sgd", 7, 0.5)
    assert (config.optim.lr, config.dropout) == (3e-5, 0)
    for recipe in ("swad", "erm_plus_plus"):
        assert composed(f"recipe={recipe}", "method=model_soup").method.name == "model_soup"


@pytest.mark.parametrize(
    ("preset", "method"),
    [
        ("recipe=swad", "swad"),
        ("recipe=erm_plus_plus", "weight_averaging"),
        ("recipe=high_rate_mixout", "erm"),
        ("optim=adam", "erm"),
    ],
)
def test_a_preset_trains_and_puts_its_method_forward(
    preset: str, method: str, small_glyphs: Path, tmp_path: Path
) -> None:
    """The tests of the model train networks of all presets, most other tests methods and SGD."""
    done = train(*SMALL, preset, *TINY_NETWORK, f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(rf"│ {method}\b", done.stdout)
    [path] = (tmp_path / "runs/glyphs").rglob("result.json")
    result = json.loads(path.read_text())
    along = {"erm", "weight_averaging", "ensemble"} | ({"swad"} if method == "swad" else set())
    assert {row["method"] for row in result["results"]} == along
    assert result["settings"]["optim.name"] == "adam"


def test_presets_of_one_s_own(tmp_path: Path) -> None:
    """In a folder that the command names, with what the README says that they need."""
    backbone = {"name": "mine", "architecture": "resnet34", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    for group, content in (("dataset", {"name": "mine", "folder": "pictures"}), ("backbone", backbone)):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(yaml.safe_dump(content))
    mine = ("--config-dir", str(tmp_path), "dataset=mine", "backbone=mine")
    composed = train("--cfg", "job", *mine)
    assert composed.returncode == 0, composed.stderr
    config = yaml.safe_load(composed.stdout)
    assert (config["dataset"]["name"], config["dataset"]["folder"]) == ("mine", "pictures")
    assert backbone.items() <= config["backbone"].items()
    (tmp_path / "dataset/mine.yaml").write_text("name: mine\n")
    refused = train(*mine, f"output_dir={tmp_path / 'outputs'}")
    assert refused.returncode == 2
    assert refused.stderr == "dataset.folder: a value is needed, set dataset.folder=…\n"
    assert not (tmp_path / "outputs").exists()
