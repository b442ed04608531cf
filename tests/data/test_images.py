"""Decoded images equal what PIL and torchvision make of the files, bit for bit, and bad files are named."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import decode_dataset, make_dataset
from torchvision.transforms import Resize

from vld.config.errors import UserError
from vld.data import samples as samples_module
from vld.data.folder import list_dataset
from vld.data.images import Dataset, DomainImages
from vld.data.samples import draw_samples

IMAGE_SIZE = 32
STORE_SIZE = 256


def decode(root: Path, image_size: int = IMAGE_SIZE, store_size: int = STORE_SIZE) -> Dataset:
    return decode_dataset(list_dataset("some", root), image_size, store_size, lambda *_: None)


@pytest.fixture(scope="module")
def decoded(dataset_dir: Path) -> Dataset:
    return decode(dataset_dir)


def domains_and_files(dataset: Dataset, root: Path) -> list[tuple[DomainImages, list[Path]]]:
    return [(domain, sorted((root / domain.name).rglob("*.png"))) for domain in dataset.domains]


def rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_names_labels_and_shapes(decoded: Dataset) -> None:
    assert decoded.classes == ("cat", "dog")
    assert tuple(decoded.sizes) == ("art", "photo", "sketch")
    for domain in decoded.domains:
        assert domain.labels.tolist() == [0] * 5 + [1] * 5
        assert domain.labels.dtype == domain.stored_sizes.dtype == domain.original_sizes.dtype == torch.int64
        assert domain.pixels.shape == (10, STORE_SIZE, STORE_SIZE, 3)
        assert domain.evaluation.shape == (10, IMAGE_SIZE, IMAGE_SIZE, 3)
        assert domain.pixels.dtype == domain.evaluation.dtype == torch.uint8


def test_evaluation_views_are_torchvisions_resize_of_the_original(decoded: Dataset, dataset_dir: Path) -> None:
    resize = Resize((IMAGE_SIZE, IMAGE_SIZE))
    for domain, files in domains_and_files(decoded, dataset_dir):
        for i, file in enumerate(files):
            np.testing.assert_array_equal(domain.evaluation[i].numpy(), np.asarray(resize(rgb(file))))


@pytest.mark.parametrize("store_size", [256, 24, 20])
def test_stored_pixels_are_the_files_never_upsampled(dataset_dir: Path, store_size: int) -> None:
    dataset = decode(dataset_dir, store_size=store_size)
    kept = reduced = 0
    for domain, files in domains_and_files(dataset, dataset_dir):
        for i, file in enumerate(files):
            image = rgb(file)
            height, width = min(image.height, store_size), min(image.width, store_size)
            assert domain.original_sizes[i].tolist() == [image.height, image.width]
            assert domain.stored_sizes[i].tolist() == [height, width]
            if (height, width) == (image.height, image.width):
                expected = np.asarray(image)
                kept += 1
            else:
                expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
                reduced += 1
            np.testing.assert_array_equal(domain.pixels[i, :height, :width].numpy(), expected)
            assert not domain.pixels[i, height:].any()
            assert not domain.pixels[i, :, width:].any()
    assert reduced >= 3
    assert (kept > 0) == (store_size > 20)


def test_arrays_are_no_larger_than_the_largest_image(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "small", sizes=((9, 30), (14, 11)), special=False)
    assert decode(root).domains[0].pixels.shape == (10, 14, 30, 3)


def test_evaluation_views_do_not_depend_on_the_store(decoded: Dataset, dataset_dir: Path) -> None:
    other = decode(dataset_dir, store_size=16)
    assert other.fingerprint == decoded.fingerprint
    for small, large in zip(other.domains, decoded.domains, strict=True):
        assert torch.equal(small.evaluation, large.evaluation)


def test_more_images_than_are_decoded_at_once(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "many", domains=("a", "b"), per_class=130, sizes=((6, 7),), special=False)
    seen: list[tuple[int, int]] = []
    dataset = decode_dataset(list_dataset("many", root), 4, 256, lambda done, total: seen.append((done, total)))
    assert seen == [(256, 520), (512, 520), (520, 520)]
    for domain, files in domains_and_files(dataset, root):
        np.testing.assert_array_equal(domain.pixels.numpy(), np.stack([np.asarray(rgb(file)) for file in files]))


def test_fingerprint_ignores_encoding_and_time(decoded: Dataset, own_dataset_dir: Path) -> None:
    assert decode(own_dataset_dir).fingerprint == decoded.fingerprint
    for file in own_dataset_dir.rglob("*.png"):
        content = file.read_bytes()
        Image.open(file).copy().save(file, compress_level=0)
        assert file.read_bytes() != content
        os.utime(file, (1, 1))
    bmp = own_dataset_dir / "art" / "dog" / "001.png"
    rgb(bmp).save(bmp.with_suffix(".bmp"))
    bmp.unlink()
    assert decode(own_dataset_dir).fingerprint == decoded.fingerprint


@pytest.mark.parametrize("name", ["photo/cat/000.png", "sketch/dog/004.png"])
def test_fingerprint_changes_with_one_pixel(decoded: Dataset, own_dataset_dir: Path, name: str) -> None:
    """Of a reduced image and of one that is stored whole."""
    image = rgb(own_dataset_dir / name)
    red, green, blue = image.getpixel((3, 2))
    image.putpixel((3, 2), (red, green, blue ^ 1))
    image.save(own_dataset_dir / name)
    assert decode(own_dataset_dir).fingerprint != decoded.fingerprint


def test_fingerprint_changes_with_a_label(decoded: Dataset, own_dataset_dir: Path) -> None:
    """The last cat becomes the first dog: same pixels in the same order."""
    (own_dataset_dir / "art" / "cat" / "004.png").rename(own_dataset_dir / "art" / "dog" / "-.png")
    changed = decode(own_dataset_dir)
    assert torch.equal(changed.domains[0].pixels, decoded.domains[0].pixels)
    assert changed.fingerprint != decoded.fingerprint


def test_fingerprint_changes_with_the_order(decoded: Dataset, own_dataset_dir: Path) -> None:
    first, second, spare = (own_dataset_dir / "art" / "dog" / f"{name}.png" for name in ("000", "001", "x"))
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    assert decode(own_dataset_dir).fingerprint != decoded.fingerprint


def test_fingerprint_changes_with_names(decoded: Dataset, own_dataset_dir: Path) -> None:
    (own_dataset_dir / "sketch").rename(own_dataset_dir / "sketches")
    renamed_domain = decode(own_dataset_dir).fingerprint
    for domain in ("art", "photo", "sketches"):
        (own_dataset_dir / domain / "dog").rename(own_dataset_dir / domain / "hound")
    renamed_class = decode(own_dataset_dir).fingerprint
    assert len({decoded.fingerprint, renamed_domain, renamed_class}) == 3


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_checksum(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "cut in its header": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "a text": lambda file: file.write_text("no image at all"),
    "empty": lambda file: file.write_bytes(b""),
    "a wrong checksum": damage_checksum,
    "a cut JPEG": lambda file: (rgb(file).save(file, format="JPEG"), cut(file)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unreadable_file_is_named(own_dataset_dir: Path, damage: str) -> None:
    file = own_dataset_dir / "photo" / "dog" / "003.png"
    DAMAGES[damage](file)
    with pytest.raises(UserError) as raised:
        decode(own_dataset_dir)
    message = str(raised.value)
    assert str(file) in message
    assert "\n" not in message
    assert "more)" not in message


def test_several_unreadable_files_are_counted(own_dataset_dir: Path) -> None:
    for name in ("001", "002", "004"):
        (own_dataset_dir / "photo" / "dog" / f"{name}.png").write_text("no image")
    with pytest.raises(UserError, match=r"photo/dog/001\.png.*\(and 2 more\)"):
        decode(own_dataset_dir)


def test_too_large_for_the_disk(dataset_dir: Path) -> None:
    with pytest.raises(UserError, match=r"dataset=some: .* GB of disk are needed for the image store \(.*image_size"):
        decode(dataset_dir, image_size=2_000_000)


def test_the_sample_images_have_a_row_per_domain_and_a_column_per_class(tmp_path: Path) -> None:
    """Each tile is the first image of its class, as the network sees it."""
    dataset, path = make_dataset(), tmp_path / "samples.png"
    draw_samples(dataset, path)
    samples, step = Image.open(path), samples_module.TILE + samples_module.MARGIN
    left, above = samples_module.LABEL_WIDTH, samples_module.LABEL_HEIGHT
    assert samples.size == (left + 3 * step, above + 3 * step)
    for row, domain in enumerate(dataset.domains):
        for label in range(3):
            corner = left + label * step, above + row * step
            tile = samples.crop((*corner, corner[0] + samples_module.TILE, corner[1] + samples_module.TILE))
            first = domain.evaluation[domain.labels.tolist().index(label)].numpy()
            seen = Image.fromarray(first).resize(tile.size, Image.Resampling.BICUBIC)
            assert np.array_equal(np.asarray(tile), np.asarray(seen))
