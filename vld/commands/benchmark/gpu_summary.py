"""What gpu_check.sh has found so far, in figures and words: python -m vld.commands.benchmark.gpu_summary WORK OUT"""

import json
import sys
from pathlib import Path
from typing import Any

RATIOS = {
    "conventional_step_to_full_step": "conventional step {:.2f} x ours",
    "DomainBed-style_step_to_full_step": "DomainBed-style step {:.2f} x ours",
}


def line_of(name: str, figures: dict[str, Any]) -> str:
    rates, seconds = figures["images_per_second"], figures.get("median_seconds", {})
    words = [f"{name}: {figures['backbone']} at {figures['image_size']} px, {figures['images_per_step']} images a step"]
    words += [f"{rates['full step']:,.0f} images/s", f"full step {1 / figures['full_step_to_ceiling']:.3f} x bare"]
    if mixout := figures.get("mixout_step_to_bare_step"):
        words.append(f"with Mixout {mixout:.3f} x bare")
    if "step from host memory" in seconds:
        words.append(f"from host memory {seconds['step from host memory'] / seconds['bare step']:.3f} x bare")
    words += [text.format(figures[ratio]) for ratio, text in RATIOS.items() if ratio in figures]
    if evaluation := figures.get("evaluation_images_per_second"):
        words.append(f"evaluation {evaluation['both networks in one pass']:,.0f} images/s")
    if isinstance(kernels := figures.get("kernels_of_a_full_step"), dict):
        words.append(f"its kernels {kernels['seconds'] / seconds['full step']:.3f} of a full step")
    if forecast := figures.get("forecast"):
        words.append(f"the paper's study {sum(entry['hours'] for entry in forecast) / 24:,.1f} GPU-days")
    return ", ".join(words)


def deterministic(work: Path) -> str | None:
    """Whether two runs came to the same."""
    found = [sorted(work.glob(f"deterministic_{time}/runs/*/*/*/result.json")) for time in ("first", "second")]
    if not all(found):
        return None
    one, other = (json.loads(paths[0].read_text())["results"] for paths in found)
    return f"deterministic=true twice: {'the same' if one == other else 'DIFFERENT'} results"


def main(work: Path, out: Path) -> None:
    found = sorted(work.glob("benchmark/*/benchmark.json"), key=lambda path: path.stat().st_mtime)
    before = out / "benchmarks.json"  # by a check of other parts
    figures = json.loads(before.read_text()) if before.exists() else {}
    figures |= {path.parent.name: json.loads(path.read_text()) for path in found}
    before.write_text(json.dumps(figures, indent=1))
    lines = [
        line_of(name, its) if "images_per_second" in its else f"{name}: not measured" for name, its in figures.items()
    ]
    lines += [line for line in [deterministic(work)] if line]
    (out / "summary.txt").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
