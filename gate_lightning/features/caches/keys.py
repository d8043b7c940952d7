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

__all__ = ["batch", "image_key", "row"]


def image_key(image: Tensor, conditions: Conditions, index: int) -> str:
    """Hash (32 hex digits) of all that the features of one image can depend on besides the extractor.

    It covers the pixels, every field of ``Conditions`` (name, view, window, caption, control images …), and whether
    products are rounded to TF32 on the image's device. The type of the weights is part of the extractor's description.

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
        _add(digest, field.name, getattr(own, field.name))
    return digest.hexdigest()


def row(features: Features, index: int) -> Features:
    """Features (C, h, w) of image ``index`` of a batch."""
    return {branch: {layer: value[index] for layer, value in layers.items()} for branch, layers in features.items()}


def batch(rows: Sequence[Features], like: Tensor) -> Features:
    """Features (B, C, h, w) of B images, on the device and in the dtype of ``like``, in the rows' memory format."""
    return {
        branch: {layer: _stacked([one[branch][layer] for one in rows]).to(like) for layer in layers}
        for branch, layers in rows[0].items()
    }


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """``torch.stack`` that keeps channels last where the rows have them: convolutions round by the memory format."""
    if all(one.dim() == 3 and not one.is_contiguous() and one.permute(1, 2, 0).is_contiguous() for one in rows):
        return torch.stack([one.permute(1, 2, 0) for one in rows]).permute(0, 3, 1, 2)
    return torch.stack(list(rows))


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
