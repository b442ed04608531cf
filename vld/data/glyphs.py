"""The embedded dataset `glyphs`: ten capital letters in four domains, drawn on first use from matplotlib's fonts.

The domains differ as real ones do, in typeface, stroke, colour, background and texture:

- `print`: serif type, hatched in dark ink as an engraver does, over lines of smaller type on grained paper;
- `neon`: sans-serif tubes, outlines only, bright and glowing before a dark brick wall with blurred lights;
- `chalk`: italic and typewriter faces in wobbly, crumbling strokes on a smeared board with other scribbles;
- `mosaic`: bold faces as coarse tiles of one random hue among tiles of another, with grout between.

Within a domain, font, size, place, rotation (15 degrees at most), colours and clutter vary from image to image.

Pixels are to be the same on every machine. So all chance comes from `random.Random.random()` (the one draw that Python
keeps stable over versions) and from NumPy's frozen `RandomState`, both seeded by the image's own name; shapes are drawn
three times too large, rotated by nearest neighbour and reduced, all of which Pillow computes in integers.
"""

import random
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vld.data.domains import GLYPHS
from vld.machine.lock import staging_folder

# No letter looks like another one mirrored (training flips images) or turned, nor differs from it only by case.
CLASSES: tuple[str, ...] = ("A", "E", "G", "H", "K", "P", "Q", "S", "T", "X")
IMAGES_PER_CLASS = 60  # in each domain
_SIZE = 64
_SCALE = 3
_BIG = _SIZE * _SCALE
_SERIF = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "cmr10", "cmb10")
_SANS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "cmss10")
_HAND = ("cmmi10", "cmti10", "cmtt10", "STIXGeneralItalic", "DejaVuSansMono-Oblique")
_BOLD = ("DejaVuSans-BoldOblique", "DejaVuSansMono-Bold", "STIXGeneralBolIta", "DejaVuSerif-BoldItalic")

Colour = tuple[int, int, int]
_BOARDS: tuple[Colour, ...] = ((30, 70, 50), (40, 42, 46), (35, 50, 80), (80, 55, 45))


def _between(rng: random.Random, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def _colour(rng: random.Random, low: int, high: int) -> Colour:
    return _between(rng, low, high), _between(rng, low, high), _between(rng, low, high)


def _vivid(hue: int, low: int, high: int) -> Colour:
    """The colour at `hue` of a wheel of 1536 steps, its channels scaled to low..high, in integers."""
    wheel = [min(255, max(0, abs((hue + turn) % 1536 - 768) - 256)) for turn in (0, 1024, 512)]
    red, green, blue = (low + channel * (high - low) // 255 for channel in wheel)
    return red, green, blue


def _noise(rng: random.Random, cells: int, low: int, high: int, channels: int = 1) -> Image.Image:
    """A grey or RGB picture of random values, blown up smoothly from cells x cells."""
    draws = np.random.RandomState(int(rng.random() * 2**32)).randint(low, high + 1, (cells, cells, channels))
    picture = Image.fromarray(draws.astype(np.uint8).squeeze())
    return picture if cells == _SIZE else picture.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _letter(
    rng: random.Random, letter: str, fonts: tuple[str, ...], edge: int = 0, hollow: bool = False
) -> Image.Image:
    """A mask, three times too large, of the letter in one of the fonts, widened by `edge`; hollow leaves only that."""
    name = fonts[_between(rng, 0, len(fonts) - 1)]
    left, top, right, bottom = _font(name, 100).getbbox(letter)
    # The longer side takes 45 to 70 % of the picture.
    size = int(100 * _BIG * _between(rng, 9, 14) // (20 * max(right - left, bottom - top)))
    font = _font(name, size)
    left, top, right, bottom = (int(side) for side in font.getbbox(letter))
    # Turned by 15 degrees, a square reaches 5/4 as far (cos + sin), and is still to stay inside wherever it is moved.
    room = max(0, _BIG // 2 - edge - max(right - left, bottom - top) * 5 // 8) * 2 // 3
    x, y = (_BIG // 2 + _between(rng, -room, room) for _ in range(2))
    corner = (x - (left + right) // 2, y - (top + bottom) // 2)
    mask = Image.new("L", (_BIG, _BIG))
    draw = ImageDraw.Draw(mask)
    draw.text(corner, letter, 255, font, stroke_width=edge)
    if hollow:
        draw.text(corner, letter, 0, font)
    return mask.rotate(_between(rng, -15, 15), center=(x, y))


def _wobbled(rng: random.Random, mask: Image.Image) -> Image.Image:
    """The mask with rows and columns pushed along two random walks, as by an unsteady hand."""
    pixels = np.asarray(mask)
    for axis in (0, 1):
        knots = np.array([[_between(rng, 90, 165) for _ in range(8)]], np.uint8)
        walk = Image.fromarray(knots).resize((_BIG, 1), Image.Resampling.BICUBIC)
        shift = (np.asarray(walk).astype(np.int64)[0] - 128) // 5
        places = np.clip(np.arange(_BIG)[:, None] + shift, 0, _BIG - 1)
        pixels = np.take_along_axis(pixels, places.T if axis else places, axis)
    return Image.fromarray(pixels)


def _print(rng: random.Random, letter: str) -> Image.Image:
    white = _between(rng, 200, 255)
    sheet = Image.new("RGB", (_SIZE, _SIZE), (white, white - _between(rng, 0, 25), white - _between(rng, 0, 70)))
    paper = ImageChops.subtract(sheet, _noise(rng, 64, 0, 30, 3))
    lines = Image.new("L", (_BIG, _BIG))
    draw = ImageDraw.Draw(lines)
    height = _between(rng, 24, 48)
    for y in range(-_between(rng, 0, height), _BIG, height):
        text = "".join(ascii_lowercase[_between(rng, 0, 25)] for _ in range(400 // height))
        draw.text((-_between(rng, 0, 20), y), text, _between(rng, 90, 190), _font(_SERIF[0], height))
    paper.paste(_colour(rng, 0, 110), mask=lines.rotate(_between(rng, -9, 9)).reduce(_SCALE))
    hatching = Image.new("L", (_BIG, _BIG), 60)
    draw, pitch = ImageDraw.Draw(hatching), _between(rng, 10, 16)
    slant = _between(rng, -_BIG, _BIG)
    for x in range(-_BIG, 2 * _BIG, pitch):
        draw.line((x, 0, x + slant, _BIG), 255, pitch // 2)
    engraved = ImageChops.multiply(_letter(rng, letter, _SERIF), hatching).reduce(_SCALE)
    paper.paste(_colour(rng, 0, 90), mask=engraved)
    return paper


def _neon(rng: random.Random, letter: str) -> Image.Image:
    wall = Image.new("RGB", (_BIG, _BIG), _colour(rng, 15, 60))
    draw = ImageDraw.Draw(wall)
    height, mortar = _between(rng, 18, 36), _colour(rng, 0, 90)
    for row in range(_BIG // height + 1):
        draw.line((0, row * height, _BIG, row * height), mortar, 4)
        for x in range(row % 2 * height, _BIG, 2 * height):
            draw.line((x, row * height, x, (row + 1) * height), mortar, 4)
    for _ in range(_between(rng, 2, 6)):
        x, y, radius = _between(rng, 0, _BIG), _between(rng, 0, _BIG), _between(rng, 6, 24)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), _vivid(_between(rng, 0, 1535), 30, 170))
    picture = wall.reduce(_SCALE).filter(ImageFilter.BoxBlur(1))
    hue = _between(rng, 0, 1535)
    tube = _letter(rng, letter, _SANS, _between(rng, 5, 8), hollow=True).reduce(_SCALE)
    glow = tube.filter(ImageFilter.BoxBlur(_between(rng, 2, 4)))
    lit = Image.composite(Image.new("RGB", tube.size, _vivid(hue, 0, 255)), Image.new("RGB", tube.size), glow)
    picture = ImageChops.screen(picture, lit)
    picture.paste(_vivid(hue, 130, 255), mask=tube)
    return picture


def _chalk(rng: random.Random, letter: str) -> Image.Image:
    board = Image.new("RGB", (_SIZE, _SIZE), _BOARDS[_between(rng, 0, 3)])
    board = ImageChops.add(board, Image.merge("RGB", [_noise(rng, _between(rng, 3, 9), 0, 50)] * 3))
    strokes = _letter(rng, letter, _HAND, _between(rng, 2, 5))
    draw = ImageDraw.Draw(strokes)
    for _ in range(_between(rng, 1, 4)):
        ends = [_between(rng, 0, _BIG) for _ in range(4)]
        if rng.random() < 0.5:
            draw.line(ends, _between(rng, 90, 200), _between(rng, 3, 6))
        else:
            box = (ends[0], ends[1], ends[0] + ends[2] // 2 + 9, ends[1] + ends[3] // 2 + 9)
            draw.arc(box, ends[0], ends[0] + 200, _between(rng, 90, 200), _between(rng, 3, 6))
    crumbs = ImageChops.multiply(_noise(rng, 64, 140, 255), _noise(rng, 16, 190, 255))
    dust = ImageChops.multiply(_wobbled(rng, strokes).reduce(_SCALE), crumbs)
    board.paste(_colour(rng, 190, 255), mask=dust)
    return board


def _mosaic(rng: random.Random, letter: str) -> Image.Image:
    tile = _between(rng, 7, 10)
    cells = _letter(rng, letter, _BOLD).reduce(tile).point(lambda value: 255 * (value > 110))
    hue = _between(rng, 0, 1535)
    other = hue + _between(rng, 512, 1024)
    level = _between(rng, 0, 90)
    picture = Image.new("RGB", cells.size, _vivid(other, level, level + 130))
    picture.paste(_vivid(hue, 90 - level // 2, 220 - level // 2), mask=cells)
    shades = np.random.RandomState(int(rng.random() * 2**32)).randint(-20, 21, (*cells.size, 3))
    pixels = np.clip(np.asarray(picture).astype(np.int64) + shades, 0, 255).astype(np.uint8)
    wide = Image.fromarray(pixels).resize((cells.width * tile, cells.height * tile), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(wide)
    grout = (_between(rng, 0, 160),) * 3
    for place in range(0, wide.width, tile):
        draw.line((place, 0, place, wide.height), grout, 2)
        draw.line((0, place, wide.width, place), grout, 2)
    return wide.crop((0, 0, _BIG, _BIG)).reduce(_SCALE)


_DRAWN: dict[str, Callable[[random.Random, str], Image.Image]] = dict(
    zip(GLYPHS, (_chalk, _mosaic, _neon, _print), strict=True)
)


def draw_glyphs(folder: Path) -> None:
    """Draw all images as folder/domain/class/0000.png, unless `folder` is there already. It is only ever seen whole."""
    if folder.is_dir():
        return
    staging = folder.with_name(f".drawing-{folder.name}")
    with staging_folder(staging, announce=lambda _: None, another="draws the images") as place:
        if folder.is_dir():  # by the process that this one waited for
            return
        whole = place.path / folder.name
        for domain, drawn in _DRAWN.items():
            for letter, index in product(CLASSES, range(IMAGES_PER_CLASS)):
                path = whole / domain / letter / f"{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = drawn(random.Random(f"glyphs/{domain}/{letter}/{index}"), letter)
                picture.save(path, compress_level=1)
        place.move_out(whole, folder)
