"""Features of images that come again unchanged, kept on disk: for the next epoch and for the next run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from gate_lightning.features.caches.folder import FeatureFolder
from gate_lightning.features.caches.keys import image_key
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.structures import Conditions, Extractor, Features
from gate_lightning.utils.resources import check_disk
from gate_lightning.utils.units import human_size
from gate_lightning.version import __version__

__all__ = ["DiskCache", "file_name", "full_description", "row"]

log = logging.getLogger(__name__)

#: files of a batch that are read at the same time
_READERS = 8


class DiskCache(WrappedExtractor):
    """A feature extractor that reads what it has written before, at native resolution.

    Kept are plain images (``Conditions.views`` empty), and augmented training views where ``views`` says that they
    come again, each without explicit noise. What is returned went through the stored dtype, the first time too, so
    that it does not matter when an image was computed. A batch with an image that is not known is extracted whole;
    those of it that are known are read.

    The folder belongs to one description (weights, branches, seed, package version …); with another one it is refused.
    Files are found by sample id, content of the image, caption, window …: another image under the same name is
    another file. A damaged file is replaced, with a warning.

    Args:
        extractor: gives the features that are not there.
        folder: where they are kept; several processes may share it.
        dtype: "float16", "bfloat16" or "float32" of the files.
        preprocessing: how the images are made from their files, JSON-able; only to tell folders apart.
        views: how many augmented training views there are to be, images × views of each; 0 keeps none of them.
            They lie in a folder each, ``<folder>/draw<k>/…``.

    Raises:
        CacheError: the folder holds features of another description, or cannot be written.
    """

    def __init__(
        self,
        extractor: Extractor,
        folder: str | Path,
        dtype: str = "float16",
        preprocessing: Mapping[str, Any] | None = None,
        views: int = 0,
    ) -> None:
        super().__init__(extractor)
        self.store = FeatureFolder(folder, full_description(extractor.description, preprocessing), dtype)
        self.views = views
        self._room_checked = views == 0

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features as the extractor gives them, rounded to the stored dtype; see there.

        Raises:
            CacheError: features cannot be written: disk full, or too large for the dtype.
            ConfigError: the disk has no room for all ``views``; nothing was written.
        """
        come_again = self.views > 0 and conditions.training and all(conditions.views)
        if conditions.has_explicit_noise or (any(conditions.views) and not come_again):
            return self.extractor(images, conditions)
        keys = [image_key(image, conditions, index) for index, image in enumerate(images)]
        names = [
            f"{view}/{file_name(sample_id, key)}" if view else file_name(sample_id, key)
            for sample_id, view, key in zip(conditions.sample_ids, conditions.views, keys, strict=True)
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            stored = list(pool.map(self.store.read, names, keys))
        if any(entry is None for entry in stored):
            computed = self.extractor(images, conditions)
            if come_again and not self._room_checked:
                self._room_checked = True
                values = sum(value[0].numel() for layers in computed.values() for value in layers.values())
                self._check_room("augmented views", self.views - self._count("draw*/**"), values)
            for index, (name, key) in enumerate(zip(names, keys, strict=True)):
                if stored[index] is None:
                    stored[index] = self._kept(name, key, row(computed, index))
        entries = [entry for entry in stored if entry is not None]
        return {
            branch: {
                layer: torch.stack([entry[branch][layer] for entry in entries]).to(images.device, images.dtype)
                for layer in layers
            }
            for branch, layers in entries[0].items()
        }

    def _kept(self, name: str, key: str, features: Features) -> Features:
        self.store.write(name, key, features)
        return {
            branch: {layer: value.to("cpu", self.store.dtype) for layer, value in layers.items()}
            for branch, layers in features.items()
        }

    def check_room(self, images: int, values: int) -> None:
        """See `Extractor`; images that are stored already take no more room."""
        self._check_room("images", images - self._count("**") + self._count("draw*/**"), values)

    def _check_room(self, what: str, missing: int, values: int) -> None:
        """Log and check the disk space of ``missing`` images of ``values`` numbers each."""
        folder, missing, each = self.store.folder, max(missing, 0), values * self.store.dtype.itemsize
        log.info(
            "features on disk: %d %s to come, %s each, %s in all; %s are free in %s",
            *(missing, what, human_size(each), human_size(missing * each)),
            *(human_size(shutil.disk_usage(folder).free), folder),
        )
        check_disk(
            missing * each,
            folder,
            f"{missing} {what} of {human_size(each)}",
            "Another disk: cache.folder=<folder>. Less of it by features.pooling=2 (a quarter), cache.dtype=float16, "
            f"fewer layers (layers=), fewer branches (techniques=) or fewer {what}",
        )

    def _count(self, folder: str) -> int:
        return sum(1 for _ in self.store.folder.glob(f"{folder}/*.safetensors"))


def full_description(extractor: Mapping[str, Any], preprocessing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a folder of features depends on: the extractor's description, the images' preparation, this package."""
    return {
        "extractor": dict(extractor),
        "preprocessing": dict(preprocessing or {}),
        "gate_lightning": __version__,
    }


def row(features: Features, index: int) -> Features:
    """Features (C, h, w) of one image of a batch."""
    return {branch: {layer: value[index] for layer, value in layers.items()} for branch, layers in features.items()}


def file_name(sample_id: str, key: str) -> str:
    """A readable path inside a folder, whatever the sample's name; the key makes it unique."""
    parts = [part[:80] for part in PurePosixPath(sample_id).parts if part not in ("/", "..", ".")]
    return "/".join([*parts[:-1], f"{parts[-1] if parts else 'image'}.{key}"])
