"""The script that measures everything within one loan of a GPU: no part that fails takes the others with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_command import REPOSITORY

STUB = """#!/bin/bash
# Python as far as the script goes: one part does not end, one fails, benchmarks leave figures.
case "$*" in
    *gpu_summary*) exec {python} "$@" ;;
    *"-m pytest"*) echo "1 failed"; exit 1 ;;
    *benchmark.variant*precision=fp32*) exec sleep 600 ;;
    *benchmark.variant*)
        for word in "$@"; do case $word in output_dir=*) folder=${{word#output_dir=}} ;; esac; done
        mkdir -p "$folder"
        cp {figures} "$folder/benchmark.json" ;;
    *train.py*deterministic=true*)
        for word in "$@"; do case $word in output_dir=*) folder=${{word#output_dir=}}/runs/pacs/sketch/1 ;; esac; done
        mkdir -p "$folder"
        echo '{{"results": ["'"$folder"'"]}}' > "$folder/result.json" ;;
esac
"""


@pytest.mark.slow
def test_parts_that_fail_or_do_not_end_leave_the_others_and_the_summary(tmp_path: Path) -> None:
    figures = {
        "backbone": "resnet50", "image_size": 224, "images_per_step": 96, "images_per_second": {"full step": 3000.0},
        "full_step_to_ceiling": 0.8, "conventional_step_to_full_step": 5.0, "DomainBed-style_step_to_full_step": 9.0,
        "median_seconds": {"bare step": 1.0, "full step": 1.2, "step from host memory": 1.1}, "mixout_step_to_bare_step": 1.05,
        "kernels_of_a_full_step": {"seconds": 0.9},
    }  # fmt: skip
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, figures=tmp_path / "figures.json"))
    stub.chmod(0o755)
    environment = os.environ | {
        "PYTHON": str(stub),
        "OUT": str(tmp_path / "out"),
        "GPU_CHECK_SMALL": "1",
        "GPU_CHECK_VARIANT": "3",
    }
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts/gpu_check.sh")], env=environment, capture_output=True, text=True, check=True
    )
    parts = (tmp_path / "out/parts.txt").read_text().splitlines()
    codes = {line.split(":")[0]: line.split("exit code ")[1].split()[0] for line in parts}
    assert {
        "machine",
        "tests",
        "main",
        "eager",
        "without_graphs",
        "fp32",
        "interrupted",
        "resumed",
        "compile_mixout",
    } < codes.keys()
    assert codes["tests"] == codes["commands"] == "1"
    assert codes["fp32"] in ("124", "137")  # the time limit
    assert codes["main"] == codes["mobilenet_v2"] == codes["cudnn_untried"] == codes["deterministic_resumed"] == "0"
    assert len(list((tmp_path / "out").iterdir())) <= 8
    said = (tmp_path / "out/summary.txt").read_text()
    assert (
        "main: resnet50 at 224 px, 96 images a step, 3,000 images/s, full step 1.250 x bare,"
        " with Mixout 1.050 x bare, from host memory 1.100 x bare, conventional step 5.00 x ours, DomainBed-style step 9.00 x"
        in said
    )
    assert "DIFFERENT" in said  # the stub's two deterministic runs
    assert said in done.stdout
    again = ["bash", str(REPOSITORY / "scripts/gpu_check.sh"), "main", "nothing"]
    (tmp_path / "out/parts.txt").unlink()
    some = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
    assert (some.returncode, some.stderr) == (2, "nothing: no such part\n")
    assert [line.split(":")[0] for line in (tmp_path / "out/parts.txt").read_text().splitlines()] == ["main"]
    assert json.loads((tmp_path / "out/benchmarks.json").read_text()).keys() >= {"main", "eager", "mobilenet_v2"}


@pytest.mark.slow
def test_what_it_needs_is_packed_and_can_be_installed_without_a_network(pacs_dir: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("gpu_pack.sh", "constraints.txt"):
        (checkout / "scripts" / name).write_bytes((REPOSITORY / "scripts" / name).read_bytes())
    here = {"GPU_PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}", "PYTHON": sys.executable}
    command = ["bash", str(checkout / "scripts/gpu_pack.sh"), str(pacs_dir)]
    subprocess.run(command, env=os.environ | here, check=True, capture_output=True)
    pack = checkout / "data/gpu_check"
    assert len(list(pack.glob("data/PACS/*/*/*"))) == -(-9991 // 4)
    assert sum(path.stat().st_size for path in pack.rglob("*")) < 64 << 20
    wheels = sorted(map(str, (pack / "wheels").glob("*.whl")))
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
    ]
    subprocess.run([*install, *wheels], check=True)
    names = {path.name for path in (tmp_path / "site").iterdir()}
    assert {"hydra", "omegaconf", "antlr4", "filelock", "pytest", "hypothesis"} <= names
