"""Base of segmented data sets: images with masks."""

from __future__ import annotations

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.files.checks import count_pixels
from gate_lightning.data.files.masks import MaskReader
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import Collate, collate_masks
from gate_lightning.structures import SegmentationBatch

__all__ = ["SegmentationDataModule"]


class SegmentationDataModule(ImageDataModule):
    """Loaders of `SegmentationBatch`. In evaluation the mask keeps the size of its file.

    Subclasses set ``labels`` besides, and their sources load `SegmentationSample`.

    Attributes:
        labels: classes of the masks.
        reader: of the masks' files; None where they are generated.
        wants_squares: whether its images are meant to be squares (label-scarce segmentation refuses others).
    """

    batch_type: type = SegmentationBatch
    collate: Collate = staticmethod(collate_masks)
    labels: ClassLabels
    reader: MaskReader | None = None
    wants_squares = False

    def check(self, level: str = "full") -> DataReport:
        """Check the data without a run.

        Args:
            level: ``quick`` or ``full``; generated data have no difference.
        """
        return DataReport(self.card.name, self.labels.classes, tuple(self._report(split) for split in self.splits))

    def _report(self, split: str) -> SplitReport:
        source = self.source(split)
        masks = (source.load(index).mask for index in range(len(source)))
        return SplitReport(split, len(source), len(source), (), (), count_pixels(masks, self.labels.num_classes))
