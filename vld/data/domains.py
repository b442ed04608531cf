"""Domains by their names: those of the datasets that are known, and those that `test_domain` stands for."""

from typing import Any

from vld.config.errors import UserError
from vld.data.catalog import CONTENTS

GLYPHS = ("chalk", "mosaic", "neon", "print")
"""The domains of the embedded dataset, which `vld.data.glyphs` draws."""


def known_domains(dataset: str) -> tuple[str, ...] | None:
    """Of the embedded dataset and of DomainBed's, sorted; None of others."""
    if dataset == "glyphs":
        return GLYPHS
    return tuple(sorted(CONTENTS[dataset].domains)) if dataset in CONTENTS else None


def resolve_test_domains(wanted: Any, domains: tuple[str, ...]) -> tuple[str, ...]:
    """The names that `test_domain` stands for: all, a name, an index in sorted order, or a list of those."""
    if wanted == "all":
        return domains
    chosen = []
    for entry in wanted if isinstance(wanted, list) else [wanted]:
        if str(entry) in domains:  # a domain may be called 1: its name comes before another's index
            chosen.append(str(entry))
        elif str(entry).isdigit() and int(entry) < len(domains):
            chosen.append(domains[int(entry)])
        else:
            allowed = ", ".join(f"{name} ({i})" for i, name in enumerate(domains))
            raise UserError(f"test_domain={entry}: must be all or one of {allowed}")
    return tuple(dict.fromkeys(chosen))
