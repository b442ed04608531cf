"""The one kind of error that the user has to fix: shown as one line, exit code 2."""

import sys
from contextlib import suppress
from typing import NoReturn

FAILED, USER_ERROR = 1, 2
"""Exit codes: a run failed; the user has to fix something."""


class UserError(Exception):
    """A setting or data that the user has to fix. The message names the option or file and what is allowed."""


def first_line(error: BaseException) -> str:
    """Of its message; where it has none, what kind of error it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def exit_with_user_error(message: str) -> NoReturn:
    with suppress(OSError):  # nobody may be there to read it
        print(message, file=sys.stderr)
    sys.exit(USER_ERROR)
