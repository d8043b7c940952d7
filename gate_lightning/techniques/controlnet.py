"""ControlNet: holding the rebuilt picture to the input's own edges, depth, …"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.ops.edges import canny
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, Control

__all__ = ["CannyEdges", "ControlNet", "GivenControl", "canny_edges"]


@dataclass(frozen=True)
class CannyEdges:
    """Canny edges of the picture itself, as control pictures; settings as ``ops.edges.canny``."""

    low: float = 100.0
    high: float = 200.0
    blur_sigma: float = 0.0
    normalize: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high or self.blur_sigma < 0:
            raise ConfigError(
                f"Canny with low={self.low}, high={self.high}, blur_sigma={self.blur_sigma}; "
                f"expected 0 ≤ low ≤ high and a blur of 0 or more"
            )

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """(B, 3, H, W), 0 or 1; the pictures' own control image "canny" is used where there is one."""
        given = conditions.control_images.get("canny")
        if given is not None:
            return _checked("canny", given, images)
        return canny_edges(images, self).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class GivenControl:
    """Control pictures that come with the batch (``Conditions.control_images``): depth, poses, …"""

    name: str

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """The batch's control pictures of that name, (B, 3, H, W) in [0, 1]."""
        given = conditions.control_images.get(self.name)
        if given is None:
            raise DataError(
                f"ControlNet {self.name!r} needs control pictures and the batch has none of that name "
                f"(has: {sorted(conditions.control_images) or 'none'}); only canny is made from the picture itself"
            )
        return _checked(self.name, given, images)


@dataclass(frozen=True)
class ControlNet:
    """Residuals of a ControlNet on a picture that holds the input's structure (GATE §5.1).

    Args:
        control: name of the ControlNet in the backbone; "canny" makes its own pictures.
        scale: factor of the residuals, 1 as in the paper.
        low, high, blur_sigma, normalize: Canny's settings; only for "canny".
    """

    control: str = "canny"
    scale: float = 1.0
    low: float = 100.0
    high: float = 200.0
    blur_sigma: float = 0.0
    normalize: bool = False

    name = "controlnet"
    order = 20

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ConfigError(f"ControlNet scale {self.scale}: expected 0 or more")
        if self.control == "canny":
            self.source()  # checks the thresholds

    def source(self) -> CannyEdges | GivenControl:
        """Where the control pictures come from."""
        if self.control != "canny":
            return GivenControl(self.control)
        return CannyEdges(self.low, self.high, self.blur_sigma, self.normalize)

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able."""
        return {"name": self.name, "control": self.control, "scale": self.scale, **asdict(self.source())}

    def prepare(self, backbone: Backbone) -> None:
        """Load the ControlNet into the backbone."""
        if self.name not in backbone.supports:
            raise ConfigError(f"{backbone.identity.name} takes no ControlNet; use techniques=none with it")
        backbone.require_controlnet(self.control)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Add the control to those already there."""
        control = Control(self.control, self.source(), self.scale)
        return replace(conditioning, controls=(*conditioning.controls, control))


def canny_edges(images: Tensor, settings: CannyEdges) -> Tensor:
    """Edge maps (B, 1, H, W), 0 or 1, of images (B, 3, H, W) in [-1, 1], on their device and in their dtype."""
    pixels = ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
    edges = [torch.from_numpy(canny(picture, **asdict(settings))) for picture in pictures]
    return (torch.stack(edges)[:, None] > 0).to(images)


def _checked(name: str, control: Tensor, images: Tensor) -> Tensor:
    if control.shape != images.shape:
        raise DataError(
            f"control pictures {name!r} of shape {tuple(control.shape)} for pictures of shape {tuple(images.shape)}; "
            f"they must be cropped and resized together"
        )
    return control
