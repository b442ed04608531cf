"""The results of `analyse.py` for a run: `analysis.json` in its directory."""

from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.machine.atomic import write_json
from vld.runs.reading import read_json

ANALYSIS = "analysis.json"

MASKED = {rate: f"masked_{100 * rate:.0f}_acc" for rate in (0.5, 0.75, 0.9, 0.95)}
"""By the fraction of masked units."""
QUANTITIES = {
    "acc": "accuracy %",
    "effective_rank": "effective rank",
    "probe_acc": "linear probe %",
    **{name: f"{100 * rate:.0f} % masked, accuracy %" for rate, name in MASKED.items()},
    "ece": "calibration error %",
    "nll": "NLL (nats)",
    "mc_acc": "MC dropout, accuracy %",
    "mc_ece": "MC dropout, calibration error %",
    "mc_nll": "MC dropout, NLL (nats)",
}
"""The quantities of an analysis, for i.i.d. and o.o.d. images each, and their names in tables."""
SIDES = {"iid": "i.i.d.", "ood": "o.o.d."}


def read_analyses(run_dir: Path) -> dict[str, dict[str, Any]]:
    """By the weights that were analysed (`erm-last`, …); empty if there is no file. Raises `UserError` if it is damaged."""
    path = run_dir / ANALYSIS
    if not path.exists():
        return {}
    try:
        analyses = dict(read_json(path)["analyses"])
        if not all(QUANTITIES.keys() <= analysis[side].keys() for analysis in analyses.values() for side in SIDES):
            raise KeyError(QUANTITIES)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged; remove it, and analyse.py makes it again") from error
    return analyses


def add_analysis(run_dir: Path, weights: str, analysis: dict[str, Any]) -> None:
    """Keeps those of other weights."""
    analyses = read_analyses(run_dir) | {weights: analysis}
    write_json(run_dir / ANALYSIS, {"run_id": run_dir.name, "analyses": analyses})
