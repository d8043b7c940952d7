"""Dense prediction by overlapping windows: mean logits of the windows that cover a pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.padding import pad_to_size

__all__ = ["sliding_window", "window_origins"]


def window_origins(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover ``length`` pixels.

    There are ceil((length − window) / stride) + 1 of them, one every ``stride``; the last is shifted back inside, as
    in mmsegmentation. A window that is longer than the image starts at 0.

    Args:
        length: pixels to cover.
        window: pixels of a window.
        stride: pixels from window to window, at most ``window``.

    Raises:
        ConfigError: if the numbers are not positive or the stride leaves gaps.
    """
    if length < 1 or window < 1 or stride < 1:
        raise ConfigError(f"length {length}, window {window} and stride {stride} have to be positive")
    if stride > window:
        raise ConfigError(f"stride {stride} leaves gaps between windows of {window} pixels; use at most {window}")
    last = max(length - window, 0)
    count = -(-last // stride) + 1
    return [min(index * stride, last) for index in range(count)]


def sliding_window(
    images: Tensor,
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    predict: Callable[[Tensor, int, int], Tensor],
) -> Tensor:
    """Logits of whole images from windows; where windows overlap, their mean.

    An image that is smaller than the window is padded at the bottom and the right (mirrored where it is large enough,
    else its edge repeated); the padding's logits are dropped.

    Args:
        images: (B, C, H, W).
        crop_size: (height, width) of the windows in pixels.
        stride: (vertical, horizontal) steps in pixels.
        predict: maps a window (B, C, *crop_size) and its (top, left) to logits (B, K, *crop_size).

    Returns:
        (B, K, H, W) float32.

    Raises:
        ConfigError: if a stride leaves gaps.
    """
    height, width = images.shape[-2:]
    padded = pad_to_size(images, max(height, crop_size[0]), max(width, crop_size[1]))
    total: Tensor | None = None
    count = padded.new_zeros((), dtype=torch.float32).expand(1, 1, *padded.shape[-2:]).clone()
    for top in window_origins(height, crop_size[0], stride[0]):
        for left in window_origins(width, crop_size[1], stride[1]):
            rows, columns = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
            logits = predict(padded[..., rows, columns], top, left)
            if total is None:
                total = count.new_zeros((*logits.shape[:2], *padded.shape[-2:]))
            total[..., rows, columns] += logits
            count[..., rows, columns] += 1
    assert total is not None
    return (total / count)[..., :height, :width]
