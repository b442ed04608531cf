"""Training batches are a pure function of seed and step, and hold nothing but *in* images of training domains."""

import queue
import threading
import weakref
from dataclasses import replace
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch import Tensor

from vld.data.batches import STEPS_AHEAD, STEPS_BEFORE_GROWTH, TrainingBatches
from vld.data.images import DomainImages
from vld.data.prefetch import Prefetcher
from vld.machine.device import MemoryBudget

# Grey levels that brightness 0.7 to 1.3 cannot confuse. Contrast, saturation and hue leave an even grey as it is.
LEVELS = (10, 25, 55, 120, 255)
IN_INDICES = (np.array([0, 3, 4, 8]), np.array([2, 5, 6, 7, 9, 11]), np.array([1]))


def domain(index: int, n: int = 12) -> DomainImages:
    """Even grey images of different sizes. Label 100 · domain + i tells which image it is, and so does its level."""
    sizes = torch.tensor([[8 + i % 3, 9 + i % 4] for i in range(n)])
    pixels = torch.zeros(n, 12, 13, 3, dtype=torch.uint8)
    for i, (height, width) in enumerate(sizes.tolist()):
        pixels[i, :height, :width] = LEVELS[(i + index) % len(LEVELS)]
    return DomainImages(
        name=f"domain{index}",
        pixels=pixels,
        stored_sizes=sizes,
        original_sizes=sizes,
        evaluation=torch.zeros(n, 4, 4, 3, dtype=torch.uint8),
        labels=100 * index + torch.arange(n),
    )


def noise_domain(n: int = 6, side: int = 20) -> DomainImages:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8))
    sizes = torch.full((n, 2), side)
    return DomainImages("noise", pixels, sizes, sizes, pixels, torch.arange(n))


def batches(seed: int = 0, images_per_domain: int = 5, image_size: int = 6, ahead: int = 0) -> TrainingBatches:
    domains = tuple(domain(i) for i in range(3))
    with patch.dict(STEPS_AHEAD, {"cpu": ahead}):
        return TrainingBatches(domains, IN_INDICES, images_per_domain, image_size, torch.device("cpu"), seed)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_shape_and_range() -> None:
    drawn = batches()
    images, labels = drawn.batch(0)
    assert drawn.images_per_step == 15
    assert images.shape == (15, 3, 6, 6)
    assert images.dtype == torch.float32
    assert labels.shape == (15,)
    assert labels.dtype == torch.int64
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_pure_function_of_seed_and_step() -> None:
    """In any order, from any object, whatever else draws random numbers."""
    forward = {step: batches(3).batch(step) for step in (0, 1, 2, 700)}
    drawn = batches(3)
    for step in (700, 1, 0, 2):
        torch.rand(3)
        np.random.random(3)
        assert same(drawn.batch(step), forward[step])
    labels = [tuple(batches(seed).batch(step)[1].tolist()) for seed in range(6) for step in range(6)]
    assert len(set(labels)) == 36


def test_leaves_global_generators_alone() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state(legacy=False)
    batches().batch(5)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    after = np.random.get_state(legacy=False)
    assert after["state"]["pos"] == numpy_state["state"]["pos"]
    np.testing.assert_array_equal(after["state"]["key"], numpy_state["state"]["key"])


@pytest.mark.parametrize("images_per_domain", [1, 5])
def test_images_of_each_domain_and_of_its_in_part_only(images_per_domain: int) -> None:
    drawn = batches(images_per_domain=images_per_domain)
    seen: list[set[int]] = [set(), set(), set()]
    for step in range(100):
        _, labels = drawn.batch(step)
        for index, part in enumerate(labels.view(3, images_per_domain)):
            assert torch.equal(part // 100, torch.full_like(part, index))
            seen[index].update((part % 100).tolist())
    assert seen == [set(indices.tolist()) for indices in IN_INDICES]


def test_with_replacement_and_uniformly() -> None:
    """More images than there are; and over many steps, each equally often."""
    drawn = batches(images_per_domain=50)
    repeated = batches(images_per_domain=4)
    assert any(len(set(repeated.batch(step)[1][:4].tolist())) < 4 for step in range(20))
    counts = np.zeros(12)
    for step in range(60):
        counts += np.bincount(drawn.batch(step)[1][50:100].numpy() - 100, minlength=12)
    counts = counts[IN_INDICES[1]]
    assert counts.sum() == 3000
    expected = 3000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 26  # 5 degrees of freedom: exceeded once in 10,000 times


def test_images_belong_to_their_labels() -> None:
    """The level of each image, up to brightness, is that of the image that its label names."""
    drawn = batches()
    levels = torch.tensor(LEVELS) / 255
    seen = set()
    for step in range(20):
        images, labels = drawn.batch(step)
        assert float((images - images.mean((1, 2, 3), keepdim=True)).abs().max()) < 1e-3  # even: nothing bleeds in
        level = levels[(labels % 100 + labels // 100) % len(LEVELS)]
        ratio = images.mean((1, 2, 3)) / level
        assert float(ratio.min()) > 0.69
        assert float(ratio.max()) < 1.31
        seen.update(level.tolist())
    assert len(seen) == len(LEVELS)


def test_image_size_does_not_change_which_images() -> None:
    drawn, larger = batches(7), batches(7, image_size=9)
    assert torch.equal(drawn.batch(4)[1], larger.batch(4)[1])
    assert larger.batch(4)[0].shape[2:] == (9, 9)


def test_both_ways_to_a_batch_give_the_same() -> None:
    """Drawn ahead by a thread or when needed; also after a jump, as in a run that goes on. (Gathering is a GPU's.)"""
    plain, other = batches(5), batches(5, ahead=3)
    for step in (0, 1, 2, 3, 40, 41, 2, 3):
        assert same(other.batch(step), plain.batch(step))


def gpu_memory(free: int, monkeypatch: pytest.MonkeyPatch, again: int = 0) -> tuple[MemoryBudget, list[str]]:
    """As of a GPU with so much free memory, and what is said of it. again: what torch has given back of the most it had."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, 10 * free))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 500)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda _: 500 + again)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda _: None)
    said: list[str] = []
    return MemoryBudget(torch.device("cuda"), said.append), said


@pytest.mark.parametrize(("leaves", "again", "held"), [(6500, 0, True), (3000, 0, False), (9500, 6500, False)])
def test_images_are_held_once_steps_have_shown_that_they_fit(
    leaves: int, again: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is drawn: 11 images of 12 x 13 pixels, 5,148 bytes. The batches stay the same."""
    memory, said = gpu_memory(7000, monkeypatch, again)
    plain, drawn = batches(3), batches(3, ahead=2)
    drawn.hold_if_it_fits(memory)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (leaves, 70000))
    for step in range(STEPS_BEFORE_GROWTH - 1):
        assert same(drawn.batch(step), plain.batch(step))
    assert [len(pixels) for pixels in drawn._pixels] == [12, 12, 12]
    for step in (19, 20, 40, 21):
        assert same(drawn.batch(step), plain.batch(step))
    assert [len(pixels) for pixels in drawn._pixels] == ([4, 6, 1] if held else [12, 12, 12])
    first = "read as they are needed (until a few steps have shown how much GPU memory they leave)"
    then = "read as they are needed (GPU memory has 0.0 GB left for them; with dataset.store_size=8 they would fit)"
    assert said == [f"0.0 GB of training images: {line}" for line in (first, "in GPU memory" if held else then)]


def test_images_are_read_where_another_process_takes_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, said = gpu_memory(100_000, monkeypatch)
    monkeypatch.setattr("vld.data.batches.copied", Mock(side_effect=torch.OutOfMemoryError))
    drawn = batches(3)
    drawn.hold_if_it_fits(memory)
    assert "another process took the GPU memory" in said[-1]
    assert same(drawn.batch(0), batches(3).batch(0))


@pytest.mark.parametrize("image_size", [48, 61])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_batch_is_the_same_by_one_thread_and_by_three(image_size: int, reduced: bool) -> None:
    """To the bit: threads share the groups of small images, and leave the number of the caller's threads as it is."""
    images = noise_domain(20, side=120)
    images = replace(images, original_sizes=images.original_sizes * (2 if reduced else 1))
    alone, together = (
        TrainingBatches((images,), (np.arange(20),), 40, image_size, torch.device("cpu"), 0) for _ in range(2)
    )
    threads = torch.get_num_threads()
    try:
        for step in range(2):
            torch.set_num_threads(1)
            expected = alone.batch(step)
            torch.set_num_threads(3)
            assert same(together.batch(step), expected)
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
        together.close()


def test_a_batch_that_cannot_be_drawn_says_so_when_it_is_asked_for() -> None:
    broken = batches(ahead=2)
    broken.in_indices = (np.array([99]), *broken.in_indices[1:])
    with pytest.raises(IndexError, match="out of"):
        for step in range(9):
            broken.batch(step)


def test_closed_batches_let_go_of_images_and_thread() -> None:
    """Of a run that has ended, without waiting for the garbage collector."""
    before = set(threading.enumerate())  # those of other tests may end at any moment
    drawn = batches(ahead=2)
    drawn.hold()
    drawn.batch(0)
    pixels = weakref.ref(drawn._pixels[0])
    assert (its := set(threading.enumerate()) - before)
    drawn.domains = ()
    drawn.close()
    assert pixels() is None
    assert not its & set(threading.enumerate())


def test_steps_are_drawn_before_they_are_asked_for() -> None:
    drawn: queue.Queue[int] = queue.Queue()

    def make(step: int) -> int:
        drawn.put(step)
        return 10 * step

    prefetcher = Prefetcher(make, 3)
    assert prefetcher(5) == 50
    assert [drawn.get() for _ in range(4)] == [5, 6, 7, 8]
    assert prefetcher(6) == 60
    assert drawn.get() == 9  # and nothing twice
    assert drawn.empty()
