"""Linear connectivity (Figure 1): both ends are the runs' own accuracies, and between them another way to the same numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from run_command import REPOSITORY, TINY_NETWORK, script, tiny_weights, train
from tiny import CPU, decode_dataset, make_evaluation_set, make_model
from torch import Tensor

from vld.config.settings import Config, DatasetConfig, MethodConfig, WandbConfig
from vld.data.folder import find_dataset
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.runs import load_model, load_results
from vld.study.combination import Combination, combine_all
from vld.study.members import Member
from vld.study.typed_settings import typed_config
from vld.tracking.background import Publisher
from vld.training.connectivity import ALPHAS, along_representations, between
from vld.training.evaluation import evaluation_images, evaluation_set, score

SMALL = (
    "dataset=glyphs",
    *TINY_NETWORK[:2],
    "image_size=32",
    "batch_size=2",
    "optim.steps=6",
    "eval_every=3",
    "optim.lr=0.02",
)
MEMBERS = 'method.members=["backbone.tuning=full,head"]'


@pytest.fixture(scope="module")
def combined(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run and a linear probe with two domains left out, and the line between them."""
    output_dir = tmp_path_factory.mktemp("outputs")
    options = (
        *SMALL,
        "method=connectivity",
        "test_domain=[chalk,neon]",
        tiny_weights(output_dir),
    )
    done = train(*options, f"data_dir={small_glyphs}", f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "α of the first member and 1 - α of the second" in done.stdout
    return output_dir


def results(output_dir: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(output_dir.glob(f"{kind}/*/*/*/result.json")):
        by_domain.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()) | {"path": path.parent})
    return by_domain


def test_the_line_from_the_other_end_is_another_combination() -> None:
    """α is the first member's share; a soup is the same in any order."""
    members = [Member(Path(name), {"run_id": name}) for name in ("ab", "cd")]

    def identity(method: str, *, backwards: bool) -> dict[str, Any]:
        config = Config(method=MethodConfig(name=method))
        return Combination(config, "chalk", members[::-1] if backwards else members).identity

    assert identity("connectivity", backwards=False) != identity("connectivity", backwards=True)
    assert identity("model_soup", backwards=False) == identity("model_soup", backwards=True)


def test_both_ends_are_the_runs_stored_accuracies(combined: Path) -> None:
    runs, lines = results(combined, "runs"), results(combined, "combined")
    assert list(runs) == list(lines) == ["chalk", "neon"]
    for domain, [line] in lines.items():
        by_tuning = {run["settings"].get("backbone.tuning", "full"): run for run in runs[domain]}
        assert set(by_tuning) == {"full", "head"}
        points = {(point["along"], point["alpha"]): point for point in line["connectivity"]}
        assert len(points) == 2 * 11
        for alpha, tuning in ((1.0, "full"), (0.0, "head")):
            [row] = [r for r in by_tuning[tuning]["results"] if (r["method"], r["selection"]) == ("erm", "last")]
            for along in ("weights", "representations"):
                for name in ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc"):
                    assert points[along, alpha][name] == row[name]
        assert line["results"][0]["ood_acc"] == points["weights", 0.5]["ood_acc"]
        assert [line["member_values"][member]["backbone.tuning"] for member in line["members"]] == ["full", "head"]


def test_it_takes_thirteen_evaluations(
    combined: Path, small_glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of the evaluation images through a backbone for each of 11 interpolated networks, and for both ends."""
    shutil.copytree(combined / "runs/glyphs/chalk", tmp_path / "runs/glyphs/chalk")
    weights = f"backbone.weights={combined / 'weights.pth'}"
    here = (weights, f"data_dir={small_glyphs}", f"output_dir={tmp_path}", "test_domain=chalk", "device=cpu")
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = typed_config(compose("train", overrides=[*SMALL, "method=connectivity", MEMBERS, *here]), Config)
    seen: list[int] = []
    representation = Classifier.representation

    def counted(model: Classifier, images: Tensor) -> Tensor:
        seen.append(len(images))
        return representation(model, images)

    monkeypatch.setattr(Classifier, "representation", counted)
    publisher = Publisher(WandbConfig(mode="disabled"), "outputs", say=print, warn=print)
    [outcome] = combine_all(config, Terminal(), publisher)
    assert outcome.result is not None, outcome.failure
    dataset = find_dataset(DatasetConfig(name="glyphs", folder="glyphs"), small_glyphs)
    sizes = {domain.name: len(domain.labels) for domain in dataset.domains}
    assert sum(seen) == 13 * evaluation_images(sizes, "chalk")


def test_between_the_ends_the_numbers_are_those_of_whole_networks(combined: Path, small_glyphs: Path) -> None:
    dataset = decode_dataset(
        find_dataset(DatasetConfig(name="glyphs", folder="glyphs"), small_glyphs), 32, 256, lambda *_: None
    )
    images = evaluation_set(dataset, "chalk", 0, CPU)
    pixels = torch.cat(list(images.images.chunks(1000)))
    [line] = results(combined, "combined")["chalk"]
    by_id = {run["run_id"]: run["path"] for run in results(combined, "runs")["chalk"]}
    first, second = (load_model(by_id[member]) for member in line["members"])
    points = {(point["along"], point["alpha"]): point for point in line["connectivity"]}
    middle = load_model(by_id[line["members"][0]])
    with torch.no_grad():
        for name, parameter in middle.named_parameters():
            parameter.copy_(0.3 * parameter + 0.7 * second.get_parameter(name))
        assert score(middle(pixels), images).ood_acc == points["weights", 0.3]["ood_acc"]
        mixture = 0.3 * first.representation(pixels) + 0.7 * second.representation(pixels)
        assert score(middle.head(mixture), images).iid_acc == points["representations", 0.3]["iid_acc"]


def test_networks_that_are_equal_stay_where_they_are() -> None:
    model, images = make_model().eval(), make_evaluation_set()
    logits = along_representations(model, model, images)
    assert len(logits) == len(ALPHAS) == 11
    for its in logits:
        torch.testing.assert_close(its, logits[0], rtol=1e-5, atol=1e-6)


def test_weights_between_two() -> None:
    first = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([3.0, -2.0]), "n": torch.tensor(4)}
    assert between(first, second, 0.25)["w"].tolist() == [2.5, -1.0]
    assert between(first, second, 1.0)["w"].tolist() == [1.0, 2.0]
    assert between(first, second, 0.0)["w"].tolist() == [3.0, -2.0]
    assert between(first, second, 0.25)["n"] == 3


def test_it_is_no_line_of_the_results_table(combined: Path) -> None:
    done = script("report.py", f"output_dir={combined}")
    assert done.returncode == 0, done.stderr
    text = (combined / "report/tables/results_glyphs.csv").read_text()
    assert "connectivity" not in text
    assert (combined / "report/figures/connectivity.png").is_file()
    assert "connectivity" in set(load_results(combined).method)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ('method.members=["seed=0,1,2"]', "connectivity takes two members"),
        ('method.members=["backbone.tuning=full,linear"]', "backbone.tuning=linear is another network"),
        ('method.members=["backbone.feature_scale=1,2"]', "backbone.feature_scale cannot vary"),
    ],
)
def test_members_that_make_no_line_are_refused(members: str, said: str, combined: Path) -> None:
    done = script("combine.py", *SMALL, "method=connectivity", members, f"output_dir={combined}")
    assert done.returncode == 2
    assert said in done.stderr


def test_soups_do_not_mix_tunings(combined: Path) -> None:
    done = script("combine.py", *SMALL, "method=model_soup", MEMBERS, f"output_dir={combined}")
    assert done.returncode == 2
    assert "backbone.tuning cannot vary among members" in done.stderr
