"""W&B's variables in the environment: which of them W&B cannot read, which would merge runs, and how long it is waited for."""

import math
import os
import re

from vld.config.errors import UserError
from vld.machine.processes import safe_environment

# Seconds that W&B may take to open a run, unless WANDB_INIT_TIMEOUT is set; to take the rest of it; and to confirm it.
OPEN_SECONDS, FINISH_SECONDS, CONFIRM_SECONDS = 20.0, 40.0, 10.0
PAUSE_SECONDS = 300.0
"""How long W&B is not tried once it was down: a sweep must not wait for it again and again."""
MERGING = (
    *("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME", "WANDB_RESUME_FROM"),
    *("WANDB_FORK_FROM", "WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH"),
)
"""With these W&B opens the same run whatever id is asked for; the agent of a sweep sets some of them."""
ANY_TEXT = re.compile("WANDB_(API_KEY|PROJECT|ENTITY|DIR|NAME|NOTES|TAGS|RUN_GROUP|JOB_TYPE)")
MODES = ("online", "offline", "dryrun", "disabled")


def open_seconds() -> float:
    return float(os.environ.get("WANDB_INIT_TIMEOUT") or OPEN_SECONDS)


def patience_seconds() -> float:
    """The uploading process is given up after being silent for so long: it reports before everything that may take a while."""
    return max(open_seconds(), FINISH_SECONDS, CONFIRM_SECONDS) + 30


def environment_of_uploads() -> dict[str, str]:
    """Without variables that would merge runs, and without empty ones, which shells leave behind and W&B refuses."""
    empty = [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]
    return safe_environment(without=[*MERGING, *empty])


def is_off(mode: str) -> bool:
    """Whether W&B is disabled. Looks at WANDB_MODE as well, so that no process is started for nothing."""
    return mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")


def check_environment(mode: str) -> None:
    """Raises `UserError` for a variable that W&B cannot read. mode: `wandb.mode`."""
    values = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and value}
    to_check = [
        name
        for name, value in values.items()
        if name not in MERGING and not ANY_TEXT.fullmatch(name) and (name != "WANDB_MODE" or value not in MODES)
    ]
    if is_off(mode) or not to_check:
        return  # importing wandb takes a second
    import wandb

    for name in to_check:
        try:
            wandb.Settings().update_from_env_vars({name: values[name]})
            if name == "WANDB_INIT_TIMEOUT" and not 0 < float(values[name]) < math.inf:
                raise ValueError("it has to be a number of seconds above 0")
        except ValueError as error:  # pydantic's message has several lines; the third says what is wrong
            lines = str(error).splitlines()
            why = re.sub(r" \[type=.*", "", lines[min(2, len(lines) - 1)].strip())
            raise UserError(f"{name}={values[name]}: W&B cannot read this variable: {why}") from error
