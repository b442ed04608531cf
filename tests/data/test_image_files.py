"""Which files of a dataset are images, and what their values become."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vld.config.errors import UserError
from vld.data.folder import list_csv, list_dataset
from vld.data.image_store import open_dataset, source_key
from vld.data.images import read_image


def make_folder(root: Path) -> Path:
    for domain in ("a", "b"):
        for label in ("x", "y"):
            (root / domain / label).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (number, 2, 3)).save(root / domain / label / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("ending", "values"),
    [
        ("png", np.array([[0, 0x8000, 0xFFFF]], np.uint16)),
        ("tif", np.array([[0, 0x8000, 0xFFFF]], np.uint16)),
        ("pgm", np.array([[0, 0x8000, 0xFFFF]], np.uint16)),
        ("tif", np.array([[0, 2**30, 2**31 - 1]], np.int32)),
        ("tif", np.array([[0, 0.5, 1]], np.float32)),
    ],
)
def test_more_than_8_bits_are_scaled(tmp_path: Path, ending: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / f"image.{ending}")
    read = np.asarray(read_image(tmp_path / f"image.{ending}"))
    assert read[0, 0].tolist() == [0, 0, 0]
    assert read[0, 1, 0] in (127, 128)
    assert read[0, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan])
def test_floats_outside_0_to_1_are_refused_by_name(tmp_path: Path, value: float) -> None:
    root = make_folder(tmp_path / "mine")
    Image.fromarray(np.full((8, 8), value, np.float32)).save(root / "a/x/float.tif")
    with pytest.raises(UserError, match=r"a/x/float.tif: has values .* must be from 0 to 1"):
        open_dataset(list_dataset("mine", root), [tmp_path], 8, 8, lambda *_: None)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "deep/.hidden", "__MACOSX", "@eaDir", "lost+found"])
def test_hidden_folders_hold_no_images(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path / "mine")
    before = list_dataset("mine", root)
    for folder in (root / "a/x" / name, root / "a" / Path(name).name, root / Path(name).name):
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "copy.png")
    assert list_dataset("mine", root) == before


def test_only_regular_files_are_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    os.mkfifo(root / "a/x/pipe.png")
    with pytest.raises(UserError, match=r"a/x/pipe.png: it is not a regular file"):
        source_key(list_dataset("mine", root))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Of files they work; of classes and domains, which stand in results, they are refused readably."""
    root = make_folder(tmp_path / "mine")
    (root / "a/x/0.png").rename(os.fsdecode(os.fsencode(root) + b"/a/x/caf\xe9.png"))
    source_key(list_dataset("mine", root))
    os.mkdir(os.fsencode(root) + b"/a/caf\xe9")  # noqa: PTH102
    with pytest.raises(UserError, match=r"caf\\xe9 is not UTF-8"):
        list_dataset("mine", root)


def test_a_file_in_two_domains_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    lines = [f"{path.relative_to(tmp_path)},{path.parts[-3]},{path.parts[-2]}" for path in sorted(root.rglob("*.png"))]
    csv = tmp_path / "mine.csv"
    csv.write_text("\n".join(["path,domain,class", *lines, "mine/./a/x/0.png,b,x"]))
    with pytest.raises(UserError, match="lines 2 and 18 list"):
        list_csv("mine", csv)
    (root / "b/x/link.png").symlink_to(root / "a/x/0.png")
    with pytest.raises(UserError, match=r"a/x/0.png and .*b/x/link.png are one file in two domains"):
        source_key(list_dataset("mine", root))
