"""Tables and figures from run directories. In a notebook:

from vld.report import read_results, series_of, results_table, cloud_points, clouds_figure
series = series_of(read_results("outputs"))
results_table(series)                       # a pandas.DataFrame
clouds_figure(cloud_points(series))         # a matplotlib figure
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vld.report.averages import chosen_pairs, results_table
    from vld.report.differences import difference, differences_table
    from vld.report.figures import clouds_figure
    from vld.report.paper import against_the_paper
    from vld.report.points import cloud, cloud_points, learning_curves
    from vld.report.select import read_results, read_store
    from vld.report.series import series_of

__all__ = ["against_the_paper", "chosen_pairs", "cloud", "cloud_points", "clouds_figure", "difference"]
__all__ += ["differences_table", "learning_curves", "read_results", "read_store", "results_table", "series_of"]

MODULES = ("select", "series", "averages", "differences", "paper", "points", "figures")


def __getattr__(name: str) -> Any:
    """Imports on first use: pandas and Matplotlib take a second, and status.py needs only a table."""
    for module in MODULES if name in __all__ else ():
        if (found := getattr(import_module(f"vld.report.{module}"), name, None)) is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
