"""The embedded dataset is complete, varied, the same everywhere, and never seen half drawn."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vld.data import glyphs
from vld.data.domains import GLYPHS
from vld.data.glyphs import CLASSES, IMAGES_PER_CLASS, draw_glyphs

# Over the decoded pixels, so that PNG compression does not matter. A change of this number is a change of the data
# set: accuracies measured before it are not comparable any more.
PIXELS = "1c7b32cdbac7ee5e165e8e416bd037a2594d6ba8621ebec6e45bf350a343e3c5"


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "data" / "glyphs"
    draw_glyphs(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(drawn: Path) -> dict[str, np.ndarray]:
    return pixels_of(drawn)


def test_layout_is_domain_class_number(drawn: Path) -> None:
    expected = {
        f"{domain}/{letter}/{index:04d}.png"
        for domain in GLYPHS
        for letter in CLASSES
        for index in range(IMAGES_PER_CLASS)
    }
    assert {path.relative_to(drawn).as_posix() for path in drawn.rglob("*") if path.is_file()} == expected
    assert [path.name for path in drawn.parent.iterdir()] == ["glyphs"]
    assert len(GLYPHS) == 4
    assert len(CLASSES) >= 10
    assert 2400 <= len(expected) <= 3000
    assert len({letter.casefold() for letter in CLASSES}) == len(CLASSES)


def test_every_picture_is_a_small_rgb_png(drawn: Path) -> None:
    for path in drawn.rglob("*.png"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64)), path


def test_no_two_pictures_are_alike(pictures: dict[str, np.ndarray]) -> None:
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


def test_pixels_are_the_same_everywhere(pictures: dict[str, np.ndarray]) -> None:
    digest = hashlib.sha256()
    for picture in pictures.values():
        digest.update(picture.tobytes())
    assert digest.hexdigest() == PIXELS


def test_drawing_again_gives_the_same_pixels(
    pictures: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer, and the classes in another order: a picture depends on its own name only.
    monkeypatch.setattr(glyphs, "IMAGES_PER_CLASS", 5)
    monkeypatch.setattr(glyphs, "CLASSES", CLASSES[::-1])
    random.seed(1)
    np.random.seed(1)
    draw_glyphs(tmp_path / "again")
    again = pixels_of(tmp_path / "again")
    assert len(again) == 5 * len(CLASSES) * len(GLYPHS)
    for name, picture in again.items():
        assert np.array_equal(picture, pictures[name]), name


@pytest.mark.parametrize("letter", CLASSES)
def test_domains_look_different(letter: str, pictures: dict[str, np.ndarray]) -> None:
    looks = {}
    for domain in GLYPHS:
        stack = np.stack([pictures[f"{domain}/{letter}/{i:04d}.png"] for i in range(IMAGES_PER_CLASS)]).astype(int)
        brightness = stack.mean()
        colourfulness = (stack.max(axis=3) - stack.min(axis=3)).mean()
        roughness = np.abs(np.diff(stack, axis=2)).mean()
        looks[domain] = np.array([brightness, colourfulness, roughness])
    for one, other in combinations(GLYPHS, 2):
        # In grey levels of 255.
        assert np.abs(looks[one] - looks[other]).max() > 20, (one, other, looks)


def test_letters_are_never_cut_off() -> None:
    for fonts in (glyphs._SERIF, glyphs._SANS, glyphs._HAND, glyphs._BOLD):
        for letter in CLASSES:
            for seed in range(40):
                mask = np.array(glyphs._letter(random.Random(f"{letter}{seed}"), letter, fonts, edge=8))
                assert mask.max() == 255
                mask[1:-1, 1:-1] = 0
                assert not mask.any(), (fonts, letter, seed)


def test_an_existing_folder_is_left_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "glyphs"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    draw_glyphs(folder)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["glyphs", "glyphs/mine.txt"]
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_folder_made_by_another_process_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one waits for it, and draws nothing."""
    folder = tmp_path / "glyphs"

    @contextmanager
    def waited(*_: object, **__: object) -> Iterator[None]:
        folder.mkdir()
        yield

    monkeypatch.setattr(glyphs, "staging_folder", waited)
    draw_glyphs(folder)
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_before = []

    def fails_late(_rng: random.Random, letter: str) -> Image.Image:
        assert [path.name for path in tmp_path.iterdir()] == [".drawing-glyphs"]
        if len(drawn_before) == IMAGES_PER_CLASS + 3:
            raise KeyboardInterrupt
        drawn_before.append(letter)
        return Image.new("RGB", (64, 64))

    monkeypatch.setattr(glyphs, "_DRAWN", {"print": fails_late})
    with pytest.raises(KeyboardInterrupt):
        draw_glyphs(tmp_path / "glyphs")
    assert len(drawn_before) == IMAGES_PER_CLASS + 3
    assert list(tmp_path.iterdir()) == []
