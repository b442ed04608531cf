"""What is known of the five DomainBed datasets: where they come from, how they are arranged, and what is in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """A file to fetch. url: its official source; sha256: where it is known."""

    file: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """A dataset's official archives, and how what is unpacked from them becomes `<domain>/<class>/<images>`.

    arrange(unpacked, ready): `unpacked` has a folder for each archive, named after it.
    """

    archives: tuple[Archive, ...]
    arrange: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Content:
    """What a dataset must hold: images per domain, or per domain and class where that was counted.

    approximate: the counts are quoted widely but were not counted first-hand; others are warned of, not refused.
    """

    domains: Mapping[str, int]
    classes: int
    by_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    approximate: bool = False


def _drive(file_id: str) -> str:
    return f"https://drive.google.com/uc?id={file_id}"


_VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
_DUPLICATES = (
    "https://raw.githubusercontent.com/facebookresearch/DomainBed/b93c22a1cfc3b2428398272c1a116c8de1f4139e"
    "/domainbed/misc/domain_net_duplicates.txt"
)

SOURCES: Mapping[str, Source] = {
    "pacs": Source((Archive("PACS.zip", _drive("1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd")),), arrange_pacs),
    "vlcs": Source((Archive("VLCS.tar.gz", _drive("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8")),), arrange_vlcs),
    "office_home": Source(
        (Archive("office_home.zip", _drive("1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC")),), arrange_office_home
    ),
    "terra_incognita": Source(
        (
            Archive("eccv_18_annotations.tar.gz", f"{_LILA}/eccv_18_annotations.tar.gz"),
            Archive("eccv_18_all_images_sm.tar.gz", f"{_LILA}/eccv_18_all_images_sm.tar.gz"),
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
            Archive("clipart.zip", f"{_VISDA}/groundtruth/clipart.zip"),
            Archive("infograph.zip", f"{_VISDA}/infograph.zip"),
            Archive("painting.zip", f"{_VISDA}/groundtruth/painting.zip"),
            Archive("quickdraw.zip", f"{_VISDA}/quickdraw.zip"),
            Archive("real.zip", f"{_VISDA}/real.zip"),
            Archive("sketch.zip", f"{_VISDA}/sketch.zip"),
        ),
        arrange_domain_net,
    ),
}

_PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
_PACS = {
    "art_painting": (379, 255, 285, 184, 201, 295, 449),
    "cartoon": (389, 457, 346, 135, 324, 288, 405),
    "photo": (189, 202, 182, 186, 199, 280, 432),
    "sketch": (772, 740, 753, 608, 816, 80, 160),
}

CONTENTS: Mapping[str, Content] = {
    "pacs": Content(
        {domain: sum(counts) for domain, counts in _PACS.items()},
        len(_PACS_CLASSES),
        {domain: dict(zip(_PACS_CLASSES, counts, strict=True)) for domain, counts in _PACS.items()},
    ),
    "vlcs": Content({"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376}, 5),
    "office_home": Content({"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357}, 65, approximate=True),
    "terra_incognita": Content(
        {"location_100": 4741, "location_38": 9736, "location_43": 3970, "location_46": 5883}, 10, approximate=True
    ),
    "domain_net": Content(
        {
            "clipart": 48129,
            "infograph": 51605,
            "painting": 72266,
            "quickdraw": 172500,
            "real": 172947,
            "sketch": 69128,
        },
        345,
        approximate=True,
    ),
}
