"""A run that starts from another run's weights, last layer included: LP-FT in two runs, and soups from one linear probe."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_command import TINY, TINY_NETWORK, tiny_weights, train
from safetensors.torch import load_file, save_file

from vld.config.settings import BackboneConfig, Config, DatasetConfig
from vld.model.classifier import Classifier, build_classifier, seeded_linear
from vld.model.weights import load_backbone_weights
from vld.runs.identity import weights_fingerprint
from vld.runs.reading import stored_config
from vld.runs.starting_weights import check_start

SMALL = ("dataset=glyphs", "image_size=32", "batch_size=1", "optim.steps=2", "eval_every=2", "dropout=0.5")
SMALL += ("test_domain=chalk", *TINY_NETWORK[:2])
KEPT = "erm-last.safetensors"


@pytest.fixture(scope="module")
def probe(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that trained the last layer alone."""
    folder = tmp_path_factory.mktemp("probe")
    places = (f"data_dir={small_glyphs}", f"output_dir={folder}")
    done = train(*SMALL, tiny_weights(folder), "backbone.tuning=head", "optim.lr=1", *places)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("runs/glyphs/chalk/*/result.json")
    return path.parent


def built(settings: BackboneConfig) -> Classifier:
    weights = load_backbone_weights(settings)
    return build_classifier(Config(backbone=settings, image_size=32), weights, classes=2)


def from_weights(path: Path, last_layer: str = "auto") -> BackboneConfig:
    return BackboneConfig(TINY, "timm", TINY, weights=str(path), last_layer=last_layer)


def test_it_starts_where_the_other_run_ended_or_with_a_last_layer_of_its_own(probe: Path, tmp_path: Path) -> None:
    kept = load_file(probe / KEPT)
    state = {name.removeprefix("backbone."): value for name, value in kept.items() if "head." not in name}
    plain = tmp_path / "plain.pth"
    torch.save(state | {f"fc.{part}": kept[f"head.{part}"] for part in ("weight", "bias")}, plain)
    starts = {
        (path, how): from_weights(path, how)
        for path, how in [
            (probe, "auto"),
            (probe / KEPT, "auto"),
            (plain, "given"),
            (probe / KEPT, "new"),
            (plain, "auto"),
        ]
    }
    for (path, how), settings in starts.items():
        model = built(settings).state_dict()
        own = {f"head.{name}": value for name, value in seeded_linear(96, 2, 0).state_dict().items()}
        is_new = how == "new" or (path, how) == (plain, "auto")
        expected = kept | (own if is_new else {})
        assert [name for name, value in expected.items() if not torch.equal(model[name], value)] == [], (path, how)
    prints = {start: weights_fingerprint(load_backbone_weights(settings)) for start, settings in starts.items()}
    assert prints[probe, "auto"] == prints[probe / KEPT, "auto"] != prints[probe / KEPT, "new"]
    assert prints[plain, "given"] != prints[plain, "auto"]


def test_a_soup_of_runs_from_one_linear_probe(probe: Path, small_glyphs: Path, tmp_path: Path) -> None:
    places = (f"backbone.weights={probe}", f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    done = train(*SMALL, "method=model_soup", 'method.members=["seed=0,1"]', *places)
    assert done.returncode == 0, done.stderr
    [soup] = tmp_path.glob("combined/glyphs/chalk/*/result.json")
    assert len(json.loads(soup.read_text())["members"]) == 2
    runs = [json.loads(path.read_text())["settings"] for path in tmp_path.glob("runs/glyphs/chalk/*/result.json")]
    expected = weights_fingerprint(load_backbone_weights(from_weights(probe)))
    assert [run["backbone.weights_fingerprint"] for run in runs] == [expected] * 2
    starts = [json.loads(path.read_text())["start"] for path in tmp_path.glob("*/glyphs/chalk/*/result.json")]
    assert len(starts) == 3  # the soup's, too
    assert set(starts) == {start_of(probe)}
    # W&B's groups are known before there is a result.
    others = [stored_config(path.parent)[1] for path in tmp_path.glob("runs/glyphs/chalk/*/config.yaml")]
    assert [other["start"] for other in others] == starts[:2]


def start_of(source: Path, test_domain: str = "chalk") -> str | None:
    config = Config(backbone=from_weights(source), dataset=DatasetConfig("glyphs", "glyphs"))
    return check_start(config, load_backbone_weights(config.backbone), ("A", "E"), (test_domain,))


@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({"test_domain": "neon", "backbone.weights_fingerprint": "0"}, False),
        ({"test_domain": "neon"}, True),
        ({"seed": 1}, False),
        ({"optim.lr": 2.0}, False),
    ],
)
def test_starts_of_several_test_domains_are_alike(
    changed: dict[str, object], alike: bool, probe: Path, tmp_path: Path
) -> None:
    content = json.loads((probe / "result.json").read_text())
    content["settings"] |= changed
    shutil.copy(probe / KEPT, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert (start_of(tmp_path, content["settings"]["test_domain"]) == start_of(probe)) is alike
    content["start"] = "of its own start"
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert start_of(tmp_path, content["settings"]["test_domain"]) != start_of(probe)


def test_a_result_json_of_the_user_s_own_is_no_run_s(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"accuracy": 0.9}')
    settings = BackboneConfig(weights=str(tmp_path / "weights.pth"))
    check_start(Config(backbone=settings), {"fc.weight": torch.ones(2, 96)}, ("a", "b"), ("sketch",))


REFUSED = {
    "left out": (
        ("test_domain=neon",),
        "its run trained on neon, which is left out here; it can start test_domain=chalk",
    ),
    "held out": (
        ("split_seed=1",),
        "its run trained on images that are held out here; it has split_seed=0 holdout=0.2",
    ),
    "all images": ((), "its run trained on images that are held out here; it has split_seed=0 holdout=0"),
    "other classes": (
        ("dataset=folder", "dataset.name=others", "dataset.folder=others"),
        "its run has a last layer for 2 other classes (A, E, …); use backbone.last_layer=new to start with a new one",
    ),
    "more classes": (
        (),
        "its last layer is for 3 classes of 96 features, not 2 classes of 96 features; backbone.las",
    ),
    "narrower": ((), "its last layer is for 2 classes of 64 features, not 2 classes of 96 features; backbone.last"),
    "without": (
        ("backbone.last_layer=given",),
        "has no last layer (named fc, classifier, head, heads) with a bias; set",
    ),
    "unfinished": (
        (),
        "holds no erm-last.safetensors, as a run does that kept erm-last; give a state_dict file, a run d",
    ),
}


@pytest.mark.parametrize("weights", ["none", "null"])
def test_only_a_file_gives_a_last_layer(weights: str, tmp_path: Path) -> None:
    """Refused before anything is downloaded, in a dry run too."""
    options = (f"backbone.weights={weights}", "backbone.last_layer=given", f"output_dir={tmp_path}", "dry_run=true")
    refused = train(*SMALL, *options)
    assert refused.returncode == 2
    assert refused.stderr.endswith("come without; needs backbone.weights=<run directory or file>\n")


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_does_not_fit_is_one_line(case: str, probe: Path, small_glyphs: Path, tmp_path: Path) -> None:
    source = probe
    if case in ("more classes", "narrower", "without"):
        kept = load_file(probe / KEPT)
        source, head = tmp_path / "w.safetensors", {"more classes": (3, 96), "narrower": (2, 64)}.get(case)
        kept = {name: value for name, value in kept.items() if "head." not in name}
        save_file(kept | ({"head.weight": torch.ones(head), "head.bias": torch.ones(head[0])} if head else {}), source)
    if case == "all images":
        source = tmp_path / "run"
        shutil.copytree(probe, source)
        result = json.loads((source / "result.json").read_text())
        (source / "result.json").write_text(json.dumps(result | {"settings": result["settings"] | {"holdout": 0}}))
    if case == "unfinished":
        source = tmp_path / "run"
        source.mkdir()
    if case == "other classes":
        shutil.copytree(small_glyphs / "glyphs", tmp_path / "others")
        for folder in (tmp_path / "others").glob("*/E"):
            folder.rename(folder.with_name("F"))
    data_dir = tmp_path if case == "other classes" else small_glyphs
    options, line = REFUSED[case]
    here = (f"backbone.weights={source}", f"data_dir={data_dir}", f"output_dir={tmp_path / 'outputs'}")
    done = train(*SMALL, *options, *here)
    assert done.returncode == 2, done.stderr
    assert line in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()
