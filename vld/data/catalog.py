"""The five DomainBed datasets: where they come from, how they are arranged, and what they contain."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vld.data.arrange import (
    arrange_domain_net,
    arrange_office_home,
    arrange_pacs,
    arrange_terra_incognita,
    arrange_vlcs,
)

ARCHIVES = Path(__file__).with_name("archives.csv")
"""All files to fetch; bytes are empty where they are unknown. A checksum of 32 digits is md5, of 64 sha256."""
COUNTS = Path(__file__).with_name("counts")


@dataclass(frozen=True)
class Archive:
    """A file to fetch. url: its official source; checksum: the published sha256 or md5; size: bytes, 0 where unknown;
    instead: where else it is, for the message that the source does not give it.
    """

    file: str
    url: str
    checksum: str | None = None
    size: int = 0
    instead: str = ""


@dataclass(frozen=True)
class Source:
    """A dataset's official archives, and how what is unpacked from them becomes `<domain>/<class>/<images>`.

    arrange(unpacked, ready): `unpacked` has a folder for each archive, named after it; returns a warning, if any.
    """

    archives: tuple[Archive, ...]
    arrange: Callable[[Path, Path], str | None]


@dataclass(frozen=True)
class Content:
    """What a dataset must hold: images per domain, number of classes, images per domain and class."""

    domains: Mapping[str, int]
    classes: int
    by_class: Mapping[str, Mapping[str, int]]


PACS_COPY = (
    "this file was reported dead in 2026-04; use a copy, for example with"
    " dataset.mirror=https://wjdcloud.blob.core.windows.net/dataset dataset.checksum=off (the images of every"
    " class are counted all the same)"
)


def _source(dataset: str, arrange: Callable[[Path, Path], str | None], instead: str = "") -> Source:
    rows = csv.DictReader(ARCHIVES.read_text(encoding="utf-8").splitlines())
    return Source(
        tuple(
            Archive(row["file"], row["url"], row["checksum"], int(row["bytes"] or 0), instead)
            for row in rows
            if row["dataset"] == dataset
        ),
        arrange,
    )


SOURCES: Mapping[str, Source] = {
    "pacs": _source("pacs", arrange_pacs, PACS_COPY),
    "vlcs": _source("vlcs", arrange_vlcs),
    "office_home": _source("office_home", arrange_office_home),
    "terra_incognita": _source("terra_incognita", arrange_terra_incognita),
    "domain_net": _source("domain_net", arrange_domain_net),
}


def content(counts: Path) -> Content:
    """From a CSV file: a row per class, a column per domain."""
    with counts.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_class = {domain: {row["class"]: int(row[domain]) for row in rows} for domain in rows[0] if domain != "class"}
    return Content({domain: sum(counts.values()) for domain, counts in by_class.items()}, len(rows), by_class)


CONTENTS: Mapping[str, Content] = {dataset: content(COUNTS / f"{dataset}.csv") for dataset in SOURCES}
