"""Features of a batch for measures of content shift, by candidate, timestep and noise, each made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gate_lightning.backbones.kernels.dispatch import fast_ops
from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError
from gate_lightning.ops.padding import pad_batch
from gate_lightning.structures import BranchFeatures, Conditions, ImageBatch, SegmentationBatch
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.repainting import RepaintedImages
from gate_lightning.utils.precision import own_precision

__all__ = ["ShiftBatch"]


class ShiftBatch:
    """Images of a sample with everything that measures ask for, made when asked for and once.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        conditions: captions, control images and noise keys of the images.
        masks: (B, H', W') int64 class indices of any size, 255 where unlabelled; or None.
        labels: classes of the masks; or None.
        reader: backbones and candidates.
    """

    def __init__(
        self, reader: ShiftReader, batch: ImageBatch, other: Conditions | None, labels: ClassLabels | None = None
    ) -> None:
        self.reader, self.batch, self.images, self.conditions = reader, batch, batch.images, batch.conditions
        self.masks = batch.masks if isinstance(batch, SegmentationBatch) and labels is not None else None
        self.labels, self._other = labels, other
        self._features: OrderedDict[tuple[str, int, int], BranchFeatures] = OrderedDict()
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._repainted = RepaintedImages(reader.repainter, self.images, self.conditions_of)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of all rows, those with shuffled captions too."""
        return tuple(self.reader.candidates)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Timesteps at which features are compared."""
        return self.reader.timesteps

    def reads(self, candidate: str, *timesteps: int, draws: int = 1) -> bool:
        """True if a candidate can be read at all of these timesteps, under so many noises."""
        return all(self.reader.reason(candidate, t, draw) is None for t in timesteps for draw in range(draws)) and all(
            candidate in self._read(candidate, t, 0) for t in timesteps
        )

    def features(self, candidate: str, timestep: int, draw: int = 0) -> BranchFeatures:
        """Layer id → (B, C, h, w) float32 of the images, padded to what the backbone reads.

        Args:
            candidate: row of the ranking.
            timestep: training timestep; 0 for the reference of little noise.
            draw: which of several noises.

        Raises:
            ConfigError: it cannot be read there.
        """
        found = self._read(candidate, timestep, draw)
        if candidate not in found:
            raise ConfigError(f"{candidate} at t = {timestep}: {self.reader.reason(candidate, timestep, draw)}")
        return found[candidate]

    def reconstructed(self, candidate: str, strength: float, steps: int = 20) -> Tensor | None:
        """The images repainted by a candidate, (B, 3, H, W) in [-1, 1]; None where it can make none.

        Args:
            candidate: row of the ranking.
            strength: share of the noise schedule that they are noised to, in (0, 1]; see `img2img.ImageToImage`.
            steps: of the way back.

        Raises:
            ConfigError: a backbone that makes no images, or numbers out of range.
        """
        return self._repainted.get(candidate, strength, steps)

    def autoencoded(self, candidate: str) -> tuple[str, Tensor]:
        """The images (B, 3, H, W) encoded and decoded by a candidate's backbone, and the name of their row."""
        return self.reader.repainter.ceiling(candidate), self._repainted.ceiling(candidate)

    def conditions_of(self, candidate: str) -> Conditions:
        """Conditions under which a candidate is read: with other captions where its row is that of shuffled ones."""
        if self.reader.candidates[candidate].kind != "shuffled":
            return self.conditions
        assert self._other is not None  # there is no such row without captions
        return self._other

    def padded(self, candidate: str) -> ImageBatch:
        """Images as a candidate's backbone reads them."""
        multiple = self.reader.backbone(candidate).size_multiple
        return ImageBatch(*pad_batch(self.images, self.conditions_of(candidate), multiple))

    def moments(self, candidate: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, c, h, w) of the images' latents in a candidate's backbone."""
        name = self.reader.candidates[candidate].branch.backbone
        if name not in self._moments:
            backbone, padded = self.reader.backbone(candidate), self.padded(candidate)
            backbone.check_images(padded.images)
            with torch.no_grad(), own_precision(backbone.device), fast_ops(True):
                self._moments[name] = backbone.encode_moments(padded.images)
        return self._moments[name]

    def forget(self) -> None:
        """Drop what was made of the images."""
        self._features.clear()
        self._moments.clear()
        self._repainted.forget()

    def _read(self, candidate: str, timestep: int, draw: int) -> Mapping[str, BranchFeatures]:
        """Features of a candidate, and of those that are read with it."""
        key = (candidate, timestep, draw)
        if key in self._features:
            self._features.move_to_end(key)
            return {candidate: self._features[key]}
        names = self.reader.group(candidate, timestep, draw)
        if candidate not in names:
            return {}
        found = self.reader.read(names, timestep, draw, self.moments(candidate), self.padded(candidate))
        for name, maps in found.items():
            layers = self.reader.layers(name)
            self._features[name, timestep, draw] = {
                layer: value.float() for layer, value in maps.items() if layer in layers
            }
        made = {name: self._features[name, timestep, draw] for name in found}
        while len(self._features) > len(made) and _bytes(self._features.values()) > self.reader.limit:
            self._features.popitem(last=False)
        return made


def _bytes(features: Iterable[BranchFeatures]) -> int:
    return sum(value.nbytes for maps in features for value in maps.values())
