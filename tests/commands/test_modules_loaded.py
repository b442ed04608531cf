"""Commands that look answer at once: they load neither torch, nor what takes as long, without need."""

import json
import os
import subprocess
import sys
from pathlib import Path

from report_store import write_study

COMPUTES = ("torch", "torchvision", "timm", "wandb")
COMPUTES_OR_DRAWS = (*COMPUTES, "numpy", "pandas", "matplotlib", "PIL")
STUDY = ("study=figure2", "dataset=pacs", "optim.lr=1e-3", "optim.weight_decay=1e-4", "seed=0", "output_dir=outputs")
# Command, options, exit code (that it did what it is here for), and what it must not load. In one process, which takes a second
# to import Hydra: so those that may load more come last.
ROWS: list[tuple[str, tuple[str, ...], int, tuple[str, ...]]] = [
    *((name, ("--help",), 0, COMPUTES_OR_DRAWS) for name in ("train", "combine", "benchmark", "prepare", "analyse")),
    *((name, ("--help",), 0, COMPUTES_OR_DRAWS) for name in ("status", "report", "publish")),
    ("train", ("dataset=glyphs", "backbone=efficientnet_lite0", "dry_run=true"), 0, COMPUTES_OR_DRAWS),
    ("train", (*STUDY, "dry_run=true"), 0, COMPUTES_OR_DRAWS),
    ("train", ("-m", "dataset=glyphs", "method=model_soup", "method.members=[sed]"), 2, COMPUTES_OR_DRAWS),
    ("status", STUDY, 0, COMPUTES_OR_DRAWS),
    ("status", (*STUDY, "format=json"), 0, COMPUTES_OR_DRAWS),
    ("publish", ("output_dir=outputs", "wandb.mode=disabled"), 2, COMPUTES_OR_DRAWS),
    ("report", STUDY, 0, COMPUTES),
]
PROGRAM = """
import json, sys
import vld.commands.main
for name, options, code, unwanted in json.loads(sys.argv[1]):
    sys.argv = [f"vld-{name}", *options]
    ended = 0
    try:
        getattr(vld.commands.main, name)()
    except SystemExit as end:
        ended = end.code or 0
    loaded = set(unwanted) & sys.modules.keys()
    assert (ended, loaded) == (code, set()), (name, options, ended, loaded)
from vld.runs import load_results
assert len(load_results("outputs").run_id.unique()) == 8
assert not set(unwanted) & sys.modules.keys()
"""


def test_commands_that_look_load_nothing_that_computes(tmp_path: Path) -> None:
    """Nor does `load_results`. Where there are no images yet, a dry run is such a command, too."""
    write_study(tmp_path / "outputs", *STUDY[0].split("=")[1:], *STUDY[1:-1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(ROWS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "data").exists()
