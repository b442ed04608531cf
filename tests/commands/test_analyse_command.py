"""`scripts/analyse.py` end to end: runs are trained and analysed from the command line, and recomputed here from their files."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from run_command import TINY_NETWORK, script, train
from safetensors.torch import load_file, save_file
from tiny import CPU, make_dataset
from torchvision.transforms.functional import to_tensor
from wandb_server import read_offline

from vld.commands.analyse import analyse_all
from vld.config.command_settings import AnalyseConfig
from vld.config.errors import UserError
from vld.config.settings import WandbConfig
from vld.data.folder import list_dataset
from vld.data.images import evaluation_view, read_image
from vld.data.split import split_indices
from vld.machine.terminal import Terminal
from vld.runs import load_model
from vld.runs.quantities import MASKED, QUANTITIES
from vld.study.probing import MASKS, _probe_images
from vld.tracking.background import Publisher
from vld.training.representation import (
    calibration_error,
    linear_probe,
    mc_dropout,
    negative_log_likelihood,
    probe_logits,
)

SMALL = ("dataset=glyphs", *TINY_NETWORK, "image_size=16", "batch_size=2", "test_domain=0")
SMALL += ("optim.steps=6", "optim.milestones=[4]", "eval_every=3")


@pytest.fixture(scope="module")
def trained(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output_dir with two runs that kept their weights and one that did not."""
    output_dir = tmp_path_factory.mktemp("outputs")
    places = (f"data_dir={small_glyphs}", f"output_dir={output_dir}")
    done = train("-m", *SMALL, "dropout=0,0.9", "keep=[erm-last,weight_averaging-iid]", *places)
    assert done.returncode == 0, done.stderr
    done = train(*SMALL, "dropout=0.5", "keep=[erm-last-logits]", *places)
    assert done.returncode == 0, done.stderr
    return output_dir


@pytest.fixture(scope="module")
def analysed(trained: Path, small_glyphs: Path) -> "subprocess.CompletedProcess[str]":
    done = analyse(trained, small_glyphs)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Its runs without analyses, to be changed by one test."""
    shutil.copytree(trained / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("analysis.json"))
    return tmp_path


def analyse(output_dir: Path, data_dir: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return script("analyse.py", f"output_dir={output_dir}", f"data_dir={data_dir}", *options)


def analyse_here(output_dir: Path, data_dir: Path, wandb: str = "disabled", **options: str) -> None:
    """The same in this process, which takes less time."""
    places = {"output_dir": str(output_dir), "data_dir": str(data_dir)}
    assert analyse_all(AnalyseConfig(**places, **options, wandb=WandbConfig(mode=wandb)), Terminal()) == 0


def run_of(output_dir: Path, dropout: float) -> Path:
    paths = output_dir.glob("runs/glyphs/chalk/*")
    [path] = [p for p in paths if json.loads((p / "result.json").read_text())["settings"]["dropout"] == dropout]
    return path


def analysis_of(run_dir: Path, weights: str = "erm-last") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "analysis.json").read_text())["analyses"][weights]
    return found


def own_row(run_dir: Path, method: str, selection: str) -> dict[str, Any]:
    """What the run itself has at this selection."""
    rows = json.loads((run_dir / "result.json").read_text())["results"]
    [row] = [row for row in rows if (row["method"], row["selection"]) == (method, selection)]
    return row


def entropy_rank(features: np.ndarray) -> float:
    values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    shares = [p for p in values / values.sum() if p > 1e-6]
    return math.exp(-sum(p * math.log(p) for p in shares))


def test_an_analysis_follows_from_weights_and_images(
    trained: Path, analysed: "subprocess.CompletedProcess[str]", small_glyphs: Path
) -> None:
    """Images, split and averages are worked out anew from the folder."""
    del analysed
    run_dir = run_of(trained, 0.9)
    analysis, model = analysis_of(run_dir), load_model(run_dir)
    files = list_dataset("glyphs", small_glyphs / "glyphs")
    features, labels, to_learn, learnt = {}, {}, [], []
    for i, domain in enumerate(files.domains):
        views = torch.stack([to_tensor(evaluation_view(read_image(file), 16).copy()) for file in domain.files])
        with torch.no_grad():
            of_domain, classes = model.representation(views), torch.tensor(domain.labels)
        inside, outside = split_indices(len(domain.files), i, 0)
        wanted = [*inside, *outside] if domain.name == "chalk" else outside
        features[domain.name], labels[domain.name] = of_domain[wanted], classes[wanted]
        if domain.name != "chalk":
            to_learn.append(of_domain[inside])
            learnt.append(classes[inside])
    training = [name for name in features if name != "chalk"]

    def sides(values: dict[str, float]) -> tuple[float, float]:
        return sum(values[name] for name in training) / len(training), values["chalk"]

    def check(name: str, values: tuple[float, float]) -> None:
        assert (analysis["iid"][name], analysis["ood"][name]) == pytest.approx(values, abs=1e-5), name

    with torch.no_grad():
        logits = {name: model.head(phi) for name, phi in features.items()}
    right = {name: (its.argmax(1) == labels[name]).float().mean().item() for name, its in logits.items()}
    check("acc", sides(right))
    losses = {name: -its.log_softmax(1)[range(len(its)), labels[name]].mean().item() for name, its in logits.items()}
    check("nll", sides(losses))
    log_probabilities = {name: its.log_softmax(1) for name, its in logits.items()}
    check("ece", sides({name: calibration_error(its, labels[name], 15) for name, its in log_probabilities.items()}))
    sizes = [len(phi) for phi in features.values()]
    of_all = mc_dropout(torch.cat(list(features.values())), model.head, 0.9, 20, torch.Generator().manual_seed(0))
    passes = dict(zip(features, of_all.split(sizes), strict=True))
    check(
        "mc_acc", sides({name: (its.argmax(1) == labels[name]).double().mean().item() for name, its in passes.items()})
    )
    check("mc_ece", sides({name: calibration_error(its, labels[name], 15) for name, its in passes.items()}))
    check("mc_nll", sides({name: negative_log_likelihood(its, labels[name]) for name, its in passes.items()}))
    all_iid = torch.cat([features[name] for name in training]).double().numpy()
    ranks = entropy_rank(all_iid), entropy_rank(features["chalk"].double().numpy())
    assert (analysis["iid"]["effective_rank"], analysis["ood"]["effective_rank"]) == pytest.approx(ranks, rel=1e-3)

    probe = linear_probe(torch.cat(to_learn), torch.cat(learnt), 2)
    hits = {name: (probe_logits(probe, phi).argmax(1) == labels[name]) for name, phi in features.items()}
    check("probe_acc", sides({name: its.double().mean().item() for name, its in hits.items()}))

    masks, width = torch.Generator().manual_seed(0), all_iid.shape[1]
    for rate in MASKED:
        accuracies = []
        for _ in range(MASKS):
            kept = torch.ones(width)
            kept[torch.randperm(width, generator=masks)[: round(rate * width)]] = 0
            with torch.no_grad():
                masked = {name: model.head(phi * kept / (1 - rate)) for name, phi in features.items()}
            accuracies.append(
                sides({name: (m.argmax(1) == labels[name]).float().mean().item() for name, m in masked.items()})
            )
        means = np.mean(accuracies, axis=0)
        check(f"masked_{100 * rate:.0f}_acc", (means[0], means[1]))
    assert analysis["images"] == {"iid": len(all_iid), "ood": len(labels["chalk"]), "probe": 30}
    assert analysis["features"] == width == 96
    assert analysis["constants"] == {
        "seed": 0, "masked_rates": [0.5, 0.75, 0.9, 0.95], "masks": 10, "bins": 15, "passes": 20,
        "probe_l2": 1e-4, "probe_iterations": 100, "probe_images_at_most": 20_000,
    }  # fmt: skip


def test_the_probe_learns_equally_from_all_training_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each in part, which the split has shuffled, and none of the domain left out."""
    monkeypatch.setattr("vld.study.probing.PROBE_IMAGES", 9)
    dataset = make_dataset()
    views, labels = _probe_images(dataset, "c", 0, CPU)
    [images] = views.chunks(100)
    chosen = [(domain, split_indices(20, i, 0)[0][:4]) for i, domain in enumerate(dataset.domains[:2])]
    wanted = torch.cat([domain.evaluation[rows] for domain, rows in chosen])
    assert torch.equal(images, wanted)
    assert torch.equal(labels, torch.cat([domain.labels[rows] for domain, rows in chosen]))


def test_its_accuracy_is_the_run_s_own(trained: Path, analysed: "subprocess.CompletedProcess[str]") -> None:
    del analysed
    for dropout in (0.0, 0.9):
        run_dir = run_of(trained, dropout)
        row, analysis = own_row(run_dir, "erm", "last"), analysis_of(run_dir)
        assert (analysis["iid"]["acc"], analysis["ood"]["acc"]) == (row["iid_acc"], row["ood_acc"])
        for side in ("iid", "ood"):
            same = [analysis[side][f"mc_{name}"] == pytest.approx(analysis[side][name]) for name in ("ece", "nll")]
            assert all(same) == (dropout == 0), side  # there is nothing to leave on without dropout


def test_all_runs_with_weights_are_analysed_once(
    trained: Path, analysed: "subprocess.CompletedProcess[str]", small_glyphs: Path
) -> None:
    assert "1 of 3 finished runs did not keep erm-last: left out" in analysed.stdout
    assert not (run_of(trained, 0.5) / "analysis.json").exists()
    table = analysed.stdout[analysed.stdout.index("┏") :]
    for dropout in (0.0, 0.9):
        assert run_of(trained, dropout).name in table
    before = {path: path.read_bytes() for path in trained.glob("runs/*/*/*/analysis.json")}
    assert len(before) == 2
    # Nothing is computed: there is not even a dataset.
    again = analyse(trained, small_glyphs / "none")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already analysed") == 2
    assert again.stdout[again.stdout.index("┏") :] == table
    assert {path: path.read_bytes() for path in trained.glob("runs/*/*/*/analysis.json")} == before
    assert not list(trained.glob("runs/*/*/*/.*"))


def test_one_run_and_other_weights_can_be_analysed(copied: Path, small_glyphs: Path, tmp_path: Path) -> None:
    run_dir = run_of(copied, 0.9)
    done = analyse(copied, small_glyphs, f"run={run_dir}")
    assert done.returncode == 0, done.stderr
    for heading in QUANTITIES.values():
        assert heading in done.stdout
    assert [path.parent for path in copied.glob("runs/*/*/*/analysis.json")] == [run_dir]
    analyse_here(copied, small_glyphs, run=run_dir.name, weights="weight_averaging-iid")
    assert set(json.loads((run_dir / "analysis.json").read_text())["analyses"]) == {"erm-last", "weight_averaging-iid"}
    averaged = own_row(run_dir, "weight_averaging", "iid")
    assert analysis_of(run_dir, "weight_averaging-iid")["ood"]["acc"] == averaged["ood_acc"]
    # Training the run again drops what was said of weights that are no more.
    (run_dir / "result.json").unlink()
    options = (*SMALL, "dropout=0.9", f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    assert train(*options).returncode == 0
    assert (run_dir / "result.json").exists()
    assert not (run_dir / "analysis.json").exists()


def refusal(output_dir: Path, data_dir: Path, **options: str) -> str:
    with pytest.raises(UserError) as refused:
        analyse_here(output_dir, data_dir, **options)
    return str(refused.value)


def test_what_cannot_be_analysed_is_one_line(copied: Path, small_glyphs: Path) -> None:
    unfinished, without, finished = (run_of(copied, dropout) for dropout in (0.9, 0.5, 0.0))
    (unfinished / "result.json").rename(copied / "result.json")
    missing = f"{without / 'erm-last.safetensors'}: no such weights; the run kept none (see keep)"
    for option, value, said in (
        ("run", "abc", "run=abc: no run in output_dir="),
        ("run", unfinished.name, f"run={unfinished.name}: not finished"),
        ("run", str(without), missing),
        ("weights", "erm-oracle_step", "weights=erm-oracle_step: none of the 2 finished runs in"),
    ):
        told = refusal(copied, small_glyphs, **{option: value})
        assert said in told
        assert len(told.splitlines()) == 1
    assert "no finished runs in it" in refusal(copied / "none", small_glyphs)
    assert "dataset=glyphs: no folder" in refusal(copied, copied / "none")
    assert not list(copied.rglob("analysis.json"))
    (finished / "analysis.json").write_text("{}")
    assert "analysis.json: damaged; remove it" in refusal(copied, small_glyphs)

    state = load_file(finished / "erm-last.safetensors")
    state["backbone.conv1.0.weight"][:] = math.nan
    save_file(state, finished / "erm-last.safetensors")
    (finished / "analysis.json").unlink()
    assert "the representation is not a number" in refusal(copied, small_glyphs)
    assert not (finished / "analysis.json").exists()


def test_bad_options_are_refused_in_one_line(tmp_path: Path) -> None:
    for option, said in {
        "weights=ensemble-last": "weights=ensemble-last: must be one of erm-iid, erm-last",
        "weigths=erm-last": "weigths: no such option, did you mean weights?",
        "run=abc": "run=abc: no run in output_dir=",
    }.items():
        refused = analyse(tmp_path, tmp_path, option)
        assert refused.returncode == 2, (option, refused.stdout)
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_other_images_and_damaged_weights_are_refused(copied: Path, small_glyphs: Path) -> None:
    shutil.copytree(small_glyphs / "glyphs", copied / "data/glyphs")
    path = next((copied / "data/glyphs").rglob("*.png"))
    Image.open(path).rotate(180).save(path)
    lines = refusal(copied, copied / "data").splitlines()
    assert len(lines) == 2  # of two runs
    for line in lines:
        assert "are not those that run" in line
        assert "was trained on (dataset.fingerprint)" in line
    assert not list(copied.rglob("analysis.json"))
    damaged = run_of(copied, 0.0)
    (damaged / "erm-last.safetensors").write_bytes(b"nothing of the sort")
    done = analyse(copied, small_glyphs)
    assert done.returncode == 1, done.stderr
    assert f"failed: {damaged}/erm-last.safetensors: damaged" in done.stdout
    assert [path.parent for path in copied.rglob("analysis.json")] == [run_of(copied, 0.9)]
    (damaged / "config.yaml").write_text("nothing of the sort")
    places = {"output_dir": str(copied), "data_dir": str(small_glyphs)}
    assert analyse_all(AnalyseConfig(**places, wandb=WandbConfig(mode="disabled")), Terminal()) == 1


def publish(run_dir: Path, output_dir: Path) -> None:
    publisher = Publisher(WandbConfig(mode="offline"), str(output_dir), say=print, warn=print)
    publisher.ended(run_dir)
    publisher.finish()
    assert publisher.not_uploaded == {}


def test_analyses_are_uploaded_also_later_ones(copied: Path, small_glyphs: Path) -> None:
    run_dir = run_of(copied, 0.9)
    publish(run_dir, copied)
    erm, averaged = f"{run_dir.name}-erm", f"{run_dir.name}-weight_averaging"
    assert not any(name.startswith("analysis/") for name in summaries(copied)[erm])
    analyse_here(copied, small_glyphs, run=str(run_dir), wandb="offline")
    told = summaries(copied)
    for side in ("iid", "ood"):
        for name, value in analysis_of(run_dir)[side].items():
            assert told[erm][f"analysis/last/{side}/{name}"] == value
    assert not any("analysis/" in name for name in told[averaged])

    # One that was made without W&B is what the next publish delivers.
    analyse_here(copied, small_glyphs, run=str(run_dir), weights="weight_averaging-iid")
    assert summaries(copied) == told
    publish(run_dir, copied)
    later = summaries(copied)
    assert len(later) == 3
    assert later[averaged]["analysis/iid/ood/nll"] == analysis_of(run_dir, "weight_averaging-iid")["ood"]["nll"]
    assert later[erm] == told[erm]


def summaries(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Of every offline run, by its id."""
    return {run["run_id"]: run["summary"] for run in read_offline(output_dir)}


def test_the_report_has_its_table_and_its_figure(
    trained: Path, analysed: "subprocess.CompletedProcess[str]", tmp_path: Path
) -> None:
    del analysed
    shutil.copytree(trained / "runs", tmp_path / "runs")
    done = script("report.py", f"output_dir={tmp_path}", env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    where = tmp_path / "report"
    points = pd.read_csv(where / "figures/richness.csv")
    assert (where / "figures/richness.pdf").read_bytes().startswith(b"%PDF")
    assert (where / "figures/richness.png").stat().st_size > 10_000
    assert 'alt="How rich the representation is"' in (where / "index.html").read_text()
    assert len(points) == 2
    table = pd.read_csv(where / "tables/richness.csv")
    assert (where / "tables/richness.tex").exists()
    for dropout in (0.0, 0.9):
        analysis = analysis_of(run_of(tmp_path, dropout))
        for frame in (points, table):
            [row] = frame[frame.dropout == dropout].to_dict("records")
            for side in ("iid", "ood"):
                for name in QUANTITIES:
                    assert row[f"{side}_{name}"] == pytest.approx(analysis[side][name])
    cells = "0.9", f"{analysis_of(run_of(tmp_path, 0.9))['ood']['nll']:.2f}"
    lines = done.stdout.partition("\nRichness\n")[2].splitlines()
    assert any(all(cell in line for cell in cells) for line in lines)
    # A damaged file is a warning, and the others are shown.
    (run_of(tmp_path, 0.9) / "analysis.json").write_text("nothing of the sort")
    done = script("report.py", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "analysis.json: damaged" in done.stdout
    assert len(pd.read_csv(where / "figures/richness.csv")) == 1
