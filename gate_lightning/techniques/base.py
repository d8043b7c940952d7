"""Contract of techniques, which change the conditioning of a denoising pass and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.errors import ConfigError
from gate_lightning.ops.rows import on_device
from gate_lightning.structures import Conditions

__all__ = ["Card", "Conditioning", "Control", "ControlSource", "ImagePrompt", "Predict", "Technique", "Trajectory"]


class Card(Protocol):
    """The part of a data set's card that techniques read; ``classes``, class names, is optional."""

    @property
    def name(self) -> str: ...

    @property
    def prompt_simple(self) -> str: ...

    @property
    def prompt_fine(self) -> str: ...

    @property
    def branches(self) -> Sequence[Mapping[str, Any]]: ...


class ControlSource(Protocol):
    """Source of a ControlNet's control images; hashable, equal for equal images."""

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Control images (B, 3, H, W) in [0, 1] for images (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Control:
    """A ControlNet in the conditioning of a pass.

    Attributes:
        name: name of the ControlNet in the backbone.
        source: maker of the control images; called once per batch for all branches with an equal source.
        scale: factor of its residuals.
        kept: for each sample, whether the ControlNet acts on it (training-time dropout); None for all.
    """

    name: str
    source: ControlSource
    scale: float
    kept: tuple[bool, ...] | None = None

    def scaled(self, residual: Tensor, rows: Sequence[int]) -> Tensor:
        """``scale`` · residual (R, C, h, w) for R images of the batch; 0 for images that dropped the ControlNet."""
        if self.kept is None:
            return self.scale * residual
        scales = on_device([self.scale * self.kept[row] for row in rows], residual.device, residual.dtype)
        return scales.view(-1, *[1] * (residual.dim() - 1)) * residual


@dataclass(frozen=True)
class ImagePrompt:
    """An IP-Adapter in the conditioning of a pass; it shows the denoiser the image itself.

    Attributes:
        name: name of the adapter in the backbone.
        scale: factor of the attention on its tokens.
        shown: False for the tokens of no image, in the second pass of guidance.
    """

    name: str
    scale: float
    shown: bool = True


#: (latents, timestep) → prediction of the conditioned denoiser, in the dtype of the latents
Predict = Callable[[Tensor, int], Tensor]


@runtime_checkable
class Trajectory(Protocol):
    """Denoising passes that move latents to the timestep that is read; hashable, equal for equal steps."""

    def check(self, backbone: Backbone, timestep: int) -> None:
        """Raise ConfigError unless the trajectory can end at ``timestep``."""

    def start(self, timestep: int) -> int | None:
        """Timestep to which the clean latents are noised first; None for no noise."""

    def run(self, latents: Tensor, timestep: int, predict: Predict, backbone: Backbone) -> Tensor:
        """Latents (B, c, h, w) at ``timestep`` from latents at ``start(timestep)``."""


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of one branch's denoising pass; techniques make changed copies of it.

    Attributes:
        prompts: B prompts.
        controls: ControlNets, whose residuals are summed.
        adapters: (name, scale) of the adapters on text encoder and denoiser.
        trajectory: passes that move the latents to the timestep that is read; None to noise them to it directly.
        guidance: scale s of classifier-free guidance; 1 for none, without a second pass.
        negative: prompt of the guidance's second pass, of all images.
        image_prompts: IP-Adapters, whose attentions are summed.
    """

    prompts: tuple[str, ...]
    controls: tuple[Control, ...] = ()
    adapters: Adapters = ()
    trajectory: Trajectory | None = None
    guidance: float = 1.0
    negative: str = ""
    image_prompts: tuple[ImagePrompt, ...] = ()

    @property
    def steering(self) -> tuple[object, ...]:
        """Settings that steer a pass over given images: all but the trajectory; hashable."""
        return (self.prompts, self.controls, self.adapters, self.guidance, self.negative, self.image_prompts)

    def unprompted(self, backbone: Backbone) -> Conditioning:
        """The conditioning of the guidance's second pass: the same but for the prompts, of text and image."""
        return replace(
            self,
            prompts=(self.negative,) * len(self.prompts),
            adapters=backbone.without_prompt(self.adapters),
            guidance=1.0,
            image_prompts=tuple(replace(one, shown=False) for one in self.image_prompts),
        )


class Technique:
    """Base class of techniques: off-the-shelf generation techniques that steer the denoiser.

    A subclass is a frozen dataclass. Its fields are its settings on the command line (``technique.<name>.<field>``),
    validated by its constructor; class attributes declare how it is named and combined. Only `apply` is abstract.

    Attributes:
        kind: name in ``techniques=`` and in the backbone's ``supports``; by default the lower-case class name.
        order: place among the techniques of a branch, rising: prompt 10, controlnet 20, lora 30, ip_adapter 33,
            guidance 35, inversion 40, denoise 50.
        short: field set by a bare value (``controlnet: depth`` is ``controlnet: {name: depth}``); "" for none.
        several: field that distinguishes several of a kind in one branch (``name: [canny, depth]``); "" if a branch
            has one at most.
        decides: part of a pass that it alone decides ("prompt", "latents"); a branch with two techniques that decide
            the same part is refused. "" for none.
        exclusive: mutually exclusive fields: a branch that sets one of them drops the shared values of all.
        shorthands: key of a branch → field (``denoise_steps: 10`` is ``denoise: {steps: 10}``).
    """

    kind: ClassVar[str] = ""
    order: ClassVar[int] = 100
    short: ClassVar[str] = ""
    several: ClassVar[str] = ""
    decides: ClassVar[str] = ""
    exclusive: ClassVar[tuple[str, ...]] = ()
    shorthands: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        cls.kind = cls.kind or cls.__name__.lower()

    @property
    def description(self) -> dict[str, object]:
        """Settings that features depend on, JSON-able; for caches and checkpoints."""
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.init}  # type: ignore[arg-type]
        try:
            json.dumps(settings)
        except TypeError as error:
            raise ConfigError(f"{self!r}: its settings are no JSON ({error}); write its `description`") from error
        return {"technique": self.kind, **settings}

    def prepare(self, backbone: Backbone) -> None:
        """Load the needed weights into the backbone; raise if the technique cannot work with it."""

    def check_supported(self, backbone: Backbone) -> None:
        """Raise ConfigError unless the backbone supports the technique."""
        if self.kind not in backbone.supports:
            raise ConfigError(f"{backbone.identity.name} does not support {self.kind}; leave it out (techniques=none)")

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Changed copy of the conditioning of a batch of images (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__}.apply")

    def bound(self, card: Card, seed: int) -> Technique:
        """Copy completed from the data set's card (prompts, class names) and the run's seed."""
        return self

    def required_inputs(self) -> RequiredInputs:
        """Files to be read with the images of a data set: control folders, checks of captions."""
        return RequiredInputs()

    def control_images(self) -> dict[str, bool]:
        """Names of the ``Conditions.control_images`` it reads → whether they are required."""
        return {}

    def without_effect(self) -> tuple[str, ...]:
        """Fields without effect beside the others' values; a branch that sets one of them is refused."""
        return ()

    def prompt_length(self, backbone: Backbone) -> int | None:
        """Tokens of its prompt; 0 if each image has its own, None if the technique sets no prompt.

        Called after `prepare`: averaged cross-attention has a channel per token.
        """
        return None

    @classmethod
    def configured(cls, name: str, value: Any, description: str) -> Any:
        """Value of a field whose setting is a mapping with ``_target_``.

        Args:
            name: name of the field.
            value: object built from the mapping.
            description: the mapping as JSON; equal for equal objects.
        """
        return value
