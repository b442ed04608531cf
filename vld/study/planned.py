"""The runs of a study, known by their settings, and the domains that they leave out."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from vld.config.errors import UserError
from vld.config.names import COMBINATIONS
from vld.config.settings import Config
from vld.data.domains import joined, known_domains, resolve_test_domains
from vld.data.folder import list_csv, subfolders
from vld.runs.identity import runs_folder, settings_key
from vld.runs.results import read
from vld.study.jobs import Job, jobs_of, study_axes
from vld.study.member_axes import member_configs


@dataclass(frozen=True)
class PlannedRun:
    """A run that a study needs, identified by its settings alone: this machine may lack its data and weights."""

    config: Config
    test_domain: str
    overrides: tuple[str, ...]
    """Of the job that trains it."""

    @property
    def folder(self) -> Path:
        return runs_folder(self.config, self.test_domain)

    @cached_property
    def key(self) -> str:
        return settings_key(self.config, self.test_domain)


def planned_runs(jobs: Iterable[Job]) -> list[PlannedRun]:
    """The runs of these jobs, each once. Raises `UserError` if the domains that `test_domain` stands for are unknown."""
    runs: dict[str, PlannedRun] = {}
    for job in jobs:
        combined = job.config.method.name in COMBINATIONS
        for config in [member for _, member in member_configs(job.config)] if combined else [job.config]:
            for test_domain in left_out_domains(config):
                run = PlannedRun(config, test_domain, job.overrides)
                weights = (config.backbone.weights, config.backbone.last_layer)
                runs.setdefault(repr((run.key, run.folder, config.precision, weights)), run)
    return list(runs.values())


def shared_runs(jobs: Sequence[Job], words: Iterable[str]) -> dict[str, list[PlannedRun]]:
    """The runs of other studies on the same datasets that a study's figure also shows, narrowed by the same words."""
    problems: dict[str, None] = {}
    words = {word.split("=")[0]: word for word in words if not word.startswith("study=")}
    narrowed = words.pop("test_domain", None)  # written in whatever way: what it stands for counts
    alike = {(job.config.dataset.name, domain) for job in jobs for domain in left_out_domains(job.config)}
    datasets = {dataset for dataset, _ in alike}

    def wanted(run: PlannedRun) -> bool:
        dataset = run.config.dataset.name
        return (dataset, run.test_domain) in alike if narrowed else dataset in datasets

    shared = {
        study: [run for run in planned_runs(jobs_of(axes, problems)) if wanted(run)]
        for study in jobs[0].config.study.shares
        if (axes := study_axes(study, [*words.values()])) is not None
    }
    if problems:
        raise UserError("\n".join(problems))
    return shared


def left_out_domains(config: Config) -> tuple[str, ...]:
    """What `test_domain` stands for. Raises `UserError` if that is unknown."""
    try:
        names = domain_names(config)
    except UserError:
        wanted = config.test_domain if isinstance(config.test_domain, list) else [config.test_domain]
        parts = [part for entry in wanted for part in f"{entry}".split("+")]
        if any(part in ("all", "pairs") or part.isdigit() for part in parts):
            raise
        return tuple(dict.fromkeys(joined(entry.split("+")) for entry in wanted))
    return resolve_test_domains(config.test_domain, names)


def domain_names(config: Config) -> tuple[str, ...]:
    """Those of the dataset's folder or CSV file; if this machine lacks it, of a known dataset or of a finished run."""
    dataset, data_dir = config.dataset, Path(config.data_dir)
    if dataset.csv is None and (data_dir / dataset.folder).is_dir():
        return tuple(subfolders(data_dir / dataset.folder))
    if dataset.csv is not None and (data_dir / dataset.csv).is_file():
        return _csv_domains(dataset.name, data_dir / dataset.csv)
    if known := _known(config):
        return known
    for path in sorted((Path(config.output_dir) / "runs" / dataset.name).glob("*/*/result.json")):
        with suppress(UserError):  # a damaged one is skipped
            if domains := read(path.parent).domains:
                return tuple(sorted(domains))
    raise UserError(
        f"test_domain={config.test_domain}: the domains of {dataset.name} are not known here; list their names in test_domain"
    )


def data_to_come(configs: Iterable[Config]) -> list[str]:
    """A line for each dataset that this machine does not have yet, with the command that fetches it."""
    lines = []
    for config in configs:
        dataset, data_dir = config.dataset, Path(config.data_dir)
        place = data_dir / (dataset.csv or dataset.folder)
        if place.exists():
            continue
        line = f"dataset={dataset.name}: {place} is not there yet"
        if dataset.csv is None and dataset.name == "glyphs":
            line = f"{line}; it is drawn before the first run"
        elif _known(config):
            line = f"{line}; python scripts/prepare.py dataset={dataset.name} data_dir={data_dir} fetches it"
        lines.append(line)
    return list(dict.fromkeys(lines))


@cache
def _csv_domains(name: str, path: Path) -> tuple[str, ...]:
    """Read once for all jobs of a study."""
    return list_csv(name, path).domain_names


def _known(config: Config) -> tuple[str, ...] | None:
    return known_domains(config.dataset.name) if config.dataset.csv is None else None
