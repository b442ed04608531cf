"""The command end to end, on small real runs: what it prints, writes and exits with."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from run_command import REPOSITORY, SMALLEST, TINY_NETWORK, before_step, train
from safetensors.torch import load_file
from tiny import decode_dataset

from vld.config.errors import UserError
from vld.data.domains import resolve_test_domains
from vld.data.folder import list_dataset
from vld.runs import load_model, load_results
from vld.training.evaluation import EvaluationSet, evaluation_set, predict, score

ON_SHAPES = ("dataset=folder", "dataset.name=shapes", "image_size=16", "batch_size=2", "optim.steps=4", "eval_every=2")
SMALL = (*ON_SHAPES, *TINY_NETWORK, "dropout=0.5")
LARGER = (*ON_SHAPES, "backbone=resnet18", "backbone.weights=none", "dropout=0.5")
COLORS = {"circle": "red", "square": "blue"}
METHODS = ("erm", "weight_averaging", "ensemble")

Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with a dataset of three domains (grey, lilac, green backgrounds), two classes, six images each."""
    data_dir = tmp_path_factory.mktemp("data")
    for d, domain in enumerate(("alpha", "beta", "gamma")):
        for name, color in COLORS.items():
            folder = data_dir / "shapes" / domain / name
            folder.mkdir(parents=True)
            for i in range(6):
                image = Image.new("RGB", (20 + i, 20), (100 * d, 60, 20 * i))
                image.paste(color, (4, 4, 12 + i % 3, 12))
                image.save(folder / f"{i}.png")
    return data_dir


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output_dir and the terminal output of one command that leaves each domain out."""
    output_dir = tmp_path_factory.mktemp("outputs")
    done = train(*SMALL, f"data_dir={shapes}", f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    return output_dir, done.stdout


@pytest.fixture
def train_here(shapes: Path, tmp_path: Path) -> Train:
    """`train.py` with these options as well, into tmp_path; its exit code must be `code`."""

    def train_here(*options: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = train(*SMALL, f"data_dir={shapes}", f"output_dir={tmp_path}", *options)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return train_here


def metrics(run_dir: Path, method: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if method in (None, row["method"])]


def selected(run_dir: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of result.json, by method and selection."""
    rows = json.loads((run_dir / "result.json").read_text())["results"]
    return {(row["method"], row["selection"]): row for row in rows}


def evaluation_images(shapes: Path, test_domain: str) -> EvaluationSet:
    dataset = decode_dataset(list_dataset("shapes", shapes / "shapes"), 16, 256, lambda *_: None)
    return evaluation_set(dataset, test_domain, 0, torch.device("cpu"))


def test_each_domain_is_left_out_and_in_the_table(finished: tuple[Path, str]) -> None:
    output_dir, shown = finished
    assert sorted(path.name for path in (output_dir / "runs/shapes").iterdir()) == ["alpha", "beta", "gamma"]
    assert re.search(
        r"shapes, test_resnet.r160_in1k at 16 px, dropout 0.5, sgd lr 0.001, 4 steps of 2 x 2 images, seed 0", shown
    )
    for domain in ("alpha", "beta", "gamma"):
        assert re.search(rf"^{domain}  step 4/4  loss \d", shown, re.M)
        assert re.search(rf"^{domain}  step 2/4  .*  \d+:\d\d left$", shown, re.M)
        assert re.search(rf"│ {domain}( \(collapsed\))? +│ +[\d.]+ │ +[\d.]+ │ +\d │", shown)
    for method in METHODS:
        assert re.search(rf"│ {method} +│ alpha", shown)
    assert len(re.findall(r"│ average +│ +[\d.]+ │ +[\d.]+ │", shown)) == 3
    assert len(re.findall(" left$", shown, re.M)) == 3  # at the first and the last step nobody knows, or asks
    assert shown.index("keeps up to") < shown.index("step 0/4")  # said before any training


def test_run_directory_has_what_the_contract_says(finished: tuple[Path, str]) -> None:
    [run_dir] = (finished[0] / "runs/shapes/beta").iterdir()
    assert [row["step"] for row in metrics(run_dir, "erm")] == [0, 2, 4]
    first = metrics(run_dir)[0]
    accuracies = "iid_acc ood_acc ood_in_acc ood_out_acc domain_acc"
    assert set(f"step method {accuracies} train_loss val_loss lr seconds".split()) <= set(first)
    assert first["train_loss"] is None
    assert set(first["domain_acc"]) == {"alpha", "beta", "gamma"}
    assert first["domain_acc"]["alpha"]["in"] is None
    assert selected(run_dir).keys() >= {("erm", "iid"), ("erm", "last"), ("erm", "oracle_step")}
    result = json.loads((run_dir / "result.json").read_text())
    assert result["run_id"] == run_dir.name
    assert set(result["software"]) >= {"vld", "python", "torch", "torchvision", "timm", "numpy", "pillow"}
    assert result["threads"] == 1
    assert result["batch_norm_statistics"].startswith("trained")  # of random initial values; else frozen
    assert result["images_per_second"] > 0
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["identity"]["dropout"] == 0.5
    assert config["identity"]["test_domain"] == "beta"
    assert config["other"]["output_dir"] == str(finished[0])
    assert not (run_dir / "failure.json").exists()
    assert list(run_dir.rglob(".*")) == []


def test_bfloat16_trains_on_a_cpu_on_request(train_here: Train, tmp_path: Path) -> None:
    """The losses are near those of float32 and not the same; what is kept is float32. `auto` is float32 there.

    At 32 pixels: at 16, ResNet18 convolves single pixels with a stride of 2, whose gradients oneDNN gets wrong in bfloat16.
    """
    options = ("image_size=32", "test_domain=beta", "keep=[erm-last]", "device=cpu")
    runs: dict[str, Path] = {}
    for precision in ("auto", "bf16"):
        train_here(*options, f"precision={precision}")
        [runs[precision]] = set((tmp_path / "runs/shapes/beta").iterdir()) - set(runs.values())
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs.values()]
    assert [config["identity"]["precision"] for config in configs] == ["fp32", "bf16"]
    fp32, bf16 = ([row["train_loss"] for row in metrics(run, "erm")][1:] for run in runs.values())
    assert bf16 == pytest.approx(fp32, rel=0.2)
    assert all(one != other for one, other in zip(fp32, bf16, strict=True))
    weights = load_file(runs["bf16"] / "erm-last.safetensors")
    head = weights["head.weight"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert not torch.equal(head, head.bfloat16().float())


def test_selected_rows_agree_with_the_metrics(finished: tuple[Path, str]) -> None:
    for run_dir in (finished[0] / "runs/shapes").glob("*/*"):
        assert len(selected(run_dir)) == 9
        for method in METHODS:
            rows = metrics(run_dir, method)
            chosen = {selection: row for (of, selection), row in selected(run_dir).items() if of == method}
            for selection, key in (("iid", "iid_acc"), ("oracle_step", "ood_out_acc")):
                best = max(row[key] for row in rows)
                assert chosen[selection]["step"] == next(row["step"] for row in rows if row[key] == best)
            assert chosen["last"]["step"] == 4
            by_step = {row["step"]: row for row in rows}
            for row in chosen.values():
                assert row["ood_acc"] == by_step[row["step"]]["ood_acc"]
                assert row["ood_in_acc"] == by_step[row["step"]]["ood_in_acc"]


def test_load_results_has_the_contract_s_columns(finished: tuple[Path, str]) -> None:
    table = load_results(finished[0])
    columns = (
        "run_id dataset test_domain backbone dropout lr weight_decay last_layer_lr_factor seed split_seed steps"
        " method selection step iid_acc ood_acc ood_in_acc ood_out_acc members"
    )
    assert " ".join(table.columns) == columns
    erm = table[(table.method == "erm") & (table.selection == "last")]
    assert sorted(erm.test_domain) == ["alpha", "beta", "gamma"]
    assert set(erm.dropout) == {0.5}
    assert table.members.isna().all()


def test_load_results_skips_unfinished_and_names_damaged_runs(
    finished: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished[0], tmp_path / "copy")
    runs = sorted((tmp_path / "copy/runs/shapes").glob("*/*"))
    (runs[0] / "result.json").unlink()
    (runs[1] / "result.json").write_text('{"run_id": ')
    table = load_results(tmp_path / "copy")
    assert isinstance(table, pd.DataFrame)
    assert set(table.run_id) == {runs[2].name}
    assert str(runs[1] / "result.json") in caplog.text
    assert str(runs[0]) not in caplog.text


def test_load_model_reproduces_the_stored_accuracies_and_logits(finished: tuple[Path, str], shapes: Path) -> None:
    [run_dir] = (finished[0] / "runs/shapes/gamma").iterdir()
    model = load_model(run_dir)
    assert not model.training
    images = evaluation_images(shapes, "gamma")
    logits = predict([model], images)[0].logits
    last = metrics(run_dir, "erm")[-1]
    assert score(logits, images).iid_acc == last["iid_acc"]
    assert score(logits, images).ood_acc == last["ood_acc"]
    stored = load_file(run_dir / "erm-last-logits.safetensors")["logits"]
    assert stored.dtype == torch.float16
    weights = load_file(run_dir / "erm-last.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}  # batch norm's counters
    torch.testing.assert_close(logits.half(), stored, rtol=1e-2, atol=1e-2)


def test_same_command_twice_gives_the_same_bytes(train_here: Train, finished: tuple[Path, str], tmp_path: Path) -> None:
    train_here("test_domain=beta")
    [first] = (finished[0] / "runs/shapes/beta").iterdir()
    [second] = (tmp_path / "runs/shapes/beta").iterdir()
    assert second.name == first.name

    def without_times(run_dir: Path) -> list[str]:
        return re.sub(r'"(train_)?seconds": [\d.]+', "", (run_dir / "metrics.jsonl").read_text()).splitlines()

    assert without_times(first) == without_times(second)
    for weights in ("erm-last", "erm-last-logits"):
        a, b = (load_file(run_dir / f"{weights}.safetensors") for run_dir in (first, second))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_is_not_trained_again(train_here: Train, finished: tuple[Path, str]) -> None:
    results = sorted((finished[0] / "runs").rglob("result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    again = train_here(f"output_dir={finished[0]}", "device=cpu")
    assert again.stdout.count("already finished") == 3
    assert "average" in again.stdout
    assert [path.stat().st_mtime_ns for path in results] == before


def test_a_sweep_ends_with_one_table(train_here: Train, tmp_path: Path) -> None:
    """A line for each method and each setting that was varied."""
    axes = ("dropout=0,0.9", "batch_size=1,2", "test_domain=alpha,1", "method=ensemble")
    sweep = train_here("-m", *axes, "hydra.sweep.subdir='${batch_size}/${dropout}/${test_domain}'")
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 8
    table = sweep.stdout[sweep.stdout.rindex("┏") :]
    assert re.search(r"batch_size ┃ dropout ┃ method +┃ i.i.d. % ┃ o.o.d. % ┃ alpha ┃ +beta", table)
    rows = re.findall(r"│ (\d) +│ ([\d.]+) +│ (\w+)", table)
    assert sorted(rows) == sorted(product("12", ("0", "0.9"), METHODS))
    assert [row[2] for row in rows[:3]] == ["ensemble", "erm", "weight_averaging"]


def test_methods_of_a_sweep_share_one_run(train_here: Train, tmp_path: Path) -> None:
    sweep = train_here("-m", f"method={','.join(METHODS)}", "test_domain=0")
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 1
    assert sweep.stdout.count("already finished") == 2
    for table, method in zip(sweep.stdout.split("┡")[1:4], METHODS, strict=True):
        assert re.findall(r"│ (\w+)", table)[0] == method


def test_a_reused_sweep_folder_shows_no_earlier_sweep(train_here: Train, tmp_path: Path) -> None:
    options = ("-m", f"hydra.sweep.dir={tmp_path}/sweep", "test_domain=0")
    train_here(*options, "optim.lr=1e-3,1e30", code=1)
    assert "failed" not in train_here(*options, "optim.lr=1e-3").stdout


def test_keep_says_which_weights_and_logits_stay(train_here: Train, shapes: Path, tmp_path: Path) -> None:
    wanted = ["erm-iid", "weight_averaging-last", "weight_averaging-iid-logits", "ensemble-last-logits"]
    options = ("averaging.start=1", "ensemble.start=1", "ensemble.every=1", "test_domain=beta")
    train_here(*options, f"keep=[{','.join(wanted)}]")
    [run_dir] = (tmp_path / "runs/shapes/beta").iterdir()
    assert sorted(path.stem for path in run_dir.glob("*.safetensors")) == sorted(wanted)
    images = evaluation_images(shapes, "beta")
    for name in wanted:
        method, selection, *of_logits = name.split("-")
        row = selected(run_dir)[method, selection]
        if of_logits:
            logits = load_file(run_dir / f"{name}.safetensors")["logits"]
            assert score(logits, images).ood_acc == pytest.approx(row["ood_acc"], abs=1 / 12)
        else:
            scores = score(predict([load_model(run_dir, name)], images)[0].logits, images)
            assert (scores.iid_acc, scores.ood_acc) == (row["iid_acc"], row["ood_acc"])
    assert "did not keep erm-last" in train_here(*options, "keep=[erm-last]").stdout


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_too_little_disk_is_refused_before_training(shapes: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        refused = train(*LARGER, f"data_dir={shapes}", f"output_dir={disk}/outputs")  # 3 x 45 MB of resnet18
        assert refused.returncode == 2
        assert re.search(
            r"4\d\d MB of disk are needed for what the runs keep \(13\d MB; .* 315 MB are free", refused.stderr
        )
        assert [path for path in disk.rglob("*") if path.is_file()] == []
        done = train(*SMALL, f"data_dir={shapes}", f"output_dir={disk}/outputs", "keep=[]")
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_failed_run_is_recorded_and_others_continue(train_here: Train, tmp_path: Path) -> None:
    sweep = train_here("-m", "test_domain=0", "optim.lr=1e-3,1e30", code=1)
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 1
    [failure_file] = (tmp_path / "runs").rglob("failure.json")
    failure = json.loads(failure_file.read_text())
    assert "the training loss became" in failure["what"]
    assert "step" in failure["what"]
    assert "TrainingFailed" in failure["where"]
    assert str(failure_file.parent) in sweep.stdout
    single = train_here("test_domain=0", "optim.lr=1e30", code=1)
    assert "Traceback" not in single.stdout + single.stderr


def test_weights_broken_by_the_last_step_are_a_failure(train_here: Train, tmp_path: Path) -> None:
    done = train_here("optim.steps=1", "optim.lr=3e38", "test_domain=0", code=1)
    assert "no longer finite at step 1" in done.stdout
    assert not list(tmp_path.rglob("result.json"))


# What a command stops at: one line each.
BAD_SETTINGS = {
    "dataset=nothing": "dataset=nothing: must be one of .*pacs",
    "backbone=nothing": "backbone=nothing: must be one of .*resnet50",
    "method=nothing": "method=nothing: must be one of .*erm",
    "optim=nothing": "optim=nothing: must be one of adam, adamw, sgd",
    "hydra/launcher=nothing": "launcher=nothing",
    "dropuot=0.5": "dropuot: no such option, did you mean dropout",
    "dropout=much": "dropout=much: .*Float",
    "optim.steps=1.5": "optim.steps=1.5: .*Integer",
    "backbone.architecture=resnet51": "backbone.architecture=resnet51: torchvision has no such classifier",
    "backbone.weights=/no/such/file": "backbone.weights=/no/such/file: no such file",
    "device=cuda:99": r"device=cuda:99: \d+ CUDA device",
    "test_domain=delta": r"test_domain=delta: must be all or one of alpha \(0\), beta \(1\), gamma \(2\)",
    "data_dir=/no/such/folder": "no folder /no/such/folder/shapes",
    "dropout=0.1,0.2": "add -m to run each of the values$",
    "keep=erm-last,erm-iid": r"add -m .*, or write 'keep=\[erm-last,erm-iid\]' for a list",
    "keep=erm-last": r"keep=erm-last: write 'keep=\[erm-last\]'",
    "--dropout=0.3": "--dropout=0.3: options are written without dashes, dropout=value",
    "dropout": "dropout",
}
# What is looked at together: a command with many of them has a line for each.
BAD_VALUES: list[dict[str, str]] = [
    {
        "mixout=1": r"mixout=1.0: must be in \[0, 1\)",
        "mixout_kind=row": "mixout_kind=row: must be one of filter, point",
        "warm_start=-1": "warm_start=-1: must be a whole number of at least 0",
        "dropout=-0.1": r"dropout=-0.1: must be in \[0, 1\)",
        "optim.steps=0": "optim.steps=0: must be a whole number of at least 1",
        "optim.lr=0": "optim.lr=0.0: must be a number above 0",
        "optim.weight_decay=-1": "optim.weight_decay=-1.0: must be at least 0",
        "optim.momentum=1": r"optim.momentum=1.0: must be in \[0, 1\)",
        "optim.gamma=0": r"optim.gamma=0.0: must be in \(0, 1\]",
        "optim.milestones=[5,3]": "optim.milestones=.*increasing",
        "optim.last_layer_lr_factor=0": "optim.last_layer_lr_factor=0.0: must be a number above 0",
        "batch_size=0": "batch_size=0: must be a whole number of at least 1",
        "eval_every=0": "eval_every=0: must be",
        "image_size=4": "image_size=4: must be a whole number of at least 8",
        "averaging.start=0": "averaging.start=0: must be a whole number of at least 1",
        "averaging.interval=0": "averaging.interval=0: must be",
        "ensemble.start=-1": "ensemble.start=-1: must be",
        "ensemble.every=0": "ensemble.every=0: must be",
        "keep=[erm-best]": "keep=erm-best: must be one of erm-iid,",
        "seed=-1": "seed=-1: must be a whole number from 0",
        "backbone.feature_scale=0": "backbone.feature_scale=0.0: must be a number above 0",
        "backbone.std=[1,1]": "backbone.std=.*three numbers above 0",
        "device=tpu": "device=tpu: must be",
        "data_dir=": "data_dir=: must be a folder's path",
        "precision=fp8": "precision=fp8: must be one of auto, fp32, bf16",
        "test_domain=[]": "test_domain=.*must be",
        "checkpoint_every=-1": "checkpoint_every=-1.0: must be a number of seconds, at least 0",
        "if_running=leave": "if_running=leave: must be one of wait, skip",
        "wandb.mode=sometimes": "wandb.mode=sometimes: must be",
        "dataset.name=": "dataset.name=: must be the name of a folder",
    },
    {
        "dropout=1": r"dropout=1.0: must be in \[0, 1\)",
        "optim.lr=inf": "optim.lr=inf: must be a number above 0",
        "batch_size=-2": "batch_size=-2: must be a whole number of at least 1",
        "optim.milestones=[0]": "optim.milestones=.*at least 1",
        "keep=[ensemble-last]": "keep=ensemble-last: must be one of",
        "method.member_step=oracle_step": "method.member_step=oracle_step: must be one of last, iid",
        "method.average=median": "method.average=median: must be one of logits, softmax",
        "checkpoint_every=nan": "checkpoint_every=nan: must be",
        "device=1": "device=1: must be",
    },
    {"dropout=nan": "dropout=nan: must be in"},
    {"warm_start=500": "warm_start=500: must be below optim.steps"},
    {"optim.warm_up=4": "optim.warm_up=4: must be below optim.steps=4"},
    {
        "+dropuot=0.5": "dropuot: no such option, did you mean dropout",
        "+optim.speed=1": "optim.speed: no such option",
    },
]


@pytest.mark.parametrize("said", [*({option: line} for option, line in BAD_SETTINGS.items()), *BAD_VALUES], ids=min)
def test_bad_settings_are_refused_in_a_line_each(said: dict[str, str], shapes: Path, tmp_path: Path) -> None:
    refused = train(*LARGER, f"data_dir={shapes}", f"output_dir={tmp_path / 'outputs'}", *said)
    assert refused.returncode == 2
    lines = refused.stderr.splitlines()
    assert len(lines) == len(said), refused.stderr
    for line in said.values():
        assert [bool(re.search(line, its)) for its in lines].count(True) == 1, (line, refused.stderr)
    assert refused.stdout == ""
    assert not (tmp_path / "outputs").exists()


def test_all_jobs_of_a_sweep_are_checked_first(train_here: Train, tmp_path: Path) -> None:
    """Neither does the first job's, where both values are bad, hide the others'."""
    refused = train_here("-m", "dropout=1.5,0,-1", "seed=x,0", "optim.lr=1e-3,0", code=2)
    wrong = sorted(line.split(":")[0] for line in refused.stderr.splitlines())
    assert wrong == ["dropout=-1.0", "dropout=1.5", "optim.lr=0.0", "seed=x"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", ["delta", 3, "3", ["alpha", "delta"]])
def test_domains_that_are_not_there_are_refused(wanted: object) -> None:
    with pytest.raises(UserError, match=r"^test_domain=(delta|3): must be all or one of alpha \(0\), beta \(1\), gam"):
        resolve_test_domains(wanted, ("alpha", "beta", "gamma"))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


# What is done to a copy of the dataset, options, and what one line says.
BAD_PLACES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "class lists that differ": (lambda data: shutil.rmtree(data / "beta/circle"), (), "beta lacks circle"),
    "a damaged image": (
        lambda data: cut_short(data / "beta/circle/2.png"),
        (),
        "unreadable image .*/beta/circle/2.png",
    ),
    "a file for output_dir": (lambda _: None, ("output_dir=file",), "output_dir=file: file is a file"),
    "output_dir below a file": (lambda _: None, ("output_dir=file/a",), "output_dir=file/a: file is a file"),
    "no place to write to": (lambda _: None, ("output_dir=/proc/o",), "/proc"),  # where root cannot write either
}


@pytest.mark.parametrize("what", BAD_PLACES)
def test_bad_data_and_output_folders_are_one_line(what: str, shapes: Path, tmp_path: Path) -> None:
    """And nothing of the user's goes with them, where Hydra was told to use a folder that holds other things."""
    spoil, options, said = BAD_PLACES[what]
    shutil.copytree(shapes / "shapes", tmp_path / "data/shapes")
    spoil(tmp_path / "data/shapes")
    (tmp_path / "file").write_text("precious")
    refused = train(*SMALL, "data_dir=data", "output_dir=out", "hydra.run.dir=.", *options, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout
    assert re.search(said, refused.stderr), refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "precious"
    assert not list(tmp_path.glob("out/**/*.json*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "file", "out", ".hydra"}


def test_a_missing_dataset_is_refused_before_weights(tmp_path: Path) -> None:
    refused = train(f"data_dir={tmp_path}", f"output_dir={tmp_path / 'outputs'}")  # the defaults: PACS, ResNet50
    assert refused.returncode == 2
    assert f"no folder {tmp_path / 'PACS'}" in refused.stderr
    assert "dataset=glyphs" in refused.stderr


def test_cfg_and_info_defaults_work() -> None:
    composed = train("--cfg", "job", "backbone=resnet18")
    assert composed.returncode == 0
    assert yaml.safe_load(composed.stdout)["backbone"]["architecture"] == "resnet18"
    defaults = train("--info", "defaults")
    assert defaults.returncode == 0
    assert "dataset/pacs" in defaults.stdout
    of_many = train("--cfg", "job", "-m", "dropout=0,0.9")
    assert of_many.returncode == 2
    assert of_many.stderr.startswith("--cfg: shows the configuration of one job")


def test_a_domain_may_have_a_number_as_its_name(train_here: Train, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "data/shapes").mkdir(parents=True)
    for name, domain in (("1", "alpha"), ("2", "beta"), ("15", "gamma")):
        (tmp_path / "data/shapes" / name).symlink_to(shapes / "shapes" / domain)
    for name in ("1", "15"):
        train_here(f"test_domain={name}", f"data_dir={tmp_path}/data", f"output_dir={tmp_path}/{name}")
        assert [path.name for path in (tmp_path / name / "runs/shapes").iterdir()] == [name]


def test_leftovers_of_an_unfinished_attempt_are_removed(train_here: Train, tmp_path: Path) -> None:
    train_here("test_domain=0", "keep=[erm-iid]")
    [run_dir] = (tmp_path / "runs/shapes/alpha").iterdir()
    (run_dir / "result.json").unlink()
    (run_dir / ".metrics.jsonl.x1").write_text("half")
    train_here("test_domain=0", "keep=[erm-last]")
    kept = sorted(path.name for path in run_dir.iterdir())
    assert kept == ["config.yaml", "erm-last.safetensors", "metrics.jsonl", "result.json"]


def test_a_damaged_result_is_named_and_others_continue(
    train_here: Train, finished: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    [damaged] = (tmp_path / "runs/shapes/beta").rglob("result.json")
    damaged.write_text("{")
    shutil.rmtree(tmp_path / "runs/shapes/gamma")
    assert f"failed: beta: {damaged}: damaged" in train_here(code=1).stdout
    assert damaged.read_text() == "{"
    assert len(list((tmp_path / "runs/shapes/gamma").rglob("result.json"))) == 1


def test_a_closed_pipe_does_not_stop_the_training(shapes: Path, tmp_path: Path) -> None:
    options = f"{' '.join(SMALL)} data_dir={shapes} output_dir={tmp_path}"
    command = f"{sys.executable} {REPOSITORY}/scripts/train.py {options} | head -n 1"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert len(list(tmp_path.rglob("result.json"))) == 3


def test_missing_weights_are_named_with_those_kept(finished: tuple[Path, str]) -> None:
    [run_dir] = (finished[0] / "runs/shapes/beta").iterdir()
    with pytest.raises(UserError, match="the run kept erm-last "):
        load_model(run_dir, "weight_averaging-iid")
    with pytest.raises(UserError, match="not a run directory"):
        load_model(finished[0])


def test_a_job_without_the_command_s_environment_keeps_programs_for_later_jobs(
    small_glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a scheduler may start it: not where torch would put them, in a /tmp that is this job's own."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("vld.commands.main.place_caches", lambda *_: None)
    options = (*SMALLEST, "test_domain=0", "optim.steps=2", f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    places: list[str | None] = []
    with before_step(1, lambda: places.append(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))):
        assert train(*options).returncode == 0
    assert places[0] is not None and places[0].endswith("vld/compiled")
