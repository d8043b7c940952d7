"""A page of images of a ranking by content shift, as in the GATE paper's figures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image
from gate_lightning.errors import GateError, first_line
from gate_lightning.ops.pca import principal_components, to_unit_range
from gate_lightning.structures import ImageBatch
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.task import ContentShiftResults
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.predictions import to_image

__all__ = ["ShiftImages"]

log = logging.getLogger(__name__)

#: timestep of the reference
CLEAN = 0


@dataclass(frozen=True)
class _Shown:
    """A candidate on the page: one entry for each image."""

    repainted: Sequence[NDArray[np.uint8] | None]
    maps: Mapping[tuple[str, int], Sequence[Tensor]]  # layer, timestep → (1, C, h, w)


class ShiftImages(SplitReport[ContentShiftResults, Any]):
    """Draws ``images/content_shift_<layer>.png``: by image and candidate, what it repaints and what its features are.

    Columns: the image; the image noised at ``strength`` and denoised again under the candidate (where the backbone
    makes images); the first three principal components of its features in a layer at t = 0 and at every timestep, as
    red, green and blue. Axes and limits of a layer are those of all candidates, images and timesteps together, so that
    equal colours are equal features: what changes colour or place along a row is content shift.

    Args:
        count: images shown, at least 1.
        strength: share of the noise schedule that images are repainted from.
        steps: of the repainting.

    Raises:
        ConfigError: a number out of range.
    """

    reads: ClassVar[type] = ContentShiftResults

    def __init__(self, count: int = 2, strength: float = 0.5, steps: int = 20) -> None:
        super().__init__()
        self.count = whole_number(count, "count", 1)
        self.strength, self.steps = number(strength, "strength", 0, 1), whole_number(steps, "steps", 1)

    def rows_of(self, task: ContentShiftResults, batch: Any, outputs: Any) -> Iterator[ImageBatch]:
        """Images of a batch one by one, until there are as many as are drawn."""
        for index in range(len(batch)):
            yield ImageBatch(batch.images[index : index + 1], batch.conditions[index])

    @torch.no_grad()
    def on_split_end(self, trainer: Trainer, task: ContentShiftResults, split: str, rows: list[ImageBatch]) -> None:
        """Draw a page for every layer: repainted images and features of each candidate."""
        reader = task.reader
        names = [name for name, one in reader.candidates.items() if one.kind in ("plain", "candidate")]
        batches = [ShiftBatch(reader, one, None) for one in rows]
        shown = {name: _Shown(self._repainted(name, batches), _maps(reader, name, batches)) for name in names}
        layers = list(dict.fromkeys(layer for one in shown.values() for layer, _ in one.maps))
        for layer in layers:
            publish_image(trainer, f"content_shift_{layer}", self._page(layer, rows, shown))

    def _repainted(self, name: str, batches: Sequence[ShiftBatch]) -> list[NDArray[np.uint8] | None]:
        """Images repainted under a candidate; None where it, or its backbone, makes none."""
        try:
            made = [one.reconstructed(name, self.strength, self.steps) for one in batches]
        except GateError as error:
            log.info("no repainted images of %s: %s", name, first_line(error))
            return [None] * len(batches)
        return [None if one is None else to_image(one[0]) for one in made]

    def _page(self, layer: str, rows: Sequence[ImageBatch], shown: Mapping[str, _Shown]) -> NDArray[np.uint8]:
        colours = _colours({name: one.maps for name, one in shown.items()}, layer)
        timesteps = list(dict.fromkeys(timestep for _, timestep in colours))
        painted = any(image is not None for one in shown.values() for image in one.repainted)
        titles = ["image", *([f"repainted, strength {self.strength:g}"] if painted else [])]
        titles += [f"features at t = {timestep}" for timestep in timesteps]
        cells: list[list[NDArray[np.uint8] | None]] = []
        names: list[str] = []
        for number_, row in enumerate(rows):
            for name, one in shown.items():
                if not any((name, timestep) in colours for timestep in timesteps):
                    continue
                # the image once, above the candidates
                first = to_image(row.images[0]) if not names or name == next(iter(shown)) else None
                own = [colours[name, t][number_] if (name, t) in colours else None for t in timesteps]
                cells.append([first, *([one.repainted[number_]] if painted else []), *own])
                names.append(f"{name}   {row.conditions.sample_ids[0]}")
        smooth = [True] * (1 + painted) + [False] * len(timesteps)
        return image_grid(cells, titles, names, tile_height=112, smooth=smooth)


def _maps(reader: ShiftReader, name: str, batches: Sequence[ShiftBatch]) -> dict[tuple[str, int], list[Tensor]]:
    """Layer, timestep → a candidate's map of every image."""
    maps: dict[tuple[str, int], list[Tensor]] = {}
    for timestep in dict.fromkeys((CLEAN, *reader.timesteps)):
        if all(batch.reads(name, timestep) for batch in batches):
            for batch in batches:
                for layer, value in batch.features(name, timestep).items():
                    maps.setdefault((layer, timestep), []).append(value.cpu())
    return maps


def _colours(
    maps: Mapping[str, Mapping[tuple[str, int], Sequence[Tensor]]], layer: str
) -> dict[tuple[str, int], list[NDArray[np.uint8]]]:
    """Candidate, timestep → an image of each map of a layer; the axes are those of all maps of equal channels."""
    keys = [(name, t) for name, one in maps.items() for found, t in one if found == layer]
    keys.sort(key=lambda key: key[1])
    of_key = {key: list(maps[key[0]][layer, key[1]]) for key in keys}
    found: dict[tuple[str, int], list[NDArray[np.uint8]]] = {}
    for channels in dict.fromkeys(own[0].shape[1] for own in of_key.values()):
        group = [key for key in keys if of_key[key][0].shape[1] == channels]
        every = [one for key in group for one in of_key[key]]
        projection = principal_components(every, 3)
        pixels = [_pixels(one) for one in to_unit_range([projection(one) for one in every])]
        for key in group:
            count = len(of_key[key])
            found[key], pixels = pixels[:count], pixels[count:]
    return dict(sorted(found.items(), key=lambda item: keys.index(item[0])))


def _pixels(coordinates: Tensor) -> NDArray[np.uint8]:
    return (255 * coordinates[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()
