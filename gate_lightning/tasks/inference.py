"""How a trained head is run over pictures of any size: at once, or window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.padding import pad_to_size
from gate_lightning.ops.sliding_window import sliding_window
from gate_lightning.structures import Conditions

__all__ = ["MODES", "Inference"]

MODES = ("whole", "slide")

#: pictures (B, 3, H, W) and what belongs to them → logits (B, K, H, W)
Predict = Callable[[Tensor, Conditions], Tensor]


@dataclass(frozen=True)
class Inference:
    """Whole pictures, or overlapping windows whose logits are averaged.

    A window's noise is keyed by its offset, so that a window gives the same features whatever else is looked at.

    Args:
        mode: ``whole`` or ``slide``.
        crop_size: window in pixels, one number or (height, width); None for the size the backbone was trained on.
        stride: pixels from window to window, one number or (vertical, horizontal); None for two thirds of the window,
            as is customary. At most the window.

    Raises:
        ConfigError: unknown mode, numbers that are not positive, a stride that leaves gaps, or numbers without
            ``mode=slide``.
    """

    mode: str = "whole"
    crop_size: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"inference mode {self.mode!r} is unknown; expected one of: {', '.join(MODES)}")
        if self.mode == "whole" and (self.crop_size is not None or self.stride is not None):
            raise ConfigError("crop_size and stride belong to windows; set task.inference.mode=slide or leave them out")
        crop = None if self.crop_size is None else _pair("crop_size", self.crop_size)
        stride = None if self.stride is None else _pair("stride", self.stride)
        if crop is not None and stride is not None and any(s > c for s, c in zip(stride, crop, strict=True)):
            raise ConfigError(f"stride {stride} exceeds crop_size {crop}, which leaves gaps between the windows")

    def window(self, native_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Window and stride, each (height, width) in pixels, for a backbone trained on ``native_size`` pixels.

        Raises:
            ConfigError: if the stride exceeds the native size where no window is given.
        """
        crop = _pair("crop_size", native_size if self.crop_size is None else self.crop_size)
        third = (max(crop[0] * 2 // 3, 1), max(crop[1] * 2 // 3, 1))
        stride = third if self.stride is None else _pair("stride", self.stride)
        if any(s > c for s, c in zip(stride, crop, strict=True)):
            raise ConfigError(f"stride {stride} exceeds the backbone's native size {crop}; give crop_size as well")
        return crop, stride

    def __call__(self, predict: Predict, images: Tensor, conditions: Conditions, native_size: int) -> Tensor:
        """Logits (B, K, H, W) of pictures (B, 3, H, W).

        Args:
            predict: takes pictures of any size (or all of the window's) and gives logits of their size.
            images: (B, 3, H, W) in [-1, 1].
            conditions: what belongs to the pictures.
            native_size: pixels the backbone was trained on.

        Raises:
            ConfigError: explicit noise together with windows: it has the picture's size, not a window's.
        """
        if self.mode == "whole":
            return predict(images, conditions)
        if conditions.noise is not None:
            raise ConfigError("explicit noise covers whole pictures; use task.inference.mode=whole with it")
        crop, stride = self.window(native_size)
        height, width = max(images.shape[-2], crop[0]), max(images.shape[-1], crop[1])
        controls = {name: pad_to_size(image, height, width) for name, image in conditions.control_images.items()}

        def predict_window(window: Tensor, top: int, left: int) -> Tensor:
            rows, columns = slice(top, top + crop[0]), slice(left, left + crop[1])
            cut = {name: image[..., rows, columns] for name, image in controls.items()}
            return predict(window, replace(conditions.at_window(top, left), control_images=cut))

        return sliding_window(images, crop, stride, predict_window)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"{name} is {value}; expected a positive number of pixels, or (height, width)")
    return pair[0], pair[1]
