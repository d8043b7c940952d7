"""Closed-form probes as a measure, where there are masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.metrics.content_shift.probe import PROBES, Moments, class_shares, iou_counts, moments, probe
from gate_lightning.metrics.content_shift.statistic import Statistic, mean_iou
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.measure import Key, Measure
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["ClosedFormProbe"]


@dataclass(frozen=True)
class _Truth:
    """A mask at the resolution it is measured at, and its share (height, width) of the padded image."""

    mask: Tensor
    shown: tuple[float, float]


class ClosedFormProbe(Measure):
    """mIoU of a classifier of positions in closed form, each image predicted by a classifier that has not seen it.

    Images are dealt into folds; each fold is predicted from the moments of all others. Of features larger than ``grid``
    positions a side, and of masks larger than ``pixels``, a coarser grid is taken. It is the reference that needs
    labels, not a measure of shift.

    Args:
        kind: ``ridge`` (regression on class shares) or ``centroid`` (nearest class mean).
        folds: at most the number of images.
        grid: largest side of the features, in positions.
        pixels: largest side of the masks.

    Raises:
        ConfigError: an unknown kind, or a number out of range.
    """

    reads_labels = True

    def __init__(self, kind: str = "ridge", folds: int = 4, grid: int = 32, pixels: int = 128) -> None:
        check_choice(kind, "kind", PROBES)
        self.kind, self.folds = kind, whole_number(folds, "folds", 2)
        self.grid, self.pixels = whole_number(grid, "grid", 1), whole_number(pixels, "pixels", 1)
        self.classes = 0
        self._truths: list[_Truth] = []
        self._maps: dict[Key, list[Tensor]] = {}

    def missing(self, batch: ShiftBatch) -> str | None:
        """Reason why it cannot be measured here, or None; see `Measure`."""
        if batch.masks is None:
            return "the data set has no masks"
        return None

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        assert batch.masks is not None  # not missing
        assert batch.labels is not None
        self.classes = batch.labels.num_classes
        for mask in batch.masks:
            padded, shown = batch.padded(batch.reader.plain(batch.candidates[0])).images.shape, batch.images.shape
            self._truths.append(_Truth(_reduced(mask, self.pixels), (shown[2] / padded[2], shown[3] / padded[3])))
        for timestep in batch.timesteps:
            for candidate in batch.candidates:
                if not batch.reads(candidate, timestep):
                    continue
                for layer, features in batch.features(candidate, timestep).items():
                    size = min(features.shape[2], self.grid), min(features.shape[3], self.grid)
                    small = F.adaptive_avg_pool2d(features, size).cpu()
                    self._maps.setdefault((candidate, timestep, layer), []).extend(small)

    def result(self) -> dict[Key, Statistic]:
        """Statistics of all images so far; see `Measure`."""
        canvases = [_canvas(truth) for truth in self._truths]

        @cache
        def shares(image: int, size: tuple[int, int]) -> Tensor:
            return class_shares(canvases[image], self.classes, size)

        found = {}
        for key in list(self._maps):
            counts = self._counts(self._maps.pop(key), canvases, shares)
            found[key] = Statistic(torch.stack(counts), True, mean_iou)
        return found

    def _counts(
        self, maps: list[Tensor], canvases: list[Tensor], shares: Callable[[int, tuple[int, int]], Tensor]
    ) -> list[Tensor]:
        """Intersections and unions of every image."""
        folds = min(self.folds, len(maps))
        own = [moments(one, shares(image, (one.shape[1], one.shape[2]))) for image, one in enumerate(maps)]
        parts = [_sum(own[fold::folds]) for fold in range(folds)]
        whole = _sum(parts)
        counts = []
        for number, (one, canvas) in enumerate(zip(maps, canvases, strict=True)):
            scores = probe(self.kind, whole - parts[number % folds], one)
            finite = scores.nan_to_num(neginf=float(scores[scores.isfinite()].min()) - 1.0)
            enlarged = F.interpolate(finite[None], canvas.shape, mode="bilinear", align_corners=False)[0]
            counts.append(iou_counts(enlarged.argmax(dim=0), canvas, self.classes))
        return counts


def _sum(parts: list[Moments]) -> Moments:
    total = parts[0]
    for one in parts[1:]:
        total = total + one
    return total


def _reduced(mask: Tensor, side: int) -> Tensor:
    """A mask (H, W) of at most ``side`` pixels a side, int64 on the CPU; nearest pixels."""
    factor = min(1.0, side / max(mask.shape))
    size = [max(1, round(length * factor)) for length in mask.shape]
    return F.interpolate(mask[None, None].double(), size, mode="nearest-exact")[0, 0].long().cpu()


def _canvas(truth: _Truth) -> Tensor:
    """The mask with what the padding covers, unlabelled."""
    height, width = truth.mask.shape
    size = [round(side / share) for side, share in zip((height, width), truth.shown, strict=True)]
    return F.pad(truth.mask, (0, size[1] - width, 0, size[0] - height), value=IGNORE_INDEX)
