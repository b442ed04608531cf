"""The study's training transform: every image of a batch has its own random parameters.

RandomResizedCrop(scale 0.7-1.0, ratio 3/4-4/3), horizontal flip 0.5, ColorJitter(0.3, 0.3, 0.3, 0.3),
RandomGrayscale(0.1), as DomainBed composes them. Parameters are drawn with torchvision's distributions from a NumPy
generator; applying them is deterministic and equals torchvision's functions on float images. A GPU does the whole batch
at once, every operation for every image, in a few kernels when compiled; a CPU does what each image needs, in groups that fit
its caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

CROP_SCALE = (0.7, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
FLIP_PROBABILITY = 0.5
JITTER = 0.3
GRAYSCALE_PROBABILITY = 0.1

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_HUGE = 1e30  # times the difference of any two unequal float32 in [0, 1] that have come from pixels: far more than 1


@dataclass(frozen=True)
class AugmentParameters:
    """What is done to each of B images.

    crops: int64 [B, 4], (top, left, height, width) in pixels of the original image.
    flips, grays: bool [B].
    order: int64 [B, 4], the order of the four colour operations (BRIGHTNESS, CONTRAST, SATURATION, HUE).
    factors: float32 [B, 4], their strengths, indexed by operation.
    """

    crops: Tensor
    flips: Tensor
    order: Tensor
    factors: Tensor
    grays: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.crops, self.flips, self.order, self.factors, self.grays

    def __getitem__(self, images: slice) -> "AugmentParameters":
        return AugmentParameters(*(tensor[images] for tensor in self.tensors))


def draw_parameters(original_sizes: NDArray[np.int64], random: np.random.Generator) -> AugmentParameters:
    """Draw the parameters of B images with (height, width) in `original_sizes`, int64 [B, 2]."""
    n = len(original_sizes)
    crops = _draw_crops(original_sizes, random)
    flips = random.random(n) < FLIP_PROBABILITY
    order = random.random((n, 4)).argsort(axis=1)
    factors = random.uniform(1 - JITTER, 1 + JITTER, (n, 4))
    factors[:, HUE] -= 1  # hue shifts by a fraction of the circle, around 0
    grays = random.random(n) < GRAYSCALE_PROBABILITY
    return AugmentParameters(*map(torch.from_numpy, (crops, flips, order, factors.astype(np.float32), grays)))


def _draw_crops(sizes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """torchvision's RandomResizedCrop: the first of ten random boxes that fits, else the largest centred one."""
    n = len(sizes)
    image_height, image_width = sizes[:, :1], sizes[:, 1:]
    area = image_height * image_width * random.uniform(*CROP_SCALE, (n, CROP_ATTEMPTS))
    ratio = np.exp(random.uniform(np.log(CROP_RATIO[0]), np.log(CROP_RATIO[1]), (n, CROP_ATTEMPTS)))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    position = random.random((n, 2))

    fits: NDArray[np.bool_] = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
    first = np.argmax(fits, axis=1)[:, None]
    fitting = np.concatenate([np.take_along_axis(height, first, 1), np.take_along_axis(width, first, 1)], axis=1)
    corner = np.floor(position * (sizes - fitting + 1)).astype(np.int64)

    largest = _largest_box(sizes)
    centred = (sizes - largest) // 2
    return np.where(
        np.any(fits, axis=1, keepdims=True), np.concatenate([corner, fitting], 1), np.concatenate([centred, largest], 1)
    )


def _largest_box(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(height, width) of the largest box whose ratio is in range, for each image."""
    height, width = sizes[:, 0], sizes[:, 1]
    ratio = width / height
    return np.stack(
        [
            np.where(ratio < CROP_RATIO[0], np.rint(width / CROP_RATIO[0]), height),
            np.where(ratio > CROP_RATIO[1], np.rint(height * CROP_RATIO[1]), width),
        ],
        axis=1,
    ).astype(np.int64)


def augment_each(
    pixels: Sequence[Tensor],
    stored_sizes: Tensor,
    original_sizes: Tensor,
    parameters: AugmentParameters,
    image_size: int,
) -> Tensor:
    """`augment_together` for a CPU: images are cropped one by one, straight from where they are stored (uint8 [H, W, 3]).

    Their colours are changed together. What an image becomes does not depend, to the bit, on those beside it.
    """
    images = torch.empty(len(pixels), 3, image_size, image_size)
    boxes, flips = parameters.crops.tolist(), parameters.flips.tolist()
    whole = (stored_sizes == original_sizes).all(1).tolist()
    for i, stored in enumerate(pixels):
        one = slice(i, i + 1)
        if whole[i]:
            top, left, height, width = boxes[i]
            box = stored[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
            cropped = interpolate(box, (image_size, image_size), mode="bilinear", antialias=True).div_(255)
            images[one] = cropped.flip(3) if flips[i] else cropped
        else:  # a box whose edges lie between pixels
            images[one] = resized_crop(
                stored[None], stored_sizes[one], original_sizes[one], parameters[one], image_size
            )

    orders = parameters.order.tolist()
    for position, operation in product(range(4), range(4)):
        if chosen := [i for i, order in enumerate(orders) if order[position] == operation]:
            _recolor(images, chosen, operation, parameters.factors[chosen, operation, None, None, None])
    images[parameters.grays] = luminance(images[parameters.grays])
    return images


def _recolor(images: Tensor, chosen: Sequence[int], operation: int, factor: Tensor) -> None:
    """One of the four operations on the chosen ones of images [B, 3, h, w]; factor: float32 [chosen, 1, 1, 1]."""
    some = images if len(chosen) == len(images) else images.index_select(0, torch.tensor(chosen))
    if operation == HUE:
        some = shift_hue(some, factor)
    elif operation == BRIGHTNESS:
        some.mul_(factor).clamp_(0, 1)
    else:
        other = luminance(some)
        if operation == CONTRAST:  # summed image by image: together, the sum would have another order
            other = torch.stack([gray.mean() for gray in other]).view_as(factor)
        some.mul_(factor).add_(other.mul_(1 - factor)).clamp_(0, 1)
    if some is not images:
        for i, image in zip(chosen, some, strict=True):  # faster than by a list of indices
            images[i].copy_(image)


def augment_together(
    pixels: Tensor,
    stored_sizes: Tensor,
    original_sizes: Tensor,
    parameters: AugmentParameters,
    image_size: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Apply `parameters` to stored images, uint8 [B, H, W, 3]; return float32 [B, 3, image_size, image_size] in [0, 1].

    Boxes are in pixels of the original image; where the stored image is smaller they are scaled along. dtype: of the products
    that resize; float16 is exact to a tenth of a grey level. No step depends on what was drawn, so nothing waits for the host
    and all compiles.
    """
    images = resized_crop(pixels, stored_sizes, original_sizes, parameters, image_size, dtype)
    images = jitter_colors(images, parameters.order, parameters.factors)
    return torch.where(parameters.grays[:, None, None, None], luminance(images), images)


def resized_crop(
    pixels: Tensor,
    stored_sizes: Tensor,
    original_sizes: Tensor,
    parameters: AugmentParameters,
    image_size: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crop, flip and resize (bilinear, antialiased) with one pair of matrix products a batch."""
    batch, height, width, _ = pixels.shape
    scale = (stored_sizes / original_sizes).float()
    start, length = parameters.crops[:, :2] * scale, parameters.crops[:, 2:] * scale
    rows = resize_weights(start[:, 0], length[:, 0], image_size, height)
    columns = resize_weights(start[:, 1], length[:, 1], image_size, width)
    columns = torch.where(parameters.flips[:, None, None], columns.flip(1), columns)

    images = torch.bmm(rows.to(dtype), pixels.view(batch, height, width * 3).to(dtype))
    images = images.view(batch, image_size, width, 3).permute(0, 2, 1, 3).reshape(batch, width, image_size * 3)
    images = torch.bmm(columns.to(dtype), images).view(batch, image_size, image_size, 3)  # [B, x, y, channel]
    return images.permute(0, 3, 2, 1).float().contiguous() / 255


def resize_weights(start: Tensor, length: Tensor, size_out: int, size_in: int) -> Tensor:
    """The matrices [B, size_out, size_in] that resize the box [start, start + length) of each of B lines of pixels.

    A triangle filter as wide as an output pixel (at least one input pixel), of the pixels in the box only: what
    `torch.nn.functional.interpolate(mode="bilinear", antialias=True)` does to the cropped line.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size_out
    centre = start + (torch.arange(size_out, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(size_in, device=start.device)
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel + 1 > start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def jitter_colors(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """torchvision's ColorJitter on float images [B, 3, h, w]: brightness, contrast, saturation and hue, in each image's order."""
    for position in range(4):
        operation = order[:, position]
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        kind = operation[:, None, None, None]
        # Three of the four are blends of the image with black, its mean luminance, or its luminance.
        gray = luminance(images)
        other = torch.where(kind == CONTRAST, gray.mean(dim=(1, 2, 3), keepdim=True), gray)
        other = torch.where(kind == BRIGHTNESS, 0.0, other)
        blended = (factor * images + (1 - factor) * other).clamp(0, 1)
        images = torch.where(kind == HUE, shift_hue(images, factor), blended)
    return images


def luminance(images: Tensor) -> Tensor:
    """[..., 3, h, w] to [..., 1, h, w], with torchvision's weights (ITU-R 601-2)."""
    red, green, blue = images.unbind(-3)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(-3)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of images [..., 3, h, w] in [0, 1] by `shift` [..., 1, 1, 1] of a full circle (RGB to HSV and back)."""
    red, green, blue = images.unbind(-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Which channel is the largest, the first of equal ones, as 0 or 1: comparisons and `where` are ten times slower on CPUs.
    is_red = (value - red).mul_(-_HUGE).add_(1).clamp_(0, 1)
    is_green = (value - green).mul_(-_HUGE).add_(1).clamp_(0, 1).mul_(1 - is_red)
    is_blue = (1 - is_red).sub_(is_green)
    sector = (green - blue).mul_(is_red).addcmul_(is_green, blue - red).addcmul_(is_blue, red - green)
    sector /= chroma.clamp(min=1 / _HUGE)
    sector.add_(is_green, alpha=2).add_(is_blue, alpha=4)
    sector += 6 * shift.squeeze(-3)
    sector -= (sector / 6).floor_().mul_(6)  # in [0, 6), red at 0, green at 2, blue at 4
    # A channel lies below `value` by chroma times its distance from where it is largest, in sectors, less 1, within [0, 1].
    below = [(sector - 3).abs_().neg_().add_(2).clamp_(0, 1)]
    below += [(sector - opposite).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1) for opposite in (5, 1)]
    return torch.stack([torch.addcmul(value, its, chroma, value=-1) for its in below], -3)
