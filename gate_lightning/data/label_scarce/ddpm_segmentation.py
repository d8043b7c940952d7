"""The six small data sets of ddpm-segmentation: Bedroom-28, FFHQ-34, Cat-15, Horse-21, CelebA-19, ADE-Bedroom-30.

root/<key>/real/{train,test}/**/<name>.{png,jpg}      square images (``datasets.tar.gz`` of ddpm-segmentation)
root/<key>/real/{train,test}/**/<name>.npy            beside each its mask: whole numbers, (height, width)
root/<key>/ddpm/**                                    the same for annotated images that a diffusion model made

Facts: experiments/*/*.json and src/data_util.py of ddpm-segmentation; prompts and branches of Horse-21 and Bedroom-28
from GATE (its appendix and its README), those of the other sets are made after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gate_lightning.data.card import IGNORE_INDEX, ClassLabels, DatasetCard
from gate_lightning.data.files.mask_values import ARRAY_SUFFIX
from gate_lightning.data.files.masks import LabelMap, MaskReader
from gate_lightning.data.files.pairing import SplitFiles, pair_files, require_root
from gate_lightning.data.files.report import SplitReport
from gate_lightning.data.segmentation.benchmark import class_file
from gate_lightning.data.segmentation.image_files import FileDataModule
from gate_lightning.data.transforms.square_resize import Square
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = [
    "SETS",
    "DDPMSegmentationDataModule",
    "PublishedSet",
    "card",
    "class_labels",
    "published_set",
    "recipe_branches",
]

#: side in pixels of the masks that are trained on and measured
SIDE = 256
QUALITY = "high quality, best quality, highly realistic, masterpiece"
#: GATE avoids words of quality for bedrooms, where they are read as the quality of the room
TIDY_BEDROOM = "a photo of a tidy and well-designed bedroom"


@dataclass(frozen=True)
class PublishedSet:
    """Published facts about a data set of ddpm-segmentation, and the parts of its prompts and branches.

    Attributes:
        train, test: numbers of images.
        variant: of the pixel classifier: ``small`` or ``large``.
        backbone: configuration of the diffusion model that the papers read on it.
        subject: simple prompt.
        fine: fine prompt; "" for the subject with words of quality.
        loras: number of branches with a LoRA.
        denoise_steps: timesteps over which the branch with ControlNet is denoised.
        first_value: pixel value of class 0 in the mask files; 1 where 0 is an unlabelled background.
    """

    train: int
    test: int
    variant: str
    backbone: str
    subject: str
    fine: str = ""
    loras: int = 2
    denoise_steps: int = 10
    first_value: int = 0


SETS: Mapping[str, PublishedSet] = {
    "bedroom_28": PublishedSet(40, 20, "small", "adm_lsun_bedroom", "a bedroom", TIDY_BEDROOM, 1, 0, first_value=1),
    "ffhq_34": PublishedSet(20, 20, "large", "adm_ffhq", "a face"),
    "cat_15": PublishedSet(30, 20, "small", "adm_lsun_cat", "a cat"),
    "horse_21": PublishedSet(30, 30, "small", "adm_lsun_horse", "a horse"),
    "celeba_19": PublishedSet(20, 500, "small", "adm_ffhq", "a face"),
    "ade_bedroom_30": PublishedSet(50, 650, "large", "adm_lsun_bedroom", "a bedroom", TIDY_BEDROOM, 1, 0),
}


def recipe_branches(loras: int = 2, denoise_steps: int = 10) -> tuple[dict[str, Any], ...]:
    """Stable Diffusion branches of ``techniques=all`` in label-scarce segmentation (GATE's README).

    One with the fine prompt, one with ControlNet, and one or two with a LoRA. The branch with ControlNet is denoised
    over ``denoise_steps`` timesteps before it is read: ten on Horse-21, none on bedrooms. The branch of a pixel
    diffusion model that GATE adds belongs to an experiment, as it needs a second backbone.
    """
    roles = ("moderate", "overtrained")[:loras]
    denoised = {"denoise_steps": denoise_steps} if denoise_steps else {}
    return (
        {"name": "prompt", "techniques": ["prompt"]},
        {"name": "controlnet", "techniques": ["controlnet"], **denoised},
        *({"name": role, "techniques": ["lora"], "lora": {"role": role}} for role in roles),
    )


def published_set(key: str) -> PublishedSet:
    """Published facts about one of the sets.

    Raises:
        ConfigError: no such set.
    """
    check_choice(key, "dataset.key", SETS)
    return SETS[key]


def card(key: str) -> DatasetCard:
    """Card of one of the sets."""
    facts = published_set(key)
    return DatasetCard(
        name=key,
        prompt_simple=facts.subject,
        prompt_fine=facts.fine or f"{facts.subject}, {QUALITY}",
        branches=recipe_branches(facts.loras, facts.denoise_steps),
        citation="Baranchuk et al., Label-Efficient Semantic Segmentation with Diffusion Models, ICLR 2022",
    )


def class_labels(key: str) -> ClassLabels:
    """Classes and colours of one of the sets.

    Bedroom-28's files hold 29 values, of which 0 is neither trained nor scored: here it is ignored, and values 1 … 28
    are classes 0 … 27. (GATE's table has 28 classes from value 0 on and no ignored one, which puts value 28 out of
    range.)
    """
    return ClassLabels(*class_file(key))


class _Labels(LabelMap):
    """Label map with advice for these data sets."""

    def advice(self, unknown: Mapping[int, int]) -> str:
        return "Is this the folder of another data set? Correct the mask, or set such pixels to the ignored value"


class DDPMSegmentationDataModule(FileDataModule):
    """One of the six sets. It has no validation images: ``val`` is ``test``.

    Images and masks may have different sizes if both are equally shaped, as both are brought to 256².

    Args:
        root: folder that holds the folder ``key``.
        key: ``bedroom_28``, ``ffhq_34``, ``cat_15``, ``horse_21``, ``celeba_19`` or ``ade_bedroom_30``.
        train, test: the first so many images by path; None for the published number, 0 for all.
        train_folder, test_folder: below the folder ``key``; ``ddpm`` holds annotated generated images.
        others: `FileDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    same_size = False
    wants_squares = True

    def __init__(
        self,
        root: str,
        key: str,
        train: int | None = None,
        test: int | None = None,
        train_folder: str = "real/train",
        test_folder: str = "real/test",
        **others: Any,
    ) -> None:
        super().__init__(**others)
        facts = published_set(key)
        self.card, self.labels = card(key), class_labels(key)
        self.layout = f"{key}/{{{train_folder},{test_folder}}} of ddpm-segmentation: images, each with its .npy mask"
        self.root = require_root(require_root(root, self.layout, inside=key) / key, self.layout, inside=train_folder)
        self.folders = {"train": train_folder, "test": test_folder, "val": test_folder}
        self.counts = {}
        for name, count, usual in (("train", train, facts.train), ("test", test, facts.test)):
            self.counts[name] = usual if count is None else whole_number(count, f"dataset.{name}")
        zero = bool(facts.first_value)
        numbers = _Labels(self.labels.num_classes, None if zero else IGNORE_INDEX, reduce_zero_label=zero)
        self.reader = MaskReader(self.labels.classes, numbers)
        self.train_transform, self.eval_resize = Square(SIDE, SIDE), Square(SIDE)

    def scan(self, split: str) -> SplitFiles:
        """The first images of ``train`` or ``test`` by path.

        Raises:
            DataError: a folder is missing or holds no image.
        """
        folder, count = self.folders[split], self._count(split)
        files = pair_files(self.root, split, folder, folder, self.layout, mask_suffixes=(ARRAY_SUFFIX,))
        return replace(files, pairs=files.pairs[:count]) if count else files

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the two splits."""
        return "train", "test"

    def _check(self, files: SplitFiles, level: str) -> SplitReport:
        report = super()._check(files, level)
        wanted = self._count(files.split)
        if len(files.pairs) >= wanted:
            return report
        split = "train" if files.split == "train" else "test"
        error = (
            f"{self.root / self.folders[split]} holds {len(files.pairs)} images with masks, {wanted} are asked for; "
            f"complete them, or ask for fewer with dataset.{split}={len(files.pairs)} (0: all there are)"
        )
        return replace(report, errors=(*report.errors, error))

    def _count(self, split: str) -> int:
        return self.counts["train" if split == "train" else "test"]
