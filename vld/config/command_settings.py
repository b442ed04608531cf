# ruff: noqa: RUF009 - `option` makes fields
"""The settings of the commands that train nothing."""

from dataclasses import dataclass

from vld.config import checks as must
from vld.config.names import KEPT_WEIGHTS, SELECTIONS
from vld.config.options import NEVER, beyond, choice, group, option, same
from vld.config.settings import Config, DatasetConfig, WandbConfig


@dataclass
class StatusConfig(Config):
    """The settings of `status.py`: those of a run, which select runs, and how to show their progress."""

    watch: bool = option(False, "refresh every few seconds until all runs are finished")
    format: str = choice("table|json", "table, or json for programs")


@dataclass
class ReportConfig(Config):
    """The settings of `report.py`: those of a run, which select runs, and how to report on them."""

    selection: str | None = option(
        None,
        "each run's step: iid (best i.i.d. accuracy), last or oracle_step; null: iid, for figure10 last",
        must.one_of(*SELECTIONS),
    )
    choose: str = choice(
        "iid|leave_one_out",
        "how an (lr, weight decay) pair is chosen: by i.i.d. accuracy, or on the other domains, left out as well"
        " (leave_one_out: runs of test_domain=pairs)",
    )
    run: str | None = option(
        None, "the id of a run whose learning curves are drawn; null: the best run of each dataset"
    )


@dataclass
class PrepareConfig:
    """The settings of `prepare.py`."""

    dataset: DatasetConfig = group(DatasetConfig, "the images; an existing folder is used as it is, and verified")
    data_dir: str = same(Config, "data_dir", "where its folder goes; archives go to <data_dir>/archives/<dataset>/")
    image_size: int = same(Config, "image_size", "size of the images that runs are evaluated on")
    verify: bool = option(False, "decode every image again and compare it with the store")


@dataclass
class AnalyseConfig:
    """The settings of `analyse.py`."""

    run: str = option("all", "a run's id or directory; all: every finished run that kept the weights")
    weights: str = option("erm-last", "which of its kept weights: erm-last, erm-iid, …", must.one_of(*KEPT_WEIGHTS))
    data_dir: str = same(Config, "data_dir", "where the datasets are, with the images that the run was trained on")
    output_dir: str = same(Config, "output_dir", "where the runs are")
    device: str = same(Config, "device")
    compile: str = same(Config, "compile", "compile the network, as training does; auto: on a GPU")
    wandb: WandbConfig = group(WandbConfig, identity=NEVER)


@dataclass
class PublishConfig:
    """The settings of `publish.py`."""

    output_dir: str = same(Config, "output_dir", "where runs and combinations are")
    wandb: WandbConfig = group(WandbConfig, identity=NEVER)
    workspace: bool = option(False, 'save a view of the dashboard as well (pip install "vld[workspaces]")')


LOOKING = {
    name: tuple(one.name for one in beyond(schema, Config))
    for name, schema in (("status", StatusConfig), ("report", ReportConfig))
}
"""The commands that only look at runs of train.py, with the options of their own."""
