"""The one kind of error whose mending is the user's: shown as one line, exit code 2."""


class UserError(Exception):
    """A setting or data that the user must mend. The message names the option or file and what is allowed."""
