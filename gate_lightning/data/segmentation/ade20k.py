"""``dataset=ade20k``: ADE20K SceneParse150, 150 classes, in the layout of ``ADEChallengeData2016.zip``.

root/images/{training,validation}/ADE_{train,val}_%08d.jpg
root/annotations/{training,validation}/ADE_{train,val}_%08d.png      0 unlabelled, 1 … 150 classes
root/images/testing/ or root/release_test/testing/                   optional, of the separate release_test.zip
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gate_lightning.data.card import ClassLabels, DatasetCard, gate_branches
from gate_lightning.data.files.masks import LabelMap, MaskReader
from gate_lightning.data.files.report import DataReport
from gate_lightning.data.segmentation.benchmark import OfficialDataModule, class_file

__all__ = ["ADE20KDataModule", "card", "class_labels"]

FOLDERS = {"train": "training", "val": "validation"}
#: GATE's prompt, of all branches; its appendix adds all labels, its configuration does not
PROMPT = (
    "a highly realistic photo of the real world. It can be an indoor scene, or an outdoor scene, or a photo of nature. "
    "high quality."
)


def card() -> DatasetCard:
    """Data set card of ADE20K."""
    return DatasetCard(
        name="ade20k",
        prompt_simple="a photo",
        prompt_fine=PROMPT,
        branches=gate_branches(),
        citation="Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017",
        licence="BSD-3-Clause (annotations), non-commercial research and education (images)",
    )


def class_labels() -> ClassLabels:
    """Classes, colours and submission format of ADE20K."""
    classes, palette = class_file("ade20k")
    return ClassLabels(classes, palette, submission=tuple(range(1, len(classes) + 1)))


class _Labels(LabelMap):
    """Label map with advice on ADE20K's zero label."""

    def advice(self, unknown: Mapping[int, int]) -> str:
        if 255 in unknown and self.reduce_zero_label:
            return (
                "Official masks hold 0 (unlabelled) to 150 and never 255. If 1 has been taken from these already, so "
                "that 0 is 'wall', use dataset.reduce_zero_label=false; if 255 is unlabelled beside 0, "
                "dataset.ignore_index=255"
            )
        if set(unknown) == {150} and not self.reduce_zero_label:
            return "150 is the last class of the official masks, whose 0 is unlabelled: dataset.reduce_zero_label=true"
        return "Expected the masks of ADEChallengeData2016.zip (150 classes), not those of the full ADE20K release"


class ADE20KDataModule(OfficialDataModule):
    """ADE20K with mmsegmentation's pipelines.

    Args:
        root: the folder ADEChallengeData2016.
        reduce_zero_label: 0 in the masks is unlabelled and classes start at 1, as in the official files. Off: masks
            that hold 0 … 149 and 255 for unlabelled.
        ignore_index: a further value that means unlabelled; None for none in official masks, else 255.
        scale, crop_size: see `OfficialDataModule`.
        others: `OfficialDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = "images/{training,validation} and annotations/{training,validation} of ADEChallengeData2016.zip"

    def __init__(
        self,
        root: str,
        reduce_zero_label: bool = True,
        ignore_index: int | None = None,
        scale: Sequence[int] = (2048, 512),
        crop_size: int | Sequence[int] = 512,
        **others: Any,
    ) -> None:
        super().__init__(root, card(), class_labels(), scale, crop_size, **others)
        ignored = 255 if ignore_index is None and not reduce_zero_label else ignore_index
        self.reader = MaskReader(
            self.labels.classes,
            _Labels(self.labels.num_classes, ignored, reduce_zero_label),
            colour_advice="ADEChallengeData2016.zip has index masks; the full ADE20K release (RGB) is another data set",
        )

    def image_folders(self, split: str) -> Sequence[str]:
        """Folders of the images of a split; see `OfficialDataModule`."""
        if split == "test":
            return "images/testing", "release_test/testing"
        return (f"images/{FOLDERS[split]}",)

    def mask_folder(self, split: str) -> str:
        """Folder of the masks of a split; see `OfficialDataModule`."""
        return f"annotations/{FOLDERS[split]}"

    def check(self, level: str = "full") -> DataReport:
        """Check as `FileDataModule.check`, with a warning about labels that were shifted twice."""
        report = super().check(level)
        pixels = np.sum([split.pixels for split in report.splits], axis=0)
        if level != "full" or not self.reader.label_map.reduce_zero_label or pixels[-2] or not pixels[:-1].any():
            return report
        warning = (
            "no mask holds 150, the last class. If 1 has been taken from the masks already, 0 is 'wall' and not "
            "unlabelled: use dataset.reduce_zero_label=false"
        )
        first = report.splits[0]
        return replace(report, splits=(replace(first, warnings=(*first.warnings, warning)), *report.splits[1:]))
