"""Combinations end to end: runs are trained and combined from the command line, and recomputed here from what they stored."""

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from run_command import REPOSITORY, script, train
from safetensors.torch import load_file
from tiny import decode_dataset
from torch import Tensor

from vld.config.settings import Config, WandbConfig
from vld.data.folder import list_dataset
from vld.data.split import split_indices
from vld.machine.lock import LOCK, hold
from vld.machine.terminal import Terminal
from vld.model.classifier import Classifier
from vld.runs import load_model, load_results
from vld.study.combination import combine_all
from vld.study.typed_settings import typed_config
from vld.tracking.background import Publisher
from vld.training.evaluation import EvaluationSet, evaluation_set, predict, score

BASE = (
    "dataset=glyphs",
    "backbone=efficientnet_lite0",
    "image_size=32",
    "batch_size=2",
    "optim.steps=4",
    "eval_every=2",
)
BASE += ("dropout=0.3", "optim.last_layer_lr_factor=10")
METHODS = ("model_soup", "greedy_soup", "ensemble_of_runs")
MEMBERS = 'method.members=["optim.lr=1e-2,5e-3","seed=0,1"]'


@pytest.fixture(scope="module")
def trained(small_glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output_dir with four runs for each of two test domains."""
    output_dir = tmp_path_factory.mktemp("outputs")
    keep = "keep=[erm-last,erm-last-logits,erm-iid,erm-iid-logits]"
    axes = ("optim.lr=1e-2,5e-3", "seed=0,1", "test_domain=[0,1]")
    done = train(*BASE, "-m", *axes, keep, f"data_dir={small_glyphs}", f"output_dir={output_dir}")
    assert done.returncode == 0, done.stderr
    return output_dir


Combine = Callable[..., str]


@pytest.fixture
def combine(trained: Path, small_glyphs: Path) -> Combine:
    """Run the command; its output."""

    def combine(*options: str) -> str:
        here = (f"data_dir={small_glyphs}", f"output_dir={trained}")
        done = script("combine.py", *BASE, MEMBERS, "test_domain=0", *here, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return combine


def result(shown: str, test_domain: str) -> dict[str, Any]:
    """The result.json of the combination that the output points to."""
    [path] = re.findall(rf"^{test_domain}: (/\S+/combined/\S+)$", shown, re.M)
    return json.loads((Path(path) / "result.json").read_text())


def members_of(combined: dict[str, Any], trained: Path) -> list[Path]:
    test_domain = combined["settings"]["test_domain"]
    return [trained / "runs/glyphs" / test_domain / member for member in combined["members"]]


@pytest.fixture(scope="module")
def images(small_glyphs: Path) -> EvaluationSet:
    """What runs that leave out the first domain are evaluated on."""
    dataset = decode_dataset(list_dataset("glyphs", small_glyphs / "glyphs"), 32, 256, lambda *_: None)
    return evaluation_set(dataset, dataset.domains[0].name, 0, torch.device("cpu"))


def own_row(run: Path, step: str) -> dict[str, Any]:
    """What the run itself has at this selection."""
    rows = json.loads((run / "result.json").read_text())["results"]
    [row] = [row for row in rows if (row["method"], row["selection"]) == ("erm", step)]
    return row


def refused(name: str, *options: str, lines: int = 1) -> str:
    """The lines on standard error of a command that has to be refused."""
    done = script(name, *options)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == lines, done.stderr
    return done.stderr


def averaged(run_dirs: list[Path], name: str) -> dict[str, Tensor]:
    states = [load_file(run_dir / f"{name}.safetensors") for run_dir in run_dirs]
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(states[0][key].dtype)
        for key in states[0]
    }


def evaluated(run_dir: Path, weights: dict[str, Tensor], images: EvaluationSet) -> tuple[float, float]:
    model = load_model(run_dir)
    model.load_state_dict(weights)
    scores = score(predict([model], images)[0].logits, images)
    return scores.iid_acc, scores.ood_acc


@pytest.mark.parametrize("step", ["last", "iid"])
def test_a_model_soup_averages_the_stored_weights(
    combine: Combine, trained: Path, images: EvaluationSet, step: str
) -> None:
    combined = result(combine(f"method.member_step={step}"), images.test_domain)
    runs = members_of(combined, trained)
    assert len(runs) == 4
    [row] = combined["results"]
    assert (row["method"], row["selection"]) == ("model_soup", step)
    assert (row["iid_acc"], row["ood_acc"]) == evaluated(runs[0], averaged(runs, f"erm-{step}"), images)
    assert combined["member_mean"]["ood_acc"] == pytest.approx(sum(own_row(run, step)["ood_acc"] for run in runs) / 4)


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_an_ensemble_of_runs_sums_the_stored_logits(
    combine: Combine, trained: Path, small_glyphs: Path, average: str
) -> None:
    """Labels and parts are worked out anew from the folder; the command itself needs no images."""
    shown = combine("method=ensemble_of_runs", f"method.average={average}", "data_dir=/no/such/folder")
    files = list_dataset("glyphs", small_glyphs / "glyphs")
    test_domain = files.domain_names[0]
    combined = result(shown, test_domain)
    total: Any = 0
    for run in members_of(combined, trained):
        logits = load_file(run / "erm-last-logits.safetensors")["logits"].float()
        total = total + (logits.softmax(1) if average == "softmax" else logits)
    hits: dict[str, list[bool]] = {}
    predicted = iter(total.argmax(1).tolist())
    for i, domain in enumerate(files.domains):
        inside, outside = split_indices(len(domain.labels), i, 0)
        for index in [*(inside if domain.name == test_domain else []), *outside]:
            hits.setdefault(domain.name, []).append(next(predicted) == domain.labels[index])
    assert next(predicted, None) is None
    ood = hits.pop(test_domain)
    [row] = combined["results"]
    assert row["ood_acc"] == sum(ood) / len(ood)
    assert row["iid_acc"] == pytest.approx(sum(sum(h) / len(h) for h in hits.values()) / len(hits), abs=1e-12)
    curve = combined["by_number_of_members"]
    assert [point["members"] for point in curve] == [1, 2, 3, 4]
    assert curve[-1]["ood_acc_mean"] == pytest.approx(row["ood_acc"])
    assert curve[-1]["ood_acc_sd"] == pytest.approx(0, abs=1e-12)
    assert "against the number of members" in shown


def test_a_combination_of_one_member_is_the_member(combine: Combine, trained: Path) -> None:
    """Whatever the method."""
    shown = combine("-m", f"method={','.join(METHODS)}", 'method.members=["seed=1"]', "optim.lr=5e-3")
    paths = re.findall(r"^chalk: (/\S+/combined/\S+)$", shown, re.M)
    combined = [json.loads((Path(path) / "result.json").read_text()) for path in paths]
    assert [one["results"][0]["method"] for one in combined] == list(METHODS)
    for one in combined:
        [row] = one["results"]
        [run] = members_of(one, trained)
        for name in ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc", "step"):
            assert row[name] == own_row(run, "last")[name], (row["method"], name)


@pytest.mark.parametrize(("method", "evaluations"), [("model_soup", 1), ("greedy_soup", 4), ("ensemble_of_runs", 0)])
def test_what_a_combination_evaluates(
    trained: Path, small_glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, evaluations: int
) -> None:
    """As the README has it: a soup of four once, a greedy one for each, an ensemble nothing."""
    shutil.copytree(trained / "runs/glyphs/chalk", tmp_path / "runs/glyphs/chalk")
    here = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}", f"method={method}", "device=cpu")
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = typed_config(compose("train", overrides=[*BASE, MEMBERS, "test_domain=0", *here]), Config)
    networks: list[int] = []

    def counted(models: list[Classifier], *arguments: Any, **options: Any) -> Any:
        networks.append(len(models))
        return predict(models, *arguments, **options)

    monkeypatch.setattr("vld.study.combination.predict", counted)
    publisher = Publisher(WandbConfig(mode="disabled"), "outputs", say=print, warn=print)
    [outcome] = combine_all(config, Terminal(), publisher)
    assert outcome.result is not None, outcome.failure
    assert networks == [1] * evaluations


def test_a_greedy_soup_s_trace_can_be_recomputed(combine: Combine, trained: Path, images: EvaluationSet) -> None:
    shown = combine("method=greedy_soup")
    combined = result(shown, images.test_domain)
    by_id = {run.name: run for run in members_of(combined, trained)}
    trace = combined["trace"]
    assert sorted(taste["run_id"] for taste in trace) == sorted(by_id)
    kept: list[Path] = []
    best = -1.0
    for taste in trace:
        soup = [*kept, by_id[taste["run_id"]]]
        iid_acc, ood_acc = evaluated(soup[0], averaged(soup, "erm-last"), images)
        assert (taste["iid_acc"], taste["ood_acc"]) == (iid_acc, ood_acc)
        assert taste["kept"] == (iid_acc >= best)
        if taste["kept"]:
            kept, best = soup, iid_acc
    assert combined["results"][0]["iid_acc"] == best
    assert re.search(rf"│ +{len(kept)} of 4 │", shown)


def test_a_greedy_soup_may_accept_by_pooled_images(combine: Combine, trained: Path) -> None:
    by_mean, pooled = (result(combine("method=greedy_soup", *how), "chalk") for how in ((), ("method.accept=pooled",)))
    assert by_mean["run_id"] != pooled["run_id"]
    assert "accept" not in by_mean["identity"]
    assert [taste["run_id"] for taste in by_mean["trace"]] == [taste["run_id"] for taste in pooled["trace"]]
    best = -1.0
    for taste in pooled["trace"]:
        assert taste["kept"] == (taste["pooled_acc"] >= best)
        best = max(best, taste["pooled_acc"])
    combined = load_results(trained, every_setting=True).set_index("run_id").combined
    assert combined[pooled["run_id"]] == "greedy_soup of 4, pooled"


def test_results_have_rows_of_combinations(combine: Combine, trained: Path) -> None:
    combine("method=model_soup", "test_domain=[0,1]")
    combine("method=ensemble_of_runs", 'method.members=["seed=0,1"]', "optim.lr=1e-2")
    table = load_results(trained)
    runs = set(table[table.members.isna()].run_id)
    soups = table[(table.method == "model_soup") & (table.selection == "last") & (table.members.str.len() == 4)]
    assert sorted(soups.test_domain) == ["chalk", "mosaic"]
    assert soups.lr.isna().all()
    assert soups.seed.isna().all()
    assert set(soups.dropout) == {0.3}
    assert set(soups.step) == {4}
    for members in soups.members:
        assert set(members) <= runs
    ensembles = table[(table.method == "ensemble_of_runs") & (table.members.str.len() == 2)]
    assert set(ensembles.lr) == {1e-2}
    assert ensembles.seed.isna().all()


def test_combined_once(combine: Combine, trained: Path) -> None:
    first = result(combine("method=ensemble_of_runs", "method.average=softmax", "test_domain=1"), "mosaic")
    again = combine("method=ensemble_of_runs", "method.average=softmax", "test_domain=1")
    assert "mosaic: already combined, skipped" in again
    assert result(again, "mosaic") == first
    directory = trained / "combined/glyphs/mosaic" / first["run_id"]
    (directory / "result.json").unlink()
    with hold(directory, wait=False, announce=print):
        skipped = combine("method=ensemble_of_runs", "method.average=softmax", "test_domain=1", "if_running=skip")
        assert re.search(r"mosaic: skipped: process \d+ on \S+ holds the lock", skipped)
    assert not (directory / "result.json").exists()


# Of `vld-combine`: killed at an evaluation in the middle of a soup; or when the result is written and not yet in its place.
KILLED_WHILE_TASTING = """
import os, signal
from vld.commands import main as cli
from vld.study import combination as combine
calls, predict = [], combine.predict
def evaluated(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(*arguments)
combine.predict = evaluated
cli.combine()
"""
KILLED_WHILE_WRITING = """
import os, signal
from vld.commands import main as cli
from vld.machine import atomic
def written(path, write):
    write(path.with_name(f".{path.name}.ab12"))
    os.kill(os.getpid(), signal.SIGKILL)
atomic.write_atomically = written
cli.combine()
"""


@pytest.mark.slow
def test_a_killed_combination_has_the_same_result_later(
    combine: Combine, trained: Path, small_glyphs: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    here = (f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    options = (*BASE, MEMBERS, "method=greedy_soup", "test_domain=[0,1]", *here)
    for text in (KILLED_WHILE_TASTING, KILLED_WHILE_WRITING):
        (tmp_path / "killed.py").write_text(text)
        killed = script(str(tmp_path / "killed.py"), *options, fresh=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert any((tmp_path / "combined/glyphs/chalk").glob("*/*"))
        assert not list(tmp_path.glob("combined/*/*/*/result.json"))
    again = script("combine.py", *options)
    assert again.returncode == 0, again.stderr
    assert not list(tmp_path.rglob(LOCK))
    undisturbed = combine("method=greedy_soup", "test_domain=[0,1]")
    for domain in ("chalk", "mosaic"):
        made, whole = (result(shown, domain) for shown in (again.stdout, undisturbed))
        times = ("seconds", "finished")
        assert {n: v for n, v in made.items() if n not in times} == {n: v for n, v in whole.items() if n not in times}


def test_a_sweep_over_combinations_ends_with_one_table(combine: Combine) -> None:
    shown = combine("-m", f"method={','.join(METHODS)}", "test_domain=0,1")
    table = shown[shown.rindex("┏") :]
    for method in METHODS:
        assert re.search(rf"│ {method} of 4 +│ +[\d.]+ │ +[\d.]+ │ +[\d.]+ │ +[\d.]+ │", table), table


def test_missing_members_are_listed_with_the_training_command(
    trained: Path, small_glyphs: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "runs/glyphs/chalk", tmp_path / "runs/glyphs/chalk")
    here = (*BASE, "test_domain=0", f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    members = 'method.members=["optim.lr=1e-2,5e-3","seed=0,1,2"]'
    missing = refused("combine.py", *here, members)
    assert "2 of 6 members are not finished" in missing
    assert "optim.lr=0.01 seed=2; optim.lr=0.005 seed=2" in missing
    assert not (tmp_path / "combined").exists()

    [command] = re.findall(r"this trains them: python scripts/train.py (.*)", missing)
    done = train(*shlex.split(command))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 4
    combined = script("combine.py", *here, members)
    assert combined.returncode == 0, combined.stderr
    assert len(result(combined.stdout, "chalk")["members"]) == 6


def test_train_trains_what_is_missing_and_combines(small_glyphs: Path, tmp_path: Path) -> None:
    here = (*BASE, f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    options = (
        "test_domain=0",
        "method=greedy_soup",
        'method.members=["seed=0,1"]',
        "keep=[]",
        "method.member_step=iid",
    )
    missing = refused("combine.py", *here, *options)
    assert re.search("2 of 2 members are not finished.*this trains them: python scripts/train.py", missing)
    done = train(*here, *options)
    assert done.returncode == 0, done.stderr
    assert len(result(done.stdout, "chalk")["members"]) == 2
    assert re.search(r"│ mean of the members │ chalk +│ +[\d.]+ │ +[\d.]+ │ +2 │", done.stdout)
    # What these runs kept does for no other step: said before anything is trained.
    for name, more in (("combine.py", ()), ("train.py", ('method.members=["seed=0,1,2"]',))):
        not_kept = refused(name, *here, *options, "method.member_step=last", *more)
        assert "keep: 2 of 2 members did not keep erm-last, the first" in not_kept
    assert len(list((tmp_path / "runs/glyphs/chalk").iterdir())) == 2


def test_a_failed_combination_does_not_stop_the_others(trained: Path, small_glyphs: Path, tmp_path: Path) -> None:
    """A member that another process trains, and damaged weights, each in a domain of its own."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    here = (*BASE, MEMBERS, "test_domain=[0,1]", f"data_dir={small_glyphs}", f"output_dir={tmp_path}")
    [member, *_] = sorted((tmp_path / "runs/glyphs/chalk").iterdir())
    (member / "result.json").unlink()
    with hold(member, wait=False, announce=print):
        waiting = train(*here, "method=ensemble_of_runs", "if_running=skip")
    assert waiting.returncode == 0, waiting.stderr
    assert "chalk: not combined, since 1 of 4 members are not finished" in waiting.stdout
    assert len(result(waiting.stdout, "mosaic")["members"]) == 4
    assert not (tmp_path / "combined/glyphs/chalk").exists()

    shutil.copytree(trained / "runs/glyphs/chalk", tmp_path / "runs/glyphs/chalk", dirs_exist_ok=True)
    (member / "erm-last.safetensors").write_bytes(b"nothing of the sort")
    damaged = script("combine.py", *here)
    assert damaged.returncode == 1
    assert re.search(rf"^failed: chalk: {re.escape(str(member))}/erm-last.safetensors: damaged", damaged.stdout, re.M)
    assert list((tmp_path / "combined/glyphs/chalk").iterdir()) == []
    assert len(result(damaged.stdout, "mosaic")["members"]) == 4


def test_other_images_are_refused(trained: Path, small_glyphs: Path, tmp_path: Path) -> None:
    shutil.copytree(small_glyphs / "glyphs", tmp_path / "data/glyphs")
    path = next((tmp_path / "data/glyphs").rglob("*.png"))
    Image.open(path).rotate(180).save(path)
    for domain in ("chalk", "mosaic"):
        shutil.copytree(trained / f"runs/glyphs/{domain}", tmp_path / f"outputs/runs/glyphs/{domain}")
    here = (*BASE, f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'outputs'}")
    differ = "are not those that the members were trained on (dataset.fingerprint; members with chalk, mosaic left out)"
    assert differ in refused("combine.py", *here, MEMBERS, "test_domain=[0,1]")
    # In one of the domains only: members of these images.
    one = 'method.members=["seed=0"]'
    shutil.rmtree(tmp_path / "outputs/runs/glyphs/chalk")
    assert train(*here, "test_domain=0", "optim.lr=1e-2").returncode == 0
    of_one = refused("combine.py", *here, one, "test_domain=[0,1]", "optim.lr=1e-2")
    assert "(dataset.fingerprint; members with mosaic left out)" in of_one
    assert not (tmp_path / "outputs/combined").exists()


def test_bad_combinations_are_refused_in_one_line(trained: Path, small_glyphs: Path) -> None:
    here = (*BASE, f"data_dir={small_glyphs}", f"output_dir={trained}", "test_domain=0")
    for option, said in {
        "method=erm": "method=erm: combine.py needs one of model_soup, greedy_soup, ensemble_of_runs",
        "test_domain=9": "test_domain=9: must be all or one of chalk",
    }.items():
        assert said in refused("combine.py", *here, option)
    # Of a sweep every job is checked before the first one combines anything.
    before = sorted(trained.rglob("combined/**/result.json"))
    assert "method=erm: combine.py needs" in refused("combine.py", *here, "-m", "method=model_soup,erm")
    assert sorted(trained.rglob("combined/**/result.json")) == before
