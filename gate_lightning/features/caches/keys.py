"""Features of single images in caches: their keys, rows of a batch, and batches of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gate_lightning.structures import Conditions, Features
from gate_lightning.utils.precision import rounded_products

__all__ = ["ImageKeys", "batch", "image_key", "row"]


class ImageKeys:
    """Keys of the images of a batch, see `image_key`; pixels of an image that a data set names are hashed once.

    A data set gives equal pixels under equal names (``Conditions.source``): what it has shown before is known by name.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def __call__(self, images: Tensor, conditions: Conditions) -> list[str]:
        """Keys of images (B, 3, H, W)."""
        if conditions.source is None:
            return [image_key(image, conditions, index) for index, image in enumerate(images)]
        common = f"{images.dtype} {tuple(images.shape[1:])} {rounded_products(images.device)}"
        keys = []
        for index in range(len(images)):
            name = _name(common, conditions, index)
            if name not in self._known:
                self._known[name] = image_key(images[index], conditions, index)
            keys.append(self._known[name])
        return keys


def image_key(image: Tensor, conditions: Conditions, index: int) -> str:
    """Hash (32 hex digits) of all that the features of one image can depend on besides the extractor.

    It covers the pixels, every field of ``Conditions`` but source and edges (name, view, window, caption, control
    images …), and whether products are rounded to TF32 on the image's device. The type of the weights is part of the
    extractor's description.

    Args:
        image: (3, H, W), image ``index`` of a batch.
        conditions: conditions of the batch.
        index: index of the image.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, "image", image)
    if rounded_products(image.device):
        _add(digest, "products", "tf32")
    own = conditions[index]
    for field in fields(own):
        if field.name not in ("source", "edges"):  # edges are a function of the image
            _add(digest, field.name, getattr(own, field.name))
    return digest.hexdigest()


def row(features: Features, index: int) -> Features:
    """Features (C, h, w) of image ``index`` of a batch."""
    return {branch: {layer: value[index] for layer, value in layers.items()} for branch, layers in features.items()}


def batch(rows: Sequence[Features], like: Tensor) -> Features:
    """Features (B, C, h, w) of B images, on the device and in the dtype of ``like``, in the rows' memory format."""
    return {
        branch: {layer: _stacked([one[branch][layer] for one in rows], like.device).to(like) for layer in layers}
        for branch, layers in rows[0].items()
    }


def _stacked(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """``torch.stack`` onto a device, which keeps channels last where the rows have them: convolutions round by the
    memory format."""
    last = all(one.dim() == 3 and not one.is_contiguous() and one.permute(1, 2, 0).is_contiguous() for one in rows)
    given = [one.permute(1, 2, 0) for one in rows] if last else list(rows)
    stacked = torch.stack(given)
    if device.type == "cuda" and stacked.device.type == "cpu":
        stacked = stacked.pin_memory()  # in the stored type, and without a wait
    stacked = stacked.to(device, non_blocking=True)
    return stacked.permute(0, 3, 1, 2) if last else stacked


def _name(common: str, conditions: Conditions, index: int) -> bytes:
    """Hash of what names an image: all of its conditions, of tensors only that they are there."""
    digest = hashlib.blake2b(common.encode(), digest_size=16)
    for field in fields(conditions):
        value = None if field.name == "edges" else getattr(conditions, field.name)
        one = value[index] if isinstance(value, tuple) else value
        if isinstance(one, Mapping):
            one = sorted(one)
        elif isinstance(one, Tensor):
            one = "tensor"
        digest.update(f"{field.name}={one!r};".encode())
    return digest.digest()


def _add(digest: Any, name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            _add(digest, f"{name}.{key}", value[key])
    elif isinstance(value, Tensor):
        array = value.detach().contiguous().cpu()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().data)
    else:
        digest.update(f"{name}={value!r};".encode())
