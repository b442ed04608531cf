"""What `report.py` does: read, narrow, make, write, and show."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vld.config.command_settings import LOOKING, ReportConfig
from vld.config.errors import UserError
from vld.config.options import check_values
from vld.machine.terminal import Terminal
from vld.report.build import make_report
from vld.report.labels import heading
from vld.report.select import narrowed, read_store
from vld.report.write import write_report
from vld.study.jobs import Job, words_without
from vld.study.planned import planned_runs, shared_runs

LONGEST_NAME = 100
MOST_SENTENCES = 10
SELECTION_OF_STUDY = {"figure10": "last"}
"""Figure 10 is Figure 9 without selection of the step."""
HOW, PLACES = ("selection", "choose", "run"), ("study", "data_dir")


def report_of(jobs: Sequence[Job], config: DictConfig, command: str) -> None:
    """What `report.py` does in place of jobs. config: of the command, as composed; command: as it was given, for the page."""
    study, output_dir = jobs[0].config.study.name, Path(jobs[0].config.output_dir)
    words = words_without(["output_dir"], config)
    wanted = None
    if study:  # its runs and those that it shares
        shared = shared_runs(jobs, words_without(LOOKING["report"], config))
        wanted = [*planned_runs(jobs), *(run for runs in shared.values() for run in runs)]
    selection = config.selection or SELECTION_OF_STUDY.get(study or "", "iid")
    check_values(ReportConfig, {"selection": selection, "choose": config.choose})
    if config.selection not in (None, "last") and any(job.config.holdout == 0 for job in jobs):
        raise UserError(
            f"selection={selection}: needs held-out images, of which holdout=0 leaves none; use selection=last"
        )
    terminal = Terminal()
    store = read_store(output_dir, wanted)
    if store.empty:
        damaged = f" ({len(store.damaged)} damaged: {store.damaged[0]})" if store.damaged else ""
        there = "has no finished runs" if output_dir.is_dir() else "no such folder"
        raise UserError(f"output_dir={output_dir}: {there}{damaged}; train.py makes them")
    title = study or "vld"
    if wanted is not None:
        if any(word.startswith("method=") for word in words):
            store = narrowed(store, jobs, ["method"])
    else:
        options = [word.split("=")[0] for word in words]
        store = narrowed(store, jobs, [option for option in options if option not in (*HOW, *PLACES)])
    if store.results.empty:
        of_what = f" of {study} with its settings" if study else f" with {' '.join(words)}" if words else ""
        raise UserError(
            f"output_dir={output_dir}: has no finished runs{of_what}; train.py makes them, status.py says how far they are"
            " (with the same options as train.py was given)"
        )
    folder = output_dir / "report" / folder_name(words)
    with terminal.doing("report") as progress:
        how = {"selection": selection, "choose": config.choose, "study": study, "run": config.run}
        made = make_report(store, title=title, **how, progress=progress)
        index = write_report(made, folder, command, progress)
    for line in (" · ".join(made.facts), *(f"warning: {line}" for line in made.warnings)):
        terminal.say(line)
    for name, table in made.tables.items():
        terminal.show(f"\n{heading(name)}", table)
    for note in dict.fromkeys([*(table.note for table in made.tables.values()), made.not_compared]):
        if note:
            terminal.say(note)
    shown_sentences = made.headlines or made.sentences[:MOST_SENTENCES]
    for line in ("", *shown_sentences):
        terminal.say(line)
    if more := len(made.sentences) - len(shown_sentences):
        terminal.say(f"{more} more comparisons: {folder / 'tables' / 'differences.csv'}")
    for drawn in made.figures:
        terminal.say(f"{drawn.title}: {folder / 'figures' / drawn.name}.png")
    terminal.say(f"\n{index}")


def folder_name(words: Sequence[str]) -> str:
    """Where a report goes, below `report/`: nothing for that of everything, figure2, figure2,dataset=pacs, …"""
    named = [word.removeprefix("study=") for word in words if not word.startswith("data_dir=")]
    name = ",".join(named).replace("/", "_").replace('"', "")
    return (
        name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )
