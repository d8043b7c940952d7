"""CPU milliseconds that a batch of images costs the host beside the network, by what is done for it.

    python benchmarks/host_work.py

Rows: where a loader worker does it, the training process is spared it. Images are synthetic (blurred noise, as JPEG
files); one thread, median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from gate_lightning.data.files.images import read_image
from gate_lightning.features.caches.keys import ImageKeys
from gate_lightning.features.reading.noise import batch_noise
from gate_lightning.structures import Conditions
from gate_lightning.techniques.controlnet import CannyEdges

BRANCHES = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{given.batch} images of {given.size} x {given.size}: CPU milliseconds, median of {given.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        for name, work in _works(given.batch, given.size, Path(folder)).items():
            print(f"{name:52}{_milliseconds(work, given.repeats):9.2f}")


def _works(count: int, size: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    rng = np.random.default_rng(0)
    files = [folder / f"{index}.jpg" for index in range(count)]
    for file in files:
        Image.fromarray(cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 1.5)).save(file)
    pixels = [read_image(file) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    names = Conditions(tuple(file.name for file in files))
    settings = CannyEdges()
    ahead = replace(names, edges={settings.key: torch.stack([torch.from_numpy(settings.edges(one)) for one in pixels])})
    named = names.read_by(0)
    keys = ImageKeys()
    keys(images, named)
    latents = (4, size // 8, size // 8)
    return {
        "decoding of JPEG files (workers)": lambda: [read_image(file) for file in files],
        "edges of one setting, found when they are needed": lambda: settings(images, names),
        "edges of one setting, found ahead (workers)": lambda: [settings.edges(one) for one in pixels],
        "edges of one setting, that were found ahead": lambda: settings(images, ahead),
        f"noise of {BRANCHES} branches": lambda: [batch_noise(latents, names, 0, 0, one) for one in range(BRANCHES)],
        "cache keys of images that nothing is known of": lambda: keys(images, names),
        "cache keys of images that were seen before": lambda: keys(images, named),
    }


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    work()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - begun))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
