"""Contract of a frozen backbone, independent of its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from gate_lightning.backbones.adapters.image_prompts import ImagePromptAdapter
from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.backbones.specs import ADAPTER_KINDS, AdapterKind, Adapters, LayerSpec, PromptEmbeds, Residuals
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import FeatureInfo, Identity
from gate_lightning.utils.checks import did_you_mean, shown, whole_number
from gate_lightning.utils.dtypes import DTYPES

__all__ = ["Backbone", "check_backbone"]


def check_backbone(backbone: Any) -> None:
    """Raise ConfigError unless this has layers, as backbones do."""
    if not isinstance(getattr(backbone, "layers", None), Mapping):
        raise ConfigError(f"backbone={shown(backbone)}: expected a backbone, such as load_backbone('tiny')")


class Backbone(nn.Module, ABC):
    """Base class of frozen networks over images; activations of the denoiser are the features.

    A backbone stays in evaluation mode: ``train()`` has no effect. Latents are maps (B, c, h, w) for all callers; a
    network that needs another layout (2 × 2 patches packed into a sequence, say) changes it inside ``forward``.

    The defaults are those of a network over pixels (latents are the images) without text encoder; others override
    ``encode_moments``, ``decode`` and ``encode_text``.

    Attributes:
        family: architecture family, the key of layer presets.
        identity: name, revision and digest of the weights.
        schedule: noise levels, time input and meaning of the prediction.
        layers: layer id → LayerSpec, in the order of computation.
        derived: the same for layers computed from several others or after the pass: averaged attention, ``vae-out``.
        aliases: other name of a layer → layer id; features keep the requested name.
        supports: techniques that can steer it, by ``Technique.kind``.
        latent_channels, latent_stride: latents are (B, latent_channels, H / stride, W / stride).
        size_multiple: required divisor of image heights and widths.
        minimum_size: smallest side of an image in pixels.
        native_size: side in pixels of the training images.
        memory_format: of the weights of convolutions, set by ``finish``; for parts that are loaded later.
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
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """Root module of the layer paths."""

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
            timestep: timestep of the noise schedule.
            prompt_embeds: embeddings of B prompts.
            residuals: ControlNet residuals to add, or None.
            adapters: adapters of each sample, or None for none.
        """
        # through __call__: recorders hook the backbone for latents, timestep and prediction of the pass
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
        """Embeddings of B prompts under the text encoder's part of ``adapters``; (B, 0, 0) without text encoder."""
        return PromptEmbeds(torch.empty(len(prompts), 0, 0, device=self.device, dtype=self.dtype))

    def control_residuals(
        self, name: str, latents: Tensor, timestep: int, prompt_embeds: PromptEmbeds, control_images: Tensor
    ) -> Residuals:
        """Residuals of the ControlNet ``name`` at scale 1.

        Args:
            name: ControlNet loaded by ``require_controlnet``.
            latents: noisy latents (B, c, h, w).
            timestep: timestep of the pass.
            prompt_embeds: embeddings of B prompts.
            control_images: (B, 3, H, W) in [0, 1], of the images' size.
        """
        raise ConfigError(f"{self.identity.name} takes no ControlNet; leave it out (techniques=none)")

    def require_controlnet(self, name: str) -> None:
        """Load the ControlNet ``name`` if it is not loaded yet."""
        raise ConfigError(f"{self.identity.name} takes no ControlNet; leave it out (techniques=none)")

    def require_adapter(self, name: str, source: str, kind: AdapterKind = "lora") -> None:
        """Load a LoRA, learned tokens or a learned prompt from ``source`` as ``name`` if it is not loaded yet."""
        raise ConfigError(f"{self.identity.name} takes no {ADAPTER_KINDS[kind]}; leave it out (techniques=none)")

    def require_image_prompts(self, name: str, weights: str, encoder: str) -> None:
        """Load an IP-Adapter and its image encoder as ``name`` if it is not loaded yet."""
        raise ConfigError(f"{self.identity.name} takes no IP-Adapter; leave it out (techniques=none)")

    def image_prompts(self, name: str) -> ImagePromptAdapter:
        """The IP-Adapter ``name``, loaded by ``require_image_prompts``."""
        raise ConfigError(f"{self.identity.name} takes no IP-Adapter; leave it out (techniques=none)")

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(iter(self.parameters())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(iter(self.parameters())).device

    def fixed_tensors(self) -> Iterator[Tensor]:
        """All tensors that passes read besides those they are given."""
        yield from self.parameters()
        yield from self.buffers()

    @property
    def description(self) -> dict[str, object]:
        """Family, weights and dtype, JSON-able; part of the identity of caches and checkpoints."""
        identity = self.identity
        return {
            "family": self.family,
            "name": identity.name,
            "revision": identity.revision,
            "digest": identity.digest,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def text_length(self, prompt: str, adapters: Adapters = ()) -> int:
        """Number of tokens T of a prompt's embeddings; 0 if it is the same for all prompts.

        Only prompts of equal T are encoded, and denoised, in one batch.
        """
        del prompt, adapters
        return 0

    def words_of(self, prompt: str, adapters: Adapters = ()) -> list[tuple[str, tuple[int, ...]]]:
        """Words of a prompt with their tokens, positions in its embeddings; empty where they are not known."""
        del prompt, adapters
        return []

    def text_adapters(self, adapters: Adapters) -> Adapters:
        """Subset of ``adapters`` that changes a text encoder."""
        del adapters
        return ()

    def without_prompt(self, adapters: Adapters) -> Adapters:
        """Subset of ``adapters`` under which a prompt's text is read: all but learned prompts."""
        return adapters

    def encode(self, images: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        """Scaled latents (B, c, h, w): the posterior's mean, or mean + std · ``posterior_noise`` if given."""
        mean, std = self.encode_moments(images)
        return mean if posterior_noise is None else mean + std * posterior_noise.to(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of scaled latents (B, c, h, w)."""
        return latents

    def layer_id(self, name: str) -> str:
        """Layer id of a layer id or alias.

        Raises:
            ConfigError: this backbone has no such layer; the message lists near misses.
        """
        layer_id = self.aliases.get(name, name)
        if layer_id in self.layers or layer_id in self.derived:
            return layer_id
        hint = did_you_mean(name, [*self.layers, *self.derived, *self.aliases], 4)
        raise ConfigError(
            f"{self.identity.name} has no layer {name!r}; {hint}backbone.layers has its {len(self.layers)} layers "
            "(eval.py tool=layers lists them)"
        )

    def layer_spec(self, name: str) -> LayerSpec:
        """Place of the layer ``name`` (id or alias) in the network; ConfigError as `layer_id`."""
        layer_id = self.layer_id(name)
        return self.layers[layer_id] if layer_id in self.layers else self.derived[layer_id]

    def image_after_step(self, latents: Tensor, prediction: Tensor, timestep: int) -> Tensor:
        """Image (B, 3, H, W), about [-1, 1], decoded after one scheduler step: the layer ``vae-out``.

        Args:
            latents: noisy latents (B, c, h, w), input of the denoiser.
            prediction: the denoiser's, for these latents.
            timestep: timestep of the pass.
        """
        return self.decode(self.schedule.step(latents, prediction, timestep))

    def feature_info(self, layer_ids: str | Iterable[str]) -> dict[str, FeatureInfo]:
        """Channels and stride of each layer (id or alias), by the given names, in the given order.

        Raises:
            ConfigError: an id this backbone does not have.
        """
        listed = [layer_ids] if isinstance(layer_ids, str) else layer_ids
        specs = {layer_id: self.layer_spec(layer_id) for layer_id in listed}
        return {name: FeatureInfo(spec.channels, spec.stride, spec.module) for name, spec in specs.items()}

    def check_timestep(self, timestep: int, key: str = "timestep") -> None:
        """Raise ConfigError, which names the key, unless the timestep is a whole number of the noise schedule."""
        whole_number(timestep, key, self.schedule.lowest, self.schedule.length - 1)

    def check_images(self, images: Tensor) -> None:
        """Raise DataError unless the images are (B, 3, H, W) of a valid size."""
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
        """Keep evaluation mode whatever ``mode`` is: a frozen backbone is not trained."""
        del mode
        return super().train(False)

    def freeze(self) -> Self:
        """Switch gradients off and evaluation mode on."""
        return self.requires_grad_(False).train(False)

    def finish(self, dtype: str, channels_last: bool) -> Self:
        """Convert to a floating-point type of DTYPES and, if asked for, to channels_last convolutions."""
        self.to(DTYPES[dtype])
        if channels_last:
            self.memory_format = torch.channels_last
            self.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # torch's stub lacks it
        return self

    def check_native_size(self, native_size: int | None) -> Self:
        """Raise ConfigError unless ``native_size`` is None or that of the weights."""
        if native_size is not None and native_size != self.native_size:
            raise ConfigError(
                f"backbone.native_size={native_size}, but {self.identity.name} was trained on images of "
                f"{self.native_size} px; set backbone.native_size={self.native_size}"
            )
        return self
