"""What README.md, --help and the design promise of defaults, presets and names, held to what a command composes."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from packaging.specifiers import SpecifierSet
from run_command import DOCUMENTATION, REPOSITORY

import vld.commands.main
from vld.commands.benchmark.forecast import EXPERIMENTS
from vld.commands.report import folder_name
from vld.commands.train import check_needed
from vld.config.errors import UserError
from vld.config.names import ALL_METHODS, WEIGHT_REGULARISERS
from vld.config.options import flat_settings
from vld.config.settings import Config
from vld.machine.device import MemoryBudget, resolve_precision, set_up
from vld.model.regularisers import OF_WEIGHTS
from vld.runs.inputs import check_inputs
from vld.study.jobs import Job, axes_of, jobs_of
from vld.study.member_axes import member_configs
from vld.study.typed_settings import typed_config, with_values
from vld.training.methods import METHODS_ALONG

# The command of the design's contract, and what else a run is made of.
DEFAULTS = {
    "dataset.name": "pacs",
    "data_dir": "data",
    "output_dir": "outputs",
    "test_domain": "all",
    "backbone.name": "resnet50",
    "backbone.weights": None,
    "backbone.published": "ResNet50_Weights.IMAGENET1K_V2",
    "backbone.normalize": "l2",
    "backbone.tuning": "full",
    "image_size": 224,
    "dropout": 0.9,
    "dropout_schedule": "constant",
    "method.name": "erm",
    "optim.name": "sgd",
    "optim.lr": 1e-3,
    "optim.weight_decay": 1e-4,
    "optim.momentum": 0.9,
    "optim.steps": 10_000,
    "optim.milestones": [5_000],
    "optim.gamma": 0.1,
    "optim.last_layer_lr_factor": 1.0,
    "batch_size": 32,
    "eval_every": 300,
    "seed": 0,
    "split_seed": 0,
    "head_seed": 0,
    "averaging.start": 300,
    "averaging.interval": 1,
    "ensemble.start": 300,
    "ensemble.every": 300,
    "keep": ["erm-last", "erm-last-logits"],
    "checkpoint_every": 300.0,
    "if_running": "wait",
    "device": "auto",
    "precision": "auto",
    "compile": "auto",
    "deterministic": False,
    "wandb.mode": "auto",
}
LOOKING = ("selection", "run", "watch", "format")
"""What report.py and status.py have beside the options of train.py."""


@pytest.fixture(autouse=True)
def presets() -> Iterator[None]:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        yield


def config(*overrides: str) -> Config:
    return typed_config(compose("train", overrides=list(overrides)), Config)


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))


# Defaults


def test_the_defaults_are_the_paper_s() -> None:
    settings = flat_settings(config())
    assert {name: settings[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("command", ("train", "report", "status", "combine", "benchmark"))
def test_the_commands_that_help_shows_are_right(command: str) -> None:
    header = yaml.safe_load((REPOSITORY / f"conf/{command}.yaml").read_text())["hydra"]["help"]["header"]
    shown = re.findall(rf"^vld-{command} (.*?)(?:  .*)?$", header, re.M)
    assert shown
    for words in map(shlex.split, shown):
        single = [word for word in words if word != "-m" and "," not in word.split("[")[0]]
        axes = axes_of(compose(command, overrides=single, return_hydra_config=True), without=LOOKING)
        problems: dict[str, None] = {}
        assert list(jobs_of([*axes, *(word for word in words if word not in ("-m", *single))], problems))
        assert not problems


def test_members_are_the_paper_s_unless_said_otherwise() -> None:
    rates, decays, seeds = (1e-3, 5e-4), (1e-4, 5e-5, 1e-5), (0, 1, 2)
    for method in ("model_soup", "greedy_soup", "ensemble_of_runs"):
        members = member_configs(config(f"method={method}"))
        assert [tuple(values.values()) for values, _ in members] == list(itertools.product(rates, decays, seeds))
        assert [(m.optim.lr, m.optim.weight_decay, m.seed) for _, m in members] == [
            tuple(values.values()) for values, _ in members
        ]
    ends = member_configs(config("method=connectivity"))
    assert [member.backbone.tuning for _, member in ends] == ["full", "head"]
    others = member_configs(config("method=connectivity", 'method.members=["seed=0,1"]'))
    assert [member.seed for _, member in others] == [0, 1]


# Presets and names


def test_datasets_are_in_the_folders_that_domainbed_uses() -> None:
    known = {name: config(f"dataset={name}").dataset for name in names("dataset") if name not in ("folder", "glyphs")}
    assert {name: dataset.folder for name, dataset in known.items()} == {
        "pacs": "PACS",
        "vlcs": "VLCS",
        "office_home": "office_home",
        "terra_incognita": "terra_incognita",
        "domain_net": "domain_net",
    }
    limited = {name: dataset.curve_images for name, dataset in known.items() if dataset.curve_images is not None}
    assert limited == {"domain_net": 1000}
    [domain_net] = [experiment for experiment in EXPERIMENTS if experiment.datasets == ("domain_net",)]
    assert domain_net.curve_images == 1000  # what the benchmark's forecast counts with


def test_two_backbones_have_their_features_scaled() -> None:
    backbones = [name for name in names("backbone") if name != "timm"] + ["timm backbone.name=resnet10t"]
    scales = {name: config(*f"backbone={name}".split()).backbone.feature_scale for name in backbones}
    assert {name: scale for name, scale in scales.items() if scale != 1} == {
        "efficientnet_lite0": 0.1,
        "mobilenet_v2": 0.1,
    }


def test_every_regulariser_of_weights_is_in_both_tables() -> None:
    assert tuple(OF_WEIGHTS) == WEIGHT_REGULARISERS


def test_a_method_needs_no_more_than_documented() -> None:
    """A row in vld/config/names.py with a label, colour and marker of its own; a preset if it has members, else a class."""
    assert sorted(names("method")) == sorted(method.name for method in ALL_METHODS if method.combines)
    assert list(METHODS_ALONG) == [method.name for method in ALL_METHODS if not method.combines]
    for looks in zip(*((method.label, method.color, method.marker) for method in ALL_METHODS), strict=True):
        assert len(set(looks)) == len(ALL_METHODS)


def test_every_script_is_installed_as_a_command() -> None:
    commands = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    stems = [path.stem for path in (REPOSITORY / "scripts").glob("*.py")]
    assert commands == {f"vld-{stem}": f"vld.commands.main:{stem}" for stem in stems}
    assert all(callable(getattr(vld.commands.main, stem)) for stem in stems)


def test_a_study_s_report_has_a_folder() -> None:
    assert [folder_name(words) for words in ([], ["study=demo"], ["study=pacs_cpu", "data_dir=/data"])] == [
        "",
        "demo",
        "pacs_cpu",
    ]


# The device


def test_precision_on_a_cpu_and_a_gpu() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        set_up(torch.device("cpu"), deterministic=False)
        assert [backend.allow_tf32 for backend in backends] == [False, False]
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [resolve_precision("auto", device) for device in (cpu, gpu)] == ["fp32", "bf16"]
    assert [resolve_precision("fp32", gpu), resolve_precision("bf16", cpu)] == ["fp32", "bf16"]


def test_images_take_40_percent_of_free_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is free once torch has given back what it keeps for later."""
    free = [700]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free[0], 2000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(free.pop() + 300))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    said: list[str] = []
    memory = MemoryBudget(torch.device("cuda"), said.append)
    assert [memory.on_device("some", 300), memory.on_device("more", 200), memory.on_device("few", 100)] == [
        True,
        False,
        True,
    ]
    assert [line.partition(": ")[2].split(" (")[0] for line in said] == [
        "in GPU memory",
        "read as they are needed",
        "in GPU memory",
    ]
    said.clear()
    assert not MemoryBudget(torch.device("cpu"), said.append).on_device("some", 1)
    assert not said


# Sweeps


def test_slurm_is_asked_for_what_the_readme_says() -> None:
    composed = compose("train", overrides=["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    said = re.search(r"`gpus_per_node=1 cpus_per_task=8 mem_gb=32 array_parallelism=64`", DOCUMENTATION)
    assert said
    defaults = {"gpus_per_node": 1, "cpus_per_task": 8, "mem_gb": 32, "array_parallelism": 64}
    defaults |= {"timeout_min": 1440, "signal_delay_s": 300}
    assert {name: composed[name] for name in defaults} == defaults
    assert "`hydra.launcher.timeout_min=1440`" in DOCUMENTATION
    assert "`signal_delay_s=300`" in DOCUMENTATION


@pytest.mark.parametrize(("gpus", "jobs"), [(4, 4), (1, 1), (0, 1)])
def test_a_job_at_a_time_on_each_gpu(gpus: int, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    composed = compose("train", overrides=["hydra/launcher=parallel"], return_hydra_config=True)
    assert composed.hydra.launcher.n_jobs == jobs


def test_an_older_python_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "scripts/constraints.txt", "scripts/environment.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    older = tmp_path / "python3.10"
    older.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.1 || exit 1\n')
    older.chmod(0o755)
    command = ["bash", "-c", f"source {tmp_path}/scripts/environment.sh"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(older)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Python 3.11 or newer is needed; this is Python 3.10.1.")
    assert not (tmp_path / ".venv").exists()


def test_pinned_packages_suit_the_oldest_python_that_is_accepted() -> None:
    """3.11.0; Debian 12 has 3.11.2."""
    accepted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = f"{accepted.removeprefix('>=')}.0"
    pinned = set((REPOSITORY / "scripts/constraints.txt").read_text().lower().split())
    here = [its for its in distributions() if f"{its.name}=={its.version}".lower() in pinned]
    assert len(here) > 50
    wanted = {its.name: its.metadata.get("Requires-Python") or "" for its in here}
    assert {name: its for name, its in wanted.items() if not SpecifierSet(its).contains(oldest)} == {}


@pytest.mark.parametrize("drawn", [False, True])
def test_a_wrong_domain_is_refused_before_weights_are_fetched(tmp_path: Path, drawn: bool) -> None:
    if drawn:
        for folder in ("chalk/A", "chalk/B", "print/A", "print/B"):
            (tmp_path / "glyphs" / folder).mkdir(parents=True)
            for image in range(5):
                (tmp_path / "glyphs" / folder / f"{image}.png").touch()
    wrong = config("dataset=glyphs", "test_domain=chalks", "backbone.weights=/no/such.pth", f"data_dir={tmp_path}")
    with pytest.raises(UserError, match=r"test_domain=chalks: must be all or one of chalk \(0\), "):
        check_inputs(wrong)
    assert (tmp_path / "glyphs").exists() == drawn


def test_folders_and_weights_of_all_jobs_are_checked(tmp_path: Path) -> None:
    right = config("dataset=glyphs", "backbone=resnet18", "backbone.weights=none", f"data_dir={tmp_path}")
    wrong = [
        with_values(right, {"backbone.weights": "/no/such.pth"}),
        with_values(right, {"dataset.folder": "elsewhere", "dataset.name": "mine"}),
    ]
    with pytest.raises(UserError) as refused:
        check_needed([Job((), one) for one in (right, *wrong)], here=True)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["backbone.weights=/no/such.pth", "dataset=mine"]
