"""Kill a real run again and again, start it again each time, and compare the result with an uninterrupted run's.

python tests/soak.py [--kills 20] [--seed 0]

The moments are random within each phase of a run. The command under test is the real one; a thin wrapper tells through a
pipe which phase it is in.
"""

import argparse
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from run_command import TINY_NETWORK, start, train

KILLS_OF_A_SOAK = 20
KILLS = (signal.SIGKILL, signal.SIGTERM)
PHASES = ("training", "evaluation", "checkpointing", "keeping", "finishing")
# How long a phase lasts, roughly, in seconds: kills are spread over it.
LENGTHS = {"training": 0.5, "evaluation": 0.1, "checkpointing": 0.05, "keeping": 0.05, "finishing": 0.01}
KEEP = ("erm-last", "erm-last-logits", "erm-iid", "weight_averaging-iid", "ensemble-last-logits")
OPTIONS = (
    f"dataset=glyphs test_domain=0 {' '.join(TINY_NETWORK)} image_size=24 batch_size=4 optim.steps=60 eval_every=20"
    " optim.milestones=[30] dropout=0.5 averaging.start=5 ensemble.start=5 ensemble.every=15 checkpoint_every=0.1"
    f" keep=[{','.join(KEEP)}]"
).split()


@dataclass(frozen=True)
class Kill:
    phase: str
    signal: signal.Signals
    landed: bool
    """False where the run ended before the kill's moment came."""
    saved: int = 0
    """The step of the checkpoint that it left."""


def watched() -> None:
    """The command `vld-train`, reporting its phases to the named pipe VLD_SOAK_PIPE."""
    pipe = os.open(os.environ["VLD_SOAK_PIPE"], os.O_WRONLY)
    from vld.commands import main as cli
    from vld.runs import directory
    from vld.training import loop as training

    def reporting(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            os.write(pipe, f"{phase}\n".encode())
            try:
                return function(*arguments, **options)
            finally:
                os.write(pipe, b"training\n")

        return call

    training.predict = reporting("evaluation", training.predict)
    directory.write_checkpoint = reporting("checkpointing", directory.write_checkpoint)
    run_directory: Any = directory.RunDirectory
    run_directory.write_tensors = reporting("keeping", run_directory.write_tensors)
    run_directory.finish = reporting("finishing", run_directory.finish)
    cli.train()


def phases(pipe: int, process: "subprocess.Popen[str]") -> Iterator[str]:
    """The phases of a process as it enters them, until it ends."""
    buffer = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.05)
        if ready:
            buffer += os.read(pipe, 4096)
            *lines, buffer = buffer.split(b"\n")
            yield from (line.decode() for line in lines)
        elif process.poll() is not None:
            return


def run_and_kill(
    options: list[str], folder: Path, phase: str, number: signal.Signals, choice: random.Random
) -> tuple[Kill, int, str]:
    """Start the command and kill it in that phase; the kill, the exit code, and the output."""
    pipe = folder / "phases"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDWR)  # not only for reading, which would wait for the process
    said, env = folder / "said", {"VLD_SOAK_PIPE": str(pipe)}
    with said.open("w") as file:
        process = start(str(Path(__file__).resolve()), "--watched", *options, env=env, stdout=file)
    landed = False
    occurrence = choice.randint(1, 3 if phase in ("evaluation", "checkpointing") else 1)
    for entered in phases(read, process):
        occurrence -= entered == phase
        if occurrence == 0:
            time.sleep(choice.uniform(0, LENGTHS[phase]))
            landed = process.poll() is None
            process.send_signal(number)
            break
    code = process.wait()
    os.close(read)
    return Kill(phase, number, landed), code, said.read_text()


def content(run_dir: Path) -> dict[str, Any]:
    """What a finished run says, but for the times."""
    timed = ("seconds", "images_per_second", "finished")
    result = json.loads((run_dir / "result.json").read_text())
    return {
        "files": sorted(path.name for path in run_dir.iterdir()),
        "metrics": re.sub(r'"(train_)?seconds": [\d.]+', "", (run_dir / "metrics.jsonl").read_text()),
        "result": {key: value for key, value in result.items() if key not in timed},
    } | {name: (run_dir / f"{name}.safetensors").read_bytes() for name in KEEP}


def check_wholeness(run_dir: Path) -> int:
    """After a kill, what is there is whole; the step of the checkpoint, 0 without one."""
    from vld.runs.checkpoint import read_checkpoint

    for path in run_dir.glob("*.json*"):
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert len({(row["step"], row["method"]) for row in rows}) == len(rows), "two lines for one step"
        else:
            json.loads(path.read_text())
    if not (run_dir / "checkpoint.pt").exists():
        return 0
    return int(read_checkpoint(run_dir / "checkpoint.pt", run_dir.name)["trajectory"]["step"])


def soak(
    folder: Path, kills: int, seed: int, say: Callable[[str], None] = print, data_dir: Path | None = None
) -> list[Kill]:
    """Kill a run so many times, in every phase in turn; raises AssertionError where anything of it was lost or changed."""
    choice = random.Random(seed)
    data = f"data_dir={data_dir or folder / 'data'}"
    reference = train(*OPTIONS, data, f"output_dir={folder}/a")
    assert reference.returncode == 0, reference.stderr
    [uninterrupted] = (folder / "a/runs/glyphs").glob("*/*")
    expected = content(uninterrupted)
    done: list[Kill] = []
    round_ = 0
    while sum(kill.landed for kill in done) < kills:
        round_ += 1
        output_dir = folder / f"b{round_}"
        run_dir = output_dir / uninterrupted.relative_to(folder / "a")
        saved = 0
        while not (run_dir / "result.json").exists():
            # One run is killed in every phase, the last of which ends it.
            phase = PHASES[len(done) % len(PHASES)] if sum(kill.landed for kill in done) < kills else "none"
            number = choice.choice(KILLS)
            kill, code, output = run_and_kill(
                [*OPTIONS, data, f"output_dir={output_dir}"], folder, phase, number, choice
            )
            expected_code = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}[number]
            assert code == 0 or (kill.landed and code == expected_code), (kill, code, output)
            assert "Traceback" not in output, output
            went_on = re.search(r"resuming at step (\d+)", output)
            assert (int(went_on[1]) if went_on else 0) == saved, f"begun from another step than {saved}: {output}"
            say(f"{kill.phase:13s} {kill.signal.name}  exit code {code:4d}  from step {saved}")
            saved = check_wholeness(run_dir)
            if phase != "none":
                done.append(replace(kill, saved=saved))
        last = train(*OPTIONS, data, f"output_dir={output_dir}")
        assert last.returncode == 0, last.stderr
        assert "already finished" in last.stdout
        actual = content(run_dir)
        assert actual.keys() == expected.keys()
        different = [name for name, value in expected.items() if actual[name] != value]
        assert not different, f"not what the uninterrupted run has: {different}"
        say(f"round {round_}: the same as without interruption")
    assert any(kill.saved for kill in done), "never resumed from anything"  # whether a SIGKILL left something is chance
    return done


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        del sys.argv[1]
        watched()
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--kills", type=int, default=KILLS_OF_A_SOAK)
        parser.add_argument("--seed", type=int, default=0)
        arguments = parser.parse_args()
        with tempfile.TemporaryDirectory() as temporary:
            killed = soak(Path(temporary), arguments.kills, arguments.seed)
        print(f"{sum(kill.landed for kill in killed)} kills, nothing lost, nothing changed")
