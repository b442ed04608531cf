"""Which values a setting may have."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Must:
    """The error of a value that it does not allow reads `name=value: must be <be>`."""

    be: str
    allows: Callable[[Any], bool]
    each: bool = False
    """Whether this is about each entry of a list rather than the list."""


def number(be: str, allows: Callable[[float], bool]) -> Must:
    return Must(be, lambda value: math.isfinite(value) and allows(value))


def whole(least: int) -> Must:
    return number(f"a whole number of at least {least}", lambda value: value >= least)


def one_of(*names: str) -> Must:
    return Must(f"one of {', '.join(names)}", lambda value: value in names)


def match(be: str, pattern: str) -> Must:
    return Must(be, lambda value: re.fullmatch(pattern, value) is not None)


def each(must: Must) -> Must:
    return replace(must, each=True)


def _is_test_domain(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(e, str | int) and not isinstance(e, bool) and e != "" for e in entries)


RATE = number("in [0, 1)", lambda value: 0 <= value < 1)
RATES = each(RATE)
POSITIVE = number("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = number("at least 0", lambda value: value >= 0)
SEED = number("a whole number from 0 to 2^31 - 1", lambda value: 0 <= value < 2**31)
SECONDS = number("a number of seconds, at least 0", lambda value: value >= 0)
MEAN = Must("three numbers", lambda triple: len(triple) == 3 and all(map(math.isfinite, triple)))
STD = Must("three numbers above 0", lambda triple: MEAN.allows(triple) and min(triple) > 0)
MILESTONES = Must(
    "increasing numbers of steps, each at least 1",
    lambda steps: all(step >= 1 for step in steps) and sorted(set(steps)) == steps,
)
FOLDER = Must("a folder's path", bool)
FOLDER_NAME = Must("the name of a folder", lambda name: name not in ("", ".", "..") and "/" not in name)
URL = match("a URL, http://… or https://…", r"https?://[\w.-]+(:\d+)?(/\S*)?")
DEVICE = match("auto, cpu, cuda or cuda:<index>", r"auto|cpu|cuda(:\d+)?")
TEST_DOMAIN = Must("all, a domain's name or index, or a list of those", _is_test_domain)
