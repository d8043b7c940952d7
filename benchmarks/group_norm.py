"""Microseconds of a group norm of channels_last maps in bfloat16, with 32 groups, by torch and by the kernels.

    python benchmarks/group_norm.py --device cuda

Shapes of Stable Diffusion 1.5's U-Net and of its autoencoder at 512². torch's result is copied back to channels_last,
as the next convolution does. Both are replayed as CUDA graphs, without the host's time; the rate is that of reading the
map twice and writing it once; the difference is relative to float64. A CPU, where the operator is torch's, is asked for
small maps only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.backbones.kernels.group_norm import group_norm_channels_last, plain_group_norm

SHAPES = (
    *((3, 320, 64, 64), (3, 960, 64, 64), (12, 320, 64, 64), (12, 640, 32, 32), (12, 1280, 16, 16), (12, 1280, 8, 8)),
    *((1, 128, 512, 512), (4, 128, 512, 512), (4, 256, 256, 256), (2, 512, 64, 64)),
)
GROUPS = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=50)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    shapes = SHAPES if device.type == "cuda" else ((1, 64, 8, 12), (2, 128, 9, 7))
    print(f"{'shape':>22}{'torch us':>12}{'kernels us':>12}{'GB/s':>8}{'difference':>12}")
    with torch.inference_mode():
        for shape in shapes:
            maps = torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
            affine = torch.randn(2, shape[1], device=device, dtype=torch.bfloat16).unbind()
            ways = [_way(function, maps, *affine) for function in (plain_group_norm, group_norm_channels_last)]
            exact = F.group_norm(maps.double(), GROUPS, *(one.double() for one in affine))
            difference = float((ways[1]() - exact).norm() / exact.norm())
            old, new = (_microseconds(way, device, given.repeats) for way in ways)
            rate = 3 * maps.nbytes / new / 1e3
            print(f"{'x'.join(map(str, shape)):>22}{old:12.1f}{new:12.1f}{rate:8.0f}{difference:12.1e}")


def _way(function: Callable[..., Tensor], maps: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    return lambda: function(maps, GROUPS, weight, bias, 1e-5)


def _microseconds(way: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Of a call, over several in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            way()
        return 1e6 * (time.perf_counter() - start) / repeats
    way()
    graph, begin, end = torch.cuda.CUDAGraph(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            way()
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / repeats


if __name__ == "__main__":
    main()
