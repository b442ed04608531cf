"""Accuracies in and out of distribution, and the choice of the evaluation step that stands for a run."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vld.config.names import SELECTIONS
from vld.data.domains import left_out
from vld.data.images import Dataset
from vld.data.split import HOLDOUT, held_out_count, split_indices
from vld.data.views import EvaluationViews
from vld.machine.device import MemoryBudget
from vld.model.classifier import Classifier

IN, OUT = "in", "out"

# More images at once do not make evaluation faster on either device, and take memory.
IMAGES_AT_ONCE = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class EvaluationPart:
    """A contiguous range of the evaluation images: one part (IN or OUT) of one domain."""

    domain: str
    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class EvaluationLabels:
    """The classes of all images of the domains left out and the held-out part of the training domains, in a fixed order.

    labels: int64 [n]; parts cover them in order. With holdout=0 those of the training domains are empty.
    """

    test_domain: str
    labels: Tensor
    parts: tuple[EvaluationPart, ...]

    @property
    def held_out(self) -> list[slice]:
        """Where the images of the training domains are."""
        outside = left_out(self.test_domain, {part.domain for part in self.parts})
        return [slice(part.start, part.stop) for part in self.parts if part.domain not in outside]


@dataclass(frozen=True)
class EvaluationSet(EvaluationLabels):
    """The same with the images."""

    images: EvaluationViews


def evaluation_set(
    dataset: Dataset,
    test_domain: str,
    split_seed: int,
    device: torch.device,
    *,
    holdout: float = HOLDOUT,
    limit: int | None = None,
    memory: MemoryBudget | None = None,
) -> EvaluationSet:
    """The images on which a run that leaves `test_domain` out is evaluated, on `device`.

    holdout: of the training domains; those left out have both parts always. limit: at most so many of each *out* part, and four
    times as many of the *in* part, which keeps a whole domain's proportions: a fixed random choice, since the split has shuffled
    them. memory: holds the images on the device if they fit.
    """
    views, rows, labels, parts = [], [], [], []
    outside = left_out(test_domain, [domain.name for domain in dataset.domains])
    start = 0
    for index, domain in enumerate(dataset.domains):
        share = HOLDOUT if domain.name in outside else holdout
        in_indices, out_indices = split_indices(len(domain.labels), index, split_seed, share)
        wanted = [(IN, in_indices), (OUT, out_indices)] if domain.name in outside else [(OUT, out_indices)]
        for part, indices in wanted:
            chosen = torch.from_numpy(indices[: _limited(len(indices), part, limit)])
            views.append(domain.evaluation)
            rows.append(chosen)
            labels.append(domain.labels[chosen])
            parts.append(EvaluationPart(domain.name, part, start, start + len(chosen)))
            start += len(chosen)
    size = start * views[0][0].numel()
    resident = memory is not None and memory.on_device("evaluation images", size)
    images = EvaluationViews(views, rows, device, resident=resident)
    return EvaluationSet(test_domain, torch.cat(labels).to(device), tuple(parts), images)


def evaluation_images(
    sizes: Mapping[str, int], test_domain: str, limit: int | None = None, holdout: float = HOLDOUT
) -> int:
    """How many images `evaluation_set` has, of a dataset with so many in each domain."""
    images, outside = 0, left_out(test_domain, sizes)
    for domain, n in sizes.items():
        held_out = held_out_count(n, HOLDOUT if domain in outside else holdout)
        images += _limited(held_out, OUT, limit)
        if domain in outside:
            images += _limited(n - held_out, IN, limit)
    return images


def _limited(images: int, part: str, limit: int | None) -> int:
    return images if limit is None else min(images, limit if part == OUT else 4 * limit)


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of n images: logits float32 [n, classes]; squared_norms float32 [n], of the representation."""

    logits: Tensor
    squared_norms: Tensor


@torch.no_grad()
def predict(
    models: Sequence[Classifier],
    evaluation: EvaluationSet,
    check: Callable[[], None] = lambda: None,
    at_most: int | None = None,
) -> list[Prediction]:
    """What each model says of every evaluation image, in one pass over them; the arguments are those of `representations`."""
    logits: list[list[Tensor]] = [[] for _ in models]
    squared_norms: list[list[Tensor]] = [[] for _ in models]
    for chunk in representations(models, evaluation.images, check, at_most):
        for i, features in enumerate(chunk):
            logits[i].append(models[i].head(features))
            squared_norms[i].append(features.square().sum(1))
    return [Prediction(torch.cat(its), torch.cat(norms)) for its, norms in zip(logits, squared_norms, strict=True)]


@torch.no_grad()  # inference tensors beside others would be another program each, where networks are compiled
def representations(
    models: Sequence[Classifier],
    images: EvaluationViews,
    check: Callable[[], None] = lambda: None,
    at_most: int | None = None,
) -> Iterator[list[Tensor]]:
    """Each model's representation, float32 [n, d], of one chunk of images after another (of the first `at_most` chunks only).

    Whatever is evaluated is computed here. Draws no random numbers and leaves the models' modes as they were. check() may stop
    it by raising, every few images.
    """
    modes = [model.training for model in models]
    at_once = IMAGES_AT_ONCE[models[0].head.weight.device.type]
    try:
        for model in models:
            model.eval()
        for chunk in itertools.islice(images.chunks(at_once), at_most):
            check()
            n = len(chunk)
            if n < at_once and any(model.compiled for model in models):  # for them another size is another program
                chunk = torch.cat([chunk, chunk.new_zeros(at_once - n, *chunk.shape[1:])])
            # Cloned, since a CUDA graph writes the next over it.
            yield [model.representation(chunk)[:n].clone() for model in models]
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


@dataclass(frozen=True)
class Count:
    """Correct images among so many."""

    correct: int
    images: int

    def __add__(self, other: "Count") -> "Count":
        return Count(self.correct + other.correct, self.images + other.images)

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


@dataclass(frozen=True)
class Scores:
    """Correct images per domain and part, and the accuracies that the study derives from them.

    Of several domains left out at once, each o.o.d. accuracy is the unweighted mean of theirs.
    """

    test_domain: str
    counts: dict[tuple[str, str], Count]

    @property
    def left_out(self) -> tuple[str, ...]:
        return left_out(self.test_domain, {domain for domain, _ in self.counts})

    @property
    def held_out(self) -> list[Count]:
        """Of the *out* part of each training domain."""
        outside = self.left_out
        return [count for (domain, _), count in self.counts.items() if domain not in outside]

    @property
    def selections(self) -> tuple[str, ...]:
        """Those that there are: without held-out images (holdout=0), the last step alone."""
        return SELECTIONS if any(count.images for count in self.held_out) else ("last",)

    @property
    def iid(self) -> Fraction:
        """Unweighted mean, over the training domains, of the accuracy on their *out* part: exact, so that ties are ties. Not
        defined without held-out images."""
        return mean_accuracy(self.held_out)

    @property
    def pooled(self) -> Fraction:
        """Accuracy on all *out* images of the training domains together, exact. Not defined without held-out images."""
        return mean_accuracy([sum(self.held_out, Count(0, 0))])

    @property
    def iid_acc(self) -> float | None:
        return float(self.iid) if "iid" in self.selections else None

    @property
    def ood_acc(self) -> float:
        """Accuracy on the whole of the left-out domain, the headline."""
        return fmean(self.ood_by_domain.values())

    @property
    def ood_by_domain(self) -> dict[str, float]:
        return {domain: (self.counts[domain, IN] + self.counts[domain, OUT]).accuracy for domain in self.left_out}

    @property
    def ood_in_acc(self) -> float:
        return fmean(self.counts[domain, IN].accuracy for domain in self.left_out)

    @property
    def ood_out_acc(self) -> float:
        return fmean(self.counts[domain, OUT].accuracy for domain in self.left_out)

    @property
    def domain_acc(self) -> dict[str, dict[str, float | None]]:
        """Per domain: its *in* and *out* accuracy; None where it is not evaluated, as *in* of a training domain."""
        table: dict[str, dict[str, float | None]] = {}
        for (domain, part), count in self.counts.items():
            table.setdefault(domain, {IN: None, OUT: None})[part] = count.accuracy if count.images else None
        return table


def mean_accuracy(counts: Iterable[Count]) -> Fraction:
    """Their unweighted mean accuracy, exact."""
    accuracies = [Fraction(count.correct, count.images) for count in counts]
    return sum(accuracies, Fraction()) / len(accuracies)


def score(logits: Tensor, evaluation: EvaluationLabels) -> Scores:
    """Count the correct images of each domain and part; one transfer from the device."""
    correct = (logits.argmax(1) == evaluation.labels).long()
    counts = torch.stack([correct[part.start : part.stop].sum() for part in evaluation.parts]).tolist()
    return Scores(
        evaluation.test_domain,
        {
            (part.domain, part.part): Count(hits, part.stop - part.start)
            for part, hits in zip(evaluation.parts, counts, strict=True)
        },
    )


def validation_loss(logits: Tensor, evaluation: EvaluationLabels) -> Tensor:
    """Mean cross entropy on the *out* parts of the training domains, pooled; float32, on the device; NaN without such images."""
    parts = evaluation.held_out
    return cross_entropy(
        torch.cat([logits[part] for part in parts]), torch.cat([evaluation.labels[part] for part in parts])
    )


def select(scores: Sequence[tuple[int, Scores]], selection: str) -> int:
    """The evaluation step that stands for a run, of its (step, scores) in order. Of equal steps, the earliest.

    iid: best i.i.d. accuracy (the headline); last: the final step; oracle_step: best accuracy on the *out* part of the
    left-out domain (its honest number is `ood_in_acc`).
    """
    if selection == "last":
        return scores[-1][0]
    keys: dict[str, Callable[[Scores], Fraction]] = {
        "iid": lambda s: s.iid,
        "oracle_step": lambda s: mean_accuracy(s.counts[domain, OUT] for domain in s.left_out),
    }
    best = keys[selection]
    return max(scores, key=lambda entry: (best(entry[1]), -entry[0]))[0]
