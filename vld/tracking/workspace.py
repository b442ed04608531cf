"""The dashboard's saved view: the study's figures, as W&B draws them from the runs of a project."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vld.config.errors import UserError
from vld.config.names import METHOD_COLORS
from vld.machine.atomic import write_json
from vld.runs.reading import read_if_whole
from vld.tracking.content import WandbRun

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "vld: in and out of distribution"
CURVES = (
    ("i.i.d. accuracy", "iid_acc", "method"),
    ("o.o.d. accuracy", "ood_acc", "method"),
    ("training loss", "train_loss", "dropout"),
    ("validation loss", "val_loss", "dropout"),
    ("images/s", "images_per_second", None),
)
"""By training step: title, metric, and the setting whose runs are averaged."""
BARS = {"test_domain": "the domain left out", "method": "method", "dropout": "dropout rate", "recipe": "recipe"}
"""The settings by which o.o.d. accuracy is averaged."""
PINNED = (
    "config:dataset",
    "config:test_domain",
    "config:method",
    "config:dropout",
    "summary:iid_acc",
    "summary:ood_acc",
)


def check_installed() -> None:
    """Raises `UserError` without the optional dependency."""
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError('workspace=true: needs wandb-workspaces: pip install "vld[workspaces]"') from error


def build_workspace(entity: str, project: str, runs: Sequence[WandbRun]) -> "Workspace":
    """i.i.d. against o.o.d. accuracy, o.o.d. accuracy against the dropout rate, bars, learning curves.

    runs: those in the project; each has the colour of its method.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    iid, ood, dropout = wr.SummaryMetric("iid_acc"), wr.SummaryMetric("ood_acc"), wr.Config("dropout")
    means = {"groupby_aggfunc": "mean"}
    panels = {
        "In and out of distribution": [
            wr.ScatterPlot(title="o.o.d. against i.i.d. accuracy, a colour for each method", x=iid, y=ood),
            wr.ScatterPlot(title="o.o.d. accuracy against the dropout rate", x=dropout, y=ood, running_ymean=True),
        ],
        "Bars": [
            wr.BarPlot(
                title=f"o.o.d. accuracy by {what}", metrics=["ood_acc"], groupby=wr.Config(by), orientation="v", **means
            )
            for by, what in BARS.items()
            if any(run.config.get(by) is not None for run in runs)
        ],
        "Learning curves": [
            wr.LinePlot(title=title, x="Step", y=[metric], groupby=wr.Config(by) if by else None, **means)
            for title, metric, by in CURVES
        ],
    }
    return ws.Workspace(
        name=NAME,
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, is_open=True, panels=its_panels) for name, its_panels in panels.items()],
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            run_settings={run.id: ws.RunSettings(color=METHOD_COLORS[run.job_type]) for run in runs},
            pinned_columns=["run:displayName", *PINNED],
        ),
    )


def save_workspace(workspace: "Workspace", output_dir: Path) -> str:
    """The address of the view. Replaces the one that this output_dir has saved in the project before."""
    from wandb_workspaces.workspaces import Workspace

    saved_file = output_dir / "wandb" / "workspace.json"
    saved = read_if_whole(saved_file)
    project = f"{workspace.entity}/{workspace.project}"
    if project in saved:
        before = Workspace.from_url(saved[project])
        before.sections, before.settings = workspace.sections, workspace.settings
        before.runset_settings = workspace.runset_settings
        workspace = before
    url = str(workspace.save().url)
    write_json(saved_file, saved | {project: url})
    return url
