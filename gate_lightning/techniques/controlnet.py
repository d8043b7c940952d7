"""ControlNet: conditioning on edges, depth or other structure of the input image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.ops.edges import CannySettings
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Card, Conditioning, Control, Technique
from gate_lightning.utils.checks import check_choice, check_type, number
from gate_lightning.utils.seeding import data_generator

__all__ = ["CannyEdges", "ControlFunction", "ControlNet", "GivenControl", "canny_edges"]


@dataclass(frozen=True)
class CannyEdges(CannySettings):
    """Control images from Canny edges of the image."""

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Edge maps (B, 3, H, W), 0 or 1; or the batch's own control images "canny" if there are any."""
        given = conditions.control_images.get("canny")
        if given is not None:
            return _checked("canny", given, images)
        found = conditions.edges.get(self.key)
        edges = canny_edges(images, self) if found is None else (found[:, None] > 0).to(images)
        return edges.expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class GivenControl:
    """Control images of the batch (``Conditions.control_images``): depth, poses, …"""

    name: str

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Control images ``name`` of the batch, (B, 3, H, W) in [0, 1]."""
        given = conditions.control_images.get(self.name)
        if given is None:
            raise DataError(
                f"ControlNet {self.name!r} needs control images and the batch has none of that name "
                f"(has: {sorted(conditions.control_images) or 'none'}); only canny is made from the image itself. "
                f"Give them with the images, or give the ControlNet a folder of them or a function that makes them"
            )
        return _checked(self.name, given, images)


@dataclass(frozen=True, eq=False)
class ControlFunction:
    """Control images from a function of the image, such as a depth network.

    Equal for the same function object, so that branches with one object share its images.

    Args:
        function: images (B, 3, H, W) in [-1, 1] → control images (B, 3, H, W) in [0, 1]; each from its
            image alone.
        description: identity of the function for caches and checkpoints; "" for its qualified name.
    """

    function: Callable[[Tensor], Tensor]
    description: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(f"the control function is a {type(self.function).__name__}, which cannot be called")
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        object.__setattr__(self, "description", self.description or f"{named.__module__}.{named.__qualname__}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ControlFunction) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Control images (B, 3, H, W) of the function, checked."""
        made = self.function(images)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            found = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise DataError(f"control function {self.description} returned {found}; expected a floating-point tensor")
        return _checked(self.description, made, images)


ControlImages = CannyEdges | GivenControl | ControlFunction
#: tolerance of values outside [0, 1], for rounding
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ControlNet(Technique):
    """Residuals of a ControlNet for a control image with the input's structure (GATE §5.1).

    The residuals of several ControlNets in a branch are summed, each at its scale.

    Args:
        name: name of the ControlNet in the backbone; "canny" computes its control images itself.
        scale: factor of the residuals, 1 as in the paper.
        low, high, blur_sigma, normalize: Canny's settings.
        function: source of the control images: "canny", a function (see `ControlFunction`), or None (see ``folder``).
        folder: folder of control images, read with the data set's images; None: they are given in
            ``Conditions.control_images``, or are Canny edges if the ControlNet's name is "canny".
        image: key of the control images in ``Conditions.control_images``; None for ``name``.
        dropout: probability in [0, 1) of dropping the ControlNet for a training image, drawn by seed, sample and view;
            none in evaluation (``Conditions.training``).
        seed: of the dropout; the configuration sets the run's.

    Raises:
        ConfigError: a number out of range, or several sources of control images.
    """

    name: str = "canny"
    scale: float = 1.0
    low: float = 100.0
    high: float = 200.0
    blur_sigma: float = 0.0
    normalize: bool = False
    function: str | Callable[[Tensor], Tensor] | ControlFunction | None = None
    folder: str | None = None
    image: str | None = None
    dropout: float = 0.0
    seed: int = 0

    kind = "controlnet"
    order = 20
    short = several = "name"
    exclusive = ("function", "folder", "image")

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"controlnet.name={self.name!r}: expected the name of a ControlNet, such as canny")
        for key in ("folder", "image"):
            check_type(getattr(self, key), f"controlnet.{key}", str | Path | None, "a text")
        number(self.scale, "controlnet.scale", 0)
        number(self.dropout, "controlnet.dropout", 0)
        if self.dropout >= 1:
            raise ConfigError(f"controlnet.dropout={self.dropout}: expected a share in [0, 1), 0 for none")
        for key in ("low", "high", "blur_sigma"):
            number(getattr(self, key), f"controlnet.{key}", 0)
        if isinstance(self.function, str):
            check_choice(self.function, "controlnet.function", ("canny",))
        elif self.function is not None and not isinstance(self.function, ControlFunction):
            object.__setattr__(self, "function", ControlFunction(self.function))
        if self.function is not None and (self.folder or self.image):
            raise ConfigError(
                f"ControlNet {self.name!r} has a function and {'a folder' if self.folder else 'an image'}; its "
                f"control images come from one of them"
            )
        self.source()  # checks the thresholds

    @classmethod
    def configured(cls, name: str, value: Any, description: str) -> Any:
        """A function with its configuration as description."""
        return ControlFunction(value, description) if name == "function" else value

    def bound(self, card: Card, seed: int) -> ControlNet:
        """With the run's seed for the dropout."""
        return replace(self, seed=seed) if self.dropout else self

    def source(self) -> ControlImages:
        """Source of the control images."""
        if isinstance(self.function, ControlFunction):
            return self.function
        if self.function == "canny" or (self.name == "canny" and not self.folder and not self.image):
            return CannyEdges(self.low, self.high, self.blur_sigma, self.normalize)
        return GivenControl(self.image or self.name)

    @property
    def description(self) -> dict[str, object]:
        """Settings of the residuals, JSON-able."""
        source = self.source()
        described: dict[str, object] = {"technique": self.kind, "name": self.name, "scale": self.scale}
        if isinstance(source, CannyEdges):
            described |= asdict(source)
        elif isinstance(source, ControlFunction):
            described["function"] = source.description
        else:
            described |= {"image": source.name, "folder": self.folder}
        if self.dropout:
            described |= {"dropout": self.dropout, "seed": self.seed}
        return described

    def required_inputs(self) -> RequiredInputs:
        """Its folder of control images; with dropout, also a new view of each image in every epoch."""
        folders = {self.image or self.name: self.folder} if self.folder else {}
        source = self.source()
        edges = (source,) if isinstance(source, CannyEdges) else ()
        return RequiredInputs(control_folders=folders, random_views=self.dropout > 0, edges=edges)

    def control_images(self) -> dict[str, bool]:
        """The key it reads; "canny" is optional, as edges can be computed."""
        source = self.source()
        if isinstance(source, CannyEdges):
            return {"canny": False}
        return {source.name: True} if isinstance(source, GivenControl) else {}

    def without_effect(self) -> tuple[str, ...]:
        """Canny's settings, if the control images are not Canny edges."""
        return () if isinstance(self.source(), CannyEdges) else ("low", "high", "blur_sigma", "normalize")

    def prepare(self, backbone: Backbone) -> None:
        """Load the ControlNet into the backbone."""
        self.check_supported(backbone)
        backbone.require_controlnet(self.name)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Add the ControlNet to the conditioning."""
        kept = tuple(self._keeps(*sample) for sample in zip(conditions.sample_ids, conditions.views, strict=True))
        dropping = conditions.training and self.dropout > 0
        control = Control(self.name, self.source(), self.scale, kept if dropping else None)
        return replace(conditioning, controls=(*conditioning.controls, control))

    def _keeps(self, sample_id: str, view: str) -> bool:
        rng = data_generator("control dropout", self.seed, sample_id, view, self.name, self.image or "")
        return bool(rng.random() >= self.dropout)


def canny_edges(images: Tensor, settings: CannySettings) -> Tensor:
    """Edge maps (B, 1, H, W), 0 or 1, of images (B, 3, H, W) in [-1, 1], on their device and in their dtype."""
    pixels = ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    edges = [torch.from_numpy(settings.edges(array)) for array in arrays]
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
