"""From what the archives of a dataset hold to `<domain>/<class>/<images>`, as DomainBed arranges it.

Each function takes `unpacked`, which has a folder for each archive (named after the archive's file), and makes `ready`. Files
are moved, not copied: the unpacked folder is thrown away afterwards. Each raises `UserError` where something is missing.
"""

import json
import shutil
from collections import defaultdict
from pathlib import Path

from vld.config.errors import UserError

TERRA_LOCATIONS = ("38", "46", "100", "43")
TERRA_CATEGORIES = (*("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"),)


def arrange_pacs(unpacked: Path, ready: Path) -> None:
    _only_folder(unpacked / "PACS.zip", "kfold").rename(ready)


def arrange_office_home(unpacked: Path, ready: Path) -> None:
    _only_folder(unpacked / "office_home.zip", "OfficeHomeDataset_10072016").rename(ready)


def arrange_vlcs(unpacked: Path, ready: Path) -> None:
    """Some copies nest the images in `<domain>/full/<class>`, beside the same images split in other ways."""
    root = _only_folder(unpacked / "VLCS.tar.gz", "VLCS")
    ready.mkdir()
    for domain in sorted(path for path in root.iterdir() if path.is_dir()):
        full = domain / "full"
        (full if full.is_dir() else domain).rename(ready / domain.name)


def arrange_terra_incognita(unpacked: Path, ready: Path) -> None:
    """Four camera locations and ten categories; DomainBed puts an image of two kept categories into both."""
    annotations = sorted((unpacked / "eccv_18_annotations.tar.gz").rglob("[!.]*.json"))
    if not annotations:
        raise UserError("eccv_18_annotations.tar.gz: no annotation files (*.json) in it")
    files = {path.name: path for path in (unpacked / "eccv_18_all_images_sm.tar.gz").rglob("*") if path.is_file()}
    wanted: dict[str, set[Path]] = defaultdict(set)
    for annotation in annotations:
        try:
            told = json.loads(annotation.read_text(encoding="utf-8"))
            names = {category["id"]: category["name"] for category in told["categories"]}
            images = {
                image["id"]: (image["file_name"], str(image["location"]))
                for image in told["images"]
                if str(image["location"]) in TERRA_LOCATIONS
            }
            for entry in told["annotations"]:
                category = names[entry["category_id"]]
                if category in TERRA_CATEGORIES and entry["image_id"] in images:
                    file_name, location = images[entry["image_id"]]
                    wanted[Path(file_name).name].add(Path(f"location_{location}", category))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"eccv_18_annotations.tar.gz: {annotation.name} is damaged ({error!r})") from error
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


def arrange_domain_net(unpacked: Path, ready: Path) -> None:
    """The six archives beside each other, without the images that are in several domains."""
    ready.mkdir()
    for archive in sorted(unpacked.glob("*.zip")):
        domain = archive.stem
        _only_folder(archive, domain).rename(ready / domain)
    absent = []
    for line in (unpacked / "domain_net_duplicates.txt").read_text(encoding="utf-8").splitlines():
        if line.strip():
            try:
                (ready / line.strip()).unlink()
            except OSError:
                absent.append(line.strip())
    if absent:
        raise UserError(
            f"domain_net_duplicates.txt: {len(absent)} of the images it lists are not there, the first of them {absent[0]}"
        )


def _only_folder(unpacked: Path, name: str) -> Path:
    folder = unpacked / name
    if not folder.is_dir():
        found = ", ".join(sorted(path.name for path in unpacked.iterdir())[:5]) or "nothing"
        raise UserError(f"{unpacked.name}: no folder {name} in it but {found}; it is another archive")
    return folder
