"""The dashboard's saved view: the study's figures, as W&B draws them from the runs of a project."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vld.config.errors import UserError
from vld.config.names import METHOD_COLORS
from vld.machine.atomic import write_json
from vld.tracking.content import WandbRun

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "vld: in and out of distribution"


def check_installed() -> None:
    """Raises `UserError` without the optional dependency."""
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError('workspace=true: needs wandb-workspaces: pip install "vld[workspaces]"') from error


def build_workspace(entity: str, project: str, runs: Sequence[WandbRun]) -> "Workspace":
    """i.i.d. against o.o.d. accuracy, o.o.d. accuracy against the dropout rate, bars per domain and method, learning curves.

    runs: those in the project, which get the colours of their methods.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    iid, ood = wr.SummaryMetric("iid_acc"), wr.SummaryMetric("ood_acc")
    dropout, method, test_domain = wr.Config("dropout"), wr.Config("method"), wr.Config("test_domain")
    sections = [
        ws.Section(
            name="In and out of distribution",
            is_open=True,
            panels=[
                wr.ScatterPlot(title="o.o.d. against i.i.d. accuracy, a colour for each method", x=iid, y=ood),
                wr.ScatterPlot(title="o.o.d. accuracy against the dropout rate", x=dropout, y=ood, running_ymean=True),
            ],
        ),
        ws.Section(
            name="Bars",
            is_open=True,
            panels=[
                wr.BarPlot(title=title, metrics=["ood_acc"], groupby=by, groupby_aggfunc="mean", orientation="v")
                for title, by in (
                    ("o.o.d. accuracy by the domain left out", test_domain),
                    ("o.o.d. accuracy by method", method),
                    ("o.o.d. accuracy by dropout rate", dropout),
                )
            ],
        ),
        ws.Section(
            name="Learning curves",
            is_open=True,
            panels=[
                wr.LinePlot(title=title, x="Step", y=[metric], groupby=by, groupby_aggfunc="mean")
                for title, metric, by in (
                    ("i.i.d. accuracy", "iid_acc", method),
                    ("o.o.d. accuracy", "ood_acc", method),
                    ("training loss", "train_loss", dropout),
                    ("validation loss", "val_loss", dropout),
                    ("images/s", "images_per_second", None),
                )
            ],
        ),
    ]
    columns = ("config:dataset", "config:test_domain", "config:method", "config:dropout", "summary:iid_acc")
    return ws.Workspace(
        name=NAME,
        entity=entity,
        project=project,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            run_settings={run.id: ws.RunSettings(color=METHOD_COLORS[run.job_type]) for run in runs},
            pinned_columns=["run:displayName", *columns, "summary:ood_acc"],
        ),
    )


def save_workspace(workspace: "Workspace", output_dir: Path) -> str:
    """Where the view is; the one that this output_dir saved in the project before is replaced."""
    from wandb_workspaces.workspaces import Workspace

    saved_file = output_dir / "wandb" / "workspace.json"
    saved: dict[str, str] = {}
    with suppress(OSError, ValueError):
        saved = json.loads(saved_file.read_text(encoding="utf-8"))
    place = f"{workspace.entity}/{workspace.project}"
    if place in saved:
        before = Workspace.from_url(saved[place])
        before.sections, before.settings = workspace.sections, workspace.settings
        before.runset_settings = workspace.runset_settings
        workspace = before
    url = str(workspace.save().url)
    write_json(saved_file, saved | {place: url})
    return url
