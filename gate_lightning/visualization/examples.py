"""Example images of an evaluated split as files: pixels, true and predicted labels.

<folder>/examples.json        classes and their colours; name and mIoU of every example
<folder>/<n>_image.png        RGB
<folder>/<n>_truth.png        class indices with the palette, 255 where nothing is judged
<folder>/<n>_prediction.png   the same
<folder>/<n>_uncertainty.png  grey; 255 is the largest value, which examples.json has
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.errors import DataError
from gate_lightning.utils.files import write_atomically, write_image
from gate_lightning.utils.text import read_json
from gate_lightning.visualization.overlay import write_mask
from gate_lightning.visualization.palette import Palette
from gate_lightning.visualization.predictions import PredictedImage

__all__ = ["IGNORED", "Examples", "read_examples", "write_examples"]

#: label of pixels that are not judged, in the files
IGNORED = 255
#: pixels of the longer side; larger images are shrunk, as they are for looking at
LONGEST = 768


@dataclass(frozen=True)
class Examples:
    """Example images with their classes.

    Attributes:
        classes: names.
        palette: colour per class.
        rows: the images; their masks have `IGNORED` where nothing is judged.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    rows: tuple[PredictedImage, ...]


def write_examples(
    folder: Path, rows: Sequence[PredictedImage], classes: Sequence[str], palette: Palette, ignore_index: int | None
) -> None:
    """Write example images as files.

    Args:
        folder: made where it is missing; those that are there are replaced.
        rows: the images.
        classes: names.
        palette: colour per class.
        ignore_index: label of masks that is not judged.
    """
    described = []
    for number, row in enumerate(rows):
        small = _shrunk(row)
        entry: dict[str, Any] = {"name": row.name, "miou": row.miou}
        write_image(folder / f"{number}_image.png", Image.fromarray(small.image))
        for name, labels in (("truth", small.truth), ("prediction", small.prediction)):
            shown = labels if ignore_index is None else np.where(labels == ignore_index, IGNORED, labels)
            write_mask(folder / f"{number}_{name}.png", shown, palette)
        if small.uncertainty is not None:
            largest = float(small.uncertainty.max())
            grey = np.rint(small.uncertainty * (255 / (largest or 1.0))).astype(np.uint8)
            write_image(folder / f"{number}_uncertainty.png", Image.fromarray(grey))
            entry["largest_uncertainty"] = largest
        described.append(entry)
    content = {"classes": list(classes), "palette": [list(map(int, one)) for one in palette], "examples": described}
    write_atomically(folder / "examples.json", json.dumps(content, indent=1).encode())


def read_examples(folder: Path) -> Examples | None:
    """The example images in a folder, or None where there are none.

    Raises:
        DataError: a file is missing or damaged.
    """
    path = folder / "examples.json"
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        classes = tuple(str(name) for name in content["classes"])
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in content["palette"])
        entries = [
            (str(one["name"]), _number(one["miou"]), _number(one.get("largest_uncertainty")))
            for one in content["examples"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    rows = []
    for number, (name, miou, largest) in enumerate(entries):
        image = _pixels(folder / f"{number}_image.png", "RGB")
        truth, prediction = (
            _labels(folder / f"{number}_{what}.png", image, len(classes)) for what in ("truth", "prediction")
        )
        uncertainty = None
        if largest is not None:
            uncertainty = _pixels(folder / f"{number}_uncertainty.png", "L").astype(np.float32) * (largest / 255)
        rows.append(PredictedImage(name, image, truth, prediction, miou=miou, uncertainty=uncertainty))
    return Examples(classes, palette, tuple(rows))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _shrunk(row: PredictedImage) -> PredictedImage:
    height, width = row.truth.shape
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return row
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def sized(array: NDArray[Any], method: int) -> NDArray[Any]:
        return np.asarray(cv2.resize(array, size, interpolation=method))

    return replace(
        row,
        image=sized(row.image, cv2.INTER_AREA),
        truth=sized(row.truth.astype(np.int32), cv2.INTER_NEAREST),
        prediction=sized(row.prediction.astype(np.int32), cv2.INTER_NEAREST),
        uncertainty=None if row.uncertainty is None else sized(row.uncertainty, cv2.INTER_AREA),
    )


def _labels(path: Path, image: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    labels = _pixels(path, "P")
    if labels.shape != image.shape[:2] or np.any((labels >= count) & (labels != IGNORED)):
        raise DataError(f"{path} has labels of {labels.shape}, expected 0 … {count - 1} or {IGNORED}, of {image.shape}")
    return labels.astype(np.int64)


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode != mode or max(image.size) > LONGEST:
                raise DataError(
                    f"{path} is {image.mode} of {image.size}, expected {mode} of at most {LONGEST} pixels a side"
                )
            return np.asarray(image)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise DataError(f"{path} cannot be read: {error}") from error
