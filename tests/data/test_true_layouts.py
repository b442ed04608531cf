"""The five datasets as they are distributed: names, folders and numbers are the true ones, every image is one pixel."""

import io
import json
import uuid
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from archive_server import serving_archives, tarred, zipped
from omegaconf import OmegaConf
from PIL import Image
from run_command import REPOSITORY

from vld.commands.prepare import prepare
from vld.config.command_settings import PrepareConfig
from vld.config.settings import DatasetConfig
from vld.data import catalog
from vld.data.decoding import KNOWN_TRUNCATED
from vld.machine.terminal import Terminal

pytestmark = pytest.mark.slow

Archives = dict[str, bytes]


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "jpeg")
    return file.getvalue()


JPEG = jpeg(Image.new("RGB", (1, 1)))
CUT = jpeg(Image.effect_noise((64, 64), 100))[:-500]


def every_image(content: catalog.Content) -> Iterable[tuple[str, str, int]]:
    """(domain, class, number in it)"""
    for domain, classes in content.by_class.items():
        for label, images in classes.items():
            for number in range(1, images + 1):
                yield domain, label, number


def with_truncated(dataset: str, top: str, names: list[str]) -> dict[str, bytes]:
    """The images that are truncated in the official archive are so here, each in place of another of its class."""
    cut = {f"{top}/{name}.jpg" for name in KNOWN_TRUNCATED[dataset]}
    for name in cut.difference(names):
        folder = name.rpartition("/")[0]
        names.remove(next(other for other in names if other.startswith(f"{folder}/") and other not in cut))
        names.append(name)
    return {name: CUT if name in cut else JPEG for name in names}


def pacs() -> Archives:
    images = every_image(catalog.CONTENTS["pacs"])
    names = [f"kfold/{domain}/{label}/pic_{number:03d}.jpg" for domain, label, number in images]
    return {"PACS.zip": zipped(dict.fromkeys(names, JPEG))}


def office_home() -> Archives:
    top = "OfficeHomeDataset_10072016"
    names = [
        f"{top}/{domain}/{label}/{number:05d}.jpg"
        for domain, label, number in every_image(catalog.CONTENTS["office_home"])
    ]
    texts = {f"{top}/{name}": b"index,path" for name in ("ImageInfo.csv", "imagelist.txt")}
    return {"office_home.zip": zipped(texts | with_truncated("office_home", top, names))}


def vlcs() -> Archives:
    names = [
        f"VLCS/{domain}/{label}/{uuid.UUID(int=number).hex}.jpg"
        for domain, label, number in every_image(catalog.CONTENTS["vlcs"])
    ]
    return {"VLCS.tar.gz": tarred(with_truncated("vlcs", "VLCS", names))}


def vlcs_of_jigen() -> Archives:
    """`full` is `train` and `crossval`, a third of the images is in `test` alone."""
    names = []
    for domain, label, number in every_image(catalog.CONTENTS["vlcs"]):
        short = {"Caltech101": "CALTECH", "LabelMe": "LABELME", "VOC2007": "PASCAL", "SUN09": "SUN"}[domain]
        place = ("bird", "car", "chair", "dog", "person").index(label)
        part = ("train", "crossval", "test")[number % 3]
        for folder in {"test"} if part == "test" else {"full", part}:
            names.append(f"VLCS/{short}/{folder}/{place}/{part}_imgs_{number}.jpg")
    return {"VLCS.tar.gz": tarred(dict.fromkeys(names, JPEG))}


TWICE = {
    "location_43": (("bobcat", "squirrel"),),
    "location_46": (("bobcat", "opossum"), ("bobcat", "rabbit"), ("bobcat", "squirrel")),
}
"""Images with two categories that are kept."""
CATEGORIES = {"opossum": 1, "raccoon": 3, "squirrel": 5, "bobcat": 6, "skunk": 7, "dog": 8, "coyote": 9, "rabbit": 10}
CATEGORIES |= {"bird": 11, "cat": 16, "empty": 30, "car": 33}


def terra_incognita() -> Archives:
    top, parts = "eccv_18_annotation_files", ("train", "cis_val", "cis_test", "trans_val", "trans_test")
    told: dict[str, dict[str, list[object]]] = {part: {"images": [], "annotations": []} for part in parts}
    images, ids = [], (str(uuid.UUID(int=number)) for number in count())

    def photograph(location: int, part: str, *labels: str) -> None:
        name = next(ids)
        images.append(f"eccv_18_all_images_sm/{name}.jpg")
        told[part]["images"].append({"id": name, "file_name": f"{name}.jpg", "location": location})
        told[part]["annotations"] += [{"image_id": name, "category_id": CATEGORIES[label]} for label in labels]

    for domain, classes in catalog.CONTENTS["terra_incognita"].by_class.items():
        location, once = int(domain.split("_")[1]), dict(classes)
        group = parts[3:] if location in (46, 100) else parts[:3]
        for labels in TWICE.get(domain, ()):
            photograph(location, group[0], *labels)
            for label in labels:
                once[label] -= 1
        for label, number in once.items():
            for k in range(number):
                photograph(location, group[k % len(group)], label, label)  # boxes around two animals
        photograph(location, group[0], "car")
    photograph(120, "trans_test", "dog")
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    annotations = {
        f"{top}/{part}_annotations.json": json.dumps({**lists, "categories": categories}).encode()
        for part, lists in told.items()
    }
    return {
        "eccv_18_annotations.tar.gz": tarred(annotations),
        "eccv_18_all_images_sm.tar.gz": tarred(dict.fromkeys(images, JPEG)),
    }


def domain_net() -> Archives:
    """With the 9,431 images that are listed as duplicates. There is nothing in any of them: see below."""
    names: dict[str, list[str]] = {}
    duplicates = []
    cleaned = catalog.CONTENTS["domain_net"].by_class
    for domain, label, number in every_image(catalog.content(Path(__file__).parents[1] / "domain_net_as_archived.csv")):
        name = f"{domain}/{label}/{domain}_{number:06d}.jpg"
        names.setdefault(domain, []).append(name)
        if number > cleaned[domain][label]:
            duplicates.append(name)
    assert len(duplicates) == 9431
    archives = {f"{domain}.zip": zipped(dict.fromkeys(images, b"")) for domain, images in names.items()}
    return archives | {"domain_net_duplicates.txt": "\n".join(duplicates).encode()}


LAYOUTS: dict[str, tuple[str, Callable[[], Archives], int]] = {
    "pacs": ("pacs", pacs, 9991),
    "vlcs": ("vlcs", vlcs, 10729),
    "vlcs of JigenDG": ("vlcs", vlcs_of_jigen, 10729),
    "office_home": ("office_home", office_home, 15588),
    "terra_incognita": ("terra_incognita", terra_incognita, 24788),
    "domain_net": ("domain_net", domain_net, 586575),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prepared_with_every_count(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """verify=strict counts every class. DomainNet's images are not decoded: there are too many."""
    name, archives, images = LAYOUTS[layout]
    monkeypatch.setattr("vld.machine.disk.free_disk", lambda _: 10**12)
    if name == "domain_net":
        nothing = SimpleNamespace(domains=(), fingerprint="")
        monkeypatch.setattr("vld.commands.prepare.open_dataset", lambda *_, **__: nothing)
    folder = OmegaConf.load(REPOSITORY / f"conf/dataset/{name}.yaml").folder
    with serving_archives() as server:
        server.files |= archives()
        dataset = DatasetConfig(name=name, folder=folder, verify="strict", mirror=server.url, checksum="off")
        files = prepare(PrepareConfig(dataset=dataset, data_dir=str(tmp_path), image_size=8), Terminal())
    assert sum(files.sizes.values()) == images
    assert files.sizes == catalog.CONTENTS[name].domains
    assert ("truncated" in capsys.readouterr().out) == (layout in ("vlcs", "office_home"))
