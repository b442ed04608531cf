"""Which settings make two runs different runs, and which do not: every one is on one side or the other."""

import dataclasses
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vld.config.checks import option_names
from vld.config.settings import BackboneConfig, Config, DatasetConfig, MethodConfig
from vld.runs.identity import NOT_IDENTITY, flat_settings, run_id, run_identity, weights_fingerprint

# Another value for every setting that changes a run's numbers …
CHANGES_NUMBERS: dict[str, Any] = {
    "dataset.name": "vlcs",
    "dataset.store_size": 300,
    "backbone.name": "other",
    "backbone.library": "timm",
    "backbone.architecture": "resnet50",
    "backbone.mean": [0.5, 0.5, 0.5],
    "backbone.std": [0.5, 0.5, 0.5],
    "backbone.feature_scale": 0.1,
    "backbone.tuning": "linear",
    "backbone.normalize": "none",
    "backbone.stage_dropout": [0.0, 0.1],
    "backbone.stage_dropout_kind": "channel",
    "backbone.stochastic_depth": 0.1,
    "dropout_schedule": "rising",
    "optim.name": "adam",
    "optim.lr": 5e-4,
    "optim.weight_decay": 5e-5,
    "optim.momentum": 0.8,
    "optim.steps": 9_999,
    "optim.milestones": [5_000, 8_000],
    "optim.gamma": 0.5,
    "optim.last_layer_lr_factor": 10.0,
    "image_size": 96,
    "dropout": 0.95,
    "batch_size": 16,
    "eval_every": 100,
    "averaging.start": 1,
    "averaging.interval": 300,
    "dataset.curve_images": 500,
    "ensemble.start": 1,
    "ensemble.every": 100,
    "seed": 1,
    "split_seed": 1,
    "head_seed": 1,
}
# … and for every one that does not.
CHANGES_NO_NUMBERS: dict[str, Any] = {
    "study.name": "figure2",
    "study.shares": ["figure3"],
    "study.combinations": ["model_soup"],
    "study.members": ["seed"],
    "dry_run": True,
    "compile": "true",
    "dataset.folder": "elsewhere",
    "dataset.csv": "elsewhere.csv",
    "dataset.verify": "warn",
    "dataset.mirror": "https://elsewhere",
    "backbone.published": "another source of the same tensors",
    "backbone.weights": "/a/copy/of/the/same/file",
    "method.name": "ensemble",
    "method.members": ["seed=0,1"],
    "method.member_step": "iid",
    "method.average": "softmax",
    "data_dir": "/elsewhere",
    "output_dir": "/elsewhere",
    "test_domain": ["sketch"],
    "keep": [],
    "checkpoint_every": 1.0,
    "if_running": "skip",
    "device": "cpu",
    "precision": "fp32",
    "deterministic": True,
    "wandb.mode": "disabled",
    "wandb.project": "other",
    "wandb.entity": "somebody",
}


def config() -> Config:
    return Config(
        dataset=DatasetConfig(name="pacs", folder="PACS"),
        backbone=BackboneConfig(name="resnet18", architecture="resnet18"),
        method=MethodConfig(name="erm"),
    )


def identified(settings: Config, **changes: str) -> str:
    known = {"dataset_fingerprint": "d", "weights_fingerprint": "w", "precision": "fp32", "test_domain": "sketch"}
    return run_id(run_identity(settings, **(known | changes)))


def changed(name: str, value: Any) -> Config:
    settings = config()
    *group, leaf = name.split(".")
    owner = getattr(settings, group[0]) if group else settings
    assert dataclasses.is_dataclass(owner)
    setattr(owner, leaf, value)
    return settings


def test_every_setting_is_on_one_side() -> None:
    assert set(CHANGES_NUMBERS) | set(CHANGES_NO_NUMBERS) == set(option_names())
    assert set(CHANGES_NUMBERS).isdisjoint(CHANGES_NO_NUMBERS)
    assert set(flat_settings(config())) == set(option_names())
    assert set(CHANGES_NO_NUMBERS) == NOT_IDENTITY


@pytest.mark.parametrize("name", CHANGES_NUMBERS)
def test_what_changes_the_numbers_makes_another_run(name: str) -> None:
    assert flat_settings(config())[name] != CHANGES_NUMBERS[name]
    assert identified(changed(name, CHANGES_NUMBERS[name])) != identified(config())


@pytest.mark.parametrize("name", CHANGES_NO_NUMBERS)
def test_what_does_not_is_the_same_run(name: str) -> None:
    assert identified(changed(name, CHANGES_NO_NUMBERS[name])) == identified(config())


@pytest.mark.parametrize("name", ["test_domain", "dataset_fingerprint", "weights_fingerprint", "precision"])
def test_what_the_settings_resolve_to_makes_the_run(name: str) -> None:
    assert identified(config(), **{name: "other"}) != identified(config())


def test_a_new_protocol_makes_new_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identified(config())
    monkeypatch.setattr("vld.runs.identity.PROTOCOL_VERSION", 10**6)
    assert identified(config()) != before


def test_weights_are_known_by_their_tensors_not_their_order_or_file() -> None:
    a, b = torch.arange(6.0), torch.ones(2, 3, dtype=torch.bfloat16)
    fingerprint = weights_fingerprint({"a": a, "b": b})
    assert weights_fingerprint({"b": b.clone(), "a": a.clone()}) == fingerprint
    others = [
        {"a": a + 1e-6, "b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a, "c": b},
        {"a": a, "b": b.float()},
        {"a": a},
        None,
    ]
    assert len({weights_fingerprint(other) for other in others} | {fingerprint}) == len(others) + 1


@given(
    st.dictionaries(
        st.text(),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans(),
    )
)
def test_settings_read_back_from_yaml_have_the_same_id(settings: dict[str, Any]) -> None:
    written = yaml.safe_dump({"identity": settings}, sort_keys=True)
    assert run_id(yaml.safe_load(written)["identity"]) == run_id(settings)
