"""What `report.py` does: read the runs, narrow them, make the report, write and show it."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from vld.commands.preflight import Command
from vld.config.command_settings import LOOKING, ReportConfig
from vld.config.errors import UserError
from vld.config.options import check_values
from vld.machine.terminal import Terminal
from vld.report.build import Report, make_report
from vld.report.labels import heading
from vld.report.select import Store, narrowed, read_store
from vld.report.write import write_report
from vld.study.jobs import words_without
from vld.study.planned import shared_runs

LONGEST_NAME = 100
MOST_SENTENCES = 10
SELECTION_OF_STUDY = {"figure10": "last"}
"""Figure 10 is Figure 9 without selection of the step."""
NOT_NARROWING = ("selection", "choose", "run", "study", "data_dir")


def make_and_show(command: Command) -> int:
    """Always 0. Raises `UserError` if there is nothing to report, or not in this way."""
    config, study = command.config, command.jobs[0].config.study.name
    words, output_dir = words_without(["output_dir"], config), Path(command.jobs[0].config.output_dir)
    how = {"selection": config.selection or SELECTION_OF_STUDY.get(study or "", "iid"), "choose": config.choose}
    check_values(ReportConfig, how)
    store = _store(command, output_dir, words)
    if config.selection not in (None, "last") and (store.results.holdout == 0).all():
        raise UserError(
            f"selection={config.selection}: needs held-out images, of which holdout=0 leaves none; use selection=last"
        )
    folder, terminal = output_dir / "report" / folder_name(words), Terminal()
    with terminal.doing("report") as progress:
        report = make_report(store, **how, study=study, run=config.run)
        page = write_report(report, folder, shlex.join([*command.program, *config.hydra.overrides.task]), progress)
    _show(report, folder, terminal)
    terminal.say(f"\n{page}")
    return 0


def _store(command: Command, output_dir: Path, words: Sequence[str]) -> Store:
    """The runs that the report is about. Raises `UserError` if none of them has finished."""
    study, planned = command.jobs[0].config.study.name, None
    narrowing = [option for word in words if (option := word.split("=")[0]) not in NOT_NARROWING]
    if study:  # the report is of its runs, and of those that it shares
        shared = shared_runs(command.jobs, words_without(LOOKING["report"], command.config))
        planned = [*command.runs, *(run for runs in shared.values() for run in runs)]
        narrowing = ["method"] if "method" in narrowing else []
    store = read_store(output_dir, planned)
    if store.empty:
        damaged = f" ({len(store.damaged)} damaged: {store.damaged[0]})" if store.damaged else ""
        what = "has no finished runs" if output_dir.is_dir() else "no such folder"
        raise UserError(f"output_dir={output_dir}: {what}{damaged}; train.py makes them")
    store = narrowed(store, command.jobs, narrowing)
    if store.results.empty:
        of_what = f" of {study} with its settings" if study else f" with {' '.join(words)}" if words else ""
        raise UserError(
            f"output_dir={output_dir}: has no finished runs{of_what}; train.py makes them, status.py shows their progress"
            " (with the same options as train.py)"
        )
    return store


def _show(report: Report, folder: Path, terminal: Terminal) -> None:
    terminal.show(" · ".join(report.facts), *(f"warning: {line}" for line in report.warnings))
    for name, table in report.tables.items():
        terminal.show(f"\n{heading(name)}", table)
    notes = dict.fromkeys([*(table.note for table in report.tables.values()), report.not_compared])
    sentences = report.headlines or report.sentences[:MOST_SENTENCES]
    terminal.show(*filter(None, notes), "", *sentences)
    if more := len(report.sentences) - len(sentences):
        terminal.say(f"{more} more comparisons: {folder / 'tables' / 'differences.csv'}")
    terminal.show(*(f"{drawn.title}: {folder / 'figures' / drawn.name}.png" for drawn in report.figures))


def folder_name(words: Sequence[str]) -> str:
    """The report's folder below `report/`: empty if it is of everything, else figure2, or figure2,dataset=pacs, …"""
    named = [word.removeprefix("study=") for word in words if not word.startswith("data_dir=")]
    name = ",".join(named).replace("/", "_").replace('"', "")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
