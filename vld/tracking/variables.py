"""The variables of Weights & Biases in the environment: what W&B cannot read, what would merge runs, and how long to wait."""

import math
import os
import re
from collections.abc import Mapping

from vld.config.errors import UserError
from vld.machine.processes import safe_environment

# How long W&B may take to open a run, unless WANDB_INIT_TIMEOUT says otherwise; to take what is left of it; and to confirm it.
OPEN_SECONDS, FINISH_SECONDS, CONFIRM_SECONDS = 20.0, 40.0, 10.0

MERGING = tuple(
    f"WANDB_{name}"
    for name in [
        "RUN_ID",
        "SWEEP_ID",
        "SWEEP_PARAM_PATH",
        "RESUME",
        "RESUME_FROM",
        "FORK_FROM",
        "LAUNCH",
        "LAUNCH_CONFIG_PATH",
    ]
)
"""Under these W&B opens one and the same run whatever id it is asked for: the agent of a sweep sets some of them."""
ANY_TEXT = {
    f"WANDB_{name}"
    for name in ["API_KEY", "PROJECT", "ENTITY", "DIR", "NAME", "NOTES", "TAGS", "RUN_GROUP", "JOB_TYPE"]
}
MODES = ("online", "offline", "dryrun", "disabled")


def open_seconds() -> float:
    return float(os.environ.get("WANDB_INIT_TIMEOUT") or OPEN_SECONDS)


def patience_seconds() -> float:
    """The process is given up when it has said nothing for so long: it says something before everything that may take long."""
    return max(open_seconds(), FINISH_SECONDS, CONFIRM_SECONDS) + 30


def environment_of_uploads() -> dict[str, str]:
    """Without what would merge runs, and without empty variables, which a shell leaves for unset ones and W&B refuses."""
    left_out = [name for name in _to_read(os.environ) if not os.environ[name]]
    return safe_environment(without=[*MERGING, *left_out])


def is_off(mode: str) -> bool:
    """Whether nothing of W&B is wanted; of WANDB_MODE this much is looked at here, so that no process is started for nothing."""
    return mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")


def check_environment(mode: str) -> None:
    """Raises `UserError` for a variable that W&B cannot read; mode: `wandb.mode`."""
    if is_off(mode):
        return
    to_read = {name: os.environ[name] for name in _to_read(os.environ) if os.environ[name]}
    if to_read.get("WANDB_MODE") in MODES:
        del to_read["WANDB_MODE"]
    if not to_read:
        return  # importing wandb takes a second
    import wandb

    for name, value in to_read.items():
        try:
            wandb.Settings().update_from_env_vars({name: value})
            if name == "WANDB_INIT_TIMEOUT" and not 0 < float(value) < math.inf:
                raise ValueError("it has to be a number of seconds above 0")
        except ValueError as error:  # pydantic's has several lines, of which the third says what is wrong
            lines = str(error).splitlines()
            why = re.sub(r" \[type=.*", "", lines[min(2, len(lines) - 1)].strip())
            raise UserError(f"{name}={value}: W&B cannot read this variable: {why}") from error


def _to_read(environment: Mapping[str, str]) -> list[str]:
    """The names of those that are more than a text to W&B."""
    return [name for name in environment if name.startswith("WANDB_") and name not in {*ANY_TEXT, *MERGING}]
