"""Principal components of the branches' features, side by side as in the GATE paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image
from gate_lightning.ops.pca import principal_components, to_unit_range
from gate_lightning.structures import Features, SegmentationBatch
from gate_lightning.tasks.base import ReadsFeatures
from gate_lightning.utils.checks import whole_number
from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.predictions import to_image

__all__ = ["FeaturePCA", "pca_images"]

#: with more columns than this an image is split by layer
MOST_COLUMNS = 11

#: sample id, image (H, W, 3) uint8, features of the image
Drawn = tuple[str, NDArray[np.uint8], Features]


class FeaturePCA(SplitReport[ReadsFeatures, Drawn]):
    """Draws the first three principal components of every branch's and layer's features as red, green and blue.

    Rows are validation images, columns the image, then branch by branch for each layer. The axes and limits of a
    layer are shared by all branches and images, so equal colours are equal features. Features are frozen, so it
    is drawn once, after the first validation, as ``images/feature_pca.png`` (or one image per layer where there
    are many columns).

    Args:
        count: images shown, at least 1.

    Raises:
        ConfigError: ``count`` is out of range.
    """

    during_training: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("val",)
    reads: ClassVar[type] = ReadsFeatures

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.count = whole_number(count, "count", 1)
        self._drawn = False

    def rows_of(self, task: ReadsFeatures, batch: SegmentationBatch, outputs: Tensor) -> Iterator[Drawn]:
        """Name, pixels and features of the first images; computed again, as the task does not keep them."""
        for index in range(0 if self._drawn else len(batch)):
            image, conditions = batch.images[index], batch.conditions[index]
            yield conditions.sample_ids[0], to_image(image), task.extractor(image[None], conditions)

    def on_split_end(self, trainer: Trainer, task: ReadsFeatures, split: str, rows: list[Drawn]) -> None:
        """Draw the features; only once per run."""
        if rows:
            self._drawn = True
            for suffix, grid in pca_images(*zip(*rows, strict=True)).items():
                publish_image(trainer, f"feature_pca{suffix}", grid)


def pca_images(
    names: Sequence[str], images: Sequence[NDArray[np.uint8]], features: Sequence[Features]
) -> dict[str, NDArray[np.uint8]]:
    """Image tables of the features' first three principal components as colours.

    Args:
        names: of the images.
        images: (H, W, 3) uint8.
        features: of each image: branch → layer → (1, C, h, w).

    Returns:
        "" → one table; or, where it would be too wide, "_<layer>" → the table of that layer.
    """
    layers = list(dict.fromkeys(layer for maps in features[0].values() for layer in maps))
    columns = {layer: _layer_columns(layer, features) for layer in layers}
    if 1 + sum(len(titled) for titled in columns.values()) <= MOST_COLUMNS:
        together = {title: cells for titled in columns.values() for title, cells in titled.items()}
        return {"": _table(names, images, together)}
    return {f"_{layer}": _table(names, images, titled) for layer, titled in columns.items()}


def _layer_columns(layer: str, features: Sequence[Features]) -> dict[str, list[NDArray[np.uint8]]]:
    """Column title → one image per row, of the branches that read ``layer``."""
    branches = [branch for branch, maps in features[0].items() if layer in maps]
    maps = [image[branch][layer].float() for branch in branches for image in features]
    colours = []
    # branches of different backbones may give one layer id different channels
    for channels in dict.fromkeys(m.shape[1] for m in maps):
        group = [m for m in maps if m.shape[1] == channels]
        projection = principal_components(group, 3)
        colours += to_unit_range([projection(m) for m in group])
    pixels = [(255 * c[0]).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for c in colours]
    rows = len(features)
    return {f"{branch}: {layer}": pixels[i * rows : (i + 1) * rows] for i, branch in enumerate(branches)}


def _table(
    names: Sequence[str], images: Sequence[NDArray[np.uint8]], columns: dict[str, list[NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    rows = [[image, *(cells[number] for cells in columns.values())] for number, image in enumerate(images)]
    smooth = [True] + [False] * len(columns)
    return image_grid(rows, ["image", *columns], names, tile_height=128, smooth=smooth)
