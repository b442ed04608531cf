"""Tables and figures from run directories. In a notebook:

from vld.report import read_results, series_of, results_table, cloud_points, clouds_figure
series = series_of(read_results("outputs"))
results_table(series)                       # a pandas.DataFrame
clouds_figure(cloud_points(series))         # a matplotlib figure
"""

from importlib import import_module
from typing import Any

MODULES = {
    "select": ("read_results", "read_store"),
    "series": ("series_of",),
    "averages": ("chosen_pairs", "results_table"),
    "differences": ("difference", "differences_table"),
    "paper": ("against_the_paper",),
    "points": ("cloud", "cloud_points", "learning_curves"),
    "figures": ("clouds_figure",),
}


def __getattr__(name: str) -> Any:
    """Imports on first use: pandas and Matplotlib take a second, and status.py needs only a table."""
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"vld.report.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
