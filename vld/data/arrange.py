"""From what the archives of a dataset hold to `<domain>/<class>/<images>`, as DomainBed arranges it.

Each function takes `unpacked`, which has a folder for each archive (named after the archive's file), and makes `ready`. Files
are moved, not copied: the unpacked folder is thrown away afterwards. Each raises `UserError` where something is missing.
"""

import filecmp
import json
import shutil
from collections import defaultdict
from pathlib import Path, PurePosixPath

from vld.config.errors import UserError, damaged
from vld.data.unpack import FIX

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
VLCS_DOMAINS = {"CALTECH": "Caltech101", "LABELME": "LabelMe", "PASCAL": "VOC2007", "SUN": "SUN09"}
VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")
TERRA_LOCATIONS = ("38", "46", "100", "43")
TERRA_CATEGORIES = ["bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"]


def arrange_pacs(unpacked: Path, ready: Path) -> None:
    _folder(unpacked / "PACS.zip", "kfold", PACS_DOMAINS).rename(ready)


def arrange_office_home(unpacked: Path, ready: Path) -> None:
    _folder(unpacked / "office_home.zip", "OfficeHomeDataset_10072016", ("Art", "Clipart", "Product")).rename(ready)
    for name in ("Real_World", "RealWorld"):
        if (ready / name).is_dir():
            (ready / name).rename(ready / "Real World")


def arrange_vlcs(unpacked: Path, ready: Path) -> None:
    """DomainBed's archive, or the one with `<domain>/<part>/<class>`, whose part `full` lacks the images of `test`."""
    root = _folder(unpacked / "VLCS.tar.gz", "VLCS", tuple(VLCS_DOMAINS))
    for domain in sorted(path for path in root.iterdir() if path.is_dir()):
        target = ready / VLCS_DOMAINS.get(domain.name, domain.name)
        parts = ("full", "test") if (domain / "full").is_dir() else ("train", "crossval", "test")
        nested = [domain / part for part in parts if (domain / part).is_dir()]
        for part in nested or [domain]:
            for path in sorted(path for path in part.rglob("*") if path.is_file()):
                label, *rest = path.relative_to(part).parts
                place = target / (VLCS_CLASSES[int(label)] if label in "01234" else label) / "_".join(rest)
                if place.exists():
                    if filecmp.cmp(path, place, shallow=False):  # some copies have `test` in `full` as well
                        continue
                    place = place.with_name(f"{part.name}_{place.name}")
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)


def arrange_terra_incognita(unpacked: Path, ready: Path) -> None:
    """Four camera locations and ten categories; DomainBed puts an image of two kept categories into both."""
    annotations = sorted((unpacked / "eccv_18_annotations.tar.gz").rglob("[!.]*.json"))
    if not annotations:
        raise UserError("eccv_18_annotations.tar.gz: no annotation files (*.json) in it")
    files = {path.name: path for path in (unpacked / "eccv_18_all_images_sm.tar.gz").rglob("*") if path.is_file()}
    wanted: dict[str, set[Path]] = defaultdict(set)
    for annotation in annotations:
        try:
            content = json.loads(annotation.read_text(encoding="utf-8"))
            names = {category["id"]: category["name"] for category in content["categories"]}
            images = {
                image["id"]: (image["file_name"], str(image["location"]))
                for image in content["images"]
                if str(image["location"]) in TERRA_LOCATIONS
            }
            for entry in content["annotations"]:
                category = names[entry["category_id"]]
                if category in TERRA_CATEGORIES and entry["image_id"] in images:
                    file_name, location = images[entry["image_id"]]
                    wanted[Path(file_name).name].add(Path(f"location_{location}", category))
        except (ValueError, KeyError, TypeError) as error:
            raise damaged("eccv_18_annotations.tar.gz", f"{annotation.name}: {error!r}", FIX) from error
    if missing := sorted(wanted.keys() - files.keys()):
        raise UserError(
            f"eccv_18_all_images_sm.tar.gz: lacks {len(missing)} of {len(wanted)} annotated images, the first of them"
            f" {missing[0]}"
        )
    for file_name, places in wanted.items():
        first, *others = (ready / place / file_name for place in sorted(places))
        first.parent.mkdir(parents=True, exist_ok=True)
        files[file_name].rename(first)
        for other in others:
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first, other)


def arrange_domain_net(unpacked: Path, ready: Path) -> str | None:
    """The six archives beside each other, without the images that are in several domains; names listed ones that are absent."""
    ready.mkdir()
    for archive in sorted(unpacked.glob("*.zip")):
        _folder(archive, archive.stem).rename(ready / archive.stem)
    absent = []
    for line in (unpacked / "domain_net_duplicates.txt").read_text(encoding="utf-8", errors="replace").split("\n"):
        if not (name := line.strip()):
            continue
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise UserError(f"domain_net_duplicates.txt: {name} is no image of DomainNet; do not trust this list")
        try:
            (ready / name).unlink()
        except (OSError, ValueError):  # what is no name of a file either
            absent.append(name)
    if absent:
        return (
            f"domain_net_duplicates.txt: {len(absent)} of the images it lists are absent, the first of them {absent[0]}"
        )
    return None


def _folder(unpacked: Path, name: str, domains: tuple[str, ...] = ()) -> Path:
    """The folder of that name, at the top or below; else the one that holds folders of these names."""
    folders = [path for path in (unpacked, *unpacked.rglob("*")) if path.is_dir() and "__MACOSX" not in path.parts]
    folders.sort(key=lambda path: len(path.parts))
    for folder in folders:
        if folder.name == name and folder != unpacked:
            return folder
    for folder in folders:
        if domains and all((folder / domain).is_dir() for domain in domains):
            return folder
    found = ", ".join(sorted(path.name for path in unpacked.iterdir())[:5]) or "nothing"
    raise UserError(f"{unpacked.name}: no folder {name} in it but {found}; it is another archive")
