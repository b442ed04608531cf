"""What Weights & Biases is told: real offline runs read back, and a server on this machine that keeps what it gets."""

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_command import TINY, before_step, script, stopped_at, tiny_weights, train
from wandb_server import KEY, WandbServer, read_offline, serving

from vld.config.errors import UserError
from vld.config.settings import WandbConfig
from vld.runs.identity import run_id
from vld.tracking.background import Publisher
from vld.tracking.content import WandbRun, wandb_run_in_training, wandb_runs
from vld.tracking.workspace import build_workspace

OFFLINE = {"WANDB_MODE": "offline"}
METHODS = ["ensemble", "erm", "weight_averaging"]
ACCURACIES = ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc")


@pytest.fixture(scope="module")
def base(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return (
        "dataset=glyphs",
        "backbone=timm",
        f"backbone.name={TINY}",
        tiny_weights(tmp_path_factory.mktemp("weights")),
        "image_size=16",
        "batch_size=2",
        "optim.steps=6",
        "eval_every=2",
        "dropout=0.3",
        "keep=[]",
        "test_domain=0",
        f"data_dir={small_glyphs}",
    )


@pytest.fixture(scope="module")
def trained(base: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output_dir with one run, and nothing of W&B."""
    output_dir = tmp_path_factory.mktemp("outputs")
    done = train(*base, f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    assert "W&B" not in done.stdout
    assert not list(output_dir.rglob("*wandb*"))
    return output_dir


def run_dir(output_dir: Path) -> Path:
    [path] = output_dir.glob("runs/glyphs/*/*")
    return path


def offline_runs(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Every offline run that is there, by its id."""
    there = read_offline(output_dir)
    runs = {run["run_id"]: run for run in there}
    assert len(runs) == len(there)
    return runs


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """A row of history without what wandb adds."""
    return {name: value for name, value in row.items() if name == "_step" or not name.startswith("_")}


def rows_of(directory: Path, method: str) -> list[dict[str, Any]]:
    """What a run's history has to be, from its metrics.jsonl."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    expected = []
    for row in rows:
        if row["method"] != method:
            continue
        values = {"_step": row["step"], "lr": row["lr"], "feature_sq_norm": row["feature_sq_norm"]}
        values["val_loss"] = row["val_loss"]
        values |= {name: row[name] for name in ACCURACIES}
        if row["train_loss"] is not None:
            values["train_loss"] = row["train_loss"]
        for domain, parts in row["domain_acc"].items():
            values |= {f"domain/{domain}/{part}": acc for part, acc in parts.items() if acc is not None}
        expected.append(values)
    return expected


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(row["images_per_second"] > 0 for row in rows[1:])
    return [{name: value for name, value in measured(row).items() if name != "images_per_second"} for row in rows]


def check_equal(run: dict[str, Any], directory: Path, method: str) -> None:
    """A W&B run says what the run directory says."""
    result = json.loads((directory / "result.json").read_text())
    settings = result["settings"]
    assert run["run_id"] == f"{directory.name}-{method}"
    assert run["name"] == f"glyphs-chalk-{method}-d0.3-s{settings['seed']}-{directory.name[:8]}"
    assert re.fullmatch(rf"glyphs-{TINY}-d0.3-[0-9a-f]{{6}}", run["run_group"])
    assert run["job_type"] == method
    assert {"glyphs", "chalk", TINY, method} <= set(run["tags"])
    config = run["config"]
    assert (config["dataset"], config["test_domain"], config["method"]) == ("glyphs", "chalk", method)
    assert config["run_id"] == directory.name
    for name, setting in (
        ("backbone", "backbone.name"),
        ("dropout", "dropout"),
        ("lr", "optim.lr"),
        ("weight_decay", "optim.weight_decay"),
        ("seed", "seed"),
        ("steps", "optim.steps"),
        ("optim_milestones", "optim.milestones"),
        ("dataset_fingerprint", "dataset.fingerprint"),
    ):
        assert config[name] == settings[setting]
    assert (config["mixout"], config["swad_enabled"]) == (0, False)  # added later, at their defaults
    assert all(not isinstance(value, dict) for value in config.values())
    assert without_speed(run["history"]) == rows_of(directory, method)
    selected = {row["selection"]: row for row in result["results"] if row["method"] == method}
    summary = run["summary"]
    for name in (*ACCURACIES, "step"):
        assert summary[name] == selected["iid"][name]
        for selection, row in selected.items():
            assert summary[f"{selection}/{name}"] == row[name]
    assert summary["state"] == "finished"
    assert summary.get("failure") is None
    assert (run["state"], run["exit_code"]) == ("finished", 0)


def test_a_run_and_the_same_run_again(base: tuple[str, ...], tmp_path: Path) -> None:
    """Offline copies of a new run, read back, and none of one that has them already."""
    done = train(*base, f"output_dir={tmp_path}", env=OFFLINE)
    assert done.returncode == 0, done.stderr
    runs = offline_runs(tmp_path)
    assert sorted(run["job_type"] for run in runs.values()) == METHODS
    for run in runs.values():
        check_equal(run, run_dir(tmp_path), run["job_type"])
    assert f"W&B: 3 offline runs in {tmp_path}/wandb" in done.stdout
    again = train(*base, f"output_dir={tmp_path}", env=OFFLINE)
    assert again.returncode == 0
    assert offline_runs(tmp_path) == runs


@pytest.mark.slow
def test_an_interrupted_run_is_one_whole_copy(base: tuple[str, ...], tmp_path: Path) -> None:
    options = (*base, f"output_dir={tmp_path}")
    assert stopped_at(3, *options, env=OFFLINE).returncode == 143
    assert not (run_dir(tmp_path) / "result.json").exists()
    assert offline_runs(tmp_path) == {}
    done = train(*options, env=OFFLINE)
    assert "resuming at step" in done.stdout
    runs = offline_runs(tmp_path)
    assert len(runs) == 3
    for run in runs.values():
        check_equal(run, run_dir(tmp_path), run["job_type"])


@pytest.mark.slow
def test_a_failed_run_says_why_and_a_sweep_s_jobs_are_closed(base: tuple[str, ...], tmp_path: Path) -> None:
    """Two jobs in one process, the first of which diverges."""
    jobs = ("-m", "optim.lr=1e20,1e-3", f"output_dir={tmp_path}", "wandb.mode=offline")
    done = train(*base, *jobs)
    assert done.returncode == 1, done.stderr
    runs = offline_runs(tmp_path)
    by_state: dict[str, list[dict[str, Any]]] = {}
    for run in runs.values():
        by_state.setdefault(run["summary"]["state"], []).append(run)
    [good] = {run["config"]["run_id"] for run in by_state["finished"]}
    for run in by_state["finished"]:
        check_equal(run, tmp_path / "runs/glyphs/chalk" / good, run["job_type"])
    failed = {run["job_type"]: run for run in by_state["failed"]}
    failure = json.loads(next(tmp_path.rglob("failure.json")).read_text())
    for run in failed.values():
        assert run["summary"]["failure"] == failure["what"]
        assert run["exit_code"] == 1
        assert run["config"]["lr"] == 1e20
    directory = tmp_path / "runs/glyphs/chalk" / failure["run_id"]
    assert [measured(row)["_step"] for row in failed["erm"]["history"]] == [
        row["_step"] for row in rows_of(directory, "erm")
    ]


def test_what_cannot_be_read_is_named(trained: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(run_dir(trained), tmp_path / run_dir(trained).name))
    assert len(wandb_runs(directory)) == 3
    (directory / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="damaged"):
        wandb_runs(directory)


# Online


def served_equal(server: WandbServer, directory: Path) -> None:
    result = json.loads((directory / "result.json").read_text())
    for method in METHODS:
        run = server.runs[f"{directory.name}-{method}"]
        assert without_speed(run.rows()) == rows_of(directory, method)
        selected = {row["selection"]: row for row in result["results"] if row["method"] == method}
        for name in (*ACCURACIES, "step"):
            assert run.summary[name] == selected["iid"][name]
        assert run.config["dropout"] == 0.3
        assert run.about["jobType"] == method
        assert run.about["project"] == "vld"
        assert run.exit_code == 0


@pytest.mark.slow
def test_a_run_is_streamed_interrupted_resumed_and_pushed_again(base: tuple[str, ...], tmp_path: Path) -> None:
    """One W&B run for each method all along, and no row twice."""
    options = (*base, f"output_dir={tmp_path}", "optim.steps=30", "eval_every=10")
    with serving() as server:

        def stop() -> None:
            while server.lines < 2:  # of the curve, while it trains
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        with before_step(15, stop):
            stopped = train(*options, env=server.environment())
        assert stopped.returncode == 143, stopped.stderr
        assert "W&B: online (logged in)" in stopped.stdout
        assert list(server.runs) == [f"{run_dir(tmp_path).name}-erm"]

        done = train(*options, env=server.environment())
        assert done.returncode == 0, done.stderr
        assert "resuming at step" in done.stdout
        assert f"W&B: 3 runs at {server.url}/team/vld" in done.stdout
        served_equal(server, run_dir(tmp_path))
        sent = server.lines

        # Nothing is known of what was delivered: all is offered again, and changes nothing.
        (run_dir(tmp_path) / "wandb.json").unlink()
        pushed = script("publish.py", f"output_dir={tmp_path}", env=server.environment())
        assert pushed.returncode == 0, pushed.stderr
        assert f"W&B: 3 runs at {server.url}/team/vld" in pushed.stdout
        assert server.lines == sent
        assert len(server.runs) == 3
        served_equal(server, run_dir(tmp_path))


@contextmanager
def unreachable(*, silent: bool) -> Iterator[str]:
    """The address of a server that is not there, or takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True], ids=["down", "silent"])
def test_w_and_b_down_changes_nothing_and_is_made_good_later(
    silent: bool, base: tuple[str, ...], trained: Path, tmp_path: Path
) -> None:
    with unreachable(silent=silent) as url:
        down = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_INIT_TIMEOUT": "3"}
        done = train(*base, f"output_dir={tmp_path}", env=down)
    assert done.returncode == 0, done.stderr
    said = re.search(r"W&B: 1 of 1 run directories were not uploaded \(.*\); to upload them: python (.*)", done.stdout)
    assert said, done.stdout
    assert numbers(run_dir(tmp_path)) == numbers(run_dir(trained))
    with serving() as server:
        pushed = script(*said[1].removeprefix("scripts/").split(" "), env=server.environment())
        assert pushed.returncode == 0, pushed.stderr
        served_equal(server, run_dir(tmp_path))
        # Again: nothing is sent.
        asked = {name: run.opened for name, run in server.runs.items()}
        assert script("publish.py", f"output_dir={tmp_path}", env=server.environment()).returncode == 0
        assert {name: run.opened for name, run in server.runs.items()} == asked


def numbers(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "train_seconds")} for row in rows]


def test_no_process_imports_from_the_folder_of_the_command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue.py", "random.py", "wandb.py"):
        (tmp_path / name).write_text("raise SystemExit('a module of the user')")
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    publisher = Publisher(WandbConfig(mode="offline"), str(tmp_path), say=print, warn=print)
    publisher.ended(run_dir(tmp_path))
    publisher.finish()
    assert len(read_offline(tmp_path)) == 3


@pytest.mark.slow
def test_no_worker_of_a_launcher_imports_from_the_folder_of_the_command(base: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('a module of the user')")
    many = ("-m", "seed=0,1", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2", f"output_dir={tmp_path}/outputs")
    done = train(*base, *many, cwd=tmp_path, env=OFFLINE, fresh=True)
    assert done.returncode == 0, done.stderr
    assert len(read_offline(tmp_path / "outputs")) == 6


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WANDB_INIT_TIMEOUT", "60s", ()),
        ("WANDB_INIT_TIMEOUT", "inf", ("-m", "seed=0,1")),
        ("WANDB_MODE", "sometimes", ()),
        ("WANDB_SILENT", "perhaps", ("-m", "seed=0,1")),
        ("WANDB_BASE_URL", "localhost:8080", ()),
    ],
)
def test_a_variable_that_w_and_b_cannot_read_is_named_before_training(
    name: str, value: str, words: tuple[str, ...], base: tuple[str, ...], tmp_path: Path
) -> None:
    refused = train(*base, *words, f"output_dir={tmp_path}", env=OFFLINE | {name: value})
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{name}={value}: W&B cannot read this variable: ")
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_variables_that_would_merge_runs_are_ignored_and_named(base: tuple[str, ...], tmp_path: Path) -> None:
    agent = OFFLINE | {"WANDB_SWEEP_ID": "abcd1234", "WANDB_RUN_ID": "efgh5678", "WANDB_RESUME": "allow"}
    done = train(*base, f"output_dir={tmp_path}", env=agent)
    assert done.returncode == 0, done.stderr
    its_runs = [f"{run_dir(tmp_path).name}-{method}" for method in METHODS]
    assert sorted(path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-*/run-*.wandb")) == its_runs
    ignored = "W&B: WANDB_RUN_ID, WANDB_SWEEP_ID, WANDB_RESUME ignored: each run here is a W&B run of its own"
    assert done.stdout.count(ignored) == 1


@pytest.mark.slow
def test_not_logged_in_is_offline_and_never_a_prompt(base: tuple[str, ...], trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": "online", "WANDB_API_KEY": ""}
    nobody["WANDB_CONFIG_DIR"] = str(tmp_path)
    done = train(*base, f"output_dir={tmp_path}", env=nobody)
    assert done.returncode == 0
    assert (
        "W&B: offline (not logged in: 'wandb login' or WANDB_API_KEY); wandb.mode=online or disabled changes that"
        in done.stdout
    )
    assert "already finished, skipped" in done.stdout
    copies = offline_runs(tmp_path)
    assert len(copies) == 3
    for run in copies.values():
        check_equal(run, run_dir(tmp_path), run["job_type"])
    refused = script("publish.py", f"output_dir={tmp_path}", env=nobody)
    assert refused.returncode == 2
    assert refused.stderr.startswith("wandb.mode=auto: offline, not logged in")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
def test_environment_variables_keep_their_meaning(trained: Path, tmp_path: Path) -> None:
    env = OFFLINE | {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "us", "WANDB_TAGS": "late,night"}
    env |= {"WANDB_RUN_GROUP": "together", "WANDB_DIR": str(tmp_path), "WANDB_NOTES": "a note"}
    shutil.copytree(trained / "runs", tmp_path / "outputs/runs")
    refused = script("publish.py", f"output_dir={tmp_path}/outputs", env=env)
    assert refused.returncode == 2  # nothing would be published
    done = script("publish.py", f"output_dir={tmp_path}/outputs", "wandb.mode=offline", env=env)
    assert done.returncode == 0, done.stderr
    runs = offline_runs(tmp_path)
    assert len(runs) == 3
    for run in runs.values():
        assert (run["project"], run["entity"], run["run_group"], run["notes"]) == ("mine", "us", "together", "a note")
        assert {"late", "night", "glyphs"} <= set(run["tags"])
    options = ("wandb.mode=offline", "wandb.project=other", "wandb.entity=them")
    assert script("publish.py", f"output_dir={tmp_path}/outputs", *options, env=env).returncode == 0
    places = {(run["project"], run["entity"]) for run in read_offline(tmp_path)}
    assert places == {("mine", "us"), ("other", "them")}


@pytest.mark.slow
def test_combinations_are_copied_too(base: tuple[str, ...], tmp_path: Path) -> None:
    options = [option for option in base if option != "keep=[]"]
    members = ("method=model_soup", 'method.members=["seed=0,1"]')
    done = train(*options, *members, f"output_dir={tmp_path}", "optim.steps=2", "recipe.name=own", env=OFFLINE)
    assert done.returncode == 0, done.stderr
    runs = offline_runs(tmp_path)
    assert {run["config"]["recipe"] for run in runs.values()} == {"own"}
    assert sorted(run["job_type"] for run in runs.values()) == sorted([*METHODS, *METHODS, "model_soup"])
    [soup] = [run for run in runs.values() if run["job_type"] == "model_soup"]
    [path] = tmp_path.glob("combined/glyphs/chalk/*/result.json")
    result = json.loads(path.read_text())
    [row] = result["results"]
    assert soup["run_id"] == f"{result['run_id']}-model_soup"
    assert soup["config"]["members"] == result["members"]
    assert soup["config"]["number_of_members"] == 2
    assert soup["config"]["dropout"] == 0.3
    assert soup["config"].get("seed") is None
    for name in (*ACCURACIES, "step"):
        assert soup["summary"][name] == row[name]
        assert soup["summary"][f"last/{name}"] == row[name]
    # The two members are one group: their mean is a number of the results table.
    assert len({run["run_group"] for run in runs.values() if run["job_type"] == "erm"}) == 1
    assert soup["run_group"] not in {run["run_group"] for run in runs.values() if run["job_type"] == "erm"}


def test_groups_are_the_cells_of_a_table(trained: Path, tmp_path: Path) -> None:
    result = json.loads((run_dir(trained) / "result.json").read_text())

    def group(other: dict[str, Any] | None = None, **changes: Any) -> str:
        settings = result["settings"] | {name.replace("__", "."): value for name, value in changes.items()}
        directory = tmp_path / run_id(settings)
        shutil.copytree(run_dir(trained), directory, dirs_exist_ok=True)
        (directory / "result.json").write_text(json.dumps(result | {"settings": settings}))
        (directory / "config.yaml").write_text(yaml.safe_dump({"identity": settings, "other": other or {}}))
        [its] = {run.group for run in (*wandb_runs(directory), wandb_run_in_training(directory))}
        return its

    assert group(seed=5) == group(seed=6) == group(test_domain="neon") == group()
    assert len({group(), group(dropout=0.5), group(optim__lr=7), group(split_seed=3)}) == 4
    weights = "backbone__weights_fingerprint"
    assert group(**{weights: "0"}) != group(**{weights: "1"})
    probes = [group({"start": "probe"}, test_domain=domain, **{weights: domain}) for domain in ("chalk", "neon")]
    assert probes[0] == probes[1] not in (group(), group({"start": "another"}, **{weights: "chalk"}))
    pairs = [group({"left_out": two.split("+")}, test_domain=two) for two in ("chalk+neon", "mosaic+print")]
    assert pairs[0] == pairs[1] != group()


def test_study_and_recipe_are_told(trained: Path, tmp_path: Path) -> None:
    """Of a run that trains as well as of a finished one; neither moves it to another group."""
    directory = tmp_path / run_dir(trained).name
    shutil.copytree(run_dir(trained), directory)
    stored = yaml.safe_load((directory / "config.yaml").read_text())

    def told() -> list[WandbRun]:
        return [*wandb_runs(directory), wandb_run_in_training(directory)]

    plain = told()
    assert {(run.config["study"], run.config["recipe"]) for run in plain} == {(None, None)}
    other = stored["other"] | {"study.name": "rivals", "recipe.name": "swad"}
    (directory / "config.yaml").write_text(yaml.safe_dump(stored | {"other": other}))
    assert {(run.config["study"], run.config["recipe"]) for run in told()} == {("rivals", "swad")}
    assert [set(run.tags) for run in told()] == [{*run.tags, "swad"} for run in plain]
    assert [(run.id, run.group) for run in told()] == [(run.id, run.group) for run in plain]


def test_the_dashboard_s_view_is_what_would_be_sent(trained: Path) -> None:
    runs = wandb_runs(run_dir(trained))
    view = build_workspace("team", "vld", runs)._to_model().model_dump(by_alias=True)
    assert (view["entity"], view["project"]) == ("team", "vld")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    panels = {
        panel["config"]["chartTitle"]: (panel["viewType"], panel["config"]) for s in sections for panel in s["panels"]
    }
    kind, scatter = panels["o.o.d. against i.i.d. accuracy, a colour for each method"]
    assert (kind, scatter["xAxis"], scatter["yAxis"]) == ("Scatter Plot", "summary:iid_acc", "summary:ood_acc")
    kind, against_dropout = panels["o.o.d. accuracy against the dropout rate"]
    assert (against_dropout["xAxis"], against_dropout["yAxis"]) == ("config:dropout.value", "summary:ood_acc")
    kind, bars = panels["o.o.d. accuracy by the domain left out"]
    assert (kind, bars["metrics"], bars["groupBy"]) == ("Bar Chart", ["ood_acc"], "test_domain.value")
    assert "o.o.d. accuracy by recipe" not in panels
    kind, curve = panels["o.o.d. accuracy"]
    assert (kind, curve["metrics"], curve["xAxis"]) == ("Run History Line Plot", ["ood_acc"], "_step")
    colors = view["spec"]["section"]["customRunColors"]
    assert sorted(colors) == sorted(run.id for run in runs)
    assert len(set(colors.values())) == 3
    # What the panels show is what runs have.
    history = {name for run in runs for _, values in run.history for name in values}
    summary = set(runs[0].summary)
    config = set(runs[0].config)
    for _, settings in panels.values():
        for metric in settings.get("metrics", []):
            assert metric in history | summary
        for axis in (settings.get("xAxis"), settings.get("yAxis")):
            if axis and ":" in axis:
                where, name = axis.split(":")
                assert name.removesuffix(".value") in {"summary": summary, "config": config}[where]


def test_publishing_nothing_is_a_user_error(tmp_path: Path) -> None:
    refused = script("publish.py", f"output_dir={tmp_path}/none", env=OFFLINE)
    assert refused.returncode == 2
    assert "no finished runs in it" in refused.stderr
    assert not (tmp_path / "none").exists()
    misspelt = script("publish.py", "wandb.projekt=x")
    assert misspelt.returncode == 2
    assert "did you mean wandb.project?" in misspelt.stderr
