"""What every frozen backbone offers, whatever its architecture."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from gate_lightning.backbones.specs import ADAPTER_KINDS, AdapterKind, Adapters, LayerSpec, PromptEmbeds, Residuals
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import FeatureInfo, Identity

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """A frozen network that sees images; activations of its denoiser are the features.

    It is frozen and in evaluation mode for good: ``train()`` does not reach it.

    Attributes:
        family: architecture family, which layer presets are kept by.
        identity: which weights these are.
        layers: layer id → LayerSpec, in the order in which the network computes them.
        derived: the same for what is made of several of them or after the pass: averaged attention, ``vae-out``.
        aliases: other names of layers → layer id; features are reported under the name that was asked for.
        supports: names of the techniques that can steer it.
        latent_channels, latent_stride: shape of the latents: (B, latent_channels, H / stride, W / stride).
        size_multiple: heights and widths of images must be multiples of this.
        minimum_size: smallest side of an image in pixels.
        native_size: side in pixels of the images it was trained on.
        num_train_timesteps: length of the noise schedule.
        prediction_type: "epsilon", "v_prediction", "sample", or "" without a denoiser.
        schedule: config of the noise schedule (betas, length), as diffusers' schedulers take it; empty without one.
        reads_clean: it reads clean latents: no noise is added, and its own timestep is used (CleanDIFT).
    """

    family: str
    identity: Identity
    layers: Mapping[str, LayerSpec]
    derived: Mapping[str, LayerSpec] = MappingProxyType({})
    aliases: Mapping[str, str] = MappingProxyType({})
    supports: frozenset[str]
    latent_channels: int
    latent_stride: int
    size_multiple: int
    minimum_size: int
    native_size: int
    num_train_timesteps: int
    prediction_type: str
    schedule: Mapping[str, Any] = MappingProxyType({})
    reads_clean: bool = False

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The module that layer paths start from."""

    @abstractmethod
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' posterior, both scaled, (B, c, h, w).

        Args:
            images: (B, 3, H, W) in [-1, 1].
        """

    @abstractmethod
    def encode_text(self, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """Embeddings of B prompts, the text encoder steered by the text parts of ``adapters``."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Latents at the noise level of ``timestep``: √ᾱ·latents + √(1-ᾱ)·noise."""

    @abstractmethod
    def denoise(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None = None,
        adapters: Sequence[Adapters] | None = None,
    ) -> Tensor:
        """One pass of the denoiser; its prediction (B, c, h, w).

        Args:
            latents: noisy latents (B, c, h, w).
            timestep: what the denoiser is told.
            prompt_embeds: of B prompts.
            residuals: ControlNet residuals to add, or None.
            adapters: for each sample the adapters that steer it, or None for none.
        """

    def control_residuals(
        self, name: str, latents: Tensor, timestep: int, prompt_embeds: PromptEmbeds, control_images: Tensor
    ) -> Residuals:
        """What the ControlNet ``name`` adds to the denoiser's skips and middle, at scale 1.

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
        raise ConfigError(
            f"{self.identity.name} makes no images; use a diffusion backbone: tiny, sd15, adm_lsun_horse …"
        )

    def layer_id(self, name: str) -> str:
        """The layer id that ``name``, an id or an alias, stands for.

        Raises:
            ConfigError: this backbone has no such layer; the message lists near misses.
        """
        layer_id = self.aliases.get(name, name)
        if layer_id in self.layers or layer_id in self.derived:
            return layer_id
        near = difflib.get_close_matches(name, [*self.layers, *self.derived, *self.aliases], n=4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
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
            timestep: that it was told.
        """
        raise ConfigError(f"{self.identity.name} decodes no images: it has no layer vae-out")

    def feature_info(self, layer_ids: Iterable[str]) -> dict[str, FeatureInfo]:
        """Channels and stride of each layer (id or alias), under the names and in the order given.

        Raises:
            ConfigError: an id this backbone does not have.
        """
        specs = {layer_id: self.layer_spec(layer_id) for layer_id in layer_ids}
        return {name: FeatureInfo(spec.channels, spec.stride, spec.module) for name, spec in specs.items()}

    def check_timestep(self, timestep: int) -> None:
        """Raise ConfigError unless 0 ≤ timestep < num_train_timesteps."""
        if isinstance(timestep, bool) or not isinstance(timestep, int):
            raise ConfigError(f"timestep {timestep!r} is a {type(timestep).__name__}; expected an integer")
        if not 0 <= timestep < self.num_train_timesteps:
            raise ConfigError(
                f"timestep {timestep} is outside 0 … {self.num_train_timesteps - 1}, the noise schedule of "
                f"{self.identity.name}; choose one inside (features are usually read between 25 and 300)"
            )

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
