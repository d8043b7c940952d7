"""What SPair-71k's protocol costs per pair: by resized maps, as released code does it, and at native resolution.

    python benchmarks/correspondence.py --threads 2

Random features of Stable Diffusion 2.1's second up block for images of 768² pixels (1280 × 48 × 48), resized to files
of 375 × 500 pixels; every pair has 8 keypoints. Both ways take turns on the same pairs in one process; each pair has
two new images, so nothing is reused (SPair-71k's test split has 12,234 pairs of 1,800 images at most).

Per keypoint: both maps are resized to their files' sizes; for each keypoint all vectors of the target are normalised
and multiplied with the keypoint's, as DIFT's released evaluation does; the first maximum. Native:
`gate_lightning.ops.correspondence`. Equal matches: the pixels are equal, or the slow way's own similarities there
differ by no more than rounding (1e-5). Memory: the most that torch holds at once beyond the features, by its profiler,
of the slow way with one keypoint.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torch_memory import peak

from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.utils.units import human_size

SIZE, CHANNELS, SIDE, KEYPOINTS = (375, 500), 1280, 48, 8
#: similarities that differ by less are equal but for rounding
ROUNDING = 1e-5

#: features of source and target (C, h, w), size of the files, points (N, 2)
Pair = tuple[Tensor, Tensor, tuple[int, int], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    pairs = [made_up(options, seed) for seed in range(options.pairs)]
    slow, fast = [], []
    for pair in pairs:
        taken, (wanted, maps) = timed(lambda pair=pair: per_keypoint(*pair))
        slow.append(taken)
        taken, found = timed(lambda pair=pair: native(*pair))
        fast.append(taken)
        check(wanted, maps, found)
    source, target, size, points = pairs[0]
    memory = [
        peak(lambda: per_keypoint(source, target, size, points[:1])),
        peak(lambda: native(source, target, size, points)),
    ]
    times = [statistics.median(slow), statistics.median(fast)]
    shape = f"{options.channels} × {options.side} × {options.side}"
    print(f"{shape} features, files of {options.size[0]} × {options.size[1]} pixels, {options.keypoints} keypoints,")
    print(f"{len(pairs)} pairs, {options.threads} threads, torch {torch.__version__}; matches are equal")
    for name, seconds, size in zip(("per keypoint", "native"), times, memory, strict=True):
        print(f"{name:<14}{seconds * 1000:10.1f} ms a pair (median){human_size(size):>14} peak")
    print(f"match {times[0] / times[1]:.0f}x, memory {memory[0] / memory[1]:.0f}x")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--keypoints", type=int, default=KEYPOINTS)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--side", type=int, default=SIDE, help="positions of the feature maps, each way")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width of the files")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def made_up(options: argparse.Namespace, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, options.channels, options.side, options.side, generator=generator)
    height, width = options.size
    points = [torch.randint(side, (options.keypoints,), generator=generator) for side in (width, height)]
    return source, target, (height, width), torch.stack(points, dim=1)


def per_keypoint(source: Tensor, target: Tensor, size: tuple[int, int], points: Tensor) -> tuple[Tensor, Tensor]:
    """Matches (N, 2), and the maps they were read off (N, H, W)."""
    here, there = (interpolate(one[None], size, mode="bilinear", align_corners=False)[0] for one in (source, target))
    maps = torch.stack(
        [normalize(here[:, y, x], dim=0) @ normalize(there.flatten(1), dim=0) for x, y in points.tolist()]
    )
    index = maps.argmax(dim=1)
    return torch.stack([index % size[1], index // size[1]], dim=1), maps.view(-1, *size)


def native(source: Tensor, target: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """Matches (N, 2)."""
    return ReadOut()(FeatureGrid(source, size), FeatureGrid(target, size), points)


def check(wanted: Tensor, maps: Tensor, found: Tensor) -> None:
    """Stop unless the matches are equal."""
    rows = torch.arange(len(maps))
    values = [maps[rows, place[:, 1].long(), place[:, 0].long()] for place in (wanted, found)]
    other = (wanted != found).any(dim=1) & ((values[0] - values[1]).abs() > ROUNDING)
    if bool(other.any()):
        sys.exit(f"matches differ: {found[other].tolist()} instead of {wanted[other].tolist()}")


def timed(way: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    found = way()
    return time.perf_counter() - started, found


if __name__ == "__main__":
    main()
