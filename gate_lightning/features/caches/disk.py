"""Features of images that come again unchanged, kept on disk: for the next epoch and for the next run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from gate_lightning.features.caches.folder import FeatureFolder
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.structures import Conditions, Features
from gate_lightning.version import __version__

__all__ = ["DiskCache", "file_name", "full_description", "image_key", "read_through", "row"]


class DiskCache(WrappedExtractor):
    """A feature extractor that reads what it has written before, at native resolution.

    Only plain images are kept (``Conditions.views`` empty and no explicit noise). What is returned went through the
    stored dtype, the first time too, so that it does not matter when an image was computed. A batch with an image
    that is not known is extracted whole; those of it that are known are read.

    The folder belongs to one description (weights, branches, seed, package version …); with another one it is refused.
    Files are found by sample id, content of the image, caption, window …: another image under the same name is
    another file. A damaged file is replaced, with a warning.

    Args:
        extractor: gives the features that are not there.
        folder: where they are kept; several processes may share it.
        dtype: "float16", "bfloat16" or "float32" of the files.
        preprocessing: how the images are made from their files, JSON-able; only to tell folders apart.

    Raises:
        CacheError: the folder holds features of another description, or cannot be written.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | MultiBackboneExtractor | EdgeChannels | PooledExtractor,
        folder: str | Path,
        dtype: str = "float16",
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(extractor)
        self.store = FeatureFolder(folder, full_description(extractor.description, preprocessing), dtype)

    def keeps(self, images: float) -> bool:
        """All plain images."""
        return True

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features as the extractor gives them, rounded to the stored dtype; see there.

        Raises:
            CacheError: features cannot be written: disk full, or too large for the dtype.
        """
        if conditions.noise is not None or conditions.posterior_noise is not None or any(conditions.views):
            return self.extractor(images, conditions)  # type: ignore[no-any-return]
        keys = [image_key(images[index], conditions, index) for index in range(len(images))]
        names = [file_name(sample_id, key) for sample_id, key in zip(conditions.sample_ids, keys, strict=True)]
        return read_through(self.store, names, keys, self.extractor, images, conditions)


def read_through(
    store: FeatureFolder,
    names: Sequence[str],
    keys: Sequence[str],
    extractor: Callable[[Tensor, Conditions], Features],
    images: Tensor,
    conditions: Conditions,
) -> Features:
    """Features of a batch from a folder; where an image lacks there, the batch is computed and the image written.

    Args:
        store: the folder.
        names: B file names in it.
        keys: B keys, see `image_key`.
        extractor: computes the features of the whole batch.
        images: (B, 3, H, W).
        conditions: of the batch.

    Returns:
        Branch → layer id → (B, C, h, w) on the device and in the dtype of ``images``, rounded to that of the folder.

    Raises:
        CacheError: features cannot be written.
    """
    stored = [store.read(name, key) for name, key in zip(names, keys, strict=True)]
    if any(entry is None for entry in stored):
        computed = extractor(images, conditions)
        for index, (name, key) in enumerate(zip(names, keys, strict=True)):
            if stored[index] is None:
                stored[index] = _kept(store, name, key, row(computed, index))
    entries = [entry for entry in stored if entry is not None]
    return {
        branch: {
            layer: torch.stack([entry[branch][layer] for entry in entries]).to(images.device, images.dtype)
            for layer in layers
        }
        for branch, layers in entries[0].items()
    }


def _kept(store: FeatureFolder, name: str, key: str, features: Features) -> Features:
    store.write(name, key, features)
    return {
        branch: {layer: value.to("cpu", store.dtype) for layer, value in layers.items()}
        for branch, layers in features.items()
    }


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


def image_key(image: Tensor, conditions: Conditions, index: int) -> str:
    """Hash (32 hex digits) of all of an image that its features can depend on.

    Args:
        image: (3, H, W), the prepared image ``index`` of a batch.
        conditions: of the batch. Whatever belongs to the image counts: name, window, caption, control images …
        index: which one.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, "image", image)
    for field in fields(conditions):
        value = getattr(conditions, field.name)
        if isinstance(value, Mapping):
            for name in sorted(value):
                _add(digest, f"{field.name}.{name}", value[name][index])
        elif isinstance(value, tuple | Tensor):
            _add(digest, field.name, value[index])
        else:
            _add(digest, field.name, value)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: object) -> None:
    if isinstance(value, Tensor):
        array = value.detach().contiguous().cpu()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().data)
    else:
        digest.update(f"{name}={value!r};".encode())


def file_name(sample_id: str, key: str) -> str:
    """A readable path inside a folder, whatever the sample's name; the key makes it unique."""
    parts = [part[:80] for part in PurePosixPath(sample_id).parts if part not in ("/", "..", ".")]
    return "/".join([*parts[:-1], f"{parts[-1] if parts else 'image'}.{key}"])
