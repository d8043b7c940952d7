"""Data sets in ddpm-segmentation's layout, made up: square images with a .npy mask beside each.

As a command it writes one of real size, to measure on: python -m tests.support.label_scarce FOLDER horse_21
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

#: values in the files of each set, background of Bedroom-28 included
VALUES = {"bedroom_28": 29, "ffhq_34": 34, "cat_15": 15, "horse_21": 21, "celeba_19": 19, "ade_bedroom_30": 30}
COUNTS = {
    "bedroom_28": (40, 20),
    "ffhq_34": (20, 20),
    "cat_15": (30, 20),
    "horse_21": (30, 30),
    "celeba_19": (20, 500),
    "ade_bedroom_30": (50, 650),
}


def regions(values: int, side: int, seed: int, sites: int = 40) -> np.ndarray:
    """int64 (side, side): the plane shared out between random points, each of a value from 0 on; all values occur in
    one of ``values / sites`` images or more."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, side, (sites, 2))
    of_site = (np.arange(sites) + seed * sites) % values
    rows, columns = np.mgrid[:side, :side]
    squared = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    chosen: np.ndarray = of_site[squared.argmin(axis=-1)]
    return chosen


def write_pair(folder: Path, name: str, values: np.ndarray, seed: int = 0) -> None:
    """``name.png`` in the colours of the values, with noise, and ``name.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(0).integers(40, 216, (256, 3))
    noisy = colours[values.astype(int) % 256] + rng.integers(-30, 31, (*values.shape, 3))
    Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{name}.png")
    np.save(folder / f"{name}.npy", values)


def make_scarce(root: Path, key: str = "horse_21", train: int = 4, test: int = 3, side: int = 32) -> Path:
    """A whole set below ``root``, which is given back."""
    number = 0
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            values = regions(VALUES[key], side, number)
            write_pair(root / key / "real" / split, f"img_{index:03d}", values.astype(np.uint8), number)
            number += 1
    return root


if __name__ == "__main__":
    make_scarce(Path(sys.argv[1]), sys.argv[2], *COUNTS[sys.argv[2]], side=256)
