"""Studies: their grids are the protocol's, they are checked and counted before the first job, and told from run directories."""

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from composed import command_jobs, composed, jobs, presets, study_jobs
from hydra import compose
from omegaconf import OmegaConf, open_dict
from run_command import REPOSITORY, TINY, script, tiny_weights, train

from vld.commands.status import show_status
from vld.commands.train import at_a_time
from vld.config.errors import UserError
from vld.config.options import flat_settings
from vld.machine.lock import LOCK
from vld.machine.terminal import Terminal
from vld.runs.directory import RunDirectory
from vld.runs.identity import hashable, run_id, run_identity
from vld.runs.reading import stored_identity
from vld.study import runner
from vld.study.jobs import Job, axes_of, study_axes
from vld.study.planned import PlannedRun, left_out_domains, planned_runs, shared_runs
from vld.study.progress import Progress, progress_of, seconds_to_go
from vld.study.typed_settings import with_values

STUDIES = sorted(path.stem for path in (REPOSITORY / "conf/study").glob("*.yaml"))
# Protocol, section 4: the runs that each figure adds to those before it.
NEW_RUNS = {
    "figure2": 576,
    "figure3": 576,
    "figure4": 432,
    "figure5": 288,
    "figure6": 576,
    "figure7": 0,
    "figure8": 576,
    "figure9": 192,
    "figure10": 0,
}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with presets():
        yield


def jobs_of_command(study: str, *words: str) -> list[Job]:
    """Of `study=… words`, which may also replace an axis by values that it does not have."""
    config = compose("train", overrides=[f"study={study}"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.overrides.task = [f"study={study}", *words]
    return jobs(*axes_of(config))


def test_another_study_is_narrowed_to_the_runs_that_it_has() -> None:
    assert study_axes("figure2", ["dropout=0.5"]) is None
    assert len(study_jobs("figure2", "dropout=0.5,0.9", "dataset=pacs", "wandb.mode=offline")) == 72


@pytest.mark.parametrize(
    ("words", "runs"),
    [(["test_domain=sketch"], 36), (["test_domain=[1,photo]"], 72), (["test_domain=all"], 144), ([], 144)],
)
def test_a_study_s_figure_shows_the_same_test_domains_of_other_studies(words: list[str], runs: int) -> None:
    """However they are written; each study has its own way."""
    words = ["dataset=pacs", *words]
    shared = shared_runs(jobs_of_command("figure3", *words), words)
    assert {study: len(its) for study, its in shared.items()} == {"figure2": runs}


def test_each_study_adds_the_protocol_s_runs() -> None:
    seen: set[str] = set()
    added = {}
    for study in NEW_RUNS:
        wanted = {run.key for run in planned_runs(study_jobs(study))}
        added[study] = len(wanted - seen)
        seen |= wanted
    assert added == NEW_RUNS
    assert len(seen) == 3216
    # Figure 1 here is an analogue of the paper's: its probes come on top, its fine-tuned runs are Figure 2's.
    figure1 = {run.key: run.config.backbone.tuning for run in planned_runs(study_jobs("figure1"))}
    assert len(figure1) == 96
    assert {tuning for key, tuning in figure1.items() if key in seen} == {"full"}
    assert len(figure1.keys() & seen) == 48


FACTOR = "optim.last_layer_lr_factor"
FIGURE2: dict[str, set[Any]] = {
    "dataset.name": {"vlcs", "pacs", "office_home", "terra_incognita"},
    "backbone.name": {"resnet50"},
    "backbone.tuning": {"full"},
    "dropout": {0.0, 0.9},
    FACTOR: {("without dropout", 1.0), ("with dropout", 1.0)},
    "optim.name": {"sgd"},
    "optim.lr": {1e-3, 5e-4},
    "optim.weight_decay": {1e-4, 5e-5, 1e-5},
    "optim.steps": {10_000},
    "optim.milestones": {(5_000,)},
    "seed": {0, 1, 2},
    "eval_every": {300},
    "averaging.start": {300},
    "averaging.interval": {1},
    "ensemble.start": {300},
    "ensemble.every": {300},
    "batch_size": {32},
    "image_size": {224},
}
RATES = {0.0, 0.5, 0.9, 0.95}
VLCS = {"dataset.name": {"vlcs"}, "dropout": RATES}


def settings_of(study: str) -> dict[str, set[Any]]:
    settings = [flat_settings(job.config) for job in study_jobs(study)]
    factors = {(f"{'with' if one['dropout'] else 'without'} dropout", one[FACTOR]) for one in settings}
    return {name: {hashable(one[name]) for one in settings} for name in FIGURE2} | {FACTOR: factors}


@pytest.mark.parametrize(
    ("study", "differences"),
    [
        ("figure2", {}),
        ("figure3", {"dropout": {0.5, 0.95}, FACTOR: {("with dropout", 1.0)}}),
        (
            "figure4",
            {
                "dataset.name": {"domain_net"},
                "dropout": RATES,
                "optim.lr": {3e-3, 5e-3},
                "optim.steps": {30_000},
                "optim.milestones": {(15_000, 25_000)},
                "eval_every": {1_000},
                "ensemble.start": {1_000},
                "ensemble.every": {1_000},
            },
        ),
        ("figure5", VLCS | {"backbone.name": {"resnet50_scratch"}, "optim.lr": {5e-3, 1e-2}}),
        ("figure6", {FACTOR: {("without dropout", 10.0), ("with dropout", 10.0)}}),
        ("figure7", {"dropout": {0.9}, FACTOR: {("with dropout", 1.0)}}),
        ("figure8", {"backbone.name": {"resnet50_v1"}, FACTOR: {("without dropout", 1.0), ("with dropout", 10.0)}}),
        ("figure9", VLCS | {"optim.weight_decay": {1e-2, 5e-3}, "backbone.tuning": {"linear"}}),
        ("figure10", VLCS | {"optim.weight_decay": {1e-2, 5e-3}, "backbone.tuning": {"linear"}}),
        (
            "figure1",
            {
                "dropout": {0.0},
                FACTOR: {("without dropout", 1.0)},
                "optim.lr": {1e-3},
                "optim.weight_decay": {1e-4},
                "backbone.tuning": {"full", "head"},
            },
        ),
    ],
)
def test_grids_are_the_protocol_s(study: str, differences: dict[str, set[Any]]) -> None:
    assert settings_of(study) == FIGURE2 | differences


def test_pacs_on_a_cpu_is_48_runs_and_a_quarter_of_them_for_one_seed_and_rate() -> None:
    assert len(planned_runs(study_jobs("pacs_cpu"))) == 48
    narrowed = study_jobs("pacs_cpu", "seed=0", "optim.lr=1e-3")
    assert len(planned_runs(narrowed)) == 12
    assert {job.config.seed for job in narrowed} == {0}
    assert {job.config.optim.lr for job in narrowed} == {1e-3}
    expected = {
        "dataset.name": {"pacs"},
        "backbone.name": {"efficientnet_lite0"},
        "dropout": {0.0, 0.5, 0.9},
        "image_size": {48},
        "optim.steps": {2_000},
    }
    assert expected.items() <= settings_of("pacs_cpu").items()


def test_rivals_on_a_cpu_differ_in_their_part_alone_and_come_a_seed_after_another() -> None:
    runs = planned_runs([*study_jobs("rivals_pacs_cpu"), *study_jobs("rivals_pacs_cpu_rates")])
    assert [run.config.seed for run in runs] == sorted([0, 1, 2] * 32) + [0] * 32
    seed = runs[:32]
    assert len({(run.test_domain, run.config.recipe.name, run.config.dropout) for run in seed}) == 32
    parts = {run.config.recipe.name: (run.config.mixout, run.config.warm_start) for run in runs}
    assert parts == {"erm": (0, 0), "mixout_05": (0.5, 0), "mixout_08": (0.8, 0), "warm_start_100": (0, 100)}
    assert all(run.config.swad.enabled for run in runs)
    equal = {"mixout": 0.0, "mixout_kind": "filter", "warm_start": 0, "recipe.name": None}
    without = [with_values(run.config, equal | {"study.name": None, "study.shares": []}) for run in runs]
    rates = [config for config in without if config.optim.lr == 3e-4]
    assert len(rates) == 32
    same = {"test_domain": 0, "seed": 0, "dropout": 0.0, "optim.lr": 1e-3}
    [(steps, milestones)] = {(c.optim.steps, tuple(c.optim.milestones)) for c in without}
    assert (steps, milestones) == (1_000, (500,))
    assert all(with_values(config, same) == with_values(without[0], same) for config in without)


def test_rivals_are_crossed_with_dropout() -> None:
    runs = planned_runs(study_jobs("rivals", "seed=0"))
    assert len({run.key for run in runs}) == len(runs)
    assert all(run.config.swad.enabled == (run.config.recipe.name == "swad") for run in runs)
    recipes = {run.config.recipe.name for run in runs}
    assert {(run.config.recipe.name, run.config.dropout) for run in runs} == set(itertools.product(recipes, (0.0, 0.9)))
    assert {"paper", "swad", "erm_plus_plus", "high_rate_mixout", "lp_ft"} <= recipes
    warm = [run.config for run in runs if run.config.warm_start]
    assert warm and all(min(one.averaging.start, one.ensemble.start) > one.warm_start for one in warm)


def test_rivals_leave_out_every_domain_that_a_dataset_has() -> None:
    runs = planned_runs(command_jobs("rivals", "dataset=domain_net", "seed=0", "recipe=swad", "dropout=0"))
    assert len({run.test_domain for run in runs}) == len(runs) == 6


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_says_its_name_and_knows_the_studies_it_shares_runs_with(study: str) -> None:
    config = study_jobs(study)[0].config
    assert config.study.name == study
    assert set(config.study.shares) <= set(STUDIES)
    axes = compose("train", overrides=[f"study={study}"], return_hydra_config=True).hydra.sweeper.params
    assert set(config.study.members) <= set(axes)


def test_figure8_and_figure6_share_the_other_backbone_s_runs() -> None:
    """#2 with all tricks is Figure 6's with dropout, #2 naive Figure 2's without."""
    tricks = {run.key for run in planned_runs(jobs_of_command("figure8", "backbone=resnet50", "dropout=0.9"))}
    naive = {run.key for run in planned_runs(jobs_of_command("figure8", "backbone=resnet50", "dropout=0"))}
    assert tricks == {run.key for run in planned_runs(study_jobs("figure6", "dropout=0.9"))}
    assert naive == {run.key for run in planned_runs(study_jobs("figure2", "dropout=0"))}


def test_any_axis_is_narrowed_on_the_command_line() -> None:
    words = ["dataset=pacs", "seed=1,2", "optim.lr=2e-3", "test_domain=sketch"]
    narrowed = jobs_of_command("figure2", *words)
    assert len(narrowed) == 2 * 3 * 2
    assert {job.config.dataset.name for job in narrowed} == {"pacs"}
    assert {job.config.optim.lr for job in narrowed} == {2e-3}
    assert {run.test_domain for run in planned_runs(narrowed)} == {"sketch"}


def test_jobs_are_what_hydra_composes() -> None:
    """Made quickly from a few compositions, where settings refer to others (of figure 8 one does) and where none does; each
    equals its own."""
    for study in ("figure8", "figure2"):
        presets = ("dataset=pacs,vlcs", "optim=adam,sgd", "backbone=resnet50_v1,resnet18")
        values = ("optim.milestones=[5],[6]", "output_dir=a,b", "data_dir=here,${output_dir}")
        made = jobs_of_command(study, *presets, "seed=0", "optim.weight_decay=1e-4", "test_domain=0", *values)
        assert len(made) == 2**5 * 2**3
        for job in made[::13]:
            assert composed(*job.overrides) == job.config
        made[0].config.optim.milestones.append(7)
        assert all(job.config.optim.milestones in ([5], [6]) for job in made[1:])


def test_a_reference_is_to_each_job_s_own_value() -> None:
    """On the command line, and in a study's file; not to the default of what is swept."""
    config = compose("train", overrides=["study=figure2"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.overrides.task = ["optim.lr=1e-2,1e-3", "optim.weight_decay=${optim.lr}"]
        config.hydra.sweeper.params = {"averaging.start": "${eval_every}", "eval_every": "5,10"}
    made = jobs(*axes_of(config))
    assert len(made) == 4
    assert all(job.config.optim.weight_decay == job.config.optim.lr for job in made)
    assert all(job.config.averaging.start == job.config.eval_every for job in made)
    assert len({(job.config.optim.lr, job.config.eval_every) for job in made}) == 4


STUDY_FILE = "# @package _global_\nstudy: {study}\nhydra: {hydra}\n"


@pytest.mark.parametrize(
    ("study", "hydra", "said"),
    [
        ("{name: bad}", "{sweeper: {params: {seed: '0,1'}}}", "study=bad: its file must set hydra.mode: MULTIRUN"),
        ("{}", "{mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}", "study=bad: its file must set study.name"),
        ("{name: bad, members: [sed]}", "{mode: MULTIRUN}", "study.members: sed: no such option, did you mean seed?"),
    ],
)
def test_a_study_file_that_lacks_something_is_refused(study: str, hydra: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/bad.yaml").write_text(STUDY_FILE.format(study=study, hydra=hydra))
    done = train("--config-dir", str(tmp_path), "study=bad", "dataset=glyphs", f"output_dir={tmp_path / 'o'}")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        *(
            (command, ["study=figur2"], "study=figur2: must be one of demo, figure1, figure10, figure2, ")
            for command in ("train.py", "status.py", "combine.py")
        ),
        *(
            (command, ["dataset=glyphs", "dry_run=true"], "dry_run=true: only train.py has it")
            for command in ("combine.py", "benchmark.py")
        ),
        ("train.py", ["study=demo", "method=model_soup"], "combine.py study=demo"),
        (
            "train.py",
            ["seed=0,1", "-m", "hydra/launcher=parallel", "hydra.launcher.n_jobs=0"],
            "must be at least 1, or -1",
        ),
        ("status.py", ["dataset=glyphs", "backbone=resnet18", "wtch=true"], "did you mean watch?"),
        ("status.py", ["dataset=glyphs", "backbone=resnet18", "format=xml"], "format=xml: must be one of table, json"),
    ],
)
def test_what_a_command_cannot_do_is_refused(command: str, options: list[str], said: str, tmp_path: Path) -> None:
    done = script(command, *options, f"data_dir={tmp_path}", f"output_dir={tmp_path / 'o'}")
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_dry_run_of_a_combination_has_its_members(small_glyphs: Path, tmp_path: Path) -> None:
    done = train(
        "dataset=glyphs", "backbone=efficientnet_lite0", "test_domain=0", "method=ensemble_of_runs", "dry_run=true",
        'method.members=["seed=0,1,2"]', f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'o'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "this command: 3 runs, 0 finished" in done.stdout


def test_a_dry_run_without_images_counts_runs_and_says_where_images_come_from(tmp_path: Path) -> None:
    """It fetches, draws and makes nothing, not even weights."""
    places = (f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'o'}")
    done = train("study=figure2", "dataset=pacs,vlcs", "seed=0", "dry_run=true", *places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("missing: ") == 96
    assert "figure2: 96 runs, 0 finished, 96 to do" in done.stdout
    fetching = [line for line in done.stdout.splitlines() if "scripts/prepare.py" in line]
    assert [line.split(":")[0] for line in fetching] == ["dataset=pacs", "dataset=vlcs"]
    assert f"python scripts/prepare.py dataset=vlcs data_dir={tmp_path / 'data'}" in fetching[1]
    glyphs = train("dataset=glyphs", "dry_run=true", *places)
    assert "this command: 4 runs, 0 finished" in glyphs.stdout
    assert "glyphs is not there yet; it is drawn before the first run" in glyphs.stdout
    own = train("dataset=folder", "dataset.name=mine", "dry_run=true", *places)
    assert own.returncode == 2
    assert own.stderr.startswith(f"dataset=mine: no folder {tmp_path / 'data/mine'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("mixout=0.8", "mixout_kind=point"), "mixout_kind=point: this backbone has no linear layers; use mixout_kind"),
        (("backbone.weights=no/such",), "backbone.weights=no/such: no such file"),
        (
            ("backbone.weights={given}", "backbone.last_layer=given"),
            "its last layer is for 1000 classes of 96 features, not",
        ),
        (("backbone.weights={given}", "image_size=32", "backbone.architecture=resnet10t"), "does not fit resnet10t"),
        (
            ("backbone.published=timm", "backbone.architecture=nope"),
            "backbone.architecture=nope: timm has no such model",
        ),
        (("backbone.stage_dropout=[0.1,0.2]",), "has 4 stages; give one rate for each, or one for all"),
    ],
)
def test_a_dry_run_without_images_refuses_what_does_not_suit_the_network(
    options: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    given = tiny_weights(tmp_path).partition("=")[2]
    tiny = ("backbone=timm", f"backbone.name={TINY}", "dataset=pacs", "image_size=32", "device=cpu")
    places = (f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'o'}", "dry_run=true")
    refused = train(*tiny, *(option.format(given=given) for option in options), *places)
    assert refused.returncode == 2, refused.stdout
    assert line in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("backbone=mobilenet_v2", "backbone.tuning=linear"), "backbone.tuning=linear: mobilenet_v2 has no three last"),
        (
            ("backbone=mobilenet_v2", "backbone.stochastic_depth=0.1"),
            "stochastic_depth=0.1: not known for mobilenet_v2",
        ),
        (("backbone=vit_b_16", "image_size=100"), "image_size=100: vit_b_16 cannot be made for it"),
    ],
)
def test_so_does_one_of_a_published_network_that_is_changed(
    options: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    places = (f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'o'}", "device=cpu")
    refused = train("dataset=pacs", *options, *places, "dry_run=true")
    assert refused.returncode == 2, refused.stdout
    assert line in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_random_and_published_weights_are_other_runs() -> None:
    words = ("dropout=0", "seed=0", "test_domain=0", "backbone.weights=null,none", "precision=fp32,bf16")
    assert len(planned_runs(jobs_of_command("demo", *words))) == 4


def test_the_domains_are_those_of_the_folder_that_is_there(tmp_path: Path) -> None:
    """A copy of VLCS may call them otherwise (`dataset.verify=warn` takes it); without one the known names hold."""
    for domain in ("CALTECH", "LABELME", ".hidden"):
        (tmp_path / "VLCS" / domain).mkdir(parents=True)
    [here] = study_jobs(
        "figure2", "dataset=vlcs", "dropout=0", "optim.lr=1e-3", "optim.weight_decay=1e-4", "seed=0", "test_domain=0"
    )
    assert left_out_domains(here.config) == ("Caltech101",)
    there = replace(here.config, data_dir=str(tmp_path))
    assert left_out_domains(there) == ("CALTECH",)
    assert left_out_domains(replace(there, test_domain="all")) == ("CALTECH", "LABELME")


def test_a_domain_of_an_own_dataset_may_have_a_plus_in_its_name(tmp_path: Path) -> None:
    """As training takes it: not as two domains that are left out at once."""
    [job] = jobs_of_command("demo", "dataset=folder", "dataset.name=mine", "dropout=0", "seed=0", "test_domain=b+a")
    config = replace(job.config, data_dir=str(tmp_path))
    assert left_out_domains(config) == ("a+b",)  # two, as far as is known here
    for domain in ("b+a", "c", "d"):
        (tmp_path / config.dataset.folder / domain).mkdir(parents=True)
    assert left_out_domains(config) == ("b+a",)
    assert left_out_domains(replace(config, test_domain="d+b+a")) == ("b+a+d",)
    with pytest.raises(UserError, match="test_domain=a: must be all or one of"):
        left_out_domains(replace(config, test_domain="a"))


def test_all_cores_are_so_many_jobs_at_a_time() -> None:
    launchers = {"n_jobs": -1}, {"n_jobs": 3}, {"array_parallelism": 64}, {}
    at_once = [at_a_time(OmegaConf.create({"hydra": {"launcher": launcher}})) for launcher in launchers]
    assert at_once == [len(os.sched_getaffinity(0)), 3, 64, 1]


# A custom study, run small.

SMALL_STUDY = """
# @package _global_
study:
  name: mine
  combinations: [model_soup, ensemble_of_runs]
  members: [optim.lr, seed]
  shares: [demo]

image_size: 16
batch_size: 1
eval_every: 2
optim:
  steps: 2
keep: [erm-last, erm-last-logits]

hydra:
  mode: MULTIRUN
  sweeper:
    params:
      dataset: glyphs
      backbone: timm
      backbone.name: {network}
      backbone.weights: {weights}
      optim.lr: 1e-3,1e-4
      seed: 0,1
      dropout: 0,0.5
      test_domain: 0,1
"""


@pytest.fixture(scope="module")
def own_study(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "study").mkdir()
    weights = tiny_weights(folder).partition("=")[2]
    (folder / "study/mine.yaml").write_text(SMALL_STUDY.lstrip().format(network=TINY, weights=weights))
    return ["--config-dir", str(folder), "study=mine"]


def test_a_study_of_one_s_own_from_end_to_end(own_study: list[str], small_glyphs: Path, tmp_path: Path) -> None:
    options = [*own_study, f"data_dir={small_glyphs}", f"output_dir={tmp_path / 'outputs'}"]

    def status(*more: str) -> tuple[int, str]:
        done = script("status.py", *options, *more)
        assert done.stderr == ""
        return done.returncode, done.stdout

    planned = train(*options, "dry_run=true")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("missing: glyphs/") == 16
    assert "mine: 16 runs, 0 finished, 16 to do; no estimate yet: no comparable run has finished" in planned.stdout
    assert " MB of disk" in planned.stdout
    assert not list((tmp_path / "outputs").rglob("runs"))
    nothing = script("combine.py", *options)
    assert nothing.returncode == 1
    for rate in ("0", "0.5"):
        line = rf"^not combined: dropout={rate}: method=\w+: \d of \d members are not finished"
        assert re.search(line, nothing.stdout, re.MULTILINE)
    alone = script("combine.py", *options, "optim.lr=1e-3", "seed=0")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.count(": one run for each test domain: nothing to combine") == 2  # dropout rates

    half = train(*options, "dropout=0.5")
    assert half.returncode == 0, half.stderr
    assert "mine: 8 runs, 0 finished, 8 to do" in half.stdout
    # Each command's options are noted, and what each job got of them. Nothing from here on needs that.
    notes = tmp_path / "outputs/jobs"
    [of_command] = [yaml.safe_load(path.read_text()) for path in notes.rglob("multirun.yaml")]
    assert set(of_command["hydra"]["overrides"]["task"]) >= {"study=mine", "dropout=0.5", options[-1]}
    of_jobs = [yaml.safe_load(path.read_text()) for path in notes.rglob("overrides.yaml")]
    assert len(of_jobs) == 8
    assert all(options[-1] in words and any(word.startswith("seed=") for word in words) for words in of_jobs)
    shutil.rmtree(notes)
    code, table = status()
    assert code == 1
    assert "mine: 16 runs, 8 finished, 8 to do, about " in table
    assert "its figure also shows runs of demo: 0 of " in table
    assert status("dropout=0.5")[0] == 0
    combined = script("combine.py", *options)
    assert combined.returncode == 1  # of dropout 0 nothing is there
    made = [json.loads(path.read_text()) for path in (tmp_path / "outputs/combined").rglob("result.json")]
    assert {result["settings"]["dropout"] for result in made} == {0.5}
    trained = [json.loads(path.read_text()) for path in (tmp_path / "outputs/runs").rglob("result.json")]
    assert {result["batch_norm_statistics"] for result in trained} == {"frozen"}  # since weights are given
    assert "random" not in {result["settings"]["backbone.weights_fingerprint"] for result in trained}
    assert sorted((r["identity"]["method"], r["settings"]["test_domain"], len(r["members"])) for r in made) == [
        (method, domain, 4) for method in ("ensemble_of_runs", "model_soup") for domain in ("chalk", "mosaic")
    ]

    # A run that fails, one that was left, one that another process trains.
    runs = [path.parent for path in (tmp_path / "outputs/runs").rglob("result.json")]
    for path in runs[:3]:
        (path / "result.json").unlink()
    (runs[0] / "failure.json").write_text(json.dumps({"what": "the loss became nan at step 7"}))
    (runs[1] / LOCK).write_text("4242\nanother-machine\n")
    code, table = status("dropout=0.5")
    assert code == 1
    assert "the loss became nan at step 7" in table
    counts = json.loads(status("dropout=0.5", "format=json")[1])["counts"]
    assert counts == {"finished": 5, "running": 1, "interrupted": 1, "failed": 1, "missing": 0}
    (runs[1] / LOCK).unlink()
    again = train(*options, "dropout=0.5")
    assert again.returncode == 0, again.stderr
    assert "mine: 8 runs, 5 finished, 3 to do, about " in again.stdout
    assert again.stdout.count("already finished, skipped") == 5
    assert status("dropout=0.5", "watch=true")[0] == 0  # ends, since all is finished


def test_status_of_a_plain_sweep_and_of_one_command(tmp_path: Path) -> None:
    options = (
        "dataset=glyphs",
        "backbone=resnet18",
        "backbone.weights=none",
        "test_domain=0",
        f"output_dir={tmp_path}",
    )
    for words, runs in (([], "1 run"), (["-m", "seed=0,1,2"], "3 runs"), (["seed=0,1"], "2 runs")):
        done = script("status.py", *options, *words)
        assert done.returncode == 1, done.stderr
        assert f"this sweep: {runs}, 0 finished" in done.stdout


def test_each_run_is_named_by_what_tells_it_from_the_others(tmp_path: Path) -> None:
    """In a dry run; and status counts recipes apart."""
    places = (f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'o'}", "dry_run=true")
    one = ("dataset=glyphs", "backbone=resnet18", "test_domain=0")
    shown = train("-m", *one, "mixout=0,0.8", "warm_start=0,2", *places).stdout
    lines = [line for line in shown.splitlines() if line.startswith("missing")]
    assert len(set(lines)) == 4
    assert lines[-1].endswith("seed 0, mixout 0.8, warm start 2")
    [line] = [line for line in train(*one, *places).stdout.splitlines() if line.startswith("missing")]
    assert line == "missing: glyphs/chalk resnet18 dropout 0.9 lr 0.001 wd 0.0001 seed 0"
    counted = script("status.py", "study=rivals_pacs_cpu", "recipe=erm,mixout_05", places[1]).stdout
    rows = [line.replace("│", " ").split() for line in counted.splitlines() if "pacs" in line and "│" in line]
    assert [row[1:3] for row in rows] == [["erm", "0"], ["erm", "0.9"], ["mixout_05", "0"], ["mixout_05", "0.9"]]


def planned(**changes: Any) -> PlannedRun:
    words = ("dropout=0", "seed=0", "test_domain=chalk", "optim.steps=200", *(f"{k}={v}" for k, v in changes.items()))
    [job] = jobs_of_command("demo", *words)
    return planned_runs([job])[0]


def begun(run: PlannedRun, precision: str = "fp32", **other: Any) -> Path:
    """The directory that such a run has once it has begun."""
    identity = run_identity(
        run.config, "chalk", dataset_fingerprint=precision, weights_fingerprint="w", precision=precision
    )
    path = run.folder / run_id(identity | other)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"identity": identity | other, "other": {}}))
    return path


def test_a_run_is_known_by_its_settings_whatever_its_data_weights_and_precision(tmp_path: Path) -> None:
    run = planned(output_dir=tmp_path)
    failure = json.dumps({"what": "why"})
    [nothing] = progress_of([run])
    assert nothing.state == "missing"
    (begun(run, seed=5) / "failure.json").write_text(failure)  # another run's
    assert progress_of([run]) == [nothing]
    (begun(run) / "failure.json").write_text(failure)
    assert [(p.state, p.reason) for p in progress_of([run])] == [("failed", "why")]
    path = begun(run, "bf16")
    settings = yaml.safe_load((path / "config.yaml").read_text())["identity"]
    result = {"run_id": "", "results": [], "seconds": 50.0, "settings": settings}
    (path / "result.json").write_text(json.dumps(result))
    assert [(p.state, p.seconds) for p in progress_of([run])] == [("finished", 50.0)]
    backbone = repr(run.config.backbone)
    assert [p.state for p in progress_of([run], {backbone: "w"})] == ["finished"]
    assert progress_of([run], {backbone: "of another file"}) == [nothing]
    run.config.precision = "fp32"
    assert [p.state for p in progress_of([run])] == ["failed"]


def test_a_run_that_trains_tells_its_step_and_the_time_left(tmp_path: Path) -> None:
    run = planned(output_dir=tmp_path)
    path = begun(run)
    rows = ({"step": 0, "seconds": 0.0}, {"step": 50, "seconds": 10.0})  # of 200 steps
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = time.time() - 1000
    for state, seconds in (("interrupted", None), ("running", time.time()), ("interrupted", old)):
        if seconds is not None:
            (path / LOCK).write_text("4242\nanother-machine\n")
            os.utime(path / LOCK, (seconds, seconds))
        assert [(p.state, p.step, p.seconds_left) for p in progress_of([run])] == [(state, 50, 30.0)]


def test_a_run_that_has_just_finished_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process gave up its lock when there was a result, for which this one had looked already."""
    run = planned(output_dir=tmp_path)
    path = begun(run)
    (path / LOCK).touch()

    def looked(path: Path) -> dict[str, Any]:
        (path / LOCK).unlink()
        return stored_identity(path)

    monkeypatch.setattr("vld.study.progress.stored_identity", looked)
    assert [one.state for one in progress_of([run])] == ["running"]


def test_a_checkpoint_that_its_process_removes_meanwhile_takes_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint.pt").symlink_to("removed")  # listed, and then not there
    (tmp_path / "erm-last.safetensors").write_bytes(b"12345")
    held: list[int] = []
    monkeypatch.setattr(runner, "needed_disk", lambda *_, **its: (held.append(its["held"]) or 0, 0))
    settings = SimpleNamespace(output_dir=tmp_path)
    run = SimpleNamespace(config=settings, directory=RunDirectory(tmp_path), test_domain="chalk", dataset=None)
    runner._check_disk([run], Terminal())
    assert held == [5]


def test_watching_shows_it_again_until_all_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned()
    jobs = [Job((), run.config)]
    looks = [[Progress(run, state, step=50)] for state in ("running", "interrupted", "finished")]
    slept: list[float] = []
    monkeypatch.setattr("vld.commands.status.progress_of", lambda _: looks[len(slept)])
    monkeypatch.setattr("vld.commands.status.time", SimpleNamespace(sleep=slept.append))

    def shown(watch: bool) -> int:
        config = OmegaConf.create({"format": "table", "watch": watch, "hydra": {"overrides": {"task": []}}})
        return show_status(SimpleNamespace(config=config, jobs=jobs, runs=[run], title="mine"))

    assert shown(watch=False) == 1
    assert not slept
    assert capsys.readouterr().out.count("mine: 1 run, 0 finished") == 1
    assert shown(watch=True) == 0
    assert slept == [5.0, 5.0]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mine: 1 run, ")]
    assert [line.split(", ")[1] for line in lines] == ["0 finished", "0 finished", "1 finished"]


def test_seconds_to_go_are_those_of_runs_alike() -> None:
    done, unfinished, other = planned(), planned(), planned(image_size=64)
    finished = [Progress(done, "finished", seconds=seconds) for seconds in (10.0, 20.0, 90.0)]
    assert seconds_to_go([*finished, Progress(unfinished, "running", step=50)]) == pytest.approx(150 * 20 / 200)
    assert seconds_to_go(finished) == 0
    assert seconds_to_go([*finished, Progress(other, "missing")]) is None
