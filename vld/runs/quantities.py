"""What `analyse.py` has found out about a run: its directory's `analysis.json`."""

from pathlib import Path
from typing import Any

from vld.config.errors import UserError
from vld.machine.atomic import write_json
from vld.runs.reading import read_json

ANALYSIS = "analysis.json"

MASKED = {rate: f"masked_{100 * rate:.0f}_acc" for rate in (0.5, 0.75, 0.9, 0.95)}
"""By the share of units that are masked."""
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
"""What an analysis has of either side's images, and what tables call it."""
SIDES = {"iid": "i.i.d.", "ood": "o.o.d."}


def read_analyses(run_dir: Path) -> dict[str, dict[str, Any]]:
    """By the weights that were analysed (`erm-last`, …); empty where there is no file. Raises `UserError` where it is damaged."""
    path = run_dir / ANALYSIS
    if not path.exists():
        return {}
    fix = f"{path}: damaged; remove it, and analyse.py makes it again"
    try:
        analyses = read_json(path)["analyses"]
        whole = all(QUANTITIES.keys() <= analysis[side].keys() for analysis in analyses.values() for side in SIDES)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(fix) from error
    if not whole:
        raise UserError(fix)
    return dict(analyses)


def add_analysis(run_dir: Path, weights: str, analysis: dict[str, Any]) -> None:
    """Beside those of other weights."""
    analyses = read_analyses(run_dir) | {weights: analysis}
    write_json(run_dir / ANALYSIS, {"run_id": run_dir.name, "analyses": analyses})
