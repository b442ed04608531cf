"""Decoded images: uint8 arrays, one for training crops and one for evaluation."""

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class DomainImages:
    """The decoded images of one domain, n of them.

    pixels: uint8 [n, H, W, 3], each image in the top left corner, at most the store's size on a side.
    stored_sizes, original_sizes: int64 [n, 2], (height, width) as stored and in the file.
    evaluation: uint8 [n, s, s, 3], torchvision's `Resize((s, s))` of the original image.
    labels: int64 [n].
    """

    name: str
    pixels: Tensor
    stored_sizes: Tensor
    original_sizes: Tensor
    evaluation: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """All domains of a dataset, decoded; `fingerprint` hashes its pixels, labels and order (not its files' format)."""

    name: str
    classes: tuple[str, ...]
    domains: tuple[DomainImages, ...]
    fingerprint: str

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each domain."""
        return {domain.name: len(domain.labels) for domain in self.domains}


def size_of(path: Path, max_megapixels: int) -> tuple[int, int]:
    """(height, width), from the file's header. Raises `ValueError` for more pixels than allowed."""
    with Image.open(path) as image:
        if image.height * image.width > max_megapixels * 10**6:
            pixels = math.ceil(image.height * image.width / 10**6)
            raise ValueError(
                f"has {pixels} megapixels, and dataset.max_megapixels={max_megapixels};"
                f" if it is meant to, dataset.max_megapixels={pixels} takes it"
            )
        return image.height, image.width


def read_image(path: Path) -> Image.Image:
    """In RGB of 8 bits. Raises `ValueError` for values outside the range that an image of its kind has."""
    with Image.open(path) as image:
        return _scaled(image).convert("RGB") if image.mode[0] in "IF" else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """An image of one channel with more than 8 bits, scaled by its type's range (floats: 0 to 1), which Pillow would clip."""
    warnings.warn("more than 8 bits a pixel: scaled by the range of its type", stacklevel=2)
    values = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # of a TIFF: bits, and 2 where they are signed
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    if image.mode == "F":
        most = 1
    else:
        most = 2 ** (bits - signed) - 1
        values = values if signed else values % 2**bits  # Pillow has unsigned 32 bits as signed ones
    if not ((values >= 0) & (values <= most)).all():
        raise ValueError(f"has values from {values.min():g} to {values.max():g}; they must be from 0 to {most}")
    return Image.fromarray(np.round(values * (255 / most)).astype(np.uint8))


def stored_pixels(image: Image.Image, store_size: int) -> NDArray[np.uint8]:
    """The image, at most store_size on a side and never larger than it is."""
    size = (min(image.width, store_size), min(image.height, store_size))
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))


def evaluation_view(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """The image after torchvision's `Resize((image_size, image_size))`."""
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def pixel_digest(image: Image.Image) -> bytes:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
