"""Base of the data that parts of a diffusion model are trained on, and rendered scenes without captions."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.pretraining.batches import LabelledBatch
from gate_lightning.data.samples import SampleRequest, to_tensor
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import COLORS, KINDS, SceneSpec
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = [
    "NOTHING",
    "TRAIN_SEED",
    "VAL_SEED",
    "BatchSource",
    "ModuleSource",
    "PretrainingDataModule",
    "SceneImages",
    "SingleObjectImages",
    "is_target",
    "stacked",
    "three_channels",
]

#: first scene seed of training; the data sets of the experiments use seeds far below
TRAIN_SEED = 10_000_000
#: first scene seed of the held-out images
VAL_SEED = 9_000_000
#: class of images without an object; their colour is ignored (-1)
NOTHING = len(KINDS)
_EMPTY_SHARE = 0.1


class BatchSource(Dataset[Any]):
    """A split that makes whole batches, as a `SampleSource`.

    Subclasses provide ``__len__``, ``sample_id`` and ``__getitem__``: a list of `SampleRequest` → a batch.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def sample_id(self, index: int) -> str:
        """Text that sample ``index`` is made from: a resumed run with other samples is refused."""
        raise NotImplementedError

    def load(self, index: int) -> Any:
        """A batch of one."""
        return self[[SampleRequest(index)]]

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """All images have one size."""
        return ()


class ModuleSource(BatchSource):
    """A split that reads settings of its data module.

    Loader workers that are not forked get a copy of the module without its trainer, which does not pickle.

    Attributes:
        data: the data module.
    """

    data: Any

    def __getstate__(self) -> dict[str, Any]:
        data = copy.copy(self.data)
        data.trainer, data._sources = None, {}
        return {**vars(self), "data": data}


class PretrainingDataModule(ImageDataModule):
    """Base of data sets whose splits make whole batches (`BatchSource`) of one image size; there is no test split.

    Args:
        batch_size: per process and step.
        eval_batch_size: per process, in validation.
        num_workers: loader processes.
        seed: of the order, and of what is drawn for each sample.
    """

    card = DatasetCard("images")
    has_test = False

    def __init__(
        self, batch_size: int = 8, eval_batch_size: int = 64, num_workers: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)

    @abstractmethod
    def make_source(self, split: str) -> BatchSource:
        """The samples of ``train`` or ``val``."""

    def training_views(self) -> Any:
        """Training samples as they are: the source makes whole batches."""
        return self.source("train")

    def evaluation_views(self, split: str) -> Any:
        """Samples of ``split`` as they are: the source makes whole batches."""
        return self.source(split)


class _RenderedScenes(ModuleSource):
    """Scenes rendered when asked for, with what `labels` says of each."""

    def __init__(self, data: SceneImages, length: int, first_seed: int) -> None:
        self.data, self.length, self.first_seed = data, length, first_seed

    def __len__(self) -> int:
        return self.length

    def sample_id(self, index: int) -> str:
        """Seed of the scene."""
        return str(self.first_seed + index)

    def __getitem__(self, requests: Sequence[SampleRequest]) -> LabelledBatch:
        specs = [self.data.scene(self.first_seed, request.index) for request in requests]
        labels = [self.data.labels(spec) for spec in specs]
        images = stacked([render(spec, size=self.data.size).image for spec in specs])
        return LabelledBatch(images, {name: torch.tensor([own[name] for own in labels]) for name in labels[0]})


class SceneImages(PretrainingDataModule):
    """Rendered images of both domains without captions, for the autoencoder; the label is ``domain``.

    Args:
        train_length: different training scenes.
        val_length: held-out scenes.
        target_share: share of the target domain (domain 1) in both, spread evenly.
        size: side in pixels.
        batch_size, eval_batch_size, num_workers, seed: see `PretrainingDataModule`.
    """

    batch_type = LabelledBatch

    def __init__(
        self,
        train_length: int = 60_000,
        val_length: int = 640,
        target_share: float = 0.2,
        size: int = 64,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if not 0.0 <= target_share <= 1.0:
            raise ConfigError(f"dataset.target_share is {target_share}; expected a share in [0, 1]")
        self.lengths = {"train": train_length, "val": val_length}
        self.target_share, self.size = target_share, size

    def make_source(self, split: str) -> BatchSource:
        """Nothing is rendered yet."""
        length = whole_number(self.lengths[split], f"dataset.{split}_length", 1)
        return _RenderedScenes(self, length, TRAIN_SEED if split == "train" else VAL_SEED)

    def scene(self, first_seed: int, index: int) -> SceneSpec:
        """Scene ``index`` of a split."""
        return sample_scene(first_seed + index, domain="target" if is_target(index, self.target_share) else "source")

    def labels(self, spec: SceneSpec) -> dict[str, int]:
        """``domain``: 0 source, 1 target."""
        return {"domain": int(spec.domain == "target")}


class SingleObjectImages(SceneImages):
    """Source-domain scenes with one object, a tenth with none, labelled ``kind`` and ``color``; see `SceneImages`."""

    def scene(self, first_seed: int, index: int) -> SceneSpec:
        """Scene ``index`` of a split."""
        rng = data_generator("single object", first_seed, index)
        if rng.random() < _EMPTY_SHARE:
            return sample_scene(first_seed + index, count=(0, 0))
        return sample_scene(first_seed + index, kinds=(KINDS[int(rng.integers(len(KINDS)))],), count=(1, 1))

    def labels(self, spec: SceneSpec) -> dict[str, int]:
        """Indices into KINDS (`NOTHING` without an object) and COLORS (-1 without)."""
        if not spec.objects:
            return {"kind": NOTHING, "color": -1}
        return {"kind": KINDS.index(spec.objects[0].kind), "color": list(COLORS).index(spec.objects[0].color)}


def is_target(index: int, share: float) -> bool:
    """True if scene ``index`` is of the target domain, of which a ``share`` is, evenly spread."""
    return int((index + 1) * share) > int(index * share)  # where the running count grows


def stacked(images: Sequence[np.ndarray]) -> Tensor:
    """B images uint8 (H, W, 3) → float32 (B, 3, H, W) in [-1, 1]."""
    return torch.stack([to_tensor(image) for image in images])


def three_channels(control: np.ndarray) -> np.ndarray:
    """A control image (H, W) or (H, W, 3) as (H, W, 3)."""
    return np.repeat(control[..., None], 3, axis=2) if control.ndim == 2 else control
