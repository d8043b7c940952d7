"""Mutation fuzzer: every reader of users' files, given broken and hostile ones, answers or raises an error of ours.

    python benchmarks/fuzz.py --inputs 5000 --seed 0
    python benchmarks/fuzz.py --only lora:17                  one input again, with its traceback

An input is a copy of a format's valid files in which one file is mutated. It counts as unhandled if its reader raises
anything but a ``GateError``, takes more than 30 s, asks for more than 6 GiB, or kills the process. Inputs are read in
forked processes, so that none of them harms the next. The exit status is 1 if any is unhandled.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import fuzz_formats
import fuzz_mutations

from gate_lightning.errors import GateError

SECONDS = 30
MEMORY = 6 * 2**30


class TooSlow(Exception):  # noqa: N818 - no error of a reader
    """An input took longer than allowed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer; the exit status."""
    parser = argparse.ArgumentParser(description="mutation fuzzer over every format that is read")
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", help="names, separated by commas; default: all")
    parser.add_argument("--only", help="<format>:<number>, one input, with its traceback")
    options = parser.parse_args(arguments)
    formats = {one.name: one for one in fuzz_formats.formats()}
    names = [options.only.split(":")[0]] if options.only else (options.formats or ",".join(formats)).split(",")
    unknown = [name for name in names if name not in formats]
    if unknown:
        parser.error(f"unknown format {unknown[0]}; known: {', '.join(formats)}")
    chosen = [formats[name] for name in names]
    weight = sum(one.weight for one in chosen)
    bad = total = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        for one in chosen:
            template = Path(place) / one.name / "valid"
            template.mkdir(parents=True)
            one.make(template)
            if one.whole:
                one.read(template)
            if options.only:
                _again(one, template, options.seed, int(options.only.split(":")[1]))
                return 0
            count = max(1, round(options.inputs * one.weight / weight))
            count = options.inputs - total if one is chosen[-1] else min(count, options.inputs - total)
            outcomes = _run(one, template, options.seed, count)
            tally = collections.Counter(kind for kind, _ in outcomes)
            print(f"{one.name:24} read {tally['read']:4} refused {tally['refused']:4} unhandled {tally['unhandled']}")
            bad += _show(one.name, outcomes)
            total += count
            shutil.rmtree(Path(place) / one.name)
    print(f"inputs {total} unhandled {bad}")
    return int(bad > 0)


def _run(one: fuzz_formats.Format, template: Path, seed: int, count: int) -> list[tuple[str, str]]:
    """Outcome of every input: read, refused or unhandled, and the problem."""
    outcomes: list[tuple[str, str]] = []
    while len(outcomes) < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                _quiet()
                for number in range(len(outcomes), count):
                    pipe.write(json.dumps(_outcome(one, template, seed, number)) + "\n")
                    pipe.flush()
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcomes += [tuple(json.loads(line)) for line in pipe]
        _, status = os.waitpid(child, 0)
        if status:
            outcomes.append(("unhandled", f"the process died: {os.waitstatus_to_exitcode(status)}"))
    return outcomes


def _outcome(one: fuzz_formats.Format, template: Path, seed: int, number: int) -> tuple[str, str]:
    folder = template.parent / f"input-{number}"
    _mutated_copy(template, folder, random.Random(f"{seed}:{one.name}:{number}"))
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        one.read(folder)
        return "read", ""
    except GateError as error:
        return "refused", str(error)[:200]
    except BaseException as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "gate_lightning/" in frame.filename]
        where = f"{own[-1].filename.rpartition('gate_lightning/')[2]}:{own[-1].lineno}" if own else "?"
        return (
            "unhandled",
            f"{type(error).__name__} at {where}: {str(error).splitlines()[0][:120] if str(error) else ''}",
        )
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)


def _mutated_copy(template: Path, folder: Path, rng: random.Random) -> Path:
    """Hard links to the valid files, and one file of its own; that file."""
    shutil.copytree(template, folder, copy_function=os.link)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    small = [path for path in files if path.suffix not in (".safetensors", ".pt", ".ckpt")]
    target = rng.choice(small if small and rng.random() < 0.5 else files)
    content = fuzz_mutations.mutated(target, target.read_bytes(), rng)
    target.unlink()
    if rng.random() > 0.02:  # else the file is missing
        target.write_bytes(content)
    elif rng.random() < 0.5:
        target.mkdir()
    return target


def _again(one: fuzz_formats.Format, template: Path, seed: int, number: int) -> None:
    folder = template.parent / f"input-{number}"
    target = _mutated_copy(template, folder, random.Random(f"{seed}:{one.name}:{number}"))
    print(f"{target.relative_to(folder)}: {target.read_bytes()[:600] if target.is_file() else 'no file'!r}")
    one.read(folder)
    print("read")


def _show(name: str, outcomes: Sequence[tuple[str, str]]) -> int:
    """Print every kind of unhandled input once; their number."""
    kinds: dict[str, list[int]] = collections.defaultdict(list)
    for number, (kind, problem) in enumerate(outcomes):
        if kind == "unhandled":
            kinds[problem].append(number)
    for problem, numbers in kinds.items():
        print(f"    {len(numbers)}x {problem}   --only {name}:{numbers[0]}")
    return sum(map(len, kinds.values()))


def _quiet() -> None:
    """Nothing on the terminal, no core files, and no more memory than allowed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:  # noqa: PTH123 - no path of ours
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
