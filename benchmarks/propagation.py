"""What it costs to carry labels to one more frame of a 480p video: by windows, and by all cells against all cells.

    python benchmarks/propagation.py

Random features at the sizes of DIFT's setting for DAVIS-2017 with Stable Diffusion 2.1: 60 × 104 cells of 640
channels, the first frame and the last 28, a window of 15 cells on each side, the 15 most similar cells. Both ways take
turns on the same frames in one process.

Dense: the similarities of all cells of the frame to all cells of all 29 frames, times a mask of the windows, the k-th
largest of each row, everything below set to 0, divided by the sum, times the labels, as DINO's and DIFT's released
evaluations do, here in place wherever that is possible. Windows: `gate_lightning.ops.propagation`. Equal: soft labels
to 1e-6, and the labels of all pixels but those whose two highest maps differ by no more than rounding (1e-5).

Seconds are those of the processor (one thread), which do not depend on what else runs. Memory: the most that torch
holds at once beyond the features and labels of the 29 frames, by its profiler.

    python benchmarks/propagation.py --video 500

carries labels through so many frames instead, and prints the memory of the process after every hundred of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import psutil
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torch_memory import peak

from gate_lightning.ops.propagation import Propagation, Propagator, labels_of, one_hot
from gate_lightning.utils.units import human_size

CHANNELS, ROWS, COLUMNS, LABELS = 640, 60, 104, 3
#: stretched maps that differ by less are equal but for rounding
ROUNDING = 1e-5

#: a frame whose labels are known: (C, h, w) and (K, h, w)
Known = tuple[Tensor, Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.video:
        follow(options)
        return
    rule = Propagation(options.last, options.radius, options.top_k, 0.2)
    slow, fast = [], []
    for seed in range(options.frames):
        query, context = made_up(options, seed)
        taken, wanted = timed(lambda query=query, context=context: dense(rule, query, context))
        slow.append(taken)
        ours = ready(rule, context)
        taken, found = timed(lambda ours=ours, query=query: ours(query))
        fast.append(taken)
        check(wanted, found)
    query, context = made_up(options, 0)
    ours = ready(rule, context)
    memory = [peak(lambda: dense(rule, query, context)), peak(lambda: ours(query))]
    times = [statistics.median(slow), statistics.median(fast)]
    print(f"{options.rows} × {options.columns} cells of {options.channels} channels, {options.last + 1} frames,")
    print(f"{len(slow)} frames measured, {options.threads} threads, torch {torch.__version__}; labels are equal")
    for name, seconds, size in zip(("dense", "windows"), times, memory, strict=True):
        print(f"{name:<10}{seconds:10.2f} s of the processor a frame (median){human_size(size):>14} peak")
    print(f"propagate {times[0] / times[1]:.1f}x, memory {memory[0] / memory[1]:.0f}x")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2, help="frames that are measured")
    parser.add_argument("--video", type=int, default=0, help="carry labels through so many frames instead")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--last", type=int, default=28)
    parser.add_argument("--radius", type=int, default=15)
    parser.add_argument("--top-k", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def made_up(options: argparse.Namespace, seed: int) -> tuple[Tensor, list[Known]]:
    """Features of a frame, and the frames before it."""
    generator = torch.Generator().manual_seed(seed)
    shape = (options.channels, options.rows, options.columns)
    query, *features = (torch.randn(shape, generator=generator) for _ in range(options.last + 2))
    masks = [torch.randint(LABELS, shape[1:], generator=generator) for _ in features]
    return query, [(one, one_hot(mask, LABELS)) for one, mask in zip(features, masks, strict=True)]


def ready(rule: Propagation, context: list[Known]) -> Propagator:
    """A propagator that knows the frames."""
    ours = Propagator(rule, *context[0])
    for features, labels in context[1:]:
        ours.know(features, labels)
    return ours


def dense(rule: Propagation, query: Tensor, context: list[Known]) -> Tensor:
    """Labels (K, h, w), by all cells against all cells."""
    shape = query.shape[1:]
    keys = torch.cat([normalize(features, dim=0).flatten(1) for features, _ in context], dim=1)
    weights = normalize(query, dim=0).flatten(1).T @ keys
    weights.div_(rule.temperature).exp_()
    place = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).flatten(1)
    inside = ((place[:, :, None] - place[:, None, :]).abs() <= rule.radius).all(dim=0).float()
    weights.view(len(weights), len(context), -1).mul_(inside[:, None])
    least = weights.topk(rule.top_k, dim=1).values[:, -1:]
    weights.masked_fill_(weights < least, 0)
    weights.div_(weights.sum(dim=1, keepdim=True))
    labels = torch.cat([one.flatten(1) for _, one in context], dim=1)
    return (weights @ labels.T).T.view(-1, *shape)


def check(wanted: Tensor, found: Tensor) -> None:
    """Stop unless the labels are equal."""
    size = (8 * wanted.shape[1], 8 * wanted.shape[2])
    apart = float((wanted - found).abs().max())
    maps = interpolate(wanted[None], size, mode="bilinear", align_corners=False)[0].flatten(1)
    low, high = maps.amin(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)
    first, second = ((maps - low) / (high - low)).topk(2, dim=0).values
    other = (labels_of(wanted, size) != labels_of(found, size)).flatten() & (first - second > ROUNDING)
    if apart > 1e-6 or bool(other.any()):
        sys.exit(f"labels differ: by up to {apart:.2g}, at {int(other.sum())} pixels")


def follow(options: argparse.Namespace) -> None:
    """Carry labels through a video, and print the memory of the process."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.channels, options.rows, options.columns)
    mask = torch.randint(LABELS, shape[1:], generator=generator)
    rule = Propagation(options.last, options.radius, options.top_k, 0.2)
    ours = Propagator(rule, torch.randn(shape, generator=generator), one_hot(mask, LABELS))
    for index in range(1, options.video):
        ours(torch.randn(shape, generator=generator))
        if index % 100 == options.last + 2 or index == options.video - 1:
            print(
                f"frame {index}: {ours.kept} frames kept, {human_size(psutil.Process().memory_info().rss)}", flush=True
            )


def timed(way: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.process_time()
    found = way()
    return time.process_time() - started, found


if __name__ == "__main__":
    main()
