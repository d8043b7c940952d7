"""What a denoiser pass over GATE's three branches (those of features.py) asks of the host.

    python benchmarks/launches.py --architecture sd15

    python benchmarks/launches.py --architecture sd15 --device cuda --size 512 --dtype bfloat16

Counts the operations of one pass: kernels, which a GPU is sent one by one, and views, which cost the host alone. Small
images on a CPU have the same operations as large ones on a GPU, except for what is faster on a CPU only, which is left
out. Then the time of a pass, in turns for the ways to run it: on a CPU the process's, which is mostly the host's with
the tiny architecture; on a GPU from the first operation until it is done with the last.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from features import SIZES, Bench, Peak, parse, synchronise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gate_lightning.backbones.adapters import bank
from gate_lightning.backbones.kernels import dispatch
from gate_lightning.features.reading.passes import run_pass
from gate_lightning.features.reading.recorded import PassKind, Recordings


class Operations(TorchDispatchMode):
    """Counts operations by name, those that make a view of their input apart."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.views: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten":
            view = func.is_view or func._schema.name in ("aten::_unsafe_view", "aten::lift_fresh")
            (self.views if view else self.kernels)[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


class Pass:
    """One pass of the benchmark's branches."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        given = [f"--{name}={getattr(options, name)}" for name in ("architecture", "batch", "size", "device")]
        bench = Bench(parse(given), folder)
        self.device: str = options.device
        self.backbone = bench.backbone.to(getattr(torch, options.dtype))
        self.fast = not options.plain_ops
        if options.device != "cpu" and not options.contiguous:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        with torch.no_grad():
            moments = bench.backbone.encode_moments(bench.images)
            self.group, self.given = bench.engines["per_branch"].steer(*moments, bench.images, bench.conditions)

    @torch.no_grad()
    def run(self, recordings: Recordings) -> list[dict[str, Tensor]]:
        with dispatch.fast_ops(self.fast):
            return run_pass(self.backbone, self.group, self.given, {}, recordings)

    def timed(self, recordings: Recordings) -> float:
        """Milliseconds of a pass: of the process on a CPU, until it is done on a GPU."""
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        synchronise(self.device)
        start = clock()
        self.run(recordings)
        synchronise(self.device)
        return 1e3 * (clock() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="tiny", choices=SIZES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--contiguous", action="store_true", help="on a GPU: weights not in channels_last")
    parser.add_argument("--plain-ops", action="store_true", help="every operation as the networks state it")
    parser.add_argument("--ways", nargs="+", default=["eager", "replayed"], choices=get_args(PassKind))
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.device == "cpu":  # the operations of a GPU
        dispatch._plain = lambda *tensors: False
        bank._bound_by_launches = lambda tensor: True
    with tempfile.TemporaryDirectory() as folder:
        one = Pass(options, Path(folder))
        ways = {kind: Recordings(kind) for kind in options.ways}
        for kind, recordings in ways.items():
            start = time.perf_counter()
            for _ in range(2):  # the second pass is recorded
                one.run(recordings)
            print(f"{kind}: first two passes in {time.perf_counter() - start:.1f} s")
            if options.device == "cpu":
                count(kind, one, recordings)
        times: dict[str, list[float]] = {kind: [] for kind in ways}
        peaks = dict.fromkeys(ways, 0.0)
        for _ in range(options.repeats):
            for kind, recordings in ways.items():
                with Peak(options.device) as peak:
                    times[kind].append(one.timed(recordings))
                peaks[kind] = peak.bytes
        for kind, taken in times.items():
            peak_gb = f"peak {peaks[kind] / 1e9:.2f} GB"
            print(f"{kind}: {statistics.median(taken):.2f} ms a pass (least {min(taken):.2f}), {peak_gb}")


def count(kind: str, one: Pass, recordings: Recordings) -> None:
    """Print the operations of a pass."""
    with Operations() as counted:
        one.run(recordings)
    print(f"{kind}: {counted.kernels.total()} kernels, {counted.views.total()} views")
    for title, names in (("kernels", counted.kernels), ("views", counted.views)):
        print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in names.most_common(12)))


if __name__ == "__main__":
    main()
