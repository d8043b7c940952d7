"""The contract of a frozen backbone, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.backbones.specs import ADAPTER_KINDS, AdapterKind, Adapters, LayerSpec, PromptEmbeds, Residuals
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import FeatureInfo, Identity
from gate_lightning.utils.checks import did_you_mean, whole_number
from gate_lightning.utils.dtypes import DTYPES

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """A frozen network that sees images; activations of its denoiser are the features.

    It is frozen and in evaluation mode for good: ``train()`` does not reach it. Latents are maps (B, c, h, w) for all
    callers; what a network wants instead (2 × 2 patches packed into a sequence, say) is made inside ``forward``.

    As it stands the class describes a network over pixels (latents are the images) without a text encoder; others
    override ``encode_moments``, ``decode`` and ``encode_text``.

    Attributes:
        family: architecture family, which layer presets are kept by.
        identity: which weights these are.
        schedule: how latents are noised, what the denoiser is told, what its prediction means.
        layers: layer id → LayerSpec, in the order in which the network computes them.
        derived: the same for what is made of several of them or after the pass: averaged attention, ``vae-out``.
        aliases: other names of layers → layer id; features are reported under the name that was asked for.
        supports: names of the techniques that can steer it.
        latent_channels, latent_stride: shape of the latents: (B, latent_channels, H / stride, W / stride).
        size_multiple: heights and widths of images must be multiples of this.
        minimum_size: smallest side of an image in pixels.
        native_size: side in pixels of the images it was trained on.
    """

    family: str
    identity: Identity
    schedule: NoiseSchedule
    layers: Mapping[str, LayerSpec]
    derived: Mapping[str, LayerSpec] = MappingProxyType({})
    aliases: Mapping[str, str] = MappingProxyType({})
    supports: frozenset[str] = frozenset()
    latent_channels: int = 3
    latent_stride: int = 1
    size_multiple: int
    minimum_size: int
    native_size: int

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The module that layer paths start from."""

    @abstractmethod
    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        """One pass of the denoiser with ``schedule.time_input(timestep)``; called through ``denoise``, see there."""

    def denoise(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None = None,
        adapters: Sequence[Adapters] | None = None,
    ) -> Tensor:
        """One pass of the denoiser; its prediction (B, c, h, w), of the schedule's prediction type.

        Args:
            latents: noisy latents (B, c, h, w).
            timestep: of the noise schedule.
            prompt_embeds: of B prompts.
            residuals: ControlNet residuals to add, or None.
            adapters: for each sample the adapters that steer it, or None for none.
        """
        # through __call__, so that recorders see latents, timestep and prediction of the pass by hooks on the backbone
        prediction: Tensor = self(latents, timestep, prompt_embeds, residuals, adapters)
        return prediction

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' posterior, both scaled, (B, c, h, w).

        Args:
            images: (B, 3, H, W) in [-1, 1].
        """
        images = images.to(self.dtype)
        return images, torch.zeros_like(images)

    def encode_text(self, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """Embeddings of B prompts, the text encoder steered by their part of ``adapters``; (B, 0, 0) without one."""
        return PromptEmbeds(torch.empty(len(prompts), 0, 0, device=self.device, dtype=self.dtype))

    def control_residuals(
        self, name: str, latents: Tensor, timestep: int, prompt_embeds: PromptEmbeds, control_images: Tensor
    ) -> Residuals:
        """Residuals of the ControlNet ``name`` at scale 1.

        Args:
            name: of a ControlNet that was required before.
            latents: noisy latents (B, c, h, w).
            timestep: of the pass.
            prompt_embeds: of B prompts.
            control_images: (B, 3, H, W) in [0, 1], H and W of the image.
        """
        raise ConfigError(f"{self.identity.name} takes no ControlNet; use techniques=none with it")

    def require_controlnet(self, name: str) -> None:
        """Load the ControlNet ``name`` unless it is there."""
        raise ConfigError(f"{self.identity.name} takes no ControlNet; use techniques=none with it")

    def require_adapter(self, name: str, source: str, kind: AdapterKind = "lora") -> None:
        """Load the LoRA, the learned tokens or the learned prompt of ``source`` under ``name`` unless it is there."""
        raise ConfigError(f"{self.identity.name} takes no {ADAPTER_KINDS[kind]}; use techniques=none with it")

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(iter(self.parameters())).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.parameters())).device

    @property
    def description(self) -> dict[str, object]:
        """What the features depend on, JSON-able; for caches and checkpoints."""
        identity = self.identity
        return {
            "family": self.family,
            "name": identity.name,
            "revision": identity.revision,
            "digest": identity.digest,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def text_length(self, prompt: str, adapters: Adapters = ()) -> int:
        """Tokens T that ``encode_text`` gives for one prompt, where that differs by prompt; else 0.

        Only prompts of equal length are encoded, and denoised, in one batch.
        """
        del prompt, adapters
        return 0

    def text_adapters(self, adapters: Adapters) -> Adapters:
        """Those of ``adapters`` that change the text encoder."""
        del adapters
        return ()

    def encode(self, images: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        """Scaled latents (B, c, h, w): the posterior mean, or mean + std · ``posterior_noise`` where that is given."""
        mean, std = self.encode_moments(images)
        return mean if posterior_noise is None else mean + std * posterior_noise.to(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of scaled latents (B, c, h, w)."""
        return latents

    def layer_id(self, name: str) -> str:
        """The layer id that ``name``, an id or an alias, stands for.

        Raises:
            ConfigError: this backbone has no such layer; the message lists near misses.
        """
        layer_id = self.aliases.get(name, name)
        if layer_id in self.layers or layer_id in self.derived:
            return layer_id
        hint = did_you_mean(name, [*self.layers, *self.derived, *self.aliases], 4)
        raise ConfigError(
            f"{self.identity.name} has no layer {name!r}; {hint}eval.py tool=layers lists its {len(self.layers)} layers"
        )

    def layer_spec(self, name: str) -> LayerSpec:
        """Where the layer ``name``, an id or an alias, is found; raises ConfigError where there is none."""
        layer_id = self.layer_id(name)
        return self.layers[layer_id] if layer_id in self.layers else self.derived[layer_id]

    def image_after_step(self, latents: Tensor, prediction: Tensor, timestep: int) -> Tensor:
        """The image (B, 3, H, W), about [-1, 1], decoded after one scheduler step: the layer ``vae-out``.

        Args:
            latents: noisy latents (B, c, h, w) that the denoiser saw.
            prediction: of the denoiser for them.
            timestep: of the pass.
        """
        return self.decode(self.schedule.step(latents, prediction, timestep))

    def feature_info(self, layer_ids: Iterable[str]) -> dict[str, FeatureInfo]:
        """Channels and stride of each layer (id or alias), under the names and in the order given.

        Raises:
            ConfigError: an id this backbone does not have.
        """
        specs = {layer_id: self.layer_spec(layer_id) for layer_id in layer_ids}
        return {name: FeatureInfo(spec.channels, spec.stride, spec.module) for name, spec in specs.items()}

    def check_timestep(self, timestep: int) -> None:
        """Raise ConfigError unless the timestep is a whole number within the noise schedule."""
        whole_number(timestep, "timestep", 0, self.schedule.length - 1)

    def check_images(self, images: Tensor) -> None:
        """Raise DataError unless the images are (B, 3, H, W) of a size this backbone can read."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise DataError(
                f"images of shape {tuple(images.shape)} and type {images.dtype}; expected (B, 3, H, W), "
                "floating point in [-1, 1]"
            )
        height, width = images.shape[-2:]
        if min(height, width) < self.minimum_size:
            raise DataError(
                f"an image of {height} × {width} pixels (height × width) is too small for {self.identity.name}, which "
                f"needs at least {self.minimum_size} on each side; enlarge it first"
            )
        multiple = self.size_multiple
        if height % multiple or width % multiple:
            near = [f"{side // multiple * multiple} or {-(-side // multiple) * multiple}" for side in (height, width)]
            raise DataError(
                f"an image of {height} × {width} pixels (height × width); {self.identity.name} reads multiples of "
                f"{multiple}. Nearest: height {near[0]}, width {near[1]}. Pad, crop or resize it"
            )

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: a frozen backbone has nothing to train."""
        del mode
        return super().train(False)

    def freeze(self) -> Self:
        """Switch gradients off and evaluation mode on."""
        return self.requires_grad_(False).train(False)

    def finish(self, dtype: str, channels_last: bool) -> Self:
        """Convert what a loader has read: floating-point type of DTYPES, memory format of the convolutions."""
        self.to(DTYPES[dtype])
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        return self

    def check_native_size(self, native_size: int | None) -> Self:
        """Raise ConfigError if the configuration says another native size than these weights have."""
        if native_size is not None and native_size != self.native_size:
            raise ConfigError(
                f"backbone.native_size={native_size}, but {self.identity.name} was trained on images of "
                f"{self.native_size} px; set backbone.native_size={self.native_size}"
            )
        return self
