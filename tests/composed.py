"""The settings and jobs that options are composed to, without running a command."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from run_command import REPOSITORY

from vld.config.settings import Config
from vld.study.jobs import Job, jobs_of, study_axes
from vld.study.typed_settings import typed_config


def presets() -> AbstractContextManager[Any]:
    """Within, those of conf/ are known."""
    known = GlobalHydra.instance().is_initialized()
    return nullcontext() if known else initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3")


def composed(*words: str) -> Config:
    """The settings of `train.py` with these options."""
    with presets():
        return typed_config(compose("train", overrides=list(words)), Config)


def jobs(*axes: str) -> list[Job]:
    """Those of a sweep."""
    problems: dict[str, None] = {}
    with presets():
        made = list(jobs_of(axes, problems))
    assert not problems
    return made


@cache
def study_jobs(study: str, *words: str) -> list[Job]:
    """Those of a study, narrowed. To be changed as copies only: composed once for all tests."""
    with presets():
        axes = study_axes(study, list(words))
    assert axes is not None
    return jobs(*axes)


def command_jobs(study: str, *words: str) -> list[Job]:
    """Those of `train.py study=… WORDS`, which may take other values than the study's."""
    with presets():
        axes = study_axes(study, [])
    assert axes is not None
    return jobs(*{word.partition("=")[0]: word for word in (*axes, *words)}.values())
