"""Sample images of a dataset in one PNG: a row per domain, a column per class, as the network sees the images."""

from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from vld.data.images import Dataset

MOST_CLASSES = 12
TILE = 72
MARGIN = 4
LABEL_WIDTH = 130
LABEL_HEIGHT = 26


def draw_samples(dataset: Dataset, path: Path) -> None:
    """Write a PNG with the first image of each class (of at most 12 classes) in each domain."""
    classes = dataset.classes[:MOST_CLASSES]
    cell = TILE + MARGIN
    size = (LABEL_WIDTH + cell * len(classes), LABEL_HEIGHT + cell * len(dataset.domains))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
    for column, label in enumerate(classes):
        pen.text((LABEL_WIDTH + column * cell, 5), label[:10], "black", font)
    for row, domain in enumerate(dataset.domains):
        top = LABEL_HEIGHT + row * cell
        pen.text((MARGIN, top + TILE // 2 - 8), domain.name[:16], "black", font)
        for column in range(len(classes)):
            index = int(np.flatnonzero(domain.labels.numpy() == column)[0])
            tile = Image.fromarray(domain.evaluation[index].numpy()).resize((TILE, TILE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (LABEL_WIDTH + column * cell, top))
    sheet.save(path, format="PNG")
