"""``dataset=scenes``: generated images with exact masks and captions, rendered once and kept in RAM.

Seeds (ranges do not overlap, and no denoising model of this project was trained on any of them: those start at
9,000,000):

| split | seeds |
|---|---|
| train | 4,000,000 + 10,000 · ``split_seed`` + i |
| val   | 2,000,000 + i |
| test  | 1,000,000 + i |

Validation and test images are the same for every ``split_seed``: what differs between seeds of a study is what was
learnt, not what was measured on. Both domains show the same scenes for the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gate_lightning.data.card import ClassLabels, DatasetCard, gate_branches
from gate_lightning.data.files.captions import derangement
from gate_lightning.data.samples import SegmentationSample
from gate_lightning.data.scenes.captions import LEVELS, caption
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import KINDS, LEAK_FREE_KINDS, MERGED, MERGED_PALETTE, PART_PALETTE, PARTS
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.transforms.basic import Compose, RandomCrop, Resize
from gate_lightning.data.transforms.photometric import PhotometricDistortion
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["FIRST_SEED", "MAX_LENGTH", "ScenesDataModule", "ScenesSource", "split_seeds"]

#: split → its first seed (of ``split_seed`` 0)
FIRST_SEED = {"test": 1_000_000, "val": 2_000_000, "train": 4_000_000}
#: images a split can have
MAX_LENGTH = 10_000
_SPLIT_SEEDS = 100


def split_seeds(split: str, length: int, split_seed: int = 0) -> range:
    """Scene seeds of a split.

    Raises:
        ConfigError: a length or split seed out of range.
    """
    whole_number(length, f"dataset.{split}", 1, MAX_LENGTH)
    whole_number(split_seed, "dataset.split_seed", 0, _SPLIT_SEEDS - 1)
    first = FIRST_SEED[split] + (MAX_LENGTH * split_seed if split == "train" else 0)
    return range(first, first + length)


class ScenesSource:
    """Source of rendered scenes with masks and captions.

    Args:
        seeds: one per image.
        domain: ``source`` or ``target``.
        labels: ``parts`` or ``merged``.
        kinds: exactly these objects in every image, or None for one to four random ones.
        size: side in pixels.
        level: of the captions.
        order: position of the scene whose caption each image gets; None for its own.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        domain: str = "target",
        labels: str = "parts",
        kinds: Sequence[str] | None = None,
        size: int = 64,
        level: str = "fine",
        order: Sequence[int] | None = None,
    ) -> None:
        specs = [sample_scene(seed, domain, kinds) for seed in seeds]
        texts = [caption(spec, level) for spec in specs]
        texts = texts if order is None else [texts[index] for index in order]
        self._samples = []
        for spec, text in zip(specs, texts, strict=True):
            drawn = render(spec, size)
            mask = drawn.parts if labels == "parts" else drawn.merged
            self._samples.append(SegmentationSample(f"scenes/{domain}/{spec.seed}", drawn.image, text, mask=mask))

    def __len__(self) -> int:
        return len(self._samples)

    def sample_id(self, index: int) -> str:
        """Name of scene ``index``: ``scenes/<domain>/<seed>``."""
        return self._samples[index].sample_id

    def load(self, index: int) -> SegmentationSample:
        """Scene ``index`` with its mask, rendered now."""
        return self._samples[index]

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of image and mask."""
        height, width = self._samples[index].image.shape[:2]
        return (height, width), (height, width)


class ScenesDataModule(SegmentationDataModule):
    """Generated scenes. Training images are not augmented by default: more can be rendered.

    Args:
        domain: ``target`` (shifted; what the LoRAs are for) or ``source``.
        labels: ``parts`` (16 classes) or ``merged`` (8).
        kinds: None for one to four random objects, ``leak_free`` for one tree, house, horse and car in every image
            (so that naming the kinds tells nothing about it), or a list of kinds.
        size: side in pixels; the backbone's native size.
        train, val, test: images of each split.
        split_seed: chooses the training images, 0 to 99.
        captions: ``fine``, ``kinds``, ``coarse``, ``noisy``, ``empty``, or ``shuffled``: the fine caption of another
            image of the split.
        augment: train on crops of images enlarged by a factor of 1 to 2, in other colours, anew in every epoch. They
            are not mirrored, as captions say left and right; what a crop leaves out is still in them.
        loading: `SegmentationDataModule`'s arguments.

    Raises:
        ConfigError: an unknown name or a number out of range.
    """

    def __init__(
        self,
        domain: str = "target",
        labels: str = "parts",
        kinds: str | Sequence[str] | None = None,
        size: int = 64,
        train: int = 64,
        val: int = 64,
        test: int = 128,
        split_seed: int = 0,
        captions: str = "fine",
        augment: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_choice(domain, "domain", ("source", "target"))
        check_choice(labels, "labels", ("parts", "merged"))
        check_choice(captions, "captions", (*LEVELS, "shuffled"))
        self.domain, self.label_set, self.size, self.captions = domain, labels, size, captions
        self.kinds = LEAK_FREE_KINDS if kinds == "leak_free" else kinds
        lengths = {"train": train, "val": val, "test": test}
        self.seeds = {split: split_seeds(split, length, split_seed) for split, length in lengths.items()}
        render(sample_scene(0, domain, self.kinds), size)  # refuses bad values now, not after the backbone is loaded
        self.random_views = augment
        if augment:
            enlarge = Resize(size, True, (1.0, 2.0))
            self.train_transform = Compose([enlarge, RandomCrop(size), PhotometricDistortion()])
        self.eval_resize = Resize(size)  # scenes have that size already; other images are brought to it
        parts = labels == "parts"
        palette = (PART_PALETTE if parts else MERGED_PALETTE).tolist()
        self.labels = ClassLabels(PARTS if parts else MERGED, tuple(tuple(colour) for colour in palette))
        self.card = DatasetCard(
            name=f"scenes-{domain}-{labels}",
            prompt_simple="a photo",
            prompt_fine="a photo of " + " and ".join(f"a {kind}" for kind in KINDS),
            branches=gate_branches(),
            citation="generated by gate_lightning.data.scenes",
            licence="Apache-2.0",
        )

    def make_source(self, split: str) -> ScenesSource:
        """Render a split (some hundred images a second)."""
        seeds = self.seeds[split]
        shuffled = self.captions == "shuffled"
        order = derangement(len(seeds), self.seed, split).tolist() if shuffled else None
        level = "fine" if shuffled else self.captions
        return ScenesSource(seeds, self.domain, self.label_set, self.kinds, self.size, level, order)
