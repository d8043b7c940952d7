"""Inference on images of any size: whole or by sliding windows, with test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import resize
from gate_lightning.ops.padding import pad_to_size
from gate_lightning.ops.sliding_window import sliding_window
from gate_lightning.structures import Conditions
from gate_lightning.utils.checks import check_choice

__all__ = ["MODES", "Inference", "height_width"]

MODES = ("whole", "slide")

#: images (B, 3, H, W) and what belongs to them → logits (B, K, H, W)
Predict = Callable[[Tensor, Conditions], Tensor]


@dataclass(frozen=True)
class Inference:
    """Inference on whole images or sliding windows, with test-time augmentation by scales and flips.

    Logits of overlapping windows are averaged. A window's noise is keyed by its offset, the noise of a further view by
    its scale and flip, so features of a window or view do not depend on the others.

    Each view takes a pass of its own. Logits are resized to the result's size and the softmax probabilities averaged
    over views, as mmsegmentation does.

    Args:
        mode: ``whole`` or ``slide``.
        crop_size: window in pixels, one number or (height, width); None for the size the backbone was trained on.
        stride: pixels from window to window, one number or (vertical, horizontal); None for two thirds of the window,
            as is customary. At most the window.
        scales: factors of the image's sides, different and positive. Customary: 0.5, 0.75, 1, 1.25, 1.5, 1.75.
        flip: add the horizontally mirrored image at every scale.

    Raises:
        ConfigError: unknown mode, numbers that are not positive, a stride that leaves gaps, numbers without
            ``mode=slide``, or the same scale twice.
    """

    mode: str = "whole"
    crop_size: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        check_choice(self.mode, "mode", MODES)
        if self.mode == "whole" and (self.crop_size is not None or self.stride is not None):
            raise ConfigError("crop_size and stride belong to windows; set task.inference.mode=slide or leave them out")
        if self.crop_size is not None:
            self.window(0)
        elif self.stride is not None:
            _pair("stride", self.stride)
        scales = tuple(float(scale) for scale in self.scales)
        if not scales or len(set(scales)) < len(scales) or not all(0.0 < scale < math.inf for scale in scales):
            raise ConfigError(f"scales={scales}: expected different factors above 0, for example [0.75, 1, 1.25]")
        object.__setattr__(self, "scales", scales)

    @property
    def views(self) -> tuple[tuple[float, bool], ...]:
        """(scale, mirrored) of every view."""
        return tuple(
            (scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))
        )

    def window(self, native_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Window and stride, each (height, width) in pixels, for a backbone trained on ``native_size`` pixels.

        Raises:
            ConfigError: the stride exceeds the window.
        """
        crop = _pair("crop_size", native_size if self.crop_size is None else self.crop_size)
        third = (max(crop[0] * 2 // 3, 1), max(crop[1] * 2 // 3, 1))
        stride = third if self.stride is None else _pair("stride", self.stride)
        if any(s > c for s, c in zip(stride, crop, strict=True)):
            raise ConfigError(
                f"stride {stride} exceeds the window {crop} (crop_size, or else the backbone's native size), which "
                "leaves gaps between the windows"
            )
        return crop, stride

    def __call__(
        self,
        predict: Predict,
        images: Tensor,
        conditions: Conditions,
        native_size: int,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Logits of images (B, 3, H, W).

        Args:
            predict: takes images of any size (or all of the window's) and gives logits of their size.
            images: (B, 3, H, W) in [-1, 1].
            conditions: captions, control images and noise keys of the images.
            native_size: side in pixels of the images that the backbone was trained on.
            size: (height, width) of the result; None for that of the images.

        Returns:
            (B, K, *size); with several views the logarithm of the mean probabilities.

        Raises:
            ConfigError: explicit noise, which has the image's size, together with windows or views.
        """
        size = size or height_width(images)
        if self.views == ((1.0, False),):
            return resize(self._logits(predict, images, conditions, native_size), size)
        if conditions.has_explicit_noise:
            raise ConfigError("explicit noise fits the image alone; leave out task.inference.scales and flip with it")
        total: Tensor | None = None
        for view, at_view, mirrored in self._views(images, conditions):
            logits = resize(self._logits(predict, view, at_view, native_size), size)
            chances = (logits.flip(-1) if mirrored else logits).float().softmax(dim=1)
            total = chances if total is None else total.add_(chances)
        assert total is not None
        return (total / len(self.views)).clamp_(min=torch.finfo(total.dtype).tiny).log_()

    def _views(self, images: Tensor, conditions: Conditions) -> Iterator[tuple[Tensor, Conditions, bool]]:
        height, width = height_width(images)
        for scale, mirrored in self.views:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            name = "" if (scale, mirrored) == (1.0, False) else f"|scale={scale:g},flip={mirrored:d}"
            seen = partial(_seen, size=size, mirrored=mirrored)
            keys = tuple(f"{view}{name}" for view in conditions.views)
            yield seen(images), replace(conditions.map_controls(seen), views=keys), mirrored

    def _logits(self, predict: Predict, images: Tensor, conditions: Conditions, native_size: int) -> Tensor:
        """Logits (B, K, H, W) of one view."""
        if self.mode == "whole":
            return predict(images, conditions)
        if conditions.has_explicit_noise:
            raise ConfigError("explicit noise covers whole images; use task.inference.mode=whole with it")
        crop, stride = self.window(native_size)
        height, width = max(images.shape[-2], crop[0]), max(images.shape[-1], crop[1])
        padded = conditions.map_controls(lambda image: pad_to_size(image, height, width))

        def predict_window(window: Tensor, top: int, left: int) -> Tensor:
            rows, columns = slice(top, top + crop[0]), slice(left, left + crop[1])
            cut = padded.map_controls(lambda image: image[..., rows, columns])
            return predict(window, cut.at_window(top, left))

        return sliding_window(images, crop, stride, predict_window)


def _seen(images: Tensor, size: tuple[int, int], mirrored: bool) -> Tensor:
    """Images (B, C, H, W) resized (antialiased, as when data sets are read) and mirrored."""
    if height_width(images) != size:
        images = interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return images.flip(-1) if mirrored else images


def height_width(images: Tensor) -> tuple[int, int]:
    """(H, W) of (…, H, W)."""
    return images.shape[-2], images.shape[-1]


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"{name} is {value}; expected a positive number of pixels, or (height, width)")
    return pair[0], pair[1]
