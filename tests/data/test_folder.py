"""Listing a dataset folder: ImageFolder's order and labels, and an error for everything that is not a dataset."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from vld.config.errors import UserError
from vld.data.folder import list_dataset

PACS_COUNTS = {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def assert_equals_image_folder(root: Path) -> None:
    listed = list_dataset("some", root)
    assert listed.domain_names == tuple(sorted(folder.name for folder in root.iterdir() if folder.is_dir()))
    for domain in listed.domains:
        reference = ImageFolder(str(root / domain.name))
        assert list(listed.classes) == reference.classes
        assert [str(file) for file in domain.files] == [path for path, _ in reference.samples]
        assert list(domain.labels) == reference.targets


def test_order_and_labels_are_image_folders(dataset_dir: Path) -> None:
    assert_equals_image_folder(dataset_dir)
    listed = list_dataset("some", dataset_dir)
    assert listed.classes == ("cat", "dog")
    assert [len(domain.files) for domain in listed.domains] == [10, 10, 10]
    assert listed.domains[0].labels == (0,) * 5 + (1,) * 5


def test_awkward_names(own_dataset_dir: Path) -> None:
    """Case, digits, nested folders, other formats, files that are no images, files beside the folders."""
    cats = own_dataset_dir / "art" / "cat"
    image = Image.new("RGB", (9, 9), "red")
    for name in ("Z.jpg", "a.JPEG", "10.png", "9.png", "b.webp", "c.tif", "d.bmp", "sub/x.png", "a.ppm"):
        (cats / name).parent.mkdir(exist_ok=True)
        image.save(cats / name)
    (cats / "notes.txt").write_text("no image")
    (own_dataset_dir / "README").write_text("no domain")
    (own_dataset_dir / "art" / "list.txt").write_text("no class")
    assert_equals_image_folder(own_dataset_dir)
    names = [file.name for file in list_dataset("some", own_dataset_dir).domains[0].files]
    assert len(names) == 19
    assert "notes.txt" not in names


def test_pacs(pacs_dir: Path) -> None:
    assert_equals_image_folder(pacs_dir)
    listed = list_dataset("pacs", pacs_dir)
    assert {domain.name: len(domain.files) for domain in listed.domains} == PACS_COUNTS
    assert listed.classes == PACS_CLASSES


def unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink()


NO_DATASETS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (shutil.rmtree, ["no folder", "dataset", "data_dir="]),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("")), ["no folder", "dataset"]),
    "one domain": (
        lambda root: [shutil.rmtree(root / name) for name in ("photo", "sketch")],
        ["1 domain", "at least 2"],
    ),
    "no classes": (
        lambda root: [shutil.rmtree(root / "photo" / label) for label in ("cat", "dog")],
        ["photo", "no class folders"],
    ),
    "no images": (lambda root: unlink(*(root / "photo").rglob("*.png")), ["photo", "no images of cat, dog", ".png"]),
    "a class less": (lambda root: shutil.rmtree(root / "sketch/dog"), ["sketch lacks dog"]),
    "another class": (
        lambda root: (root / "sketch/dog").rename(root / "sketch/hound"),
        ["sketch lacks dog", "art lacks hound", "photo lacks hound"],
    ),
    "one class": (lambda root: [shutil.rmtree(domain / "dog") for domain in root.iterdir()], ["one class", "cat"]),
    "an empty class": (lambda root: unlink(*(root / "photo/cat").iterdir()), ["photo", "no images of cat ("]),
    "no image in a class": (
        lambda root: [file.rename(file.with_suffix(".txt")) for file in (root / "photo/cat").iterdir()],
        ["photo", "no images of cat ("],
    ),
    "four images": (
        lambda root: unlink(*(file for file in (root / "art").rglob("*.png") if file.stem > "001")),
        ["art", "4 images", "at least 5"],
    ),
}


@pytest.mark.parametrize("what", NO_DATASETS)
def test_what_is_no_dataset(own_dataset_dir: Path, what: str) -> None:
    spoil, named = NO_DATASETS[what]
    spoil(own_dataset_dir)
    with pytest.raises(UserError) as raised:
        list_dataset("some", own_dataset_dir)
    message = str(raised.value)
    assert message.startswith("dataset=some: ")
    assert "\n" not in message
    for words in named:
        assert words in message


def test_five_images_are_enough(own_dataset_dir: Path) -> None:
    files = sorted((own_dataset_dir / "art").rglob("*.png"))
    for file in files[1:5] + files[9:]:
        file.unlink()
    assert len(list_dataset("some", own_dataset_dir).domains[0].files) == 5


def test_a_link_to_a_folder_below_a_class_is_refused(own_dataset_dir: Path) -> None:
    """ImageFolder would follow it and list images twice, in both parts of the split."""
    domain = sorted(path for path in own_dataset_dir.iterdir() if path.is_dir())[0]
    label = sorted(domain.iterdir())[0]
    (label / "again").symlink_to(label, target_is_directory=True)
    with pytest.raises(UserError, match="again is a link to a folder"):
        list_dataset("mine", own_dataset_dir)
