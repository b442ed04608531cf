"""The one kind of error that the user has to fix: shown as one line, exit code 2."""

FAILED, USER_ERROR = 1, 2
"""Exit codes: a run failed; the user has to fix something."""


class UserError(Exception):
    """A setting or data that the user has to fix. The message names the option or file and what is allowed."""


def first_line(error: BaseException) -> str:
    """Of its message; where it has none, what kind of error it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
