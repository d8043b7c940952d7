"""ADE20K and Cityscapes in small: the official layouts, names and values, made-up content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.folders import make_image, write

ADE_SIZES = {"training": [(48, 64), (64, 48), (50, 50), (40, 120)], "validation": [(48, 64), (60, 50)]}
CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt",)}
CITY_SIZE = (32, 64)


def blocks(height: int, width: int, low: int, high: int, seed: int) -> np.ndarray:
    """uint8 (H, W): blocks of 8 pixels of values low … high, both of which occur."""
    rng = np.random.default_rng(seed)
    small = rng.integers(low, high + 1, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
    small[0, :2] = low, high
    return small.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def make_ade20k(root: Path, low: int = 0, high: int = 150) -> Path:
    """ADEChallengeData2016 with JPEG images, index masks of values ``low`` … ``high``, and a test image."""
    for folder, sizes in ADE_SIZES.items():
        for number, (height, width) in enumerate(sizes, start=1):
            name = f"ADE_{folder[: 5 if folder == 'training' else 3]}_{number:08d}"
            write(root / f"images/{folder}/{name}.jpg", make_image(height, width, number))
            write(root / f"annotations/{folder}/{name}.png", blocks(height, width, low, high, number))
    write(root / "images/testing/ADE_test_00000001.jpg", make_image(44, 56, 9))
    return root


def make_cityscapes(root: Path, encodings: tuple[str, ...] = ("labelIds",), size: tuple[int, int] = CITY_SIZE) -> Path:
    """Two images a city, with the other files of the download beside the masks."""
    for split, cities in CITIES.items():
        for city in cities:
            for number in range(2):
                name = f"{city}_{number:06d}_000019"
                write(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", make_image(*size, number))
                ids = blocks(*size, 0, 33, number)
                for encoding in encodings:
                    values = ids if encoding == "labelIds" else np.where(ids > 18, 255, ids).astype(np.uint8)
                    write(root / f"gtFine/{split}/{city}/{name}_gtFine_{encoding}.png", values)
                write(root / f"gtFine/{split}/{city}/{name}_gtFine_color.png", make_image(*size, number))
                (root / f"gtFine/{split}/{city}/{name}_gtFine_polygons.json").write_text("{}")
    write(root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", make_image(*size, 7))
    return root
