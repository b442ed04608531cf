"""Text reaches text options as it was written; what Hydra cannot take is refused with the way to write it."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig
from run_command import SMALLEST, before_step, script, train

from vld.config.settings import Config
from vld.model.published import PRESETS, of_torchvision
from vld.study.words import quoted_for_hydra

RUN = (*SMALLEST, "test_domain=0", "optim.steps=2", "keep=[]")
LOOK_ALIKES = ("2026_11_25", "1e5", "0x10", "on", "007", "null_1", "2026-11-25", "1.50", "True", "größe", "été 2026")


def folders(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if entry.is_dir()}


@pytest.mark.parametrize("written", LOOK_ALIKES)
def test_text_arrives_as_written(written: str, tmp_path: Path) -> None:
    for command in ("report.py", "status.py", "publish.py", "analyse.py"):
        done = script(command, f"output_dir={written}", "wandb.mode=disabled", cwd=tmp_path)
        if command != "status.py":
            assert f"output_dir={written}: no" in done.stderr or f"output_dir={written}: has no" in done.stderr
    shown = train("--cfg", "job", f"output_dir={written}", cwd=tmp_path)
    assert f"output_dir: {written}\n" in shown.stdout.replace("'", "").replace('"', "")


def test_an_option_with_plus_signs_is_that_option() -> None:
    words = ["++dropout=0,0.9", "++output_dir=1e5", "++hydra.sweep.dir=there", "+new=1"]
    assert quoted_for_hydra(words, Config) == ["dropout=0,0.9", 'output_dir="1e5"', *words[2:]]


def test_text_of_a_sweep_or_file_arrives_as_written(small_glyphs: Path, tmp_path: Path) -> None:
    (tmp_path / "conf/study").mkdir(parents=True)
    axes = "output_dir: 2026_11_25,1e5"
    (tmp_path / "conf/study/mine.yaml").write_text(
        "# @package _global_\nstudy:\n  name: mine\ndataset:\n  csv: 0x10\nhydra:\n  mode: MULTIRUN\n  sweeper:\n"
        f"    params:\n      {axes}\n      dataset.name: 010\n"
    )
    rows = [f"{path},{path.parts[-3]},{path.parts[-2]}" for path in small_glyphs.glob("glyphs/*/*/*.png")]
    (small_glyphs / "0x10").write_text("\n".join(["path,domain,class", *rows]))
    options = [word for word in RUN if not word.startswith("dataset=")]
    done = train("--config-dir", "conf", "study=mine", "dataset=folder", "test_domain=chalk", *options[1:],
                 f"data_dir={small_glyphs}", "wandb.mode=disabled", cwd=tmp_path)  # fmt: skip
    (small_glyphs / "0x10").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert folders(tmp_path) == {"conf", "outputs", "2026_11_25", "1e5"}
    assert folders(tmp_path / "1e5/runs") == {"010"}


@pytest.mark.parametrize(
    "written", ["runs#1", "~/runs", "a=b", "runs[1]", "[runs]", "a{b}", "runs(1)", "a'b", 'a"b', "ü#1"]
)
def test_missing_quotes_are_refused_with_a_correction(written: str, tmp_path: Path) -> None:
    refused = script("report.py", f"output_dir={written}", cwd=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    [hint] = shlex.split(refused.stderr.partition(": write ")[2])
    followed = script("report.py", hint, cwd=tmp_path)
    assert f"output_dir={written}: no such folder" in followed.stderr


def test_the_correction_is_quoted_for_a_shell(tmp_path: Path) -> None:
    refused = script("report.py", "output_dir=runs#1", cwd=tmp_path)
    assert refused.stderr == "output_dir=runs#1: write 'output_dir=\"runs#1\"'\n"


@pytest.mark.parametrize(
    "written", ["dropout=0,0.9,seed=0,1", "[dropout=0,0.9,seed=0,1]", '[dropout=0,0.9,"seed=0,1"]']
)
def test_members_without_quotes_are_refused_with_a_correction(written: str, tmp_path: Path) -> None:
    refused = script("combine.py", "dataset=pacs", f"method.members={written}", cwd=tmp_path)
    hint = """'method.members=["dropout=0,0.9","seed=0,1"]'"""
    assert (refused.returncode, refused.stderr) == (2, f"method.members={written}: write {hint}\n")


@pytest.mark.parametrize("command", ["train.py", "status.py", "report.py", "combine.py"])
def test_a_study_is_one_at_a_time(command: str, tmp_path: Path) -> None:
    for words in (["-m", "study=figure2,figure4"], ["study=figure2,figure4"]):
        refused = script(command, *words, cwd=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "study=figure2,figure4: one study at a time" in refused.stderr


@pytest.mark.parametrize("word", ["recipe=null", "study=null", "dataset=null", "recipe=null,erm"])
def test_null_is_no_preset(word: str, tmp_path: Path) -> None:
    refused = script("train.py", "-m", word, cwd=tmp_path)
    group = word.split("=")[0]
    assert refused.stderr == f"{word}: null is no preset; leave {group} out for its default\n"
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-m seed=range(0,0)", "this sweep has no jobs: one of its options has no value"),
        ("--config-dir nowhere", "--config-dir: no folder "),
        ("--experimental-rerun job.pickle", "--experimental-rerun: not supported; write the options"),
        ("-m --info", "Only one of --run, --multirun, "),
        ("--resolve", "The --resolve flag can only be used "),
    ],
)
def test_bad_flags_are_refused_in_one_line(words: str, said: str, tmp_path: Path) -> None:
    refused = train(*words.split(), cwd=tmp_path)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert refused.stderr.startswith(said)
    assert not list(tmp_path.iterdir())


def test_a_command_without_runs_can_sweep(tmp_path: Path) -> None:
    refused = script("analyse.py", "-m", "output_dir=nowhere", "weights=erm-last,erm-iid", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert re.findall("to run just this job again: .* weights=(.*)", refused.stdout) == ["erm-last", "erm-iid"]
    assert not list(tmp_path.iterdir())  # it keeps no record of its jobs


@pytest.mark.parametrize("words", [["dropout=2"], ["-m", "dropout=2,3"], ["study=demo", "dropout=2"]])
def test_a_command_is_composed_once(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is one job or a sweep is read off the same composition."""
    composed: list[object] = []
    compose = Hydra.compose_config

    def counted(*arguments: Any, **options: Any) -> DictConfig:
        if options.get("from_shell", True):  # else it is a job of the sweep
            composed.append(arguments)
        return compose(*arguments, **options)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    assert train(*words).returncode == 2
    assert len(composed) == 1


@pytest.mark.parametrize("full_error", ["0", "1"])
@pytest.mark.parametrize(
    "wrong", [["droput=0.9"], ["dropout=x"], ["-m", "dropout=0,2"], ["dataset=pac"], ["--cfg", "job", "lr=1"]]
)
def test_hydra_s_variable_changes_no_message(full_error: str, wrong: list[str]) -> None:
    done, expected = (train(*wrong, env=env) for env in ({"HYDRA_FULL_ERROR": full_error}, {}))
    assert (done.returncode, done.stderr) == (2, expected.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_relative_paths_mean_the_command_s_folder(sweep: list[str], small_glyphs: Path, tmp_path: Path) -> None:
    shutil.copytree(small_glyphs / "glyphs", tmp_path / "data/glyphs")
    for again in (False, True):
        done = train(*sweep, *RUN, "hydra.job.chdir=true", "wandb.mode=disabled", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            len(list((tmp_path / "outputs/runs").rglob("result.json"))) == len(list(tmp_path.rglob("result.json"))) == 1
        )
        assert ("already finished" in done.stdout) == again


@pytest.mark.slow
def test_two_sweeps_in_one_folder_do_not_meet(small_glyphs: Path, tmp_path: Path) -> None:
    """The second begins and ends while the first one trains."""
    options = ("-m", *RUN, f"data_dir={small_glyphs}", f"hydra.sweep.dir={tmp_path / 'jobs'}", "wandb.mode=disabled")
    others: list[int] = []

    def another() -> None:
        if not others:
            others.append(0)
            done = train(*options, "seed=7,8", f"output_dir={tmp_path / 'b'}", fresh=True)
            assert done.returncode == 0, done.stdout + done.stderr

    # In the second of two jobs: the first one has come to something by then.
    with before_step(1, lambda: another() if list((tmp_path / "a").rglob("result.json")) else None):
        done = train(*options, "seed=0,1", f"output_dir={tmp_path / 'a'}")
    assert others
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"│ (\d) +│ erm", done.stdout.split("┏")[-1]) == ["0", "1"]


def test_sizes_of_weights_are_torchvision_s() -> None:
    assert {name: of_torchvision(name) for name in PRESETS} == PRESETS


def test_a_dry_run_fetches_no_weights(small_glyphs: Path, tmp_path: Path) -> None:
    words = ("dataset=glyphs", f"data_dir={small_glyphs}", "dry_run=true", "device=cpu")
    networks = (["backbone=resnet18"], ["backbone=timm", "backbone.name=resnet18.a1_in1k"])
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    for network in networks:
        done = train(*words, *network, f"output_dir={tmp_path / 'out'}",
                     env={"TORCH_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path), **proxies})  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "this command: 4 runs, 0 finished, 4 to do" in done.stdout
        assert "its weights are not there yet; 4" in done.stdout
        refused = train(*words[:2], *network, "mixout=0.5", "mixout_kind=point", f"output_dir={tmp_path / 'out'}",
                        env={"TORCH_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path), **proxies})  # fmt: skip
        assert (refused.returncode, refused.stderr[:18]) == (2, "mixout_kind=point:")  # before they are downloaded
    assert not list(tmp_path.rglob("*.*"))
