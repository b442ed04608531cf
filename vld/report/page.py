"""The report as one HTML page: self-contained, for a screen and for paper."""

import base64
import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from vld.report.build import Report
from vld.report.summary import counted
from vld.report.table import heading

MISSING_SHOWN = 60
PIXELS_PER_INCH = 130
"""Of figures on the page: a column's width, 3.4 inches, is about half a printed page."""


def page(report: Report, figures: Path, command: str) -> str:
    """figures: the folder of their PNG files, which become part of the page."""
    environment = Environment(
        loader=PackageLoader("vld.report", "."), autoescape=select_autoescape(default=True), undefined=StrictUndefined
    )
    images = {
        drawn.name: base64.b64encode((figures / f"{drawn.name}.png").read_bytes()).decode() for drawn in report.figures
    }
    missing = [
        {
            "what": f"{row.dataset}/{row.test_domain}, {row.settings}, lr {row.lr:g}, weight decay {row.weight_decay:g},"
            f" seed {row.seed}, split {row.split_seed}",
            "state": row.state,
            "reason": row.reason,
        }
        for row in report.missing.head(MISSING_SHOWN).itertuples()
    ]
    return environment.get_template("page.html.j2").render(
        report=report,
        images=images,
        missing=missing,
        heading=heading,
        counted=counted,
        pixels_per_inch=PIXELS_PER_INCH,
        unlisted=len(report.missing) - len(missing),
        command=command,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
