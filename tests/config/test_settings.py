"""A setting is declared once, in vld/config/settings.py: its check, its line of --help, its row of conf/README.md follow.

After a change there: PYTHONPATH=tests python tests/config/test_settings.py writes conf/README.md anew.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from run_command import REPOSITORY, TINY_NETWORK, changed_copy, script

from vld.config.command_settings import AnalyseConfig, PrepareConfig, PublishConfig, ReportConfig, StatusConfig
from vld.config.options import Option, beyond, options_of, presets_of, written
from vld.config.settings import Config
from vld.runs.identity import run_id

README = REPOSITORY / "conf/README.md"
SCHEMAS = {
    "train": Config,
    "combine": Config,
    "benchmark": Config,
    "status": StatusConfig,
    "report": ReportConfig,
    "prepare": PrepareConfig,
    "analyse": AnalyseConfig,
    "publish": PublishConfig,
}


def table(options: Iterable[Option], *, of_runs: bool) -> str:
    """The options as a Markdown table, in the order of their declaration. of_runs: say whether they are part of a run's id."""
    names = ["setting", "default", "what it means", "must be", *(["part of a run's id"] if of_runs else [])]
    rows = [names, ["---"] * len(names)]
    for one in options:
        must = f"{'each ' if one.must.each else ''}{one.must.be}" if one.must else allowed(one.type)
        rows.append([f"`{one.name}`", f"`{written(one.default)}`", one.help.replace("<", "\\<"), must, one.identity])
    return "\n".join(f"| {' | '.join(row[: len(names)])} |" for row in rows)


def allowed(kind: Any) -> str:
    """Of a setting without a check: what its type allows."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "any value"}
    if get_origin(kind) is list:
        return f"a list of {names[get_args(kind)[0]]}"
    return " or ".join("null" if one is type(None) else names[one] for one in get_args(kind) or (kind,))


def readme() -> str:
    """What conf/README.md is to hold."""
    parts = [
        "# Settings",
        "Every setting of every command, generated from the declarations in `vld/config`. Presets set several at once.",
        "## `train.py`, and the commands that take the same",
        table(options_of(Config).values(), of_runs=True),
    ]
    for command in ("status", "report", "prepare", "analyse", "publish"):
        schema = SCHEMAS[command]
        of_its_own = issubclass(schema, Config)
        parts.append(f"## `{command}.py`{', its own' if of_its_own else ''}")
        parts.append(table(beyond(schema, Config) if of_its_own else options_of(schema).values(), of_runs=False))
    return "\n\n".join(parts) + "\n"


def test_the_table_of_settings_is_up_to_date() -> None:
    assert README.read_text() == readme()


@pytest.mark.parametrize("schema", dict.fromkeys(SCHEMAS.values()))
def test_every_setting_says_what_it_means_and_allows_its_default(schema: type) -> None:
    for one in options_of(schema).values():
        assert one.help and one.help[0] != " " and one.help[-1] not in ". ", one.name
        assert one.default == "???" or not list(one.problems(one.default)), one.name


@pytest.mark.parametrize("command", SCHEMAS)
def test_help_begins_with_commands_and_has_every_option(command: str) -> None:
    done = script(f"{command}.py", "--help")
    assert done.returncode == 0, done.stderr
    header, _, options = done.stdout.partition("(default) ==")
    assert f"vld-{command} " in header
    for name, one in options_of(SCHEMAS[command]).items():
        assert f"\n{name}={written(one.default)} " in options, name
    for group in presets_of(SCHEMAS[command]):
        assert f"\n{group}=" in options
        assert f"\n{group}: " in header


def test_a_setting_takes_one_place(tmp_path: Path, small_glyphs: Path) -> None:
    """label_smoothing: its declaration, and its use in the loop. It is checked, in --help, and part of the id where it is set."""
    script = changed_copy(
        tmp_path,
        (
            "vld/config/settings.py",
            '    momentum: float = option(0.9, "',
            '    label_smoothing: float = option(0.0, "of the training loss", must.RATE, identity=IF_CHANGED)\n'
            '    momentum: float = option(0.9, "',
        ),
        (
            "vld/training/loop.py",
            "cross_entropy(logits, labels)",
            "cross_entropy(logits, labels, label_smoothing=config.optim.label_smoothing)",
        ),
    )
    assert "\noptim.label_smoothing=0        of the training loss\n" in script("train.py", "--help").stdout
    refused = script("train.py", "optim.label_smoothing=1")
    assert (refused.returncode, refused.stderr) == (2, "optim.label_smoothing=1.0: must be in [0, 1)\n")
    done = script(
        "train.py",
        *("-m", "optim.label_smoothing=0,0.1", "dataset=glyphs", f"data_dir={small_glyphs}", "test_domain=chalk"),
        *(*TINY_NETWORK, "image_size=32", "batch_size=2", "optim.steps=2", "eval_every=2", "wandb.mode=disabled"),
        f"output_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    losses = {}
    for path in (tmp_path / "runs/glyphs/chalk").glob("*/result.json"):
        settings = json.loads(path.read_text())["settings"]
        assert run_id(settings) == path.parent.name
        rows = map(json.loads, (path.parent / "metrics.jsonl").read_text().splitlines())
        losses[settings.get("optim.label_smoothing")] = [row["train_loss"] for row in rows][-1]
    assert losses.keys() == {None, 0.1}  # at its default it is no part of the identity: runs of before keep their ids
    assert losses[None] != losses[0.1]


if __name__ == "__main__":
    README.write_text(readme())
