"""Run directories: identity, content, and reading them back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vld.runs.results import load_model, load_results

__all__ = ["load_model", "load_results"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: they need torch and pandas, which take seconds, and not every command does."""
    if name in __all__:
        from vld.runs import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
