"""Copy everything finished in an output_dir to Weights & Biases."""

from pathlib import Path
from urllib.parse import unquote

from vld.config.command_settings import PublishConfig
from vld.config.errors import UserError
from vld.machine.terminal import Terminal
from vld.tracking.background import Publisher
from vld.tracking.content import wandb_runs
from vld.tracking.workspace import build_workspace, check_installed, save_workspace


def publish_all(config: PublishConfig, terminal: Terminal) -> int:
    """How many directories were not uploaded. Raises `UserError` if there is nothing to upload, or nobody is logged in."""
    directories = finished_directories(Path(config.output_dir))
    if not directories:
        raise UserError(f"output_dir={config.output_dir}: no finished runs in it")
    if config.workspace:
        check_installed()
    publisher = Publisher(config.wandb, config.output_dir, say=terminal.say, warn=terminal.warn)
    publisher.connect()
    if publisher.mode == "disabled" or (publisher.mode != "online" and config.wandb.mode == "auto"):
        publisher.abandon()
        reason = f"wandb.mode={config.wandb.mode}: {publisher.mode}, {publisher.why}"
        raise UserError(f"{reason}; wandb.mode=offline makes offline copies")
    for directory in directories:
        publisher.ended(directory)
    with terminal.counting(f"to W&B ({publisher.mode})") as progress:
        publisher.finish(progress)
    if config.workspace:
        terminal.say(f"W&B: the view of the dashboard is at {_saved_workspace(publisher)}")
    return len(publisher.not_uploaded)


def _saved_workspace(publisher: Publisher) -> str:
    """Its address. Raises `UserError` if W&B refuses it."""
    places = [at for places in publisher.uploaded.values() for at in places]
    if publisher.mode != "online" or not places:
        raise UserError(f"workspace=true: no runs were uploaded (W&B is {publisher.mode}), so there is nothing to view")
    [entity, project, _, _] = map(unquote, places[0].split("/")[-4:])
    runs = [run for directory in publisher.uploaded for run in wandb_runs(Path(directory))]
    try:
        return save_workspace(build_workspace(entity, project, runs), Path(publisher.output_dir))
    except Exception as error:  # wandb raises many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"workspace=true: not saved ({reason})") from error


def finished_directories(output_dir: Path) -> list[Path]:
    """Those of runs, then those of combinations; those of failed runs as well."""
    patterns = ("runs/*/*/*/result.json", "runs/*/*/*/failure.json", "combined/*/*/*/result.json")
    return list(dict.fromkeys(path.parent for pattern in patterns for path in sorted(output_dir.glob(pattern))))
