"""What is evaluated, how it is counted, and which evaluation stands for a run."""

from dataclasses import replace
from fractions import Fraction
from functools import reduce
from operator import add
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import decode_dataset
from torch import nn

from vld.config.settings import BackboneConfig
from vld.data.folder import list_dataset
from vld.data.images import Dataset, DomainImages
from vld.data.split import split_indices
from vld.data.views import CHUNKS_AHEAD, EvaluationViews
from vld.model.classifier import Classifier, seeded_linear
from vld.model.dropout import RepresentationDropout
from vld.training.evaluation import (
    IN,
    OUT,
    Count,
    EvaluationPart,
    EvaluationSet,
    Scores,
    evaluation_images,
    evaluation_set,
    predict,
    score,
    select,
)

SIZES = {"art": 23, "cartoon": 41, "photo": 30, "sketch": 17}
CPU = torch.device("cpu")


def dataset() -> Dataset:
    """Each image is one pixel that tells its domain and index; its label follows from them."""
    domains = []
    for index, (name, n) in enumerate(SIZES.items()):
        view = torch.zeros(n, 1, 1, 3, dtype=torch.uint8)
        view[:, 0, 0, 0], view[:, 0, 0, 1] = index, torch.arange(n)
        sizes = torch.ones(n, 2, dtype=torch.int64)
        domains.append(DomainImages(name, view, sizes, sizes, view, torch.arange(n) * (index + 1) % 3))
    return Dataset("some", ("a", "b", "c"), tuple(domains), "fingerprint")


def evaluation_of(counts: dict[tuple[str, str], int], test_domain: str) -> EvaluationSet:
    parts, start = [], 0
    for (domain, part), n in counts.items():
        parts.append(EvaluationPart(domain, part, start, start + n))
        start += n
    labels = torch.randint(0, 4, (start,), generator=torch.Generator().manual_seed(0))
    return EvaluationSet(test_domain, labels, tuple(parts), views_of(torch.zeros(start, 1, 1, 3, dtype=torch.uint8)))


def views_of(images: torch.Tensor) -> EvaluationViews:
    return EvaluationViews([images], [torch.arange(len(images))], CPU)


def whole(images: EvaluationViews) -> torch.Tensor:
    return torch.cat(list(images.chunks(7)))


@pytest.mark.parametrize("split_seed", [0, 1])
@pytest.mark.parametrize("test_domain", SIZES)
def test_composition(test_domain: str, split_seed: int) -> None:
    """In the domains' order: the whole of the test domain, *in* then *out*; of the others *out* only."""
    evaluation = evaluation_set(dataset(), test_domain, split_seed, CPU)
    assert evaluation.test_domain == test_domain
    expected = []
    for index, (name, n) in enumerate(SIZES.items()):
        in_indices, out_indices = (part.tolist() for part in split_indices(n, index, split_seed))
        chosen = [(IN, in_indices), (OUT, out_indices)] if name == test_domain else [(OUT, out_indices)]
        expected += [(name, part, [(index, i) for i in indices]) for part, indices in chosen]
    stop = 0
    assert len(evaluation.parts) == len(expected) == len(SIZES) + 1
    for part, (name, kind, images) in zip(evaluation.parts, expected, strict=True):
        assert (part.domain, part.part, part.start) == (name, kind, stop)
        stop = part.stop
        held = whole(evaluation.images)[part.start : part.stop, 0, 0, :2].tolist()
        assert [tuple(pixel) for pixel in held] == images
        assert evaluation.labels[part.start : part.stop].tolist() == [i * (d + 1) % 3 for d, i in images]
    assert stop == len(evaluation.images) == len(evaluation.labels)
    left_out = sorted(i for d, i in whole(evaluation.images)[:, 0, 0, :2].tolist() if list(SIZES)[d] == test_domain)
    assert left_out == list(range(SIZES[test_domain]))


def test_composition_of_a_folder(dataset_dir: Path) -> None:
    """The evaluation views, not the stored pixels: 10 images of the test domain and 2 of each other one."""
    decoded = decode_dataset(list_dataset("some", dataset_dir), 16, 256, lambda *_: None)
    evaluation = evaluation_set(decoded, "photo", 0, CPU)
    assert whole(evaluation.images).shape == (14, 16, 16, 3)
    assert [(part.domain, part.part, part.stop - part.start) for part in evaluation.parts] == [
        ("art", OUT, 2),
        ("photo", IN, 8),
        ("photo", OUT, 2),
        ("sketch", OUT, 2),
    ]
    for position, index in enumerate(split_indices(10, 2, 0)[1]):
        assert torch.equal(whole(evaluation.images)[12 + position], decoded.domains[2].evaluation[int(index)])


@pytest.mark.parametrize("test_domain", SIZES)
def test_counts_and_accuracies(test_domain: str) -> None:
    """Against loops over images."""
    evaluation = evaluation_set(dataset(), test_domain, 0, CPU)
    logits = torch.randn(len(evaluation.labels), 3, generator=torch.Generator().manual_seed(1))
    logits[torch.arange(len(logits)), evaluation.labels] += 0.7
    scores = score(logits, evaluation)

    correct: dict[tuple[str, str], list[bool]] = {}
    for part in evaluation.parts:
        for i in range(part.start, part.stop):
            row = logits[i].tolist()
            hit = row.index(max(row)) == int(evaluation.labels[i])
            correct.setdefault((part.domain, part.part), []).append(hit)
    assert scores.counts == {key: Count(sum(hits), len(hits)) for key, hits in correct.items()}
    assert 0 < sum(sum(hits) for hits in correct.values()) < len(logits)

    def mean(hits: list[bool]) -> float:
        return sum(hits) / len(hits)

    whole = correct[test_domain, IN] + correct[test_domain, OUT]
    training = [mean(hits) for (domain, _), hits in correct.items() if domain != test_domain]
    assert len(training) == 3
    assert scores.ood_acc == pytest.approx(mean(whole), abs=1e-12)
    assert scores.ood_in_acc == pytest.approx(mean(correct[test_domain, IN]), abs=1e-12)
    assert scores.ood_out_acc == pytest.approx(mean(correct[test_domain, OUT]), abs=1e-12)
    assert scores.iid_acc == pytest.approx(sum(training) / 3, abs=1e-12)
    for domain in SIZES:
        table = scores.domain_acc[domain]
        assert table[OUT] == pytest.approx(mean(correct[domain, OUT]), abs=1e-12)
        if domain == test_domain:
            assert table[IN] == pytest.approx(mean(correct[domain, IN]), abs=1e-12)
        else:
            assert table[IN] is None


def test_iid_is_the_unweighted_mean() -> None:
    """A training domain of 1,000 images counts as much as one of 10, and the test domain not at all."""
    scores = Scores(
        "b", {("a", OUT): Count(1000, 1000), ("b", IN): Count(3, 4), ("b", OUT): Count(0, 2), ("c", OUT): Count(0, 10)}
    )
    assert scores.iid == Fraction(1, 2)
    assert scores.ood_acc == 0.5
    assert (scores.ood_in_acc, scores.ood_out_acc) == (0.75, 0.0)


def test_perfect_and_hopeless() -> None:
    evaluation = evaluation_of({("a", OUT): 7, ("b", IN): 13, ("b", OUT): 3}, "b")
    right = nn.functional.one_hot(evaluation.labels, 4).float()
    assert (score(right, evaluation).iid_acc, score(right, evaluation).ood_acc) == (1.0, 1.0)
    assert (score(-right, evaluation).iid_acc, score(-right, evaluation).ood_acc) == (0.0, 0.0)


# Selection


def scored(
    iid: tuple[int, int] | tuple[tuple[int, int], ...], ood_out: int = 0, ood_in: int = 0, out_images: int = 50
) -> Scores:
    """(correct, images) of each training domain, and what is right of the test domain."""
    domains = iid if isinstance(iid[0], tuple) else (iid,)
    counts = {(f"d{i}", OUT): Count(*pair) for i, pair in enumerate(domains)}
    return Scores("t", {**counts, ("t", IN): Count(ood_in, 200), ("t", OUT): Count(ood_out, out_images)})


def test_selections() -> None:
    run = [
        (0, scored((10, 100), 1, 150)),
        (300, scored((80, 100), 30, 10)),
        (600, scored((90, 100), 20, 199)),
        (900, scored((85, 100), 31, 5)),
        (1000, scored((70, 100), 2, 3)),
    ]
    assert select(run, "iid") == 600
    assert select(run, "oracle_step") == 900
    assert select(run, "last") == 1000


def test_the_earliest_of_equal_steps() -> None:
    run = [(0, scored((1, 100), 1)), (7, scored((9, 100), 5)), (14, scored((9, 100), 5)), (21, scored((9, 100), 5))]
    assert select(run, "iid") == 7
    assert select(run, "oracle_step") == 7
    assert select(run, "last") == 21


def test_oracle_looks_at_the_out_part_only() -> None:
    run = [(0, scored((99, 100), 10, 200)), (5, scored((1, 100), 11, 0))]
    assert select(run, "oracle_step") == 5


def test_ties_that_floats_would_break() -> None:
    """1/10 + 2/10 + 3/10 in another order of domains is the same accuracy, though floats differ in the last bit."""
    later, earlier = ((1, 10), (2, 10), (3, 10)), ((3, 10), (2, 10), (1, 10))
    first, second = scored(earlier), scored(later)
    # Not `sum`, which compensates since Python 3.12.
    floats = [reduce(add, (c / n for c, n in domains)) / 3 for domains in (earlier, later)]
    assert floats[1] > floats[0]
    assert first.iid == second.iid == Fraction(1, 5)
    assert select([(0, first), (300, second)], "iid") == 0


def test_differences_that_floats_would_hide() -> None:
    n = 10**17
    first, second = scored((n - 2, n)), scored((n - 1, n))
    assert first.iid_acc == second.iid_acc
    assert select([(0, first), (300, second)], "iid") == 300


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 7), min_size=3, max_size=3), st.integers(0, 5)), min_size=1, max_size=12)
)
def test_selection_against_a_plain_loop(run: list[tuple[list[int], int]]) -> None:
    """Domains of 7, 11 and 13 images; integers over their common denominator."""
    sizes = (7, 11, 13)
    scores = [
        (100 * i, scored(tuple(zip(correct, sizes, strict=True)), ood, out_images=5))
        for i, (correct, ood) in enumerate(run)
    ]
    best_iid = best_ood = -1
    iid_step = oracle_step = -1
    for i, (correct, ood) in enumerate(run):
        iid = correct[0] * 11 * 13 + correct[1] * 7 * 13 + correct[2] * 7 * 11
        if iid > best_iid:
            best_iid, iid_step = iid, 100 * i
        if ood > best_ood:
            best_ood, oracle_step = ood, 100 * i
    assert select(scores, "iid") == iid_step
    assert select(scores, "oracle_step") == oracle_step
    assert select(scores, "last") == 100 * (len(run) - 1)


# Prediction


def classifier() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    settings = BackboneConfig(mean=[0.5] * 3, std=[0.2] * 3, feature_scale=0.5)
    return Classifier(backbone, seeded_linear(6, 4, 0), RepresentationDropout(0.9), settings, pretrained=False)


def images_to_predict(n: int = 150) -> EvaluationSet:
    evaluation = evaluation_of({("a", OUT): 50, ("b", IN): n - 60, ("b", OUT): 10}, "b")
    images = torch.randint(0, 256, (n, 7, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return replace(evaluation, images=views_of(images))


def test_predicts_every_image_in_order() -> None:
    """More than go through at once; without dropout, by the running statistics."""
    model, evaluation = classifier(), images_to_predict()
    model.train()
    prediction = predict([model], evaluation)[0]
    assert prediction.logits.shape == (150, 4)
    assert prediction.logits.dtype == torch.float32
    model.eval()
    with torch.no_grad():
        for i in (0, 63, 64, 127, 128, 149):
            image = whole(evaluation.images)[i].permute(2, 0, 1)[None].float() / 255
            features = 0.5 * model.backbone((image - 0.5) / 0.2)
            torch.testing.assert_close(prediction.logits[i : i + 1], model.head(features), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(prediction.squared_norms[i], features.square().sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("resident", "ahead"), [(False, 0), (True, 0), (False, 2)])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_chunks_are_the_chosen_rows_in_order(
    size: int, resident: bool, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the memory map or on the device, as needed or ahead; also from domains of which no row is chosen."""
    views = [torch.randint(0, 256, (n, 2, 2, 3), dtype=torch.uint8) for n in (9, 4, 7)]
    rows = [torch.tensor([8, 0, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([2, 2, 6, 1])]
    monkeypatch.setitem(CHUNKS_AHEAD, "cpu", ahead)
    images = EvaluationViews(views, rows, CPU, resident=resident)
    chunks = list(images.chunks(size))
    assert torch.equal(torch.cat(chunks), torch.cat([views[0][rows[0]], views[2][rows[2]]]))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert len(images) == 7


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_limit_takes_the_first_of_each_part(limit: int) -> None:
    """The split has shuffled them. Of a domain that is left out, its parts keep their proportion."""
    full, part = evaluation_set(dataset(), "photo", 0, CPU), evaluation_set(dataset(), "photo", 0, CPU, limit=limit)
    assert len(part.images) == evaluation_images(dataset().sizes, "photo", limit) == len(part.labels)
    for one, other in zip(full.parts, part.parts, strict=True):
        n = min(one.stop - one.start, limit if one.part == OUT else 4 * limit)
        assert (other.domain, other.part, other.stop - other.start) == (one.domain, one.part, n)
        for tensor in (lambda e: e.labels, lambda e: whole(e.images)):
            assert torch.equal(tensor(part)[other.start : other.stop], tensor(full)[one.start : one.start + n])
    assert evaluation_images(dataset().sizes, "photo") == len(full.labels)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_changes_nothing(training: bool) -> None:
    model = classifier().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = predict([model], images_to_predict())[0]
    assert all(module.training == training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(predict([model], images_to_predict())[0].logits, first.logits)
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


def test_predicting_keeps_frozen_statistics_frozen() -> None:
    model = classifier()
    model.pretrained = True
    predict([model.train()], images_to_predict())
    assert model.training
    assert not any(module.training for module in model.batch_norms())


def test_several_models_in_one_pass() -> None:
    """Each as if alone, and each left in its own mode."""
    models = [classifier().train(), classifier().eval(), classifier().train()]
    with torch.no_grad():
        models[1].head.weight.mul_(-3)
        models[2].backbone[0].weight.add_(0.1)
    alone = [predict([model], images_to_predict())[0] for model in models]
    together = predict(models, images_to_predict())
    assert [model.training for model in models] == [True, False, True]
    assert len(together) == 3
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.squared_norms, other.squared_norms)
    assert len({float(one.logits.sum()) for one in together}) == 3
