"""What a denoiser pass over GATE's three branches (those of features.py) asks of the host.

    python benchmarks/launches.py --architecture sd15

Counts the operations of one pass: kernels, which a GPU is sent one by one, and views, which cost the host alone. Small
images on a CPU have the same operations as large ones on a GPU, except for what is faster on a CPU only, which is left
out. Then the CPU time of a pass, which is mostly the host's with the tiny architecture, in turns for the ways to run
it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from features import SIZES, Bench, parse
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gate_lightning.backbones.adapters import bank
from gate_lightning.backbones.kernels import dispatch
from gate_lightning.features.reading.passes import run_pass
from gate_lightning.features.reading.recorded import Recordings


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
    """One pass of the benchmark's branches over small images."""

    def __init__(self, architecture: str, batch: int, folder: Path) -> None:
        bench = Bench(parse(["--architecture", architecture, "--batch", str(batch), "--size", "64"]), folder)
        self.backbone = bench.backbone
        with torch.no_grad():
            moments = bench.backbone.encode_moments(bench.images)
            self.group, self.given = bench.engines["per_branch"].steer(*moments, bench.images, bench.conditions)

    @torch.no_grad()
    def run(self, recordings: Recordings) -> list[dict[str, Tensor]]:
        with dispatch.fast_ops():
            return run_pass(self.backbone, self.group, self.given, {}, recordings)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="tiny", choices=SIZES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dispatch._plain = lambda *tensors: False  # as on a GPU
    bank._bound_by_launches = lambda tensor: True
    with tempfile.TemporaryDirectory() as folder:
        one = Pass(options.architecture, options.batch, Path(folder))
        ways = {kind: Recordings(kind) for kind in ("eager", "replayed")}
        for kind, recordings in ways.items():
            for _ in range(2):  # the second pass is recorded
                one.run(recordings)
            with Operations() as counted:
                one.run(recordings)
            print(f"{kind}: {counted.kernels.total()} kernels, {counted.views.total()} views")
            for title, names in (("kernels", counted.kernels), ("views", counted.views)):
                print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in names.most_common(12)))
        times: dict[str, list[float]] = {kind: [] for kind in ways}
        for _ in range(options.repeats):
            for kind, recordings in ways.items():
                start = time.process_time()
                one.run(recordings)
                times[kind].append(1e3 * (time.process_time() - start))
        for kind, taken in times.items():
            print(f"{kind}: {statistics.median(taken):.1f} ms CPU time a pass (least {min(taken):.1f})")


if __name__ == "__main__":
    main()
