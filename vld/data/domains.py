"""Names of domains: those of known datasets, and those that `test_domain` stands for.

A run leaves one domain out, or several at once, whose names are then joined: `photo+sketch`.
"""

import itertools
from collections.abc import Collection, Iterable
from typing import Any

from vld.config.errors import UserError
from vld.data.catalog import CONTENTS

GLYPHS = ("chalk", "mosaic", "neon", "print")
"""The domains of the embedded dataset, which `vld.data.glyphs` draws."""


def known_domains(dataset: str) -> tuple[str, ...] | None:
    """The sorted domains of the embedded dataset or one of DomainBed's; None for others."""
    if dataset == "glyphs":
        return GLYPHS
    return tuple(sorted(CONTENTS[dataset].domains)) if dataset in CONTENTS else None


def left_out(test_domain: str, domains: Collection[str]) -> tuple[str, ...]:
    """The domains that a run leaves out. domains: the dataset's, some of which may have a `+` in their own names."""
    if test_domain in domains:
        return (test_domain,)
    for domain in domains:
        if test_domain.startswith(f"{domain}+"):
            others = left_out(test_domain[len(domain) + 1 :], domains)
            if {*others} <= {*domains}:
                return (domain, *others)
    return tuple(test_domain.split("+"))


def joined(domains: Iterable[str]) -> str:
    """The name of several left out at once, in whatever order they were written."""
    return "+".join(sorted(set(domains)))


def resolve_test_domains(wanted: Any, domains: tuple[str, ...]) -> tuple[str, ...]:
    """The names that `test_domain` stands for: all, pairs (every two at once), a name, an index in sorted order, several of these
    joined by `+`, or a list of those."""
    chosen: list[str] = []
    for entry in wanted if isinstance(wanted, list) else [wanted]:
        parts = [_one(part, domains) for part in left_out(f"{entry}", [*domains, *map(str, range(len(domains)))])]
        if entry == "all":
            chosen += domains
        elif one := _one(f"{entry}", domains):  # a domain may be called 1: its name comes before another's index
            chosen.append(one)
        elif entry == "pairs" and len(domains) > 2:
            chosen += map(joined, itertools.combinations(domains, 2))
        elif all(parts) and len(set(parts)) < len(domains):
            chosen.append(joined(part for part in parts if part))
        else:
            allowed = ", ".join(f"{name} ({i})" for i, name in enumerate(domains))
            raise UserError(f"test_domain={entry}: must be all or one of {allowed}, pairs, or some of them joined by +")
    return tuple(dict.fromkeys(chosen))


def _one(written: str, domains: tuple[str, ...]) -> str | None:
    if written in domains:
        return written
    return domains[int(written)] if written.isdigit() and int(written) < len(domains) else None
