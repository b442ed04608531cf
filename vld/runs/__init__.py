"""Run directories: identity, content, and reading them back."""

from vld.runs.results import load_model, load_results

__all__ = ["load_model", "load_results"]
