"""The benchmark's figures: written as soon as they are there, so that whatever stops it later, they stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vld.config.errors import first_line
from vld.machine.atomic import write_json


class Figures:
    """What has been measured, by name, in a file that is whole at any moment."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self._say = path, say
        self.content: dict[str, Any] = {}

    def add(self, **figures: Any) -> None:
        self.content |= figures
        write_json(self.path, self.content)

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """A part that others do without: its figures, or None where it cannot run, and the reason in their place."""
        try:
            figures = measure()
        except Exception as error:  # a package that is missing, a GPU that is full, a process that was killed
            reason = f"not measured: {first_line(error)}"
            self._say(f"{name}: {reason}")
            self.add(**{name: reason})
            return None
        self.add(**{name: figures})
        return figures
