"""Every preset in conf/ composes, and every backbone, method and optimiser runs, small."""

import json
from pathlib import Path

import pytest
import yaml
from commands import REPOSITORY, train

from vld.settings import COMBINATIONS, METHODS

PRESETS = sorted(path for path in (REPOSITORY / "conf").glob("*/*.yaml") if path.parent.name != "study")
SMALL = ("dataset=glyphs", "test_domain=0", "image_size=32", "batch_size=1", "optim.steps=1", "dropout=0.5", "keep=[]")


def names(group: str) -> list[str]:
    return [path.stem for path in PRESETS if path.parent.name == group]


def run_small(data_dir: Path, output_dir: Path, *options: str) -> dict:
    done = train(*SMALL, *options, f"data_dir={data_dir}", f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr + done.stdout
    [result] = (output_dir / "runs/glyphs").rglob("result.json")
    return json.loads(result.read_text())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_preset_composes(path: Path) -> None:
    named = path.stem in ("folder", "timm")  # any dataset, any network: its name has to be said
    extra = [f"{path.parent.name}.name=mine"] if named else []
    composed = train("--cfg", "job", f"{path.parent.name}={path.stem}", *extra)
    assert composed.returncode == 0, composed.stderr
    said = yaml.safe_load(composed.stdout)[path.parent.name]
    assert said["name"] == ("mine" if extra else path.stem)


@pytest.mark.parametrize("backbone", [name for name in names("backbone") if name != "timm"])  # test_architectures.py
def test_backbone_runs_from_random_values(backbone: str, small_glyphs: Path, tmp_path: Path) -> None:
    result = run_small(small_glyphs, tmp_path, f"backbone={backbone}", "backbone.weights=none")
    assert result["settings"]["backbone.name"] == backbone
    assert result["settings"]["backbone.weights_fingerprint"] == "random"


def test_efficientnet_lite0_runs_with_its_packaged_weights(small_glyphs: Path, tmp_path: Path) -> None:
    result = run_small(small_glyphs, tmp_path, "backbone=efficientnet_lite0")
    assert result["settings"]["backbone.weights_fingerprint"] != "random"
    assert result["batch_norm_statistics"] == "frozen"


@pytest.mark.parametrize(
    ("group", "name"), [("optim", name) for name in names("optim")] + [("method", name) for name in METHODS]
)
def test_method_and_optimiser_run(group: str, name: str, small_glyphs: Path, tmp_path: Path) -> None:
    result = run_small(small_glyphs, tmp_path, "backbone=resnet18", "backbone.weights=none", f"{group}={name}")
    assert {row["method"] for row in result["results"]} == {"erm", "weight_averaging", "ensemble"}
    if group == "optim":
        assert result["settings"]["optim.name"] == name


@pytest.mark.parametrize("method", COMBINATIONS)
def test_combination_runs_with_all_its_members(method: str, small_glyphs: Path, tmp_path: Path) -> None:
    options = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}", f"method={method}")
    done = train(*SMALL, "image_size=16", "backbone=efficientnet_lite0", *options)
    assert done.returncode == 0, done.stderr + done.stdout
    [path] = (tmp_path / "combined/glyphs").rglob("result.json")
    result = json.loads(path.read_text())
    assert [row["method"] for row in result["results"]] == [method]
    members = 2 if method == "connectivity" else 2 * 3 * 3  # the paper's
    assert len(result["members"]) == members
    assert len(list((tmp_path / "runs/glyphs").rglob("result.json"))) == members


def test_every_method_preset_is_run() -> None:
    assert sorted(names("method")) == sorted(METHODS + COMBINATIONS)


@pytest.mark.parametrize("dataset", [name for name in names("dataset") if name not in ("glyphs", "folder")])
def test_dataset_preset_finds_its_folder(dataset: str, small_glyphs: Path, tmp_path: Path) -> None:
    """The folder that DomainBed uses; here filled with other images."""
    folder = yaml.safe_load((REPOSITORY / f"conf/dataset/{dataset}.yaml").read_text())["folder"]
    (tmp_path / folder).symlink_to(small_glyphs / "glyphs")
    done = train(
        *SMALL[1:],
        f"dataset={dataset}",
        "dataset.verify=warn",
        "backbone=resnet18",
        "backbone.weights=none",
        f"data_dir={tmp_path}",
        f"output_dir={tmp_path / 'outputs'}",
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(list((tmp_path / "outputs/runs" / dataset).rglob("result.json"))) == 1
