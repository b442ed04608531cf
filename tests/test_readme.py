"""Everything that README.md and the rooms' pages show runs: commands, made small, and Python. What trains is slow: that each
command is right, and whatever it does with the tiny network, others test."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from run_command import DOCUMENTATION, REPOSITORY, TINY_NETWORK, script, tiny_weights, train

from vld.config.command_settings import LOOKING, AnalyseConfig, PrepareConfig, PublishConfig
from vld.runs import load_results
from vld.study.jobs import axes_of, jobs_of
from vld.study.typed_settings import typed_config

BLOCKS = re.findall(r"(?:^    .*\n)+", DOCUMENTATION, re.M)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    for line in re.sub(r"\\\n\s*", "", block).splitlines()
    if line.strip().startswith("python scripts/")
]
TRAIN_COMMANDS = [command for command in COMMANDS if command.startswith("python scripts/train.py ")]
OF_THEIR_OWN = {"prepare": PrepareConfig, "publish": PublishConfig, "analyse": AnalyseConfig}
"""Commands that do not have train.py's options."""
SMALLER = {"image_size": "32", "optim.steps": "2", "optim.milestones": "[1]", "eval_every": "2", "batch_size": "1"}


def smaller(command: str, **instead: str) -> list[str]:
    """The options of a command, with small values for those that take time."""
    options = {option.split("=", 1)[0]: option for option in shlex.split(command)[2:]}
    for name, value in (SMALLER | instead).items():
        options[name] = f"{name}={value}"
    return list(options.values())


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_every_command_is_one(command: str) -> None:
    """Its presets, options and values are right; the slow tests below run them, small."""
    _, file, *words = shlex.split(command)
    name = Path(file).stem
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        if name in OF_THEIR_OWN:
            typed_config(compose(name, overrides=words), OF_THEIR_OWN[name])
            return
        composed = compose(
            "train",
            overrides=[word for word in words if word.startswith(("study=", "hydra"))],
            return_hydra_config=True,
        )
        own = ("study=", "hydra", *(f"{option}=" for option in LOOKING.get(name, ())))
        axes = [*axes_of(composed), *(word for word in words if word != "-m" and not word.startswith(own))]
        problems: dict[str, None] = {}
        assert list(jobs_of(axes, problems))
        assert not problems


@pytest.mark.slow
def test_from_pacs_to_a_table(pacs_dir: Path, tmp_path: Path) -> None:
    [block] = [block for block in BLOCKS if block.count("study=pacs_cpu") == 3]
    commands = [shlex.split(line)[1:] for line in block.strip().splitlines()]
    assert [command[0] for command in commands] == [
        f"scripts/{n}.py" for n in ("prepare", "train", "combine", "report")
    ]
    small = ["optim.steps=1", "eval_every=1", "batch_size=1", "image_size=32", "optim.milestones=[]", "test_domain=2"]
    small += ["optim.lr=1e-3", "dropout=0,0.9", f"output_dir={tmp_path}"]
    small += [*TINY_NETWORK[:2], tiny_weights(tmp_path)]
    for name, *options in commands:
        of_runs = small if name != "scripts/prepare.py" else ["image_size=32"]
        done = script(name.removeprefix("scripts/"), *options, *of_runs, f"data_dir={pacs_dir.parent}")
        assert done.returncode == 0, done.stdout + done.stderr
    [page] = (tmp_path / "report").rglob("index.html")
    assert "PACS" in page.read_text()
    table = load_results(tmp_path)
    assert sorted(table[table.members.notna()].method) == ["ensemble_of_runs"] * 2 + ["model_soup"] * 2


@pytest.mark.slow
def test_a_dataset_and_a_backbone_of_one_s_own(small_glyphs: Path, tmp_path: Path) -> None:
    [of_images] = [command for command in TRAIN_COMMANDS if "dataset=folder" in command]
    [of_network] = [command for command in TRAIN_COMMANDS if "wide_resnet50_2" in command]
    (tmp_path / "mine").symlink_to(small_glyphs / "glyphs")
    for command, data_dir, more in (
        (of_images, tmp_path, {}),
        (of_network, small_glyphs, {"backbone.weights": "none", "keep": "[]"}),
    ):
        options = smaller(command, data_dir=str(data_dir), output_dir=str(tmp_path), test_domain="0", **more)
        done = train(*options)
        assert done.returncode == 0, done.stderr
    assert set(load_results(tmp_path).backbone) == {"efficientnet_lite0", "wide"}


@pytest.mark.slow
def test_anatomy_of_one_command_runs_on_real_pacs(pacs_dir: Path, tmp_path: Path) -> None:
    [command] = [command for command in TRAIN_COMMANDS if "test_domain=sketch" in command]
    done = train(*smaller(command, data_dir=str(pacs_dir.parent), output_dir=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs/pacs/sketch").rglob("result.json"))) == 1


@pytest.mark.slow
def test_the_sweep_runs_and_so_does_the_python(
    small_glyphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [command] = [c for c in TRAIN_COMMANDS if "dataset=glyphs" in c and "dropout=0,0.5,0.9" in c]
    done = train(
        *smaller(command, data_dir=str(small_glyphs), output_dir=str(tmp_path / "outputs"), test_domain="chalk")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("chalk  step 2/2") == 3

    [python] = [block for block in BLOCKS if "from vld.runs import" in block]
    run_dir = next((tmp_path / "outputs/runs/glyphs/chalk").iterdir())
    code = re.sub(r"^    ", "", python, flags=re.M).replace("outputs/runs/glyphs/chalk/<run_id>", str(run_dir))
    code = code.replace("some.jpg", str(next((small_glyphs / "glyphs").rglob("*.png"))))
    names: dict[str, object] = {}
    exec(code.replace('"outputs"', repr(str(tmp_path / "outputs"))), names)
    assert len(names["table"]) == 3 * 3 * 3  # type: ignore[arg-type]  # runs, methods, selections
    assert type(names["model"]).__name__ == "Classifier"
    assert capsys.readouterr().out.strip() in {path.name for path in (small_glyphs / "glyphs/chalk").iterdir()}


@pytest.mark.slow
def test_the_demo_study_is_looked_at_combined_and_reported_also_in_a_notebook(
    small_glyphs: Path, tmp_path: Path
) -> None:
    [command] = [command for command in TRAIN_COMMANDS if "study=demo" in command]
    [looks] = [block for block in BLOCKS if "scripts/status.py" in block]
    [reports] = [
        block for block in BLOCKS if "scripts/report.py" in block and not re.search("pacs|leave_one_out|rivals", block)
    ]
    [python] = [block for block in BLOCKS if "from vld.report import" in block]
    places = [f"data_dir={small_glyphs}", f"output_dir={tmp_path}"]
    small = ["optim.steps=2", "eval_every=2", "batch_size=1", "image_size=16", "optim.milestones=[1]"]
    done = train(*shlex.split(command)[2:], *small, *places)
    assert done.returncode == 0, done.stderr
    assert "demo: 16 runs, 0 finished, 16 to do" in done.stdout
    everything, of_study = (line.strip() for line in reports.strip().splitlines())
    assert everything.endswith("report.py output_dir=outputs")
    for line in [*looks.strip().splitlines(), everything.removesuffix(" output_dir=outputs"), of_study]:
        options = small if "study=" in line else []
        done = script(line.split()[1].removeprefix("scripts/"), *shlex.split(line)[2:], *options, *places)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "report").rglob("index.html"))) == 2
    names: dict[str, Any] = {}
    exec(re.sub(r"^    ", "", python, flags=re.M).replace('"outputs"', repr(str(tmp_path))), names)
    assert [one.label for one in names["series"]][:2] == ["ERM, dropout 0", "weight averaging, dropout 0"]
    assert len(names["series"]) == 2 * (3 + 2)  # dropout rates; methods along a run and combinations


@pytest.mark.slow
def test_representations_are_analysed(small_glyphs: Path, tmp_path: Path) -> None:
    [block] = [block for block in BLOCKS if "scripts/analyse.py" in block]
    places = [f"data_dir={small_glyphs}", f"output_dir={tmp_path}"]
    options = (
        "dataset=glyphs backbone=resnet18 backbone.weights=none image_size=16 batch_size=1 optim.steps=1 test_domain=0"
    )
    assert train("-m", *options.split(), "seed=0,1", *places).returncode == 0
    first, second = tmp_path.glob("runs/glyphs/*/*")
    everything, one = (shlex.split(line)[2:] for line in block.strip().splitlines())
    assert everything == ["data_dir=data", "output_dir=outputs"]
    [of_run] = one
    assert of_run.startswith("run=")
    done = script("analyse.py", f"run={second}", *places)
    assert done.returncode == 0, done.stderr
    assert not (first / "analysis.json").exists()
    done = script("analyse.py", *places)
    assert done.returncode == 0, done.stderr
    assert (first / "analysis.json").exists()
    assert "already analysed" in done.stdout


def test_the_study_shown_is_one(tmp_path: Path) -> None:
    _, text = re.findall(r"```yaml\n(.*?)```", DOCUMENTATION, re.S)
    (tmp_path / "study").mkdir()
    (tmp_path / "study/mine.yaml").write_text(text)
    shown = script("status.py", "--config-dir", str(tmp_path), "study=mine", f"output_dir={tmp_path}")
    assert shown.returncode == 1, shown.stderr
    assert "mine: 48 runs, 0 finished" in shown.stdout


def test_the_cluster_s_command_composes() -> None:
    """commands/test_slurm.py submits others."""
    [command] = [command for command in TRAIN_COMMANDS if "hydra/launcher=slurm" in command]
    composed = train(*shlex.split(command)[2:], "--cfg", "hydra")
    assert composed.returncode == 0, composed.stderr
    assert "partition: gpu" in composed.stdout
    assert "max_num_timeout: 100" in composed.stdout


def test_several_jobs_at_a_time_would_run(small_glyphs: Path, tmp_path: Path) -> None:
    """commands/test_launchers.py has others run."""
    [command] = [command for command in TRAIN_COMMANDS if "launcher=parallel" in command and "glyphs" in command]
    done = train(*smaller(command, data_dir=str(small_glyphs), output_dir=str(tmp_path), dry_run="true"))
    assert done.returncode == 0, done.stderr
    assert "this sweep: 4 runs, 0 finished, 4 to do" in done.stdout


def test_the_benchmark_s_command_is_one() -> None:
    """It takes minutes; commands/test_benchmark_command.py runs a small one."""
    [command] = [block.strip() for block in BLOCKS if block.strip().startswith("python scripts/benchmark.py")]
    done = script("benchmark.py", *shlex.split(command)[2:], "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    assert "batch_size: " in done.stdout


@pytest.mark.slow
def test_the_combinations_are_trained_and_made(small_glyphs: Path, tmp_path: Path) -> None:
    [block] = [block for block in BLOCKS if "scripts/combine.py" in block and "study=" not in block]
    commands = re.sub(r"\\\n\s*", "", block).strip().splitlines()
    assert [command.split()[1] for command in commands] == ["scripts/train.py", "scripts/combine.py"]
    for command in commands:
        multirun = ["-m"] if " -m " in command else []
        options = smaller(command.replace(" -m ", " "), data_dir=str(small_glyphs), output_dir=str(tmp_path))
        done = script(command.split()[1].removeprefix("scripts/"), *multirun, *options)
        assert done.returncode == 0, done.stderr
    table = load_results(tmp_path)
    assert sorted(table[table.members.notna()].method) == ["ensemble_of_runs", "greedy_soup", "model_soup"]
    assert set(table[table.members.notna()].members.str.len()) == {4}


@pytest.mark.slow
def test_other_networks_and_dropout_elsewhere_run(small_glyphs: Path, tmp_path: Path) -> None:
    [block] = [block for block in BLOCKS if "backbone=vit_b_16" in block]
    transformer, by_name, sweep = block.strip().splitlines()
    assert "image_size=384" in transformer  # what its published weights are of
    assert "backbone=timm backbone.name=" in by_name
    for command, runs in ((transformer, 1), (by_name, 1), (sweep, 4)):
        small = {"dataset": "glyphs", "test_domain": "0", "backbone.weights": "none", "keep": "[]"}
        small |= dict(option.split("=") for option in TINY_NETWORK) if command == sweep else {}
        done = train(*smaller(command, **small, data_dir=str(small_glyphs), output_dir=str(tmp_path / str(runs))))
        assert done.returncode == 0, done.stderr
    table = load_results(tmp_path / "1")
    assert set(table.backbone) == {"vit_b_16", "convnext_tiny.fb_in22k"}
    assert load_results(tmp_path / "4").run_id.nunique() == 4


@pytest.mark.slow
def test_the_line_between_two_networks_is_made(small_glyphs: Path, tmp_path: Path) -> None:
    [command] = [command for command in TRAIN_COMMANDS if "method=connectivity" in command]
    done = train(*smaller(command, data_dir=str(small_glyphs), output_dir=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "α of the first member" in done.stdout


@pytest.mark.slow
def test_a_dataset_is_prepared_and_runs_are_published(tmp_path: Path) -> None:
    for name, instead in (("prepare.py", f"data_dir={tmp_path}"), ("publish.py", "wandb.mode=offline")):
        [command, *_] = [command for command in COMMANDS if command.startswith(f"python scripts/{name}")]
        options = [option for option in shlex.split(command)[2:] if not option.startswith("output_dir=")]
        glyphs = ["dataset=glyphs" if option.startswith("dataset=") else option for option in options]
        output_dir = [f"output_dir={tmp_path}"] if name == "publish.py" else ["image_size=16"]
        done = script(name, *glyphs, instead, *output_dir)
        assert done.returncode == 0, done.stderr
        if name == "prepare.py":
            assert re.search(
                r"glyphs: 2,400 images in 4 domains of 10 classes, fingerprint \w{8}; image store in", done.stdout
            )
            options = "dataset=glyphs batch_size=1 optim.steps=1 test_domain=0"
            small = (
                *options.split(),
                *TINY_NETWORK,
                "image_size=16",
                "keep=[]",
                f"data_dir={tmp_path}",
                f"output_dir={tmp_path}",
            )
            assert train(*small).returncode == 0
        else:
            assert "3 offline runs" in done.stdout


@pytest.mark.slow
def test_the_demo_downloads_nothing(tmp_path: Path) -> None:
    """A run of it from nothing, where whatever goes out finds nobody and nothing is cached, nor anybody logged in to W&B."""
    [command] = re.findall(r'^(python scripts/train\.py .*) "\$@"$', (REPOSITORY / "scripts/demo.sh").read_text(), re.M)
    places = {"data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "outputs")}
    options = smaller(command, test_domain="chalk", dropout="0", **places)
    home = tmp_path / "home"
    home.mkdir()
    env = dict.fromkeys(("HOME", "NETRC", "TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME", "WANDB_CONFIG_DIR"), str(home))
    env |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env |= dict.fromkeys(("no_proxy", "NO_PROXY", "WANDB_API_KEY"), "") | {"WANDB_MODE": "online"}  # its default
    done = script("train.py", *options, env=env, fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "outputs/runs/glyphs/chalk").rglob("result.json"))) == 1
    assert "W&B: 3 offline runs" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".venv/made-from").exists(), reason="scripts/test.sh has not made .venv here")
def test_the_demo_ends_with_its_tables_and_a_picture(small_glyphs: Path, tmp_path: Path) -> None:
    small = [f"{name}={value}" for name, value in SMALLER.items()]
    done = subprocess.run(
        ["bash", REPOSITORY / "scripts/demo.sh", *small, f"data_dir={small_glyphs}", f"output_dir={tmp_path}/outputs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "making .venv" not in done.stdout  # it is there already
    assert len(list((tmp_path / "outputs/runs/glyphs").rglob("result.json"))) == 8
    last_table = done.stdout[done.stdout.rindex("┏") :]
    headings = last_table[: last_table.index("┡")]  # of more than one line where they do not fit
    expected = {"dropout", "method", "i.i.d.", "o.o.d.", "chalk", "mosaic", "neon", "print"}
    assert set(re.findall(r"[a-z][\w.]*", headings)) == expected
    assert "What it does not" in last_table
    [page] = re.findall(r"^The page with tables and figures: (.*)", done.stdout, re.M)
    assert Path(page).name == "index.html"
    assert Path(page).parent.parent == tmp_path / "outputs/report"
    assert "<img" in Path(page).read_text() or "<svg" in Path(page).read_text()
    [picture] = (tmp_path / "outputs/datasets").iterdir()
    assert picture.suffix == ".png"
