"""Which files of a dataset are images, and what their values become."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vld.config.errors import UserError
from vld.config.settings import DatasetConfig
from vld.data.folder import find_dataset, list_csv, list_dataset
from vld.data.image_store import open_dataset, source_key
from vld.data.images import Dataset, read_image


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
    with pytest.warns(UserWarning, match="more than 8 bits"):
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
    for link in (Path.symlink_to, Path.hardlink_to):
        link(root / "b/x/link.png", root / "a/x/0.png")
        with pytest.raises(UserError, match=r"a/x/0.png and .*b/x/link.png are one file in two domains"):
            source_key(list_dataset("mine", root))
        (root / "b/x/link.png").unlink()


def opening(root: Path, stores: Path, **settings: object) -> tuple[Dataset, list[str]]:
    """The dataset, and what was said while it was decoded."""
    said: list[str] = []
    config = DatasetConfig(**{"name": root.name, "folder": root.name} | settings)  # type: ignore[arg-type]
    dataset = open_dataset(find_dataset(config, root.parent), [stores], 8, 64, lambda *_: None, said.append)
    return dataset, said


def truncate(path: Path) -> Image.Image:
    """A photograph without its second half. Returns it as DomainBed decodes it."""
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return Image.open(path)


@pytest.mark.parametrize(
    ("name", "domain", "label", "file"),
    [
        ("vlcs", "LabelMe", "car", "a4fc44181c584986888c78fea2c1d310.jpg"),
        ("office_home", "Art", "Notebook", "00003.jpg"),
    ],
)
def test_known_truncated_images_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, domain: str, label: str, file: str
) -> None:
    root = make_folder(tmp_path / name)
    for folder in root.iterdir():
        (folder / "y").rename(folder / label)
    (root / "a").rename(root / domain)
    expected = truncate(root / domain / label / file)
    dataset, said = opening(root, tmp_path)
    assert said == [f"dataset={name}: {expected.filename}: truncated: the missing part is grey"]  # type: ignore[attr-defined]
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    [stored] = [images.pixels for images in dataset.domains if images.name == domain]
    assert any(np.array_equal(pixels, np.asarray(expected.convert("RGB"))) for pixels in stored.numpy())
    with pytest.raises(UserError, match=rf"{file}: .*dataset.truncated=allow"):  # of another dataset, it is not known
        opening(root.rename(tmp_path / "mine"), tmp_path)


def test_truncated_images_of_one_s_own_are_taken_where_asked(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    truncate(root / "a/x/0.png")
    (root / "a/x/1.png").write_text("no image at all")
    with pytest.raises(UserError, match=r"a/x/1.png: cannot identify"):
        opening(root, tmp_path, truncated="allow")
    (root / "a/x/1.png").unlink()
    assert "a/x/0.png: truncated" in opening(root, tmp_path, truncated="allow")[1][0]
    with pytest.raises(UserError, match=r"a/x/0.png: .*truncated"):  # whatever store there is
        opening(root, tmp_path)


def test_warnings_name_their_images(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = make_folder(tmp_path / "mine")
    transparent = Image.new("P", (8, 8))
    for path in (root / "a/x/2.png", root / "b/y/1.png"):
        transparent.save(path, transparency=b"\x80")
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(root / "a/y/0.png")
    said = opening(root, tmp_path)[1]
    assert [line.split(": ", 2)[1] for line in said] == [f"{root}/a/x/2.png and 1 more", f"{root}/a/y/0.png"]
    assert "Palette images with Transparency" in said[0]
    assert "more than 8 bits" in said[1]
    assert not list(recwarn)


@pytest.mark.parametrize("ending", ["gif", "jfif", "avif", "tga", "jp2", "ico", "JPG"])
def test_what_pillow_reads_is_an_image(tmp_path: Path, ending: str) -> None:
    root = make_folder(tmp_path / "mine")
    Image.new("RGB", (16, 16)).save(root / f"a/x/9.{ending}")
    dataset, said = opening(root, tmp_path)
    assert dataset.sizes == {"a": 9, "b": 8}
    assert said == []


def test_what_is_skipped_is_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    for name in ("a/x/1.txt", "b/x/2.TXT", "b/y/notes", "b/y/film.mpg", "b/.DS_Store", "a/x/._0.png", "a/loose.png"):
        (root / name).touch()
    for _ in range(2):  # also where there is a store
        assert opening(root, tmp_path)[1] == [
            "dataset=mine: skipped 1 .mpg, 2 .txt, 2 hidden, 1 outside the class folders, 1 without an ending"
        ]


def test_an_image_of_too_many_pixels_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our limit is the one that counts, not Pillow's."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    root = make_folder(tmp_path / "mine")
    Image.new("L", (2000, 600)).save(root / "a/x/large.png")
    with pytest.raises(UserError, match=r"a/x/large.png: has 2 megapixels, .* dataset.max_megapixels=2 takes it"):
        opening(root, tmp_path, max_megapixels=1)
    assert opening(root, tmp_path)[0].sizes["a"] == 9


@pytest.mark.parametrize("link", ["a/x/9.png", "a/z", "c"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, link: str, target: str) -> None:
    root = make_folder(tmp_path / "mine")
    (root / link).symlink_to(Path(link).name if target == "itself" else target)
    with pytest.raises(UserError, match=rf"{link}: a link to [^\n]*$"):
        opening(root, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_csv_files_of_other_encodings(tmp_path: Path, encoding: str) -> None:
    """Names of files may be bytes; those of domains and classes stand in results."""
    root = make_folder(tmp_path / "mine")
    name = "é.png".encode("latin-1" if encoding == "latin-1" else "utf-8")
    for folder in root.iterdir():
        (folder / "x/0.png").rename(os.fsdecode(os.fsencode(folder) + b"/x/" + name))
    lines = [f"mine/{d}/{c}/{n}.png,{d},{c}" for d in "ab" for c in "xy" for n in ("é" if c == "x" else 0, 1, 2, 3)]
    csv = tmp_path / "mine.csv"
    csv.write_text("\n".join(["path,domain,class", *lines]), encoding=encoding)
    source_key(list_csv("mine", csv))
    csv.write_text(csv.read_text(encoding=encoding).replace(",x", ",ü"), encoding="latin-1")
    with pytest.raises(UserError, match=r"line 2, .*\\x.., is not UTF-8; save the file as UTF-8"):
        list_csv("mine", csv)
