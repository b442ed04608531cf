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


def _drive(file_id: str) -> str:
    return f"https://drive.google.com/uc?id={file_id}"


_VISDA = "https://csr.bu.edu/ftp/visda/2019/multi-source"
_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
_DUPLICATES = (
    "https://raw.githubusercontent.com/facebookresearch/DomainBed/b93c22a1cfc3b2428398272c1a116c8de1f4139e"
    "/domainbed/misc/domain_net_duplicates.txt"
)

SOURCES: Mapping[str, Source] = {
    "pacs": Source(
        (
            Archive(
                "PACS.zip",
                _drive("1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd"),
                "fd5db817f7cdafeef3bfd525aaf9b42e",
                instead="this file was reported dead in 2026-04; use a copy, for example with"
                " dataset.mirror=https://wjdcloud.blob.core.windows.net/dataset dataset.checksum=off (the images of every"
                " class are counted all the same)",
            ),
        ),
        arrange_pacs,
    ),
    "vlcs": Source(
        (Archive("VLCS.tar.gz", _drive("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8"), "8870171eba660927d9668f4e515928e4"),),
        arrange_vlcs,
    ),
    "office_home": Source(
        (Archive("office_home.zip", _drive("1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC"), "b1c14819770c4448fd5b6d931031c91c"),),
        arrange_office_home,
    ),
    "terra_incognita": Source(
        (
            Archive(
                "eccv_18_annotations.tar.gz",
                f"{_LILA}/eccv_18_annotations.tar.gz",
                "e31d0162d411fb031ba4741758a54fa15cc7257df6f344581f5fda612b2cc974",
                2997071,
            ),
            Archive(
                "eccv_18_all_images_sm.tar.gz",
                f"{_LILA}/eccv_18_all_images_sm.tar.gz",
                "50d0e46d4f42c4891d99a13cda80b6c062d3586d79296edc9d1406a5e7cc4b20",
                6492615601,
            ),
        ),
        arrange_terra_incognita,
    ),
    "domain_net": Source(
        (
            Archive(
                "domain_net_duplicates.txt",
                _DUPLICATES,
                "a52b4ab70203f4f3df381077694dba3e33ff44c26407e1c5faca76919c702770",
            ),
            Archive(
                "clipart.zip",
                f"{_VISDA}/groundtruth/clipart.zip",
                "f8f248a3e8bbc9868c523ae24e6601b4c2ad102afc60c0efeb4f3255df22354d",
                1270909081,
            ),
            Archive(
                "infograph.zip",
                f"{_VISDA}/infograph.zip",
                "891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa",
                4338659804,
            ),
            Archive(
                "painting.zip",
                f"{_VISDA}/groundtruth/painting.zip",
                "fa47e6d405503ea0286cabd767f176bd30e988b63ddd7b9db16cf030c9770015",
                3679366174,
            ),
            Archive(
                "quickdraw.zip",
                f"{_VISDA}/quickdraw.zip",
                "9f37df2a8c3733703dbb35ad9964202a65f675ca30137756457537536b485d84",
                459920701,
            ),
            Archive(
                "real.zip",
                f"{_VISDA}/real.zip",
                "d7fe010b430c5b510f85d657d38c4a1924822695fabea4fef57bd00dba251d63",
                6062039589,
            ),
            Archive(
                "sketch.zip",
                f"{_VISDA}/sketch.zip",
                "23a7dbae7016b343e934399beaa8a68728fb5e570ebe2c71df9b75cf91c499fc",
                2633992926,
            ),
        ),
        arrange_domain_net,
    ),
}


COUNTS = Path(__file__).parent / "counts"


def content(counts: Path) -> Content:
    """From a CSV file: a row per class, a column per domain."""
    with counts.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_class = {domain: {row["class"]: int(row[domain]) for row in rows} for domain in rows[0] if domain != "class"}
    return Content({domain: sum(counts.values()) for domain, counts in by_class.items()}, len(rows), by_class)


CONTENTS: Mapping[str, Content] = {dataset: content(COUNTS / f"{dataset}.csv") for dataset in SOURCES}
