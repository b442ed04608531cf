"""Augmentation on batches: each operation equals torchvision's, and the parameters have torchvision's distribution."""

from collections import Counter
from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from vld.data.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    AugmentParameters,
    augment_each,
    augment_together,
    draw_parameters,
    jitter_colors,
    luminance,
    resized_crop,
    shift_hue,
)

OPERATIONS = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)
# Of values in [0, 1]: float32 with another order of operations. Far below half a grey level, 2e-3.
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}


def random_pixels(height: int, width: int, seed: int) -> Tensor:
    """uint8 [height, width, 3] of noise, in which some pixels are grey, black or white."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey = random.random((height, width)) < 0.2
    pixels[grey] = pixels[grey][:, :1]
    pixels[random.random((height, width)) < 0.1] = 0
    pixels[random.random((height, width)) < 0.1] = 255
    return torch.from_numpy(pixels)


def unit(pixels: Tensor) -> Tensor:
    return pixels.permute(2, 0, 1).float() / 255


def parameters(
    crops: list[tuple[int, int, int, int]],
    flips: list[bool] | None = None,
    order: list[tuple[int, ...]] | None = None,
    factors: list[tuple[float, ...]] | None = None,
    grays: list[bool] | None = None,
) -> AugmentParameters:
    n = len(crops)
    return AugmentParameters(
        torch.tensor(crops),
        torch.tensor(flips or [False] * n),
        torch.tensor(order or [(0, 1, 2, 3)] * n),
        torch.tensor(factors or [(1.0, 1.0, 1.0, 0.0)] * n),
        torch.tensor(grays or [False] * n),
    )


def reference_crop(pixels: Tensor, box: tuple[int, int, int, int], flip: bool, size: int) -> Tensor:
    top, left, height, width = box
    image = reference.resized_crop(
        unit(pixels), top, left, height, width, [size, size], InterpolationMode.BILINEAR, antialias=True
    )
    return reference.horizontal_flip(image) if flip else image


def reference_jitter(image: Tensor, order: tuple[int, ...], factors: tuple[float, ...]) -> Tensor:
    for operation in order:
        image = OPERATIONS[operation](image, factors[operation])
    return image


@st.composite
def crops(draw: st.DrawFn, largest: int = 60) -> tuple[int, int, tuple[int, int, int, int]]:
    """The height and width of an image and a box inside it, often at its border."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    box_height, box_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    top = draw(st.one_of(st.integers(0, height - box_height), st.sampled_from([0, height - box_height])))
    left = draw(st.one_of(st.integers(0, width - box_width), st.sampled_from([0, width - box_width])))
    return height, width, (top, left, box_height, box_width)


factor = st.floats(0.7, 1.3)
hue_shift = st.floats(-0.3, 0.3)


@settings(max_examples=150)
@given(
    image=crops(), pad=st.tuples(st.integers(0, 9), st.integers(0, 9)), size=st.integers(1, 70), flip=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(image=(50, 50, (0, 0, 50, 50)), pad=(0, 0), size=50, flip=False, seed=0)  # as it is
@example(image=(50, 60, (0, 0, 50, 60)), pad=(9, 9), size=7, flip=True, seed=1)  # much smaller
@example(image=(5, 3, (0, 0, 5, 3)), pad=(9, 9), size=70, flip=False, seed=2)  # much larger
@example(image=(50, 60, (49, 59, 1, 1)), pad=(1, 1), size=13, flip=True, seed=3)  # one pixel, in the corner
def test_resized_crop(
    image: tuple[int, int, tuple[int, int, int, int]], pad: tuple[int, int], size: int, flip: bool, seed: int
) -> None:
    """Also where the array is larger than the image: what lies outside it, white here, does not bleed in."""
    height, width, box = image
    pixels = random_pixels(height, width, seed)
    stored = torch.full((1, height + pad[0], width + pad[1], 3), 255, dtype=torch.uint8)
    stored[0, :height, :width] = pixels
    sizes = torch.tensor([[height, width]])
    cropped = resized_crop(stored, sizes, sizes, parameters([box], [flip]), size)
    assert cropped.shape == (1, 3, size, size)
    torch.testing.assert_close(cropped[0], reference_crop(pixels, box, flip, size), **TOLERANCE)


def test_hue_of_every_corner_and_edge_of_the_colour_cube() -> None:
    """All colours of channels 0, 1/4, 1/2, 3/4, 1: ties between channels, grey, black, white."""
    levels = torch.linspace(0, 1, 5)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 5, 25)
    for shift in (-0.3, -1 / 6, -0.01, 0.0, 0.1, 0.25, 0.3):
        shifted = shift_hue(colours[None], torch.tensor(shift).view(1, 1, 1, 1))[0]
        torch.testing.assert_close(shifted, reference.adjust_hue(colours, shift), **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_jitter_in_each_order(seed: int) -> None:
    """All 24 orders in one batch, each image with factors of its own."""
    random = np.random.default_rng(seed)
    orders = list(permutations(range(4)))
    factors = random.uniform((0.7, 0.7, 0.7, -0.3), (1.3, 1.3, 1.3, 0.3), (24, 4)).astype(np.float32)
    images = torch.stack([unit(random_pixels(12, 10, 100 * seed + i)) for i in range(24)])
    jittered = jitter_colors(images, torch.tensor(orders), torch.from_numpy(factors))
    assert float(jittered.min()) >= 0
    assert float(jittered.max()) <= 1
    for i, order in enumerate(orders):
        expected = reference_jitter(images[i], order, tuple(map(float, factors[i])))
        torch.testing.assert_close(jittered[i], expected, **TOLERANCE)


@pytest.mark.parametrize("how", [augment_each, augment_together])
@settings(max_examples=60)
@given(
    images=st.lists(
        st.tuples(
            crops(40),
            st.booleans(),
            st.permutations(range(4)),
            st.tuples(factor, factor, factor, hue_shift),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_whole_pipeline(
    how: Callable[..., Tensor],
    images: list[tuple[tuple[int, int, tuple[int, int, int, int]], bool, list[int], tuple[float, ...], bool]],
    size: int,
    seed: int,
) -> None:
    """Images of different sizes in one batch, each with its own parameters: crop, flip, jitter, grey."""
    pixels = [random_pixels(height, width, seed + i) for i, ((height, width, _), *_) in enumerate(images)]
    sizes = torch.tensor([image.shape[:2] for image in pixels])
    stored = torch.zeros(len(images), int(sizes[:, 0].max()), int(sizes[:, 1].max()), 3, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        stored[i, : image.shape[0], : image.shape[1]] = image
    drawn = parameters(
        [box for (_, _, box), *_ in images],
        [flip for _, flip, *_ in images],
        [tuple(order) for _, _, order, *_ in images],
        [factors for *_, factors, _ in images],
        [gray for *_, gray in images],
    )
    augmented = how(stored, sizes, sizes, drawn, size)
    assert augmented.shape == (len(images), 3, size, size)
    assert augmented.dtype == torch.float32
    for i, ((_, _, box), flip, order, factors, gray) in enumerate(images):
        expected = reference_jitter(reference_crop(pixels[i], box, flip, size), tuple(order), factors)
        if gray:
            expected = reference.rgb_to_grayscale(expected, num_output_channels=3)
        torch.testing.assert_close(augmented[i], expected, rtol=0.0, atol=1e-4)


def image_by_image(pixels: Tensor, stored: Tensor, original: Tensor, drawn: AugmentParameters, size: int) -> Tensor:
    """`augment_each` in plain words, one image and one operation after the other, factors as Python's numbers."""
    images = []
    for i, (top, left, height, width) in enumerate(drawn.crops.tolist()):
        if torch.equal(stored[i], original[i]):
            box = pixels[i, top : top + height, left : left + width].permute(2, 0, 1).float()
            image = interpolate(box[None], (size, size), mode="bilinear", antialias=True)[0] / 255
            image = image.flip(2) if drawn.flips[i] else image
        else:
            one = slice(i, i + 1)
            image = resized_crop(pixels[one], stored[one], original[one], drawn[one], size)[0]
        for operation in drawn.order[i].tolist():
            factor = drawn.factors[i, operation].item()
            if operation == HUE:
                image = shift_hue(image, torch.tensor(factor).view(1, 1, 1))
            elif operation == BRIGHTNESS:
                image = (image * factor).clamp(0, 1)
            else:
                other = luminance(image).mean() if operation == CONTRAST else luminance(image)
                image = (image * factor + other * (1 - factor)).clamp(0, 1)
        images.append(luminance(image).expand_as(image) if drawn.grays[i] else image)
    return torch.stack(images)


@pytest.mark.parametrize(
    ("shape", "stored_shape", "size"),
    [
        ((227, 227), (227, 227), 48),
        ((227, 227), (227, 227), 100),
        ((227, 227), (227, 227), 224),
        ((60, 45), (60, 45), 13),  # no multiple of what a processor computes at once
        ((10, 10), (10, 10), 8),
        ((5, 3), (5, 3), 31),
        ((300, 400), (200, 256), 33),  # stored smaller than it is
        ((40, 30), (20, 30), 10),
    ],
)
@pytest.mark.parametrize("n", [1, 30])
def test_images_augmented_together_are_those_augmented_alone(
    shape: tuple[int, int], stored_shape: tuple[int, int], size: int, n: int
) -> None:
    """To the bit, in all orders, in a batch of any size, from padded memory or a list of images."""
    n = min(n, 12) if size > 200 else n
    pixels = torch.stack([random_pixels(stored_shape[0] + 3, stored_shape[1] + 2, i) for i in range(n)])
    stored, original = torch.tensor([stored_shape] * n), torch.tensor([shape] * n)
    drawn = draw(shape, n, seed=size)
    drawn.order[:24] = torch.tensor(list(permutations(range(4))))[:n]
    drawn.grays[: n // 2 : 3] = True
    expected = image_by_image(pixels, stored, original, drawn, size)
    assert torch.equal(augment_each(pixels, stored, original, drawn, size), expected)
    assert torch.equal(augment_each(list(pixels), stored, original, drawn, size), expected)


@pytest.mark.parametrize("shape", [(400, 512), (300, 200), (256, 700)])
def test_boxes_are_scaled_to_the_stored_image(shape: tuple[int, int]) -> None:
    """A smooth image stored at half its size: much like cropping the original, much unlike another crop."""
    height, width = shape
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    original = torch.stack([rows, columns, 0.5 + 0.5 * torch.sin(9 * rows + 5 * columns)], 2)
    original = (original * 255).round().to(torch.uint8)
    stored_size = [min(height, 256) // 2, min(width, 256)]
    stored = reference.resize(original.permute(2, 0, 1), stored_size, antialias=True).permute(1, 2, 0)[None]
    box = (height // 5, width // 10, 3 * height // 5 + 1, 3 * width // 4 + 1)
    for flip in (False, True):
        cropped = resized_crop(
            stored.contiguous(), torch.tensor([stored_size]), torch.tensor([[height, width]]), parameters([box], [flip]), 48
        )[0]  # fmt: skip
        expected = reference_crop(original, box, flip, 48)
        assert float((cropped - expected).abs().mean()) < 0.004
        assert float((cropped - expected).abs().max()) < 0.03
        assert float((cropped - reference_crop(original, box, not flip, 48)).abs().mean()) > 0.05
        shifted = (box[0], box[1] + width // 12, *box[2:])
        assert float((cropped - reference_crop(original, shifted, flip, 48)).abs().mean()) > 0.02


@pytest.mark.parametrize("stored_size", [(227, 227), (200, 256)])
def test_the_ways_of_a_cpu_and_a_gpu_agree(stored_size: tuple[int, int]) -> None:
    """On images of usual size, stored whole and reduced; with a GPU's half-precision products to a fifth of a grey level."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (6, *stored_size, 3), dtype=np.uint8))
    stored, original = torch.tensor([stored_size] * 6), torch.tensor([[227, 300 if stored_size[1] == 256 else 227]] * 6)
    drawn = draw_parameters(original.numpy(), random)
    each = augment_each(pixels, stored, original, drawn, 96)
    torch.testing.assert_close(augment_together(pixels, stored, original, drawn, 96), each, rtol=0.0, atol=1e-4)
    crops = [resized_crop(pixels, stored, original, drawn, 96, dtype) for dtype in (torch.float32, torch.float16)]
    assert float((255 * (crops[0] - crops[1])).abs().max()) < 0.2


# Distributions. All draws are seeded, so the tests give the same answer every time.


def ks_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance between two empirical distribution functions."""
    values = np.concatenate([a, b])
    cumulative = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(cumulative[0] - cumulative[1]).max())


def ks_limit(n: int, m: int, alpha: float = 1e-4) -> float:
    """The distance that two samples of one distribution exceed with probability alpha (at most, if it has ties)."""
    return float(np.sqrt(-np.log(alpha / 2) / 2 * (n + m) / (n * m)))


def draw(shape: tuple[int, int], n: int, seed: int = 0) -> AugmentParameters:
    return draw_parameters(np.tile(np.array(shape, np.int64), (n, 1)), np.random.default_rng(seed))


def torchvision_crops(shape: tuple[int, int], n: int, seed: int = 0, smallest: float = 0.7) -> np.ndarray:
    image = torch.empty(1, 1, 1).expand(3, *shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return np.array([RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])


CROP_FEATURES = {
    "top": lambda c: c[:, 0],
    "left": lambda c: c[:, 1],
    "height": lambda c: c[:, 2],
    "width": lambda c: c[:, 3],
    "area": lambda c: c[:, 2] * c[:, 3],
    "ratio": lambda c: c[:, 3] / c[:, 2],
    "bottom": lambda c: c[:, 0] + c[:, 2],
    "top and left": lambda c: c[:, 0] * c[:, 1],
    "top and height": lambda c: c[:, 0] * c[:, 2],
}


def test_statistic_tells_distributions_apart() -> None:
    """The limit is tight enough to see a scale from 0.65 instead of 0.7."""
    ours, other = draw((227, 227), 4000).crops.numpy(), torchvision_crops((227, 227), 4000, smallest=0.65)
    assert ks_statistic(CROP_FEATURES["area"](ours), CROP_FEATURES["area"](other)) > ks_limit(4000, 4000)


@pytest.mark.parametrize("shape", [(227, 227), (500, 375), (120, 200), (60, 110), (21, 13), (7, 7)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    """Square, tall and wide images, the fourth often with ten failed attempts, the last with few possible boxes."""
    n = 4000
    ours, theirs = draw(shape, n).crops.numpy(), torchvision_crops(shape, n)
    for name, feature in CROP_FEATURES.items():
        assert ks_statistic(feature(ours), feature(theirs)) < ks_limit(n, n), name
    assert ours[:, :2].min() >= 0
    assert ours[:, 2:].min() >= 1
    assert ((ours[:, :2] + ours[:, 2:]) <= shape).all()


@settings(max_examples=150)
@given(short=st.integers(1, 400), ratio=st.floats(2, 40), tall=st.booleans(), seed=st.integers(0, 2**31))
@example(short=1, ratio=9, tall=True, seed=0)
@example(short=3, ratio=9, tall=False, seed=0)
def test_fallback_box_is_torchvisions(short: int, ratio: float, tall: bool, seed: int) -> None:
    """No box of a ratio within 3/4 and 4/3 has 70 % of the area: both take the largest centred one."""
    long = int(np.ceil(short * ratio)) + 3
    shape = (long, short) if tall else (short, long)
    expected = torchvision_crops(shape, 1, seed)[0].tolist()
    assert draw(shape, 3, seed).crops.tolist() == [expected] * 3


def test_colour_factors_are_distributed_as_torchvisions() -> None:
    n = 4000
    jitter = ColorJitter(0.3, 0.3, 0.3, 0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [
            ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(n)
        ]
    ours = draw((50, 50), n)
    for operation in range(4):
        expected = np.array([drawn[1 + operation] for drawn in theirs])
        assert ks_statistic(ours.factors[:, operation].numpy(), expected) < ks_limit(n, n)
        low, high = ((0.7, 1.3), (-0.3, 0.3))[operation == 3]
        assert low - 1e-6 <= float(ours.factors[:, operation].min()) < low + 0.01
        assert high - 0.01 < float(ours.factors[:, operation].max()) <= high + 1e-6
    for one, other in product(range(4), range(4)):
        if one < other:
            correlation = np.corrcoef(ours.factors[:, one].numpy(), ours.factors[:, other].numpy())[0, 1]
            assert abs(correlation) < 4.5 / np.sqrt(n)


def test_orders_are_uniform() -> None:
    n = 24_000
    counts = Counter(map(tuple, draw((50, 50), n).order.tolist()))
    assert set(counts) == set(permutations(range(4)))
    chi_squared = sum((count - n / 24) ** 2 / (n / 24) for count in counts.values())
    assert chi_squared < 60  # 23 degrees of freedom: exceeded once in 40,000 times


def test_flips_and_grays() -> None:
    n = 20_000
    drawn = draw((50, 50), n)
    flips, grays = drawn.flips.double(), drawn.grays.double()
    assert abs(float(flips.mean()) - 0.5) < 4.5 * np.sqrt(0.25 / n)
    assert abs(float(grays.mean()) - 0.1) < 4.5 * np.sqrt(0.09 / n)
    assert abs(np.corrcoef(flips, grays)[0, 1]) < 4.5 / np.sqrt(n)


def test_images_of_different_sizes_have_boxes_of_their_own() -> None:
    sizes = np.random.default_rng(0).integers(1, 300, (2000, 2))
    crops = draw_parameters(sizes, np.random.default_rng(1)).crops.numpy()
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, 2:] >= 1).all()
    assert (crops[:, :2] + crops[:, 2:] <= sizes).all()


def test_draws_depend_on_the_generator_only() -> None:
    first, again, other = (draw((300, 400), 8, seed) for seed in (1, 1, 2))
    for name in ("crops", "flips", "order", "factors", "grays"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.crops, other.crops)
    assert not torch.equal(first.factors, other.factors)


def test_copies_of_one_image_are_augmented_differently() -> None:
    """Alone or in a batch, an image becomes what its own parameters make of it."""
    pixels = random_pixels(40, 40, 0)[None].repeat(6, 1, 1, 1)
    sizes = torch.tensor([[40, 40]]).repeat(6, 1)
    drawn = draw((40, 40), 6)
    augmented = augment_each(pixels, sizes, sizes, drawn, 16)
    for i in range(6):
        alone = augment_each(pixels[:1], sizes[:1], sizes[:1], drawn[i : i + 1], 16)
        assert torch.equal(alone[0], augmented[i])
        for j in range(i):
            assert float((augmented[i] - augmented[j]).abs().max()) > 0.01
