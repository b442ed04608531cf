"""The benchmark's figures in words."""

from typing import Any

from vld.machine.terminal import Terminal


def show(report: dict[str, Any], terminal: Terminal) -> None:
    say, rates, seconds = terminal.say, report["images_per_second"], report["median_seconds"]
    compiled = "compiled" if report["compiled"] else "not compiled"
    say(
        f"{report['backbone']} at {report['image_size']} px, {report['images_per_step']} images a step, {report['precision']},"
        f" {compiled}, on {report['device']}; medians of {report['steps']} steps"
    )
    for name, rate in rates.items():
        say(f"  {name:21s} {1e3 * seconds[name]:9.1f} ms {rate:10,.1f} images/s")
    say(f"  the full step runs at {report['full_step_to_ceiling']:.1%} of the speed of the bare one")
    if ratio := report["mixout_step_to_bare_step"]:
        say(f"  a step with Mixout takes {ratio:.2f} times as long as the bare one")
    if "forecast" in report:
        _show_runs(report, terminal)
    if per_core := _measured(report, "input_images_per_second_and_core"):
        say(
            f"input pipeline on one core: {per_core['ours']:.0f} images/s, {per_core['ratio']:.1f} times the conventional"
        )
    if first := _measured(report, "seconds_to_first_step"):
        said = f"{first['cold']:.1f} s, with everything compiled {first['warm']:.1f} s"
        say(f"from the command to the first step: {said}")
    for name, its in _measured(report, "device_and_host_seconds").items():
        say(f"  {name:21s} {1e3 * its['device']:9.2f} ms of the GPU, {1e3 * its['host']:.2f} ms of the host")
    if kernels := _measured(report, "kernels_of_a_full_step"):
        say(f"  its kernels take the GPU {1e3 * kernels['seconds']:.2f} ms of a full step")
    memory = report["peak_memory_bytes"].items()
    say("peak memory: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in memory))
    for name, share in report["share_of_the_training_time"].items():
        say(f"{name}: {share:.3%} of the training time")
    for name, share in _measured(report, "share_of_wandb").items():
        say(f"W&B, {name}: {1e3 * report['seconds_for_wandb'][name]:.1f} ms a run, {share:.4%} of the training time")
    for waiting, rates in _measured(report, "images_per_second_beside_busy_processes").items():
        shown = [f"{beside}: {rate if isinstance(rate, str) else f'{rate:.0f}'}" for beside, rate in rates.items()]
        say(f"images/s by the number of busy processes beside it, {waiting}: {', '.join(shown)}")


def _show_runs(report: dict[str, Any], terminal: Terminal) -> None:
    say, evaluation, hours = terminal.say, report["evaluation_images_per_second"], report["paper_run_hours"]
    say(f"evaluation, all methods in one pass: {evaluation['both networks in one pass']:,.1f} images/s;"
        f" conventional {evaluation['conventional']:,.1f}")  # fmt: skip
    say(f"a run of the paper, evaluations included: {hours['ours']:.2f} h; conventional {hours['conventional']:.2f} h,"
        f" {hours['ratio']:.1f} times as long")  # fmt: skip
    say("at these speeds the paper's experiments, with its network and image size if those were measured, take")
    for entry in report["forecast"]:
        name, disk = entry["name"], f"{entry['gigabytes']:,.0f} GB of disk"
        say(f"  {name}: {entry['runs']} runs, {entry['hours']:,.0f} hours, {disk}")
    say(f"  in all {sum(entry['hours'] for entry in report['forecast']) / 24:,.1f} days of this device")


def _measured(report: dict[str, Any], name: str) -> dict[str, Any]:
    """A part's figures; none where it is not measured on this device, or could not be."""
    figures = report.get(name)
    return figures if isinstance(figures, dict) else {}
