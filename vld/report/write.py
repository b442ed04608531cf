"""A report's files: tables, figures beside their points, and one page that shows them all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vld.machine.atomic import write_text
from vld.report.build import Report
from vld.report.figures import save_figure
from vld.report.page import page
from vld.report.table import as_latex, as_markdown


def write_report(report: Report, folder: Path, command: str, progress: Callable[[str], None] = lambda _: None) -> Path:
    """`index.html`, `tables/` and `figures/` in the folder; those of an earlier report are replaced. Returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with _replaced(folder / "tables") as tables, _replaced(folder / "figures") as figures:
        for name, (table, shown) in report.tables.items():
            table.to_csv(tables / f"{name}.csv", index=False)
            (tables / f"{name}.md").write_text(as_markdown(shown), encoding="utf-8")
            (tables / f"{name}.tex").write_text(as_latex(shown), encoding="utf-8")
        for name, table in report.data.items():
            table.to_csv(tables / f"{name}.csv", index=False)
        for drawn in report.figures:
            progress(f"drawing {drawn.name}")
            drawn.points.to_csv(figures / f"{drawn.name}.csv", index=False)
            for kind in ("png", "pdf"):
                save_figure(drawn.figure, figures / f"{drawn.name}.{kind}", kind)
    progress("page")
    write_text(folder / "index.html", page(report, folder / "figures", command))
    return folder / "index.html"


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A folder written anew beside the old one, which it replaces when all is written."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
