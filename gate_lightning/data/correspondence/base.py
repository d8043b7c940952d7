"""Base of data sets of image pairs with keypoints: batches of pairs for training."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch.utils.data import Dataset

from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.samplers import BatchLoader
from gate_lightning.data.correspondence.annotations import Annotated, check_pairs
from gate_lightning.data.correspondence.batches import (
    Groups,
    PaddedSquare,
    PairSource,
    PairTransform,
    Partners,
    SquareBicubic,
    collate_pairs,
)
from gate_lightning.data.correspondence.images import ImagesOfPairs
from gate_lightning.data.correspondence.paired_images import PairedImagesDataModule, names_in_order
from gate_lightning.data.files.report import SplitReport
from gate_lightning.data.samples import BatchDataset, Collate, SampleSource, collate_images
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Pair, PairBatch
from gate_lightning.utils.checks import check_choice

__all__ = ["PairDataModule"]

RESIZES: Mapping[str, type[SquareBicubic]] = {"square": SquareBicubic, "pad_square": PaddedSquare}


class PairDataModule(PairedImagesDataModule[Pair]):
    """Pairs of images with keypoints.

    Training: batches of pairs (`PairBatch`), their images resized, points with them. Validation and test: every image
    that occurs in a pair once, as `ImageBatch` (see `PairedImagesDataModule`).

    Subclasses set ``card`` and provide ``read``; where the keypoints are known that change places in a mirror image
    they set ``partners``.

    Attributes:
        partners: category → keypoint → keypoint that is in its place in a mirror image.
        keypoint_groups: category → groups of keypoints that look alike but for their place.

    Args:
        size: side of the square that images are resized to for the backbone; 0 keeps them as they are.
        resize: ``square``: aspect not kept; ``pad_square``: aspect kept, black at the bottom and the right (SD+DINO).
        flip: probability that both images of a training pair are mirrored.
        flip_one: probability that one of them alone is mirrored, its keypoints renamed.
        subset: take at most so many pairs of every split, evenly spread over their order; None for all.
        check_level: sanity check at start: ``quick`` or ``full``.
        loading: `ImageDataModule`'s arguments.

    Raises:
        ConfigError: a setting out of range.
    """

    batch_type: type = PairBatch
    collate: Collate = staticmethod(collate_pairs)
    partners: Partners = MappingProxyType({})
    keypoint_groups: Groups = MappingProxyType({})

    def __init__(
        self,
        size: int = 0,
        resize: str = "square",
        flip: float = 0.0,
        flip_one: float = 0.0,
        subset: int | None = None,
        check_level: str = "quick",
        **loading: Any,
    ) -> None:
        super().__init__(size, subset, check_level, **loading)
        check_choice(resize, "dataset.resize", RESIZES)
        if resize == "pad_square" and not size:
            raise ConfigError("dataset.resize=pad_square pads images to a square; dataset.size=0 names no side of it")
        self.eval_resize = RESIZES[resize](size)
        self.train_transform = PairTransform(self.eval_resize, flip, flip_one, self.partners)
        self.random_views = self.train_transform.random

    def shown_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of an image of a batch, without padding, from those of its file."""
        return self.eval_resize.shown(height, width)

    def make_source(self, split: str) -> SampleSource:
        """Pairs of the training split; of the others images, in the order in which pairs need them."""
        annotated = self.annotated(split)
        images = ImagesOfPairs({name: annotated.images[name] for name in names_in_order(annotated.pairs)})
        return PairSource(annotated.pairs, images) if split == "train" else images

    def attach(self, source: SampleSource, required_inputs: RequiredInputs) -> SampleSource:
        """Split whose images have the inputs that the techniques require."""
        if isinstance(source, PairSource):
            return PairSource(source.pairs, required_inputs.attach(source.images))
        return required_inputs.attach(source)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of pairs; a resumed run gets the rest of the epoch it stopped in."""
        if self.batch_size > 1 and not self.eval_resize.short:
            raise ConfigError(
                f"dataset.size=0 keeps images at their sizes, and batch_size={self.batch_size} needs one size; give a "
                "size, or dataset.batch_size=1"
            )
        if self.annotated("train").without_points:
            raise DataError(
                f"{self.card.name}: none of the training pairs has keypoints, so nothing can be learned from them"
            )
        return super().train_dataloader()

    def evaluated(self, split: str) -> SampleSource:
        """The images of a split."""
        source = self.source(split)
        return source.images if isinstance(source, PairSource) else source

    def evaluation_views(self, split: str) -> Dataset[Any]:
        """The images of a split as they are evaluated."""
        edges = self._required_inputs.edges
        return BatchDataset(self.evaluated(split), self.eval_transform, collate_images, self.seed, edges=edges)

    def checked(self, split: str, annotated: Annotated[Pair], level: str) -> SplitReport:
        """Faults of a split; see `check_pairs`."""
        return check_pairs(split, annotated, level, "{category}" in self.card.prompt_simple)

    def order_of(self, pair: Pair) -> tuple[str, ...]:
        """Pairs of a group and category stay together."""
        return pair.group, pair.category

    def counts(self, split: str, annotated: Annotated[Pair]) -> tuple[str, ...]:
        """Pairs and keypoints of a split, by group and category."""
        pairs, points = len(annotated.pairs), sum(map(len, annotated.pairs))
        lines = [f"  {split}: {pairs} pairs with {points} keypoints, of {len(annotated.images)} images"]
        tally: dict[tuple[str, str], list[int]] = {}
        for pair in annotated.pairs:
            row = tally.setdefault((pair.group, pair.category), [0, 0])
            row[0], row[1] = row[0] + 1, row[1] + len(pair)
        return (*lines, *(_rows_of(tally) if len(tally) > 1 else ()))


def _rows_of(tally: Mapping[tuple[str, str], list[int]]) -> list[str]:
    lines = []
    for (group, category), (count, keypoints) in sorted(tally.items()):
        name = " ".join(part for part in (group, category) if part) or "(without category)"
        lines.append(f"    {name:<28}{count:>8} pairs{keypoints:>9} keypoints")
    return lines
