"""Tables and figures from run directories. In a notebook:

from vld.report import read_results, series_of, results_table, cloud_points, clouds_figure
series = series_of(read_results("outputs"))
results_table(series)                       # a pandas.DataFrame
clouds_figure(cloud_points(series))         # a matplotlib figure
"""

from importlib import import_module
from typing import Any

NAMES = {
    "averages": ("chosen_pairs", "results_table"),
    "differences": ("difference", "differences_table"),
    "figures": ("clouds_figure",),
    "paper": ("against_the_paper",),
    "points": ("cloud", "cloud_points", "learning_curves"),
    "select": ("read_results", "read_store"),
    "series": ("series_of",),
}


def __getattr__(name: str) -> Any:
    """Imported when asked for: pandas and Matplotlib take a second, and status.py needs a table alone."""
    for module, names in NAMES.items():
        if name in names:
            return getattr(import_module(f"vld.report.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
