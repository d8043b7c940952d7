"""ControlNet: holding the rebuilt image to the input's own edges, depth, …"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.ops.edges import canny
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, Control
from gate_lightning.utils.seeding import data_generator

__all__ = ["CannyEdges", "ControlFunction", "ControlNet", "GivenControl", "canny_edges"]


@dataclass(frozen=True)
class CannyEdges:
    """Canny edges of the image itself, as control images; settings as ``ops.edges.canny``."""

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
        """(B, 3, H, W), 0 or 1; the images' own control image "canny" is used where there is one."""
        given = conditions.control_images.get("canny")
        if given is not None:
            return _checked("canny", given, images)
        return canny_edges(images, self).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class GivenControl:
    """Control images that come with the batch (``Conditions.control_images``): depth, poses, …"""

    name: str

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """The batch's control images of that name, (B, 3, H, W) in [0, 1]."""
        given = conditions.control_images.get(self.name)
        if given is None:
            raise DataError(
                f"ControlNet {self.name!r} needs control images and the batch has none of that name "
                f"(has: {sorted(conditions.control_images) or 'none'}); only canny is made from the image itself. "
                f"Name a folder of them (technique.controlnet.folder=<folder>) or a function that makes them "
                f"(technique.controlnet.function)"
            )
        return _checked(self.name, given, images)


@dataclass(frozen=True, eq=False)
class ControlFunction:
    """Control images from a function of the image, a depth network say.

    Two of them are equal only if they are the same object: branches that are given one object share its images.

    Args:
        function: images (B, 3, H, W) in [-1, 1] → control images (B, 3, H, W) in [0, 1]; each from its image alone.
        description: what the images depend on, for caches and checkpoints; "" for the function's own name.
    """

    function: Callable[[Tensor], Tensor]
    description: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(f"the control function is a {type(self.function).__name__}, which cannot be called")
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        object.__setattr__(self, "description", self.description or f"{named.__module__}.{named.__qualname__}")

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """What the function makes of the images, checked."""
        made = self.function(images)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            found = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise DataError(f"control function {self.description} returned {found}; expected a floating-point tensor")
        return _checked(self.description, made, images)


ControlImages = CannyEdges | GivenControl | ControlFunction
#: how far control images may lie outside 0 to 1: rounding of whatever made them
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ControlNet:
    """Residuals of a ControlNet on an image that holds the input's structure (GATE §5.1).

    Several of them in a branch add up, each at its scale.

    Args:
        control: name of the ControlNet in the backbone; "canny" makes its own images.
        scale: factor of the residuals, 1 as in the paper.
        low, high, blur_sigma, normalize: Canny's settings.
        function: what makes the control images: "canny", a ControlFunction, or None (see ``folder``).
        folder: of control images, which the data set hands out with its images; None: the images come with the
            batch, from wherever the caller has them, or are Canny edges if that is the ControlNet's name.
        image: name that images of a folder, or of the caller, have in ``Conditions.control_images``; "" for
            ``control``.
        dropout: share of training images that go without it, in [0, 1); drawn for each by seed, sample and view.
            Evaluation never drops (``Conditions.training``).
        seed: of the dropout.

    Raises:
        ConfigError: a number out of range, or several sources of control images.
    """

    control: str = "canny"
    scale: float = 1.0
    low: float = 100.0
    high: float = 200.0
    blur_sigma: float = 0.0
    normalize: bool = False
    function: str | ControlFunction | None = None
    folder: str | None = None
    image: str = ""
    dropout: float = 0.0
    seed: int = 0

    name = "controlnet"
    order = 20

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ConfigError(f"ControlNet scale {self.scale}: expected 0 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"ControlNet dropout {self.dropout}: expected a share in [0, 1), 0 for none")
        if isinstance(self.function, str) and self.function != "canny":
            raise ConfigError(f"ControlNet function {self.function!r}: expected canny, or a function (`_target_`)")
        if self.function is not None and (self.folder or self.image):
            raise ConfigError(
                f"ControlNet {self.control!r} has a function and {'a folder' if self.folder else 'an image'}; its "
                f"control images come from one of them"
            )
        self.source()  # checks the thresholds

    def source(self) -> ControlImages:
        """Where the control images come from."""
        if isinstance(self.function, ControlFunction):
            return self.function
        if self.function == "canny" or (self.control == "canny" and not self.folder and not self.image):
            return CannyEdges(self.low, self.high, self.blur_sigma, self.normalize)
        return GivenControl(self.image or self.control)

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able."""
        source = self.source()
        described: dict[str, object] = {"name": self.name, "control": self.control, "scale": self.scale}
        if isinstance(source, CannyEdges):
            described |= asdict(source)
        elif isinstance(source, ControlFunction):
            described["function"] = source.description
        else:
            described |= {"image": source.name, "folder": self.folder}
        if self.dropout:
            described |= {"dropout": self.dropout, "seed": self.seed}
        return described

    def prepare(self, backbone: Backbone) -> None:
        """Load the ControlNet into the backbone."""
        if self.name not in backbone.supports:
            raise ConfigError(f"{backbone.identity.name} takes no ControlNet; use techniques=none with it")
        backbone.require_controlnet(self.control)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Add the control to those already there."""
        kept = tuple(self._keeps(*sample) for sample in zip(conditions.sample_ids, conditions.views, strict=True))
        dropping = conditions.training and self.dropout > 0
        control = Control(self.control, self.source(), self.scale, kept if dropping else None)
        return replace(conditioning, controls=(*conditioning.controls, control))

    def _keeps(self, sample_id: str, view: str) -> bool:
        rng = data_generator("control dropout", self.seed, sample_id, view, self.control, self.image)
        return bool(rng.random() >= self.dropout)


def canny_edges(images: Tensor, settings: CannyEdges) -> Tensor:
    """Edge maps (B, 1, H, W), 0 or 1, of images (B, 3, H, W) in [-1, 1], on their device and in their dtype."""
    pixels = ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    edges = [torch.from_numpy(canny(array, **asdict(settings))) for array in arrays]
    return (torch.stack(edges)[:, None] > 0).to(images)


def _checked(name: str, control: Tensor, images: Tensor) -> Tensor:
    if control.shape != images.shape:
        raise DataError(
            f"control images {name!r} of shape {tuple(control.shape)} for images of shape {tuple(images.shape)}; "
            f"they must be cropped and resized together"
        )
    low, high = (float(value) for value in torch.aminmax(control.detach()))
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # a NaN fails too
        raise DataError(f"control images {name!r} have values from {low:.4g} to {high:.4g}; expected 0 to 1")
    return control
