"""Bilinear resizing of logits and back, as torch does it, as torch does it deterministically, and as ops/exact.py does.

    python benchmarks/resizing.py --device cuda

Milliseconds are medians until the device is done; peak memory is that of the resized maps and both gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from features import Peak, synchronise

from gate_lightning.ops.exact import exact_gradients


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=4, default=(16, 150, 128, 128), help="of the logits")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    logits = torch.randn(*options.shape, device=options.device, requires_grad=True)
    size = [options.factor * side for side in options.shape[2:]]
    given = torch.randn(*options.shape[:2], *size, device=options.device)
    torch.utils.deterministic.fill_uninitialized_memory = False  # as in runs
    expected = None
    ways = (("torch", False, False), ("exact, torch", True, False), ("exact, here", True, True))
    for name, deterministic, ours in ways:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        try:
            times, peaks, gradient = measured(logits, size, given, options, ours)
        finally:
            torch.use_deterministic_algorithms(False)
        expected = gradient if expected is None else expected
        error = float((gradient - expected).norm() / expected.norm())
        print(
            f"{name:14}{statistics.median(times):10.2f} ms{max(peaks) / 1e9:8.2f} GB  gradient {error:.0e} from torch's"
        )


def measured(
    logits: torch.Tensor, size: list[int], given: torch.Tensor, options: argparse.Namespace, ours: bool
) -> tuple[list[float], list[float], torch.Tensor]:
    """Milliseconds and peaks of every repetition but the first, and the gradient."""
    times, peaks = [], []
    for _ in range(options.repeats + 1):
        logits.grad = None
        with Peak(options.device) as peak:
            synchronise(options.device)
            began = time.perf_counter()
            with exact_gradients() if ours else nullcontext():
                F.interpolate(logits, size, mode="bilinear").backward(given)
            synchronise(options.device)
            times.append(1e3 * (time.perf_counter() - began))
        peaks.append(peak.bytes)
    assert logits.grad is not None
    return times[1:], peaks[1:], logits.grad


if __name__ == "__main__":
    main()
