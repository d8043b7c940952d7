"""Disk cache of features, for later epochs and runs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.folder import FeatureFolder
from gate_lightning.features.caches.keys import ImageKeys, batch, row
from gate_lightning.features.wrappers.base import StoringExtractor
from gate_lightning.ops.padding import check_batch
from gate_lightning.structures import MIRRORED, Conditions, Extractor, Features
from gate_lightning.utils.checks import check_type, shown, whole_number
from gate_lightning.utils.files import plain_json
from gate_lightning.utils.resources import check_disk
from gate_lightning.utils.units import human_size
from gate_lightning.version import __version__

__all__ = ["DiskCache", "file_name", "full_description"]

log = logging.getLogger(__name__)

#: files of a batch that are read at the same time
_READERS = 8


class DiskCache(StoringExtractor):
    """Extractor that stores features on disk, at native resolution, and reads them again.

    Stored are features of plain and mirrored images and, with ``views`` > 0, of augmented training views, in all cases
    without explicit noise. Returned features are rounded to the stored dtype, also when they are
    new. A batch with an unknown image is extracted whole.

    The folder belongs to one description (weights, branches, seed, package version …); another one is refused. The
    file of an image is found by sample id, pixels, caption, window …, see `image_key`. A damaged file is replaced, with
    a warning.

    Args:
        extractor: source of the features.
        folder: folder of the files; several processes may share it.
        dtype: "float16", "bfloat16" or "float32" of the files.
        preprocessing: preparation of the images, JSON-able; part of the folder's description.
        views: expected number of augmented training views, images × views of each; 0 stores none. View k is in
            ``<folder>/draw<k>/…``.

    Raises:
        CacheError: the folder holds features of another description, or cannot be written.
        ConfigError: a value of ``preprocessing`` that JSON cannot hold.
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
        check_type(preprocessing, "preprocessing", Mapping | None, "names and settings")
        _check_plain(preprocessing or {})
        self.views = whole_number(views, "views")
        self.store = FeatureFolder(folder, full_description(extractor.description, preprocessing), dtype)
        self._keys = ImageKeys()
        self._room_checked = views == 0

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of the extractor, rounded to the stored dtype.

        Raises:
            CacheError: features cannot be written: disk full, or too large for the dtype.
            ConfigError: the disk has no room for all ``views``; nothing was written.
        """
        check_batch(images, conditions)
        come_again = self.views > 0 and conditions.training and all(conditions.views)
        if conditions.has_explicit_noise or (conditions.has_random_views and not come_again):
            return self.extractor(images, conditions)
        keys = self._keys(images, conditions)
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
        return batch([entry for entry in stored if entry is not None], images)

    def _kept(self, name: str, key: str, features: Features) -> Features:
        self.store.write(name, key, features)
        return {
            branch: {layer: value.to("cpu", self.store.dtype).contiguous() for layer, value in layers.items()}
            for branch, layers in features.items()
        }

    def check_room(self, images: int, values: int) -> None:
        """See `Extractor`; images that are stored already take no more room."""
        further = self._count("draw*/**") + self._count(f"{MIRRORED}/**")
        self._check_room("images", images - self._count("**") + further, values)

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
            "Give a folder on another disk (cache.folder=<folder>). Less of it by averaged maps (features.pooling=2: a "
            "quarter), dtype float16 (cache.dtype=float16), fewer layers (layers=), fewer branches (techniques=) or "
            f"fewer {what}",
        )

    def _count(self, folder: str) -> int:
        return sum(1 for _ in self.store.folder.glob(f"{folder}/*.safetensors"))


def full_description(extractor: Mapping[str, Any], preprocessing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Description of a folder of features: extractor, preparation of the images, package version."""
    return {
        "extractor": dict(extractor),
        "preprocessing": dict(preprocessing or {}),
        "gate_lightning": __version__,
    }


def _check_plain(preprocessing: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that a manifest cannot hold; the message names its key."""
    for key, value in preprocessing.items():
        try:
            plain_json({key: value})
        except (TypeError, ValueError):  # another type, or a list that holds itself
            raise ConfigError(
                f"preprocessing[{key!r}]={shown(value)}: expected texts, numbers, None, and lists and mappings of them"
            ) from None


def file_name(sample_id: str, key: str) -> str:
    """Relative path of an image's file: readable part of the sample id, and key."""
    parts = [part[:80] for part in PurePosixPath(sample_id).parts if part not in ("/", "..", ".")]
    return "/".join([*parts[:-1], f"{parts[-1] if parts else 'image'}.{key}"])
