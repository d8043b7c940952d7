"""One drawn image and the same warped by a known homography, written in the official layouts of data sets of pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from gate_lightning.utils.files import write_atomically

__all__ = ["Drawing", "drawing", "write_spair"]

#: maps pixels of the first image to pixels of the second
HOMOGRAPHY = np.array([[0.9, 0.06, 3.0], [-0.05, 1.1, 1.0], [1e-4, 2e-4, 1.0]])


@dataclass(frozen=True)
class Drawing:
    """Two images (H, W, 3), points (N, 2) and boxes of both, all by the same homography."""

    images: tuple[np.ndarray, np.ndarray]
    points: tuple[np.ndarray, np.ndarray]
    boxes: tuple[list[int], list[int]]


def drawing(seed: int = 0, count: int = 5, size: tuple[int, int] = (48, 64)) -> Drawing:
    """Blobs on noise, with points of whole pixels in the first image and rounded ones in the second."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    xs, ys = rng.choice(np.arange(12, width - 14), count, False), rng.choice(np.arange(10, height - 14), count, False)
    points = np.stack([xs, ys], axis=1)
    for x, y in points.tolist():
        cv2.circle(image, (x, y), 3, rng.integers(120, 255, 3).tolist(), -1)
    warped = cv2.warpPerspective(image, HOMOGRAPHY, (width + 8, height + 16))
    mapped = np.hstack([points, np.ones((count, 1))]) @ HOMOGRAPHY.T
    other = np.rint(mapped[:, :2] / mapped[:, 2:]).astype(int)
    boxes = [[*(both.min(axis=0) - 3).tolist(), *(both.max(axis=0) + 3).tolist()] for both in (points, other)]
    return Drawing((image, warped), (points, other), (boxes[0], boxes[1]))


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())


def write_spair(root: Path, splits: dict[str, tuple[str, ...]] | None = None, ids: tuple[str, ...] = ()) -> Path:
    """SPair-71k: split (trn, val, test) → categories of its pairs, one pair each and the same backwards."""
    number = 0
    for split, categories in (splits or {"trn": ("cat", "dog"), "val": ("cat",), "test": ("dog", "cat")}).items():
        names = []
        for category in categories:
            drawn, pair = drawing(number), []
            stems = [f"{split}_{number:02d}_{side}" for side in "ab"]
            for stem, image in zip(stems, drawn.images, strict=True):
                save(root / f"JPEGImages/{category}/{stem}.jpg", image)
            for first in (0, 1):
                pair = [first, 1 - first]
                name = f"{number:06d}-{stems[pair[0]]}-{stems[pair[1]]}:{category}"
                entry: dict[str, Any] = {
                    "pair_id": number,
                    "category": category,
                    "mirror": 0,
                    "viewpoint_variation": first,
                }
                for side, which in zip(("src", "trg"), pair, strict=True):
                    height, width = drawn.images[which].shape[:2]
                    entry |= {
                        f"{side}_imname": f"{stems[which]}.jpg",
                        f"{side}_imsize": [width, height, 3],
                        f"{side}_bndbox": drawn.boxes[which],
                        f"{side}_kps": drawn.points[which].tolist(),
                        f"{side}_pose": "Unspecified",
                    }
                entry["kps_ids"] = list(ids) or [str(index) for index in range(len(drawn.points[0]))]
                dump(root / f"PairAnnotation/{split}/{name}.json", entry)
                names.append(name)
                number += 1
        write = root / f"Layout/large/{split}.txt"
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text("\n".join(names) + "\n")
    return root
