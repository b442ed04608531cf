"""The image store is made once, whole, by one process, and holds what the files hold."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WriteDataset
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, Resize
from torchvision.transforms.functional import resized_crop as torchvision_crop
from torchvision.transforms.functional import to_tensor

from vld.config.errors import UserError
from vld.config.settings import BackboneConfig, Config
from vld.data.augment import draw_parameters, resized_crop
from vld.data.folder import list_dataset
from vld.data.image_store import open_dataset, source_key, verify_store
from vld.data.images import Dataset
from vld.data.split import split_indices
from vld.model.classifier import build_classifier
from vld.training.evaluation import evaluation_set, predict, score


def opened(root: Path, stores: Path, image_size: int = 16, store_size: int = 64) -> tuple[Dataset, list[int]]:
    """The dataset, and after how many decoded images progress was told."""
    told: list[int] = []
    dataset = open_dataset(
        list_dataset("some", root), [stores], image_size, store_size, lambda done, _: told.append(done)
    )
    return dataset, told


def same(one: Dataset, other: Dataset) -> bool:
    tensors = ("pixels", "stored_sizes", "original_sizes", "evaluation", "labels")
    return one.fingerprint == other.fingerprint and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.domains, other.domains, strict=True)
        for name in tensors
    )


def test_made_once_and_opened_ever_after(own_dataset_dir: Path, tmp_path: Path) -> None:
    first, told = opened(own_dataset_dir, tmp_path / "stores")
    assert told[-1] == 30
    again, told = opened(own_dataset_dir, tmp_path / "stores")
    assert told == []
    assert same(first, again)
    assert f"{tmp_path}/stores" in Path("/proc/self/maps").read_text()  # not read into memory
    assert len(list((tmp_path / "stores").iterdir())) == 2


def test_it_does_not_matter_where_the_images_are(own_dataset_dir: Path, tmp_path: Path) -> None:
    opened(own_dataset_dir, tmp_path / "stores")
    moved = own_dataset_dir.rename(tmp_path / "moved")
    assert opened(moved, tmp_path / "stores")[1] == []


@pytest.mark.parametrize(
    ("changed", "kept", "stored"),
    [
        ({"image_size": 8}, "pixels", ["pixels-64", "views-16", "views-8"]),
        ({"store_size": 32}, "views", ["pixels-32", "pixels-64", "views-16"]),
    ],
)
def test_another_size_leaves_what_does_not_depend_on_it(
    changed: dict[str, int], kept: str, stored: list[str], own_dataset_dir: Path, tmp_path: Path
) -> None:
    stores = tmp_path / "stores"
    first, _ = opened(own_dataset_dir, stores)
    [there] = stores.glob(f"*-{kept}-*")
    before = there.stat().st_mtime_ns
    other, told = opened(own_dataset_dir, stores, **changed)
    assert told[-1] == 30
    assert [path.name.split("-", 2)[2] for path in sorted(stores.iterdir())] == stored
    assert there.stat().st_mtime_ns == before
    assert other.fingerprint == first.fingerprint
    for ours, before_it in zip(other.domains, first.domains, strict=True):
        if kept == "pixels":
            assert torch.equal(ours.pixels, before_it.pixels)
            assert ours.evaluation.shape == (10, 8, 8, 3)
        else:
            assert torch.equal(ours.evaluation, before_it.evaluation)


def rotate(path: Path) -> None:
    Image.open(path).rotate(180).save(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image added": lambda root: shutil.copy(root / "art/cat/000.png", root / "art/cat/zzz.png"),
    "an image replaced": lambda root: rotate(root / "art/cat/003.png"),
    "an image moved": lambda root: (root / "art/cat/004.png").rename(root / "art/dog/0.png"),
    "a class renamed": lambda root: [(domain / "cat").rename(domain / "lion") for domain in root.iterdir()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_made_anew_when_the_source_changes(own_dataset_dir: Path, tmp_path: Path, change: str) -> None:
    first, _ = opened(own_dataset_dir, tmp_path / "stores")
    CHANGES[change](own_dataset_dir)
    after, told = opened(own_dataset_dir, tmp_path / "stores")
    assert told
    assert after.fingerprint != first.fingerprint
    assert same(after, opened(own_dataset_dir, tmp_path / "elsewhere")[0])


def verified(root: Path, dataset: Dataset) -> list[Path]:
    return verify_store(list_dataset("some", root), dataset, 16, 64, lambda *_: None)


def test_a_change_without_a_trace_is_found(own_dataset_dir: Path, tmp_path: Path) -> None:
    dataset, _ = opened(own_dataset_dir, tmp_path / "stores")
    assert verified(own_dataset_dir, dataset) == []
    path = own_dataset_dir / "art/cat/003.bmp"  # of a size that does not depend on what is in it
    (own_dataset_dir / "art/cat/003.png").unlink()
    Image.new("RGB", (20, 20), "red").save(path)
    os.utime(path, (10**9, 10**9))
    dataset, _ = opened(own_dataset_dir, tmp_path / "stores")
    before = path.stat()
    Image.new("RGB", (20, 20), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened(own_dataset_dir, tmp_path / "stores")[1] == []
    assert verified(own_dataset_dir, dataset) == [path]


def test_a_change_while_the_store_was_made_is_found(own_dataset_dir: Path, tmp_path: Path) -> None:
    """Size and time are trusted only where the time is older than the store."""
    path = own_dataset_dir / "art/cat/003.bmp"
    (own_dataset_dir / "art/cat/003.png").unlink()
    Image.new("RGB", (20, 20), "red").save(path)
    later = time.time_ns() + 10**9
    os.utime(path, ns=(later, later))
    opened(own_dataset_dir, tmp_path / "stores")
    assert opened(own_dataset_dir, tmp_path / "stores")[1] == []
    Image.new("RGB", (20, 20), "blue").save(path)
    os.utime(path, ns=(later, later))
    with pytest.raises(UserError, match=f"{path} was replaced by an image of the same size and time .* remove"):
        opened(own_dataset_dir, tmp_path / "stores")


def test_a_store_that_was_half_removed_is_made_again(own_dataset_dir: Path, tmp_path: Path) -> None:
    first, _ = opened(own_dataset_dir, tmp_path / "stores")
    [about] = (tmp_path / "stores").glob("*-pixels-64/about.json")
    about.unlink()
    again, told = opened(own_dataset_dir, tmp_path / "stores")
    assert told
    assert same(first, again)


def test_a_builder_that_lost_its_lock_publishes_nothing(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still, and another process is at it."""
    monkeypatch.setattr("vld.machine.lock.RunLock.holds", lambda _: False)
    with pytest.raises(UserError, match="another process makes the image store now"):
        opened(dataset_dir, tmp_path / "stores")
    assert list((tmp_path / "stores").iterdir()) == []


def test_what_a_killed_builder_left_is_removed_whatever_its_sizes(dataset_dir: Path, tmp_path: Path) -> None:
    files = list_dataset("some", dataset_dir)
    left = tmp_path / f"stores/.building-some-{source_key(files)}/tmpx/some-views-100"
    left.mkdir(parents=True)
    (left / "0.uint8").write_bytes(b"half")
    opened(dataset_dir, tmp_path / "stores")
    assert all(not path.name.startswith(".") for path in (tmp_path / "stores").iterdir())


# A process that makes a store and, at its third image, does something else first.
BUILD = """
import os, signal, sys
from pathlib import Path
from vld.data import image_store as store
from vld.data.folder import list_dataset
read, images = store.read_image, []
def third(path):
    images.append(path)
    if len(images) == 3:
        {act}
    return read(path)
store.read_image = third
files = list_dataset("some", Path(sys.argv[1]))
dataset = store.open_dataset(files, [Path(sys.argv[2])], 16, 64, lambda *_: None)
print(dataset.fingerprint)
"""


def build(root: Path, stores: Path, act: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILD.format(act=act), str(root), str(stores)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_builders_at_once_make_one_store(dataset_dir: Path, tmp_path: Path) -> None:
    """The first is held up until the second has said that it waits."""
    first = build(dataset_dir, tmp_path / "stores", "print('begun', flush=True); sys.stdin.readline()")
    assert first.stdout
    assert first.stdout.readline() == "begun\n"
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        print(file=first.stdin, flush=True)

    told: list[int] = []
    files = list_dataset("some", dataset_dir)
    second = open_dataset(files, [tmp_path / "stores"], 16, 64, lambda done, _: told.append(done), announce=announce)
    assert told == []
    assert f"process {first.pid} " in said[0]
    assert "holds the lock" in said[0]
    assert first.communicate()[0] == f"{second.fingerprint}\n"
    assert first.returncode == 0
    assert all(not path.name.startswith(".") for path in (tmp_path / "stores").iterdir())


@pytest.mark.slow
def test_a_killed_builder_leaves_no_half_store(dataset_dir: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    killed = build(dataset_dir, stores, "os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert list(stores.glob(".building-*/*/*/0.uint8"))
    assert [path for path in stores.iterdir() if not path.name.startswith(".")] == []
    dataset, told = opened(dataset_dir, stores)
    assert told
    assert same(dataset, opened(dataset_dir, tmp_path / "elsewhere")[0])
    assert all(not path.name.startswith(".") for path in stores.iterdir())


def test_an_unreadable_image_leaves_no_half_store(own_dataset_dir: Path, tmp_path: Path) -> None:
    path = own_dataset_dir / "sketch/dog/002.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=str(path)):
        opened(own_dataset_dir, tmp_path / "stores")
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_damaged_store_is_named(own_dataset_dir: Path, tmp_path: Path) -> None:
    opened(own_dataset_dir, tmp_path / "stores")
    for path in (tmp_path / "stores").glob("*/*"):
        whole = path.read_bytes()
        for part in (whole[:-3], b""):
            path.write_bytes(part)
            with pytest.raises(UserError, match=r"damaged .* remove them, they are made again"):
                opened(own_dataset_dir, tmp_path / "stores")
        path.write_bytes(whole)
    opened(own_dataset_dir, tmp_path / "stores")


def test_where_the_first_place_cannot_be_written_to_the_second_is_taken(dataset_dir: Path, tmp_path: Path) -> None:
    files = list_dataset("some", dataset_dir)
    places = [Path("/proc/stores"), tmp_path / "stores"]
    one = open_dataset(files, places, 16, 64, lambda *_: None)
    assert len(list((tmp_path / "stores").iterdir())) == 2
    with pytest.raises(UserError, match="no place for the image store: /proc/stores cannot be written to"):
        open_dataset(files, places[:1], 16, 64, lambda *_: None)
    # What is there is used wherever it is.
    shutil.move(tmp_path / "stores", tmp_path / "moved")
    told: list[int] = []
    again = open_dataset(files, [tmp_path / "new", tmp_path / "moved"], 16, 64, lambda done, _: told.append(done))
    assert same(one, again)
    assert told == []


def test_accuracies_from_the_store_are_those_from_the_files(dataset_dir: Path, tmp_path: Path) -> None:
    """Evaluated as one would by hand: ImageFolder, torchvision's Resize, one image after the other."""
    backbone = BackboneConfig(name="resnet18", architecture="resnet18", weights="none")
    model = build_classifier(Config(backbone=backbone, image_size=24), None, classes=2).eval()
    images = evaluation_set(opened(dataset_dir, tmp_path / "stores", image_size=32)[0], "photo", 0, torch.device("cpu"))
    scores = score(predict([model], images)[0].logits, images)
    transform = Compose([Resize((32, 32)), PILToTensor()])
    correct: dict[str, list[bool]] = {}
    for index, domain in enumerate(("art", "photo", "sketch")):
        folder = ImageFolder(str(dataset_dir / domain), transform)
        chosen = range(len(folder)) if domain == "photo" else split_indices(len(folder), index, 0)[1].tolist()
        for i in chosen:
            image, label = folder[i]
            with torch.no_grad():
                logits = model(image[None].float() / 255)
            correct.setdefault(domain, []).append(int(logits.argmax()) == label)
    assert scores.ood_acc == np.mean(correct["photo"])
    assert scores.iid_acc == pytest.approx((np.mean(correct["art"]) + np.mean(correct["sketch"])) / 2, abs=1e-12)


def training_view_errors(dataset: Dataset, files: list[Path], image_size: int, crops: int) -> Tensor:
    """Differences, in 1/255, between crops from the store and torchvision's of the files, for the same boxes."""
    [domain] = [domain for domain in dataset.domains if len(domain.labels) == len(files)][:1]
    random = np.random.default_rng(0)
    chosen = random.integers(len(files), size=crops)
    parameters = draw_parameters(domain.original_sizes[chosen].numpy(), random)
    views = resized_crop(
        domain.pixels[chosen], domain.stored_sizes[chosen], domain.original_sizes[chosen], parameters, image_size
    )
    errors = []
    for view, box, flip, index in zip(views, parameters.crops.tolist(), parameters.flips, chosen, strict=True):
        with Image.open(files[index]) as image:
            expected = to_tensor(torchvision_crop(image.convert("RGB"), *box, size=[image_size, image_size]))
        errors.append(255 * (view - (expected.flip(2) if flip else expected)))
    return torch.stack(errors)


def test_training_views_of_real_images_are_the_files(pacs_dir: Path, tmp_path: Path) -> None:
    """PACS' 227 x 227 are stored whole: what differs is that torchvision rounds to whole grey levels."""
    root = tmp_path / "some"
    for domain in ("photo", "sketch"):
        for label in ("dog", "house"):
            (root / domain / label).mkdir(parents=True)
            for path in sorted((pacs_dir / domain / label).iterdir())[:10]:
                shutil.copy(path, root / domain / label)
    dataset, _ = opened(root, tmp_path / "stores", store_size=256)
    errors = training_view_errors(dataset, sorted((root / "photo").rglob("*.*")), 96, 40).abs()
    assert errors.mean() < 0.3
    assert errors.max() <= 1.1


def test_training_views_of_large_images_differ_by_little(
    pacs_dir: Path, tmp_path: Path, write_dataset: WriteDataset
) -> None:
    """Images of 600 x 800 are stored at 256 x 256. At 224 px, training views differ by 2 grey levels (of 255) on average."""
    root = write_dataset(tmp_path / "some", domains=("a", "b"), per_class=3, special=False)
    photos = sorted((pacs_dir / "photo/house").iterdir()) + sorted((pacs_dir / "photo/dog").iterdir())
    for number, path in enumerate(sorted(root.rglob("*.png"))):  # four photographs side by side: real detail
        whole = Image.new("RGB", (800, 600))
        for i in range(4):
            with Image.open(photos[4 * number + i]) as photo:
                whole.paste(
                    photo.convert("RGB").resize((400, 300), Image.Resampling.BICUBIC), (400 * (i % 2), 300 * (i // 2))
                )
        whole.save(path)
    dataset, _ = opened(root, tmp_path / "stores", store_size=256)
    assert dataset.domains[0].pixels.shape[1:3] == (256, 256)
    errors = training_view_errors(dataset, sorted((root / "a").rglob("*.png")), 224, 15).abs()
    assert errors.mean() < 2.5
    assert (errors > 16).float().mean() < 0.01
