"""The key by which caches find the features of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gate_lightning.structures import Conditions

__all__ = ["image_key"]


def image_key(image: Tensor, conditions: Conditions, index: int) -> str:
    """Hash (32 hex digits) of all that the features of one image can depend on besides the extractor.

    Every field of ``Conditions`` counts (name, view, window, caption, control images …), and in which precision
    operations run where autocast is on.

    Args:
        image: (3, H, W), image ``index`` of a batch.
        conditions: of the batch.
        index: which one.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, "image", image)
    device = image.device.type
    if torch.is_autocast_enabled(device):
        _add(digest, "autocast", str(torch.get_autocast_dtype(device)))
    own = conditions[index]
    for field in fields(own):
        _add(digest, field.name, getattr(own, field.name))
    return digest.hexdigest()


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
