"""The GATE paper's Laplacian score as a measure, with either reference."""

from __future__ import annotations

from gate_lightning.metrics.content_shift.laplacian import contour_difference
from gate_lightning.metrics.content_shift.statistic import share_kept
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.measure import ImageMeasure
from gate_lightning.utils.checks import check_choice

__all__ = ["LaplacianScore"]

REFERENCES = ("plain", "own")


class LaplacianScore(ImageMeasure):
    """(diff_anchor - diff) / diff_anchor, where diff is how far the contours are from a reference (GATE, §5.2).

    Both differences are averaged over the images before they are divided. The anchor, a feature with strong shift, is
    the plain feature at the same timestep, measured against the plain feature at t = 0: a plain candidate has 0, and 1
    is no shift at all. The paper names neither anchor nor the branch of the reference.

    Args:
        reference: of what a candidate is compared with at t = 0, in the same layer: ``plain`` features, or its
            ``own``. A technique moves features altogether: the former counts that as shift, the latter only what
            the noise does.

    Raises:
        ConfigError: an unknown reference.
    """

    reduce = staticmethod(share_kept)
    relative = True

    def __init__(self, reference: str = "own") -> None:
        super().__init__()
        check_choice(reference, "reference", REFERENCES)
        self.reference = reference

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        for timestep in batch.timesteps:
            for candidate in batch.candidates:
                plain = batch.reader.plain(candidate)
                reference = plain if self.reference == "plain" else candidate
                if not (batch.reads(candidate, timestep) and batch.reads(reference, 0)):
                    continue
                features, anchors = batch.features(candidate, timestep), batch.features(plain, timestep)
                for layer, own in features.items():
                    difference = contour_difference(batch.features(reference, 0)[layer], own)
                    anchor = contour_difference(batch.features(plain, 0)[layer], anchors[layer])
                    text = f"{plain} at t = {timestep}"
                    self.add(candidate, timestep, layer, difference, anchor, anchor=text)
