"""Predictions beside the images and their true masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.heat import heat_map
from gate_lightning.visualization.overlay import error_map, legend_entries
from gate_lightning.visualization.palette import Palette, colorize

__all__ = ["PredictedImage", "prediction_grid", "to_image", "uncertainty_range"]

#: share of the pixels whose uncertainty is below the brightest colour
BRIGHT = 0.99


@dataclass(frozen=True)
class PredictedImage:
    """An image with its true and its predicted labels.

    Attributes:
        name: sample id.
        image: (H, W, 3) uint8 RGB, at the size of the masks, which is that of the file.
        truth: (H, W) labels.
        prediction: (H, W) labels.
        seen: (h, w, 3) uint8 RGB, the image as the network sees it; None where it has the size of the file.
        miou: mIoU of this image as a fraction; None where it was not measured.
        uncertainty: (H, W) in nats, or None.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    seen: NDArray[np.uint8] | None = None
    miou: float | None = None
    uncertainty: NDArray[np.float32] | None = None

    @property
    def title(self) -> str:
        """Name, and the mIoU in percent where it was measured."""
        return self.name if self.miou is None else f"{self.name}: mIoU {100 * self.miou:.1f} %"


def prediction_grid(
    rows: Sequence[PredictedImage], classes: Sequence[str], palette: Palette, ignore_index: int | None
) -> NDArray[np.uint8]:
    """Grid with columns image, mask, prediction, uncertainty (if measured) and errors, and a legend of the classes.

    Images that the network sees at another size have a column of that, too.

    Args:
        rows: one image each.
        classes: names.
        palette: colour per class.
        ignore_index: label of masks that is not judged.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns: dict[str, list[NDArray[np.uint8]]] = {"image": [row.image for row in rows]}
    if any(row.seen is not None for row in rows):
        columns["as the network sees it"] = [row.image if row.seen is None else row.seen for row in rows]
    columns |= {
        "ground truth": [colorize(row.truth, palette, ignore_index) for row in rows],
        "prediction": [colorize(row.prediction, palette) for row in rows],
    }
    heat: list[Any] = [row.uncertainty for row in rows if row.uncertainty is not None]
    if heat:
        bright, title = uncertainty_range(heat)
        columns[title] = [heat_map(values, bright) for values in heat]
    columns["errors (red)"] = [error_map(row.image, row.prediction, row.truth, ignore_index) for row in rows]
    maps = [row.prediction for row in rows] + [row.truth[row.truth != ignore_index] for row in rows]
    return image_grid(
        list(zip(*columns.values(), strict=True)),
        list(columns),
        [row.title for row in rows],
        legend_entries(maps, classes, palette),
        # the resolution that the network has should be seen
        smooth=[title == "image" for title in columns],
    )


def uncertainty_range(maps: Sequence[NDArray[np.float32]]) -> tuple[float, str]:
    """Value of the brightest colour of maps of uncertainty that are compared, and a title that says it.

    Args:
        maps: (H, W) in nats, one or more.
    """
    # a few outliers must not leave everything else dark
    every = np.concatenate([values.ravel() for values in maps])
    bright = float(np.quantile(every, BRIGHT)) or float(every.max())
    beyond = " and more" if every.max() > bright else ""
    # members that all agree, or one alone: black
    return bright or 1.0, f"uncertainty 0 … {bright:.2f}{beyond}"


def to_image(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [-1, 1] → (H, W, 3) uint8."""
    scaled = (image.detach().float().clamp(-1, 1) + 1) * 127.5
    array: NDArray[np.uint8] = scaled.round().byte().permute(1, 2, 0).cpu().numpy()
    return array
