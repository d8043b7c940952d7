"""The GATE paper's test as a measure: images repainted under a candidate, and how close they are to the originals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gate_lightning.backbones.vision.backbone import VisionBackbone
from gate_lightning.backbones.vision.loading import load_vision_backbone
from gate_lightning.errors import ConfigError, GateError
from gate_lightning.features.reading.img2img import start_of
from gate_lightning.metrics.content_shift.closeness import (
    cosine_distance,
    edge_agreement,
    mean_squared_error,
    structural_similarity,
)
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.measure import ImageMeasure
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["ImageCloseness"]

#: reading → function of images and what was made of them, and whether more is closer
_READINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "error": (mean_squared_error, False),
    "ssim": (structural_similarity, True),
    "edges": (edge_agreement, True),
}


class ImageCloseness(ImageMeasure):
    """Closeness of images to what image to image makes of them (GATE §5.1, which judges it by eye).

    Every image is noised to a strength, with the same noise for all candidates, and denoised under the candidate's
    whole conditioning. Figures are told by the timestep that a strength stands for. The row ``autoencoder`` has the
    closeness of images that were encoded and decoded alone. The readings need not agree about a candidate: ask for
    several (`metrics.content_shift.closeness` says what each sees).

    Args:
        reading: ``error`` (mean squared), ``ssim``, ``edges``, or ``vision`` (cosine distance of a vision transformer's
            class tokens).
        strengths: shares of the noise schedule, in (0, 1].
        steps: DDIM steps back from each.
        vision: vision transformer of ``vision``: a folder or hub id, or a backbone.
        size: side in pixels at which it sees the images, rounded to its patches.

    Raises:
        ConfigError: an unknown reading, or a number out of range.
    """

    def __init__(
        self,
        reading: str,
        strengths: Sequence[float] = (0.4, 0.7),
        steps: int = 10,
        vision: str | VisionBackbone | None = None,
        size: int = 224,
    ) -> None:
        super().__init__()
        check_choice(reading, "reading", (*_READINGS, "vision"))
        self.reading, self.strengths = reading, tuple(strengths)
        if not self.strengths:
            raise ConfigError("strengths is empty; give at least one share of the noise schedule, such as 0.7")
        self.steps, self.size = whole_number(steps, "steps", 1), whole_number(size, "size", 1)
        self.vision: Any = vision
        self.higher_is_better = reading in _READINGS and _READINGS[reading][1]

    def missing(self, batch: ShiftBatch) -> str | None:
        """Reason why it cannot be measured here, or None; see `Measure`."""
        if self.reading == "vision" and self.vision is None:
            return "no vision transformer is named: task.measures.<this one>.vision=<folder or hub id, of DINOv2, say>"
        reasons = []
        for name in self._plain(batch):
            try:
                for strength in self.strengths:
                    start_of(batch.reader.backbone(name), strength)
            except GateError as error:
                reasons.append(str(error))
        if len(reasons) == len(self._plain(batch)):
            return "; ".join(reasons)
        if isinstance(self.vision, str):
            self.vision = load_vision_backbone(self.vision)
        return None

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        for strength in self.strengths:
            for plain in self._plain(batch):
                try:
                    start = start_of(batch.reader.backbone(plain), strength)
                except ConfigError:  # `missing` says so of all; here another backbone makes images
                    continue
                row, made = batch.autoencoded(plain)
                self.add(row, start, None, self._closeness(batch.images, made))
                for name in (name for name in batch.candidates if batch.reader.plain(name) == plain):
                    repainted = batch.reconstructed(name, strength, self.steps)
                    if repainted is not None:
                        self.add(name, start, None, self._closeness(batch.images, repainted))

    def _closeness(self, images: Tensor, made: Tensor) -> Tensor:
        if self.reading in _READINGS:
            return _READINGS[self.reading][0](images, made)
        seen = [self.vision.to(images.device).vectors(one, self.size) for one in (images, made)]
        return cosine_distance(*seen)

    @staticmethod
    def _plain(batch: ShiftBatch) -> list[str]:
        """The plain candidate of every backbone."""
        return [name for name, one in batch.reader.candidates.items() if one.kind == "plain"]
