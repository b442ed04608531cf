"""A report's files: tables, figures beside their points, and one page that shows them all, for a screen and for paper."""

import base64
import datetime
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from vld.machine.atomic import write_text
from vld.machine.lock import staging_folder
from vld.machine.terminal import counted
from vld.report.build import Report
from vld.report.figures import save_figure
from vld.report.labels import heading, text

MISSING_SHOWN = 60
PIXELS_PER_INCH = 130
"""Of figures on the page: a column, 3.4 inches wide, is about half a printed page."""
MARKS = {"o": "●", "s": "■", "D": "◆", "*": "★", "P": "✚", "^": "▲", "v": "▼", "h": "⬢", "x": "✕"}
"""Matplotlib's markers as characters."""


def write_report(report: Report, folder: Path, command: str, progress: Callable[[str], None] = lambda _: None) -> Path:
    """`index.html`, `tables/` and `figures/` in the folder; those of an earlier report are replaced. Returns the page's path.

    Waits for another process that writes them.
    """
    with staging_folder(folder / ".writing", announce=progress, another="writes this report") as place:
        tables, figures = new = place.path / "tables", place.path / "figures"
        for made in new:
            made.mkdir()
        for name, table in report.tables.items():
            written = {"csv": table.to_csv(), "md": table.to_markdown(), "tex": table.to_latex()}
            for kind, content in written.items():
                (tables / f"{name}.{kind}").write_text(content, encoding="utf-8")
        for name, frame in report.data.items():
            frame.to_csv(tables / f"{name}.csv", index=False)
        for drawn in report.figures:
            progress(f"drawing {drawn.name}")
            drawn.points.to_csv(figures / f"{drawn.name}.csv", index=False)
            for kind in ("png", "pdf"):
                save_figure(drawn.figure, figures / f"{drawn.name}.{kind}", kind)
        progress("page")
        text_of_page = page(report, figures, command)
        for made in new:
            if (folder / made.name).exists():
                (folder / made.name).rename(made.with_name(f"old-{made.name}"))
            place.move_out(made, folder / made.name)
        write_text(folder / "index.html", text_of_page)
    return folder / "index.html"


def page(report: Report, figures: Path, command: str) -> str:
    """Self-contained HTML. figures: the folder of their PNG files, which are embedded."""
    environment = Environment(
        loader=PackageLoader("vld.report", "."), autoescape=select_autoescape(default=True), undefined=StrictUndefined
    )
    images = {
        drawn.name: base64.b64encode((figures / f"{drawn.name}.png").read_bytes()).decode() for drawn in report.figures
    }
    return environment.get_template("page.html.j2").render(
        report=report,
        images=images,
        missing=report.missing.head(MISSING_SHOWN).to_dict("records"),
        heading=heading,
        counted=counted,
        text=text,
        marks=MARKS,
        pixels_per_inch=PIXELS_PER_INCH,
        unlisted=max(0, len(report.missing) - MISSING_SHOWN),
        command=command,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
