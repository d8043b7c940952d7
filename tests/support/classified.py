"""Small data sets of classified images: a folder for each class, and files in CIFAR-10's binary layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["CIFAR_NAMES", "write_cifar", "write_image_folder"]

CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_image_folder(root: Path, splits: Mapping[str, Mapping[str, int]], size: tuple[int, int] = (20, 28)) -> Path:
    """``root/<split>/<class>/<number>.png`` of (height, width) noise, no two alike; split → class → images."""
    rng = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def write_cifar(root: Path, images: int) -> dict[str, np.ndarray]:
    """The files of CIFAR-10 with ``images`` images each; file → records (images, 3073)."""
    rng, found = np.random.default_rng(0), {}
    root.mkdir(parents=True, exist_ok=True)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (images, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(images) % 10
        (root / name).write_bytes(records.tobytes())
        found[name] = records
    (root / "batches.meta.txt").write_text("\n".join(CIFAR_NAMES) + "\n\n")
    return found
