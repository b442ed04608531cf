"""GPU-hours and disk of the paper's experiments, from what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from vld.data.catalog import CONTENTS
from vld.training.evaluation import evaluation_images

SMALL = ("vlcs", "pacs", "office_home", "terra_incognita")


@dataclass(frozen=True)
class Experiment:
    """The runs that a figure of the paper adds to those before it (protocol, section 4)."""

    name: str
    datasets: tuple[str, ...]
    runs: int
    """Of each dataset."""
    steps: int = 10_000
    eval_every: int = 300
    curve_images: int | None = None

    @property
    def evaluations(self) -> int:
        """Of a run: at step 0, every `eval_every` steps, and at the last."""
        return -(-self.steps // self.eval_every) + 1


EXPERIMENTS = (
    Experiment("figure2", SMALL, 144),
    Experiment("figure3", SMALL, 144),
    Experiment("figure4", ("domain_net",), 432, 30_000, 1_000, 1_000),
    Experiment("figure5", ("vlcs",), 288),
    Experiment("figure6", SMALL, 144),
    Experiment("figure8", SMALL, 144),
    Experiment("figure9", ("vlcs",), 192),
)


@dataclass(frozen=True)
class Forecast:
    name: str
    runs: int
    hours: float
    gigabytes: float


def forecast(
    train_images_per_second: float, evaluation_images_per_second: float, bytes_kept: Callable[[int, int], int]
) -> list[Forecast]:
    """Each experiment at these speeds. bytes_kept(evaluation images, classes): of one run."""
    forecasts = []
    for experiment in EXPERIMENTS:
        seconds, size = 0.0, 0
        for dataset in experiment.datasets:
            content = CONTENTS[dataset]
            evaluated, whole = evaluation_sizes(list(content.domains.values()), experiment.curve_images)
            # A GPU's speed is one of images, however many of them make a step.
            trained = experiment.steps * 32 * (len(content.domains) - 1)
            forwarded = experiment.evaluations * 2 * evaluated
            if experiment.curve_images is not None:
                forwarded += 6 * whole  # the selected steps and the last of both networks
            seconds += experiment.runs * (trained / train_images_per_second + forwarded / evaluation_images_per_second)
            size += experiment.runs * bytes_kept(round(whole), content.classes)
        runs = experiment.runs * len(experiment.datasets)
        forecasts.append(Forecast(experiment.name, runs, seconds / 3600, size / 1e9))
    return forecasts


def evaluation_sizes(domains: list[int], limit: int | None) -> tuple[float, float]:
    """Images in an evaluation of a run and in one in full, averaged over which of these domains is left out."""
    sizes = {f"{number}": n for number, n in enumerate(domains)}
    part, whole = (fmean(evaluation_images(sizes, domain, at_most) for domain in sizes) for at_most in (limit, None))
    return part, whole
