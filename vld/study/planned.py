"""The runs of a study, known by their settings, and the domains that they leave out."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vld.config.errors import UserError
from vld.config.settings import COMBINATIONS, Config
from vld.data import glyphs
from vld.data.catalog import CONTENTS
from vld.data.folder import list_csv, subfolders
from vld.runs.identity import settings_key
from vld.runs.inputs import resolve_test_domains
from vld.runs.results import read
from vld.study.jobs import Job
from vld.study.members import member_configs


@dataclass(frozen=True)
class Wanted:
    """One run that a study needs, known by its settings: what its data and weights hold may be another machine's to know."""

    config: Config
    test_domain: str
    overrides: tuple[str, ...]
    """Of the job that trains it."""

    @property
    def key(self) -> str:
        return settings_key(self.config, self.test_domain)


def wanted_runs(jobs: Iterable[Job]) -> list[Wanted]:
    """The runs of these jobs, each once. Raises `UserError` where it is not known which domains `test_domain` stands for."""
    runs: dict[str, Wanted] = {}
    for job in jobs:
        combined = job.config.method.name in COMBINATIONS
        for config in [member for _, member in member_configs(job.config)] if combined else [job.config]:
            for test_domain in left_out_domains(config):
                wanted = Wanted(config, test_domain, job.overrides)
                another = (wanted.key, config.backbone.weights, config.precision, config.output_dir)
                runs.setdefault(repr(another), wanted)
    return list(runs.values())


def left_out_domains(config: Config) -> tuple[str, ...]:
    """What `test_domain` stands for. Raises `UserError` where that is not known."""
    wanted = config.test_domain if isinstance(config.test_domain, list) else [config.test_domain]
    if all(isinstance(entry, str) and entry != "all" and not entry.isdigit() for entry in wanted) and not _known(
        config
    ):
        return tuple(dict.fromkeys(wanted))
    return resolve_test_domains(config.test_domain, domain_names(config))


def domain_names(config: Config) -> tuple[str, ...]:
    """Those of the dataset's folder; where this machine does not have it of a known dataset, or of a run that has finished."""
    dataset, data_dir = config.dataset, Path(config.data_dir)
    if dataset.csv is None and (data_dir / dataset.folder).is_dir():
        return tuple(subfolders(data_dir / dataset.folder))
    if dataset.csv is not None and (data_dir / dataset.csv).is_file():
        return _csv_domains(dataset.name, data_dir / dataset.csv)
    if _known(config):
        return tuple(sorted(glyphs.DOMAINS if dataset.name == "glyphs" else CONTENTS[dataset.name].domains))
    for path in sorted((Path(config.output_dir) / "runs" / dataset.name).glob("*/*/result.json")):
        with suppress(UserError):  # a damaged one says nothing
            if domains := read(path.parent).domains:
                return tuple(sorted(domains))
    raise UserError(
        f"test_domain={config.test_domain}: the domains of {dataset.name} are not known here; say their names"
    )


@cache
def _csv_domains(name: str, path: Path) -> tuple[str, ...]:
    """Read once for all jobs of a study."""
    return list_csv(name, path).domain_names


def _known(config: Config) -> bool:
    return config.dataset.csv is None and (config.dataset.name in CONTENTS or config.dataset.name == "glyphs")
