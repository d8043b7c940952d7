"""Kill jobs at random moments, resume them, and compare with runs that nobody disturbed, bit for bit.

    python benchmarks/faults.py --kills 60 --seed 0 [--jobs segmentation,extract] [--folder outputs/faults]

Every kill takes the next kind of job, one of SIGKILL, SIGTERM to the process, SIGTERM to its group (what `timeout` and
schedulers do, DataLoader workers included) and SIGINT to either, and a moment: a share of the processor time that the
whole job takes, from its first line to its final evaluation. Then every file must be whole; the job must have left with
128 + signal, without a traceback, with one line that says how to go on; and resumed (a tool: run again) it must end in
the same files as the job that nobody disturbed: weights, optimiser, metrics, tables, figures, features.

A process of its own costs ten seconds of imports. So jobs are forked, each in a group of its own, from one process that
has imported everything and computed nothing; only every tenth kill starts a fresh interpreter, and hits it in its
imports and its setup. The moments follow from the seed, what a job is doing then varies a little with the machine.

Results are kept in the folder: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
#: (signal, whether the whole group gets it)
SIGNALS = (
    (signal.SIGKILL, False),
    (signal.SIGTERM, False),
    (signal.SIGTERM, True),
    (signal.SIGINT, False),
    (signal.SIGINT, True),
    (signal.SIGKILL, True),
)
#: what a kill of a fresh interpreter may wait for: its imports and its setup, in seconds of processor time
FRESH = 12.0
#: files that tell when and where a run ran
UNCOMPARED = {"environment.json", "overrides.json", "status.json", "train.log", "eval.log", ".hydra", "lock.json"}

SMALL = (
    *("dataset.train=8", "dataset.val=4", "dataset.test=4", "dataset.batch_size=4", "logger=csv"),
    *("trainer.max_steps=8", "trainer.val_check_interval=3", "trainer.accelerator=cpu"),
    *("callbacks.cost=null", "callbacks.throughput=null", "callbacks.predictions.count=2"),
)
SEGMENTATION = (*SMALL, "techniques=[prompt,lora]", "callbacks.checkpoint.every_n_steps=2")
SCARCE = (
    *("dataset.train=3", "dataset.val=1", "dataset.test=2", "logger=csv", "trainer.accelerator=cpu"),
    *("techniques=[{name: a, techniques: []}, {name: b, techniques: []}]", "callbacks.cost=null"),
    *("layers=[up-level1-upsampler-out,up-level2-upsampler-out]", "callbacks.checkpoint.every_n_steps=2"),
    *("task.data.members=3", "task.data.pixels_per_batch=16", "task.start_epoch=0", "task.patience=4"),
    "task.max_steps_per_member=12",
)
PART = (
    *("trainer.devices=1", "trainer.strategy=auto", "trainer.max_steps=6", "trainer.val_check_interval=2"),
    *("dataset.train_length=8", "dataset.val_length=4", "dataset.batch_size=4", "logger=csv"),
    *("callbacks.export.folder=null", "callbacks.checkpoint.every_n_steps=2", "scheduler.warmup_steps=0"),
)
LATENTS = (
    *("dataset.encoder.folder=gate_lightning/assets/tiny", "dataset.cache={folder}/cache"),
    "dataset.processes=1",
)


@dataclass(frozen=True)
class Job:
    """A command that writes a folder.

    Attributes:
        script: ``train`` or ``eval``.
        arguments: of the command; ``{folder}`` is the folder, ``{inputs}`` what all jobs share.
        runs: run folders below the folder and their own arguments; () for a command that goes on when it is repeated.
    """

    script: str
    arguments: tuple[str, ...]
    runs: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def first(self, folder: Path, inputs: Path) -> list[str]:
        """The command that begins it."""
        filled = [text.replace("{folder}", str(folder)).replace("{inputs}", str(inputs)) for text in self.arguments]
        return [self.script, *filled]

    def rest(self, folder: Path, inputs: Path) -> Iterator[list[str]]:
        """The commands that finish it after a kill: of every run its own, to go on or to begin."""
        first = self.first(folder, inputs)
        if not self.runs:
            yield first
        for name, own in self.runs:
            if (folder / name / "config.yaml").is_file():
                yield [self.script, f"resume={folder / name}"]
            else:
                kept = [text for text in first if text != "--multirun" and not text.startswith(("hydra.", "seed="))]
                yield [*kept, *own, f"hydra.run.dir={folder / name}"]


def _training(*arguments: str) -> Job:
    return Job("train", (*arguments, "hydra.run.dir={folder}"), ((".", ()),))


JOBS = {
    "segmentation": _training(*SEGMENTATION),
    "workers": _training(*SEGMENTATION, "dataset.num_workers=2", "callbacks/average=ema"),
    "disk_cache": _training(*SEGMENTATION, "cache.folder={folder}/features", "dataset.augment=false"),
    "resplits": _training("task=label_scarce", *SCARCE, "repeats=2"),
    "label_scarce": _training("task=label_scarce", *SCARCE, "repeats=1"),
    "nearest_pixels": _training("task=nearest_pixels", *SCARCE[:8], "repeats=1", "head.decode.bank=2000"),
    "lora": _training(
        "experiment=lora",
        *("backbone=tiny", "dataset=folder", "dataset.root={inputs}/set", "dataset.batch_size=2", "task.rank=2"),
        *("task.targets=[attention]", "trainer.accelerator=cpu", "trainer.max_steps=6", "scheduler.warmup_steps=0"),
        *("trainer.val_check_interval=2", "logger=csv", "callbacks.checkpoint.every_n_steps=2"),
    ),
    "autoencoder": _training("experiment=tiny/autoencoder", *PART, "task.fold_batches=1"),
    "unet": _training("experiment=tiny/unet", *PART, *LATENTS),
    "controlnet": _training("experiment=tiny/controlnet", "backbone.weights=tiny", *PART, *LATENTS),
    "sweep": Job(
        "train",
        ("--multirun", *SEGMENTATION, "techniques=none", "seed=0,1", "hydra.sweep.dir={folder}"),
        (("0", ("seed=0",)), ("1", ("seed=1",))),
    ),
    "extract": Job(
        "eval",
        (
            *("tool=extract", "input={inputs}/images", "output={folder}/features", "techniques=none"),
            *("tool.num_workers=1", "hydra.run.dir={folder}/log"),
        ),
    ),
    "pseudo_label": Job(
        "eval",
        (
            *("tool=pseudo_label", "run={inputs}/scarce", "input={inputs}/images", "output={folder}/labelled"),
            "hydra.run.dir={folder}/log",
        ),
    ),
    "predictions": Job(
        "eval",
        ("run={inputs}/segmentation", "input={inputs}/images", "output={folder}/found", "hydra.run.dir={folder}/log"),
    ),
    "generate": Job(
        "eval",
        (
            *("tool=generate", "tool.count=8", "tool.steps=4", "tool.batch_size=2", "output={folder}/made"),
            *("~dataset", "hydra.run.dir={folder}/log"),
        ),
    ),
}


# processes ----------------------------------------------------------------------------------------------------------


def forked(command: Sequence[str], log: Path) -> int:
    """Start ``train.py`` or ``eval.py`` in a fork of this process, in a group of its own; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(REPOSITORY)
        sys.argv = [f"{command[0]}.py", *command[1:]]
        from gate_lightning.utils.signals import run_command

        status = run_command("gate_lightning.engine.cli", f"{command[0]}_main")
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # what the interpreter would do
        status = 1
    finally:
        os._exit(status)


def started(command: Sequence[str], log: Path) -> int:
    """Start it in a fresh interpreter; its pid."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, f"{command[0]}.py", *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=REPOSITORY,
            process_group=0,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    process.returncode = 0  # waited for below, not by subprocess
    return process.pid


def finished(pid: int, at: float, then: Callable[[], None], limit: float = 600.0) -> tuple[int, float]:
    """Wait for a process, doing ``then`` once it has used ``at`` seconds of processor time.

    Returns:
        Exit status as a shell gives it, and the processor time used.
    """
    process, done, used, end = psutil.Process(pid), False, 0.0, time.monotonic() + limit
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return (128 - code if code < 0 else code), used
        try:
            times = process.cpu_times()
            used = times.user + times.system
        except psutil.NoSuchProcess:
            continue
        if not done and used >= at:
            then()
            done = True
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)


def whole_run(command: Sequence[str], log: Path) -> tuple[int, float]:
    """Exit status and processor time of a command that nobody disturbs."""
    return finished(forked(command, log), float("inf"), lambda: None)


# files --------------------------------------------------------------------------------------------------------------


def damaged(folder: Path) -> list[str]:
    """Files below a folder that are not whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or relative.name.startswith(".") or ".hydra" in relative.parts:
            continue
        try:
            _read(path)
        except Exception as error:
            found.append(f"{relative} ({type(error).__name__}: {error})")
    return found


def _read(path: Path) -> Any:
    """Content of a file as it is compared; raises something if the file is damaged."""
    import torch
    import yaml
    from PIL import Image
    from safetensors import safe_open

    if path.suffix == ".ckpt":
        from gate_lightning.errors import GateError
        from gate_lightning.utils.archives import check_archive

        check_archive(path, GateError)
        content = torch.load(path, map_location="cpu", weights_only=True)
        # counters of Lightning's loops tell in which hook a state was saved; what follows from them is compared
        return {key: value for key, value in content.items() if key not in ("loops", "epoch")}
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    if path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("rows of different lengths")
    return path.read_bytes()


def differences(expected: Path, found: Path) -> list[str]:
    """Files of two folders that differ."""
    names = [
        {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file() and not UNCOMPARED & set(path.relative_to(folder).parts)
        }
        for folder in (expected, found)
    ]
    lines = [f"{name}: only in one folder" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        one, other = _read(expected / name), _read(found / name)
        if name.suffix == ".yaml":
            one, other = ([repr(content).replace(str(f), "")] for content, f in ((one, expected), (other, found)))
        lines += [f"{name}{where}" for where in _unequal(one, other)][:3]
    return lines


def _unequal(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Places where two nested values differ."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            yield f"{where}: other values"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            yield from _unequal(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _unequal(*pair, f"{where}[{index}]")
    elif one != other:
        yield f"{where}: {str(one)[:60]} and {str(other)[:60]}"


# kills --------------------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """One kill and what came of it.

    Attributes:
        number, job, signal, group, share, fresh: what was done, when (share of the processor time), and to whom.
        status: exit status after the signal; 0 where the job was faster.
        problems: what was not as it should be.
        corrupt: files that were not whole after the kill.
    """

    number: int
    job: str
    signal: str
    group: bool
    share: float
    fresh: bool
    status: int
    problems: list[str]
    corrupt: list[str]


def planned(seed: int, number: int, jobs: Sequence[str]) -> tuple[str, int, bool, float, bool]:
    """Job, signal, group, share of the processor time and freshness of a kill."""
    rng = random.Random(f"{seed} {number}")
    number_of_signal, group = rng.choice(SIGNALS)
    return jobs[number % len(jobs)], number_of_signal, group, rng.random(), number % 10 == 9


def kill(number: int, plan: tuple[str, int, bool, float, bool], reference: Reference, folder: Path) -> Kill:
    """Kill a job, look at what it left, finish it, and compare."""
    name, which, group, share, fresh = plan
    job, log = JOBS[name], folder.with_suffix(".log")
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    folder.mkdir(parents=True)
    command = job.first(folder, reference.inputs)
    pid = (started if fresh else forked)(command, log)
    at = share * (FRESH if fresh else reference.seconds(name))
    status, _ = finished(pid, at, lambda: (os.killpg if group else os.kill)(pid, which))
    said = log.read_text(errors="replace")
    result = Kill(number, name, signal.Signals(which).name, group, round(share, 3), fresh, status, [], [])
    if status not in (0, 128 + which):
        result.problems.append(f"exit status {status}")
    if which != signal.SIGKILL and status:
        result.problems += [f"said {word!r}" for word in ("Traceback", "rror:") if word in said]
        # the table after a sweep tells again how its run was stopped
        told = [line for line in said.splitlines() if "Go on with" in line]
        advice = list({line.partition("stopped")[2].partition(" (")[0].strip() for line in told})
        if len(advice) != 1:
            result.problems.append(f"{len(advice)} lines say how to go on")
        elif signal.Signals(which).name not in advice[0]:
            result.problems.append(f"another signal is named: {advice[0]}")
    result.corrupt = damaged(folder)
    for command in job.rest(folder, reference.inputs):
        status, _ = whole_run(command, log)
        if status:
            result.problems.append(f"{' '.join(command[:3])}: exit status {status}")
    if not result.problems:
        for inside, _ in job.runs or ((".", ()),):
            result.problems += differences(reference.folder(name) / inside, folder / inside)
    if not result.problems and not result.corrupt:
        shutil.rmtree(folder)
        log.unlink()
    return result


class Reference:
    """The jobs that nobody disturbed, each run when it is first asked for.

    Args:
        root: folder for all of it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.inputs = root, root / "inputs"
        if not (self.inputs / "done").exists():
            shutil.rmtree(self.inputs, ignore_errors=True)
            _write_inputs(self.inputs)
            for name, command in (
                ("segmentation", JOBS["segmentation"].first(self.inputs / "segmentation", self.inputs)),
                ("scarce", JOBS["label_scarce"].first(self.inputs / "scarce", self.inputs)),
            ):
                self._run(command, self.inputs / f"{name}.log")
            (self.inputs / "done").touch()

    def folder(self, name: str) -> Path:
        """Folder of the finished job."""
        return self.root / "reference" / name

    def seconds(self, name: str) -> float:
        """Processor time of the whole job; runs it if that is not known."""
        noted = self.root / "reference" / f"{name}.json"
        if not noted.exists():
            shutil.rmtree(self.folder(name), ignore_errors=True)
            self.folder(name).mkdir(parents=True)
            command = JOBS[name].first(self.folder(name), self.inputs)
            noted.write_text(json.dumps(self._run(command, noted.with_suffix(".log"))))
        seconds: float = json.loads(noted.read_text())
        return seconds

    @staticmethod
    def _run(command: Sequence[str], log: Path) -> float:
        log.unlink(missing_ok=True)
        status, seconds = whole_run(command, log)
        if status:
            raise SystemExit(f"{' '.join(command)} failed by itself (exit status {status}); see {log}")
        return seconds


def _write_inputs(folder: Path) -> None:
    """Images for tools, and a captioned set for LoRA training."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, count in (("images", 6), ("set/images/train", 4)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
            Image.fromarray(image).save(folder / name / f"{index}.png")
    lines = (f"train/{index}.png\t{text}\n" for index, text in enumerate(("night", "day", "dawn", "dusk")))
    (folder / "set" / "captions_tags.txt").write_text("".join(lines))


def _import_everything() -> None:
    """What the jobs import, in one thread and without computing anything: a fork has no other threads."""
    import torch

    torch.set_num_threads(1)
    from hydra.core.hydra_config import HydraConfig  # noqa: F401

    import gate_lightning.engine.cli
    import gate_lightning.engine.jobs.evaluation
    import gate_lightning.engine.jobs.trained_run
    import gate_lightning.engine.jobs.training
    import gate_lightning.tools.extraction.extract
    import gate_lightning.tools.labelling.generate
    import gate_lightning.tools.labelling.pseudo_label  # noqa: F401

    gc.collect()
    gc.freeze()


def main() -> int:
    """Run the kills and print what came of each; 0 if all ended equal and nothing was damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS), help="comma-separated; all by default")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "outputs" / "faults")
    options = parser.parse_args()
    jobs = options.jobs.split(",")
    unknown = [name for name in jobs if name not in JOBS]
    if unknown:
        parser.error(f"no job {', '.join(unknown)}; there are {', '.join(JOBS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _import_everything()
    root = options.folder.resolve()
    reference, results = Reference(root), root / f"kills_{options.seed}.jsonl"
    known = {entry["number"]: Kill(**entry) for entry in map(json.loads, results.open() if results.exists() else ())}
    done: list[Kill] = []
    for number in range(options.kills):
        plan, began = planned(options.seed, number, jobs), time.monotonic()
        one = known.get(number)
        if one is None or one.job != plan[0] or one.problems or one.corrupt:
            reference.seconds(plan[0])
            one = kill(number, plan, reference, root / "kills" / f"{number:03d}_{plan[0]}")
            with results.open("a") as file:
                file.write(json.dumps(vars(one)) + "\n")
        done.append(one)
        outcome = "; ".join([*one.problems, *(f"damaged: {name}" for name in one.corrupt)]) or "equal"
        target = ("a fresh process" if one.fresh else "the process") + (" and its group" if one.group else "")
        print(
            f"{number + 1}/{options.kills} {one.job}: {one.signal} to {target} at {100 * one.share:.0f} %, "
            f"exit {one.status}: {outcome} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    equal, corrupt = sum(not one.problems for one in done), sum(bool(one.corrupt) for one in done)
    print(f"kills {len(done)} equal {equal} corrupt {corrupt}")
    return 0 if equal == len(done) and not corrupt else 1


if __name__ == "__main__":
    sys.exit(main())
