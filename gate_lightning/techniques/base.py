"""Contract of techniques: each changes how a denoising pass is conditioned, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions

__all__ = ["Card", "Conditioning", "Control", "ControlSource", "Predict", "Technique", "Trajectory"]


class Card(Protocol):
    """What is read of a data set's card; ``classes``, the names of its classes, too where it has some."""

    @property
    def name(self) -> str: ...

    @property
    def prompt_simple(self) -> str: ...

    @property
    def prompt_fine(self) -> str: ...

    @property
    def branches(self) -> Sequence[Mapping[str, Any]]: ...


class ControlSource(Protocol):
    """Where the control images of a ControlNet come from; equal (and hashable) for equal images."""

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Control images (B, 3, H, W) in [0, 1] for images (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Control:
    """One ControlNet at work.

    Attributes:
        name: of the ControlNet in the backbone.
        source: makes the control images; called once per batch for all branches with an equal source.
        scale: factor of its residuals.
        kept: for each sample whether it has this ControlNet, or None if all have (training-time dropout).
    """

    name: str
    source: ControlSource
    scale: float
    kept: tuple[bool, ...] | None = None

    def scaled(self, residual: Tensor, rows: Sequence[int]) -> Tensor:
        """The residual (R, C, h, w) of these R images of the batch at its scale; 0 for those that go without it."""
        if self.kept is None:
            return self.scale * residual
        scales = residual.new_tensor([self.scale * self.kept[row] for row in rows])
        return scales.view(-1, *[1] * (residual.dim() - 1)) * residual


#: (latents, timestep) → the prediction of the conditioned denoiser, in the type of the latents
Predict = Callable[[Tensor, int], Tensor]


@runtime_checkable
class Trajectory(Protocol):
    """Passes of the denoiser that bring latents to the timestep that is read; equal (and hashable) for equal plans."""

    def check(self, backbone: Backbone, timestep: int) -> None:
        """Raise ConfigError unless features can be read at ``timestep`` after this trajectory."""

    def start(self, timestep: int) -> int | None:
        """The timestep to whose level the clean latents are noised first, or None for no noise."""

    def run(self, latents: Tensor, timestep: int, predict: Predict, backbone: Backbone) -> Tensor:
        """Latents (B, c, h, w) at the level of ``timestep``, from those at the level of ``start(timestep)``."""


@dataclass(frozen=True)
class Conditioning:
    """How one branch's denoising pass is conditioned; techniques make changed copies of it.

    Attributes:
        prompts: B prompts.
        controls: ControlNets whose residuals are added up.
        adapters: (name, scale) of the LoRAs that act on text encoder and denoiser.
        trajectory: passes that move the latents to the timestep that is read; None to noise them to it directly.
    """

    prompts: tuple[str, ...]
    controls: tuple[Control, ...] = ()
    adapters: Adapters = ()
    trajectory: Trajectory | None = None


class Technique:
    """Base class of techniques: an off-the-shelf generation technique that steers the denoiser.

    A subclass is a frozen dataclass. Its fields are its settings on the command line (``technique.<name>.<field>``),
    its constructor checks them, and class attributes say how it may be named and combined. Only `apply` must be
    written.

    Attributes:
        kind: what ``techniques=`` calls those of this package; the class's name in small letters if it says nothing.
        order: techniques of a branch are applied by rising order: prompt 10, controlnet 20, lora 30, inversion 40,
            denoise 50.
        short: field that a bare value sets (``controlnet: depth`` is ``controlnet: {name: depth}``); "" for none.
        several: field that tells several of a kind in one branch apart (``name: [canny, depth]``); "" where a branch
            has one at most.
        decides: the part of a pass that it alone decides ("prompt", "latents"); two techniques that decide the same
            are refused in one branch. "" for one that goes with all others.
        exclusive: fields that exclude each other: a branch that sets one drops the shared values of all of them.
        shorthands: key of a branch → field that it sets (``denoise_steps: 10`` is ``denoise: {steps: 10}``).
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
        """All settings that features depend on, JSON-able; for caches and checkpoints."""
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.init}  # type: ignore[arg-type]
        try:
            json.dumps(settings)
        except TypeError as error:
            raise ConfigError(
                f"{self!r} must say itself what features depend on: {error}; write `description`"
            ) from error
        return {"technique": self.kind, **settings}

    def prepare(self, backbone: Backbone) -> None:
        """Load into the backbone what the technique needs; raise before anything expensive if that cannot work."""

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """The changed conditioning of a batch of images (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__}.apply")

    def bound(self, card: Card, seed: int) -> Technique:
        """The technique with what it takes from the data set's card (prompts, class names) and the run's seed."""
        return self

    def required_inputs(self) -> RequiredInputs:
        """Files that must be read with the images of a data set: control folders, checks of captions."""
        return RequiredInputs()

    def control_images(self) -> dict[str, bool]:
        """Names of ``Conditions.control_images`` that it reads → whether they must be given."""
        return {}

    def without_effect(self) -> tuple[str, ...]:
        """Fields that the others make idle; a branch that sets one of them is refused."""
        return ()

    def prompt_length(self, backbone: Backbone) -> int | None:
        """Tokens of the prompt it tells, 0 where images have prompts of their own, None if it tells none.

        Asked for after `prepare`: averaged cross-attention has a channel per token.
        """
        return None

    @classmethod
    def configured(cls, name: str, value: Any, description: str) -> Any:
        """The value of the field ``name``, an object that the configuration built from its ``_target_``.

        Args:
            name: of the field.
            value: the object.
            description: its configuration as JSON; equal for equal objects.
        """
        return value
