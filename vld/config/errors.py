"""The one kind of error that the user has to fix: shown as one line, exit code 2."""

from pathlib import Path

FAILED, USER_ERROR = 1, 2
"""Exit codes: a run failed; the user has to fix something."""


class UserError(Exception):
    """A setting or data that the user has to fix. The message names the option or file and what is allowed."""


def damaged(path: Path | str, why: object, fix: str = "move its directory away and run again") -> UserError:
    return UserError(f"{path}: damaged ({why}); {fix}")


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Of its message; where it has none, what kind of error it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
