"""One process against several (gloo, CPU) at equal global batch: metrics, memory of each process, time.

    python benchmarks/two_processes.py [--processes 1,2] [--steps 50] [--batch 8] [overrides of train.py …]

What makes them comparable is set here: norms that do not depend on the batch (the heads' default), no dropout (each
process draws its own), cross-entropy on images without ignored pixels (a process averages over its own pixels, and the
processes' gradients count equally). Augmentation and noise are keyed by the sample, so both see the same images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = (
    "dataset.augment=true",
    "loss=cross_entropy",
    "amalgamation.dropout=0",
    "head.decode.dropout_ratio=0",
    "head.auxiliary.dropout_ratio=0",
    "trainer.accelerator=cpu",
    "callbacks=quiet",
    "logger=csv",
)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        processes: number of them.
        metrics: final ones.
        peak_gib: largest resident memory of each process, largest first.
        seconds: of the whole command.
    """

    processes: int
    metrics: dict[str, float]
    peak_gib: tuple[float, ...]
    seconds: float


def measure(processes: int, steps: int, batch: int, folder: Path, overrides: list[str]) -> Row:
    """Train with so many processes and watch their memory."""
    command = [sys.executable, "train.py", *SETTINGS, *overrides, f"hydra.run.dir={folder}"]
    command += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    command += [f"trainer.devices={processes}", f"dataset.batch_size={batch // processes}"]
    command += ["+trainer.strategy=ddp"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started, peaks = time.perf_counter(), {}
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as output:
        run = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
        root = psutil.Process(run.pid)
        while run.poll() is None:
            for process in _running(root):
                peaks[process.pid] = max(peaks.get(process.pid, 0), _resident(process))
            time.sleep(0.1)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text()[-3000:]}")
    metrics = json.loads((folder / "metrics.json").read_text())
    # helpers of the data loader and of version control are small and short
    largest = tuple(sorted((peak / 2**30 for peak in peaks.values()), reverse=True)[:processes])
    return Row(processes, metrics, largest, time.perf_counter() - started)


def _running(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print, return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, the first is compared with")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="images per step, of all processes together")
    known, overrides = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(count, known.steps, known.batch, Path(folder) / str(count), overrides)
            for count in map(int, known.processes.split(","))
        ]
    for row in rows:
        memory = ", ".join(f"{peak:.2f}" for peak in row.peak_gib)
        print(f"{row.processes} process(es): {row.seconds:.0f} s, memory at most {memory} GiB")
    for name, first in rows[0].metrics.items():
        others = "".join(f"  {row.metrics[name]:10.6f} ({row.metrics[name] - first:+.1e})" for row in rows[1:])
        print(f"{name:<16}{first:10.6f}{others}")
    return rows


if __name__ == "__main__":
    main()
