"""Features of a few augmented views of every training image, computed once and kept on disk.

The backbone is frozen and most of a training step. An image that is augmented anew in every epoch must be read by it
every time; one that comes back in K views only must not. Epoch e trains on view e mod K, the very view ("draw0",
"draw1", …) that epoch 0 … K - 1 of a run without this would have seen: noise and augmentation are keyed by its name.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gate_lightning.data.samples import BatchDataset, SampleRequest
from gate_lightning.features.caches.disk import DiskCache, file_name, full_description, image_key, read_through, row
from gate_lightning.features.caches.folder import FeatureFolder
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.ops.padding import pad_to_multiple
from gate_lightning.structures import Conditions, Features, FeaturesInfo, SegmentationBatch
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.files import digest_of, plain_json

__all__ = ["FOLDER", "AugmentedFeatureCache", "StoredViews", "describe", "padded_batch", "stored_bytes", "view_name"]

log = logging.getLogger(__name__)

#: where the folders of views are that are given no place of their own
FOLDER = Path("outputs/cached_views")


class AugmentedFeatureCache(WrappedExtractor):
    """A feature extractor that keeps augmented training views, and plain images beside them.

    Below ``folder`` there is ``views/<view>/<sample>….safetensors`` and what a `DiskCache` of plain images (those of
    validation) writes. Everything went through the stored dtype, the first time too. The folder belongs to one
    description: weights, branches, seed, augmentation, precision. Several processes, of one run or of several, may
    fill it together; a file is whole or not there.

    A view is found by name, and used only if its file was written for exactly this view of this image (hash of the
    pixels, caption, control images, window): where an image has changed, its features are computed anew.

    Args:
        extractor: gives the features that are not there.
        folder: where they are kept; None for a folder below ``outputs/cached_views`` named by the hash of the
            description, so that runs with equal settings share one and others do not meet.
        dtype: "float16", "bfloat16" or "float32" of the files.
        preprocessing: what decides how a view looks (augmentation, its seed, precision), JSON-able.

    Raises:
        CacheError: the folder holds views of another description, or cannot be written.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | MultiBackboneExtractor | EdgeChannels | PooledExtractor,
        folder: str | Path | None = None,
        dtype: str = "float16",
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        description = full_description(extractor.description, preprocessing)
        own = FOLDER / digest_of(plain_json({**description, "stored_as": dtype}))[:12]
        self_folder = Path(folder).expanduser() if folder else own
        super().__init__(DiskCache(extractor, self_folder, dtype))
        self.folder, self.dtype = self_folder, DTYPES[dtype]
        self.store = FeatureFolder(self_folder / "views", description, dtype)
        #: whether plain images are kept too; off where they will not come again
        self.keeps_images = True

    def keeps(self, images: float) -> bool:
        """See ``keeps_images``."""
        return self.keeps_images and super().keeps(images)

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features as the extractor gives them, rounded to the stored dtype; see there.

        Raises:
            CacheError: features cannot be written: disk full, or too large for the dtype.
        """
        if not _are_training_views(conditions):
            kept = self.extractor if self.keeps_images else self.extractor.extractor
            return kept(images, conditions)  # type: ignore[no-any-return]
        names = _names(conditions)
        log.warning("views of %s are not stored as they are now; they are computed again", ", ".join(names))
        keys = [image_key(images[index], conditions, index) for index in range(len(images))]
        return read_through(self.store, names, keys, self.extractor, images, conditions)

    @torch.no_grad()
    def fill(self, images: Tensor, conditions: Conditions) -> int:
        """Store the views of a batch that are not there yet; bytes written.

        A batch that lacks one is computed whole, so that an interrupted filling ends in the files of an uninterrupted
        one.

        Args:
            images: (B, 3, H, W) padded as for the extractor.
            conditions: of the batch.
        """
        names = _names(conditions)
        missing = [index for index, name in enumerate(names) if not self.store.path(name).exists()]
        if not missing:
            return 0
        features: Features = self.extractor(images, conditions)
        return sum(
            self.store.write(names[index], image_key(images[index], conditions, index), row(features, index))
            for index in missing
        )


class StoredViews(Dataset[SegmentationBatch]):
    """Training batches that bring their stored features along, read where images are read: by the loader's workers.

    Images and masks are read and augmented as ever (that is keyed and cheap beside a backbone), so masks fit, and a
    feature of an image that has changed is not used. A batch that lacks a view comes without features.

    Args:
        views: the training views.
        store: of the features.
        multiple: of which the sides of what the extractor reads are multiples.
    """

    def __init__(self, views: BatchDataset, store: FeatureFolder, multiple: int) -> None:
        self.views, self.store, self.multiple = views, store, multiple

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, draws: Sequence[SampleRequest]) -> SegmentationBatch:
        """The batch of ``draws``; features (B, C, h, w) in the stored dtype."""
        batch = self.views[draws]
        images, conditions = padded_batch(batch, self.multiple)
        entries: list[Features] = []
        for index, name in enumerate(_names(conditions)):
            entry = self.store.read(name, image_key(images[index], conditions, index))
            if entry is None:
                return batch
            entries.append(entry)
        features = {
            branch: {layer: torch.stack([entry[branch][layer] for entry in entries]) for layer in layers}
            for branch, layers in entries[0].items()
        }
        return replace(batch, features=features)


def view_name(sample_id: str, view: str) -> str:
    """Path of a view inside the folder. Long names are cut, so a hash of the whole one is in it."""
    return f"{view}/{file_name(sample_id, hashlib.blake2b(sample_id.encode(), digest_size=6).hexdigest())}"


def padded_batch(batch: SegmentationBatch, multiple: int) -> tuple[Tensor, Conditions]:
    """Images and conditions as an extractor gets them: sides are multiples of ``multiple``."""
    controls = {name: pad_to_multiple(image, multiple) for name, image in batch.conditions.control_images.items()}
    return pad_to_multiple(batch.images, multiple), replace(batch.conditions, control_images=controls)


def stored_bytes(info: FeaturesInfo, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the features of one image of height × width pixels, without the files' headers."""
    positions = (
        one.channels * -(-height // one.stride) * -(-width // one.stride)
        for layers in info.values()
        for one in layers.values()
        if one.stride
    )
    return dtype.itemsize * sum(positions)


def describe(value: Any) -> Any:
    """What a transform is and how it is set, JSON-able: class names and attributes, all the way down."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    name = getattr(value, "__qualname__", type(value).__qualname__)  # a function has a name of its own
    return {"is": name, **describe(getattr(value, "__dict__", {}))}


def _are_training_views(conditions: Conditions) -> bool:
    explicit = conditions.noise is not None or conditions.posterior_noise is not None
    return conditions.training and all(conditions.views) and not explicit


def _names(conditions: Conditions) -> list[str]:
    return [view_name(one, view) for one, view in zip(conditions.sample_ids, conditions.views, strict=True)]
