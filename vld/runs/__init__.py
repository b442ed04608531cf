"""One run, from start to `result.json` (`run`): its identity, its directory, its checkpoint, and reading results back.

Imports from `training` and below.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vld.runs.networks import load_model
    from vld.runs.results import load_results

__all__ = ["load_model", "load_results"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: one needs torch and the other pandas, which take seconds, and not every command does."""
    if name == "load_model":
        from vld.runs.networks import load_model

        return load_model
    if name == "load_results":
        from vld.runs.results import load_results

        return load_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
