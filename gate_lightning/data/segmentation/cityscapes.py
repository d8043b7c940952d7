"""``dataset=cityscapes``: Cityscapes, 19 evaluated classes, in the official layout.

root/leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png     leftImg8bit_trainvaltest.zip
root/gtFine/{train,val}/<city>/*_gtFine_labelIds.png           gtFine_trainvaltest.zip; mapped to classes on reading
root/gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png      accepted where there are no labelIds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gate_lightning.data.card import IGNORE_INDEX, ClassLabels, DatasetCard, gate_branches
from gate_lightning.data.files.masks import LabelMap, MaskReader
from gate_lightning.data.segmentation.benchmark import OfficialDataModule, class_file
from gate_lightning.errors import ConfigError

__all__ = ["LABEL_IDS", "CityscapesDataModule", "card", "class_labels"]

#: label id of every class, in the order of the train ids (cityscapesScripts, labels.py)
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
#: label ids are 0 … 33
NUM_LABEL_IDS = 34
ENCODINGS = ("labelIds", "labelTrainIds")
#: GATE's prompt, of all branches
PROMPT = (
    "An urban street scene with multiple lanes, various buildings, traffic lights, cars in the lanes, and pedestrians, "
    "highly realistic."
)


def card() -> DatasetCard:
    """Data set card of Cityscapes."""
    return DatasetCard(
        name="cityscapes",
        prompt_simple="a photo",
        prompt_fine=PROMPT,
        branches=gate_branches(),
        citation="Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016",
        licence="Cityscapes terms of use (non-commercial, registration)",
    )


def class_labels() -> ClassLabels:
    """Classes, colours and submission format of Cityscapes."""
    classes, palette = class_file("cityscapes")
    return ClassLabels(classes, palette, submission=LABEL_IDS)


class _LabelIds(LabelMap):
    """Label ids → classes; ids that are not evaluated are ignored."""

    @property
    def known(self) -> dict[int, int]:
        ignored = dict.fromkeys(range(NUM_LABEL_IDS), IGNORE_INDEX)
        return ignored | {value: label for label, value in enumerate(LABEL_IDS)}

    def advice(self, unknown: Mapping[int, int]) -> str:
        if set(unknown) == {IGNORE_INDEX}:
            return "Masks of label ids hold no 255: these look like train ids, which belong into _labelTrainIds.png"
        return "Expected the masks of gtFine_trainvaltest.zip"


class _TrainIds(LabelMap):
    """Train ids, which are the classes."""

    def advice(self, unknown: Mapping[int, int]) -> str:
        if all(value < NUM_LABEL_IDS for value in unknown):
            return (
                "These look like label ids, which belong into _labelIds.png and are mapped on reading; delete the "
                "_labelTrainIds.png files, or make them again with csCreateTrainIdLabelImgs"
            )
        return "Expected train ids as csCreateTrainIdLabelImgs writes them"


class CityscapesDataModule(OfficialDataModule):
    """Cityscapes (fine annotations) with mmsegmentation's pipelines.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        encoding: which masks: ``labelIds`` or ``labelTrainIds``; None for labelIds if there are any (they are the
            official files), else labelTrainIds.
        scale, crop_size: see `OfficialDataModule`. GATE's runs cut squares of 1024.
        others: `OfficialDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = (
        "leftImg8bit/{train,val[,test]}/<city>/*_leftImg8bit.png and gtFine/{train,val}/<city>/*_gtFine_labelIds.png "
        "(or _labelTrainIds.png)"
    )
    image_ending = "_leftImg8bit"

    def __init__(
        self,
        root: str,
        encoding: str | None = None,
        scale: Sequence[int] = (2048, 1024),
        crop_size: int | Sequence[int] = (512, 1024),
        **others: Any,
    ) -> None:
        super().__init__(root, card(), class_labels(), scale, crop_size, **others)
        if encoding not in (None, *ENCODINGS):
            raise ConfigError(f"dataset.encoding is {encoding!r}; expected {' or '.join(ENCODINGS)}, or null")
        self.encoding = encoding or self._found()
        self.mask_ending = f"_gtFine_{self.encoding}"
        kind, ignored = (_LabelIds, None) if self.encoding == "labelIds" else (_TrainIds, IGNORE_INDEX)
        self.reader = MaskReader(
            self.labels.classes,
            kind(self.labels.num_classes, ignored),
            colour_advice="Cityscapes' masks hold numbers; _gtFine_color.png are for people to look at",
        )

    def image_folders(self, split: str) -> Sequence[str]:
        """Folders of the images of a split; see `OfficialDataModule`."""
        return (f"leftImg8bit/{split}",)

    def mask_folder(self, split: str) -> str:
        """Folder of the masks of a split; see `OfficialDataModule`."""
        return f"gtFine/{split}"

    def _found(self) -> str:
        """First encoding with a mask file; the official one if there is no mask."""
        for encoding in ENCODINGS:
            for split in ("train", "val"):
                if next((self.root / "gtFine" / split).glob(f"*/*_gtFine_{encoding}.png"), None) is not None:
                    return encoding
        return ENCODINGS[0]
