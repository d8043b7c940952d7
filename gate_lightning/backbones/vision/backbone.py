"""Vision transformers as backbones: no noise, no timestep, no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import CleanSchedule
from gate_lightning.backbones.specs import Adapters, PromptEmbeds, Residuals
from gate_lightning.backbones.vision.kinds import KINDS, VisionKind, patch_size, vision_layers
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Identity
from gate_lightning.utils.precision import own_precision

__all__ = ["VisionBackbone"]


class VisionBackbone(Backbone):
    """A vision transformer, frozen: patch tokens as maps, at the stride of the patches.

    Images of any size are read: position embeddings are interpolated by the library. Timesteps and prompts have no
    effect; techniques are refused.

    Args:
        network: of a class of ``KINDS``.
        model_type: its key there.
        identity: which weights these are.
        mean, std: of RGB in [0, 1], by which the network's images are normalised; None for those of its kind.

    Raises:
        WeightsError: a network whose patches or layers are not understood.
    """

    family = "vision"
    _factor: Tensor
    _offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        model_type: str,
        identity: Identity,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        config: Any = network.config
        self.kind: VisionKind = KINDS[model_type]
        self.network = network
        self.identity = identity
        self.mean, self.std = (
            tuple(map(float, own or given)) for own, given in zip((mean, std), self.kind.statistics, strict=True)
        )
        self.layers = vision_layers(network, self.kind)
        self.patch = self.size_multiple = self.minimum_size = patch_size(config)
        side = config.image_size
        self.native_size = int(side if isinstance(side, int) else max(side))
        self.schedule = CleanSchedule(own_timestep=0.0)  # no noise is drawn
        # (image / 2 + 1/2 - mean) / std
        for name, values in (
            ("_factor", [0.5 / one for one in self.std]),
            ("_offset", [(0.5 - mean) / one for mean, one in zip(self.mean, self.std, strict=True)]),
        ):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        """The transformer, where layer paths start."""
        return self.network

    @property
    def description(self) -> dict[str, object]:
        """Weights and normalisation of the images, JSON-able."""
        return {**super().description, "mean": list(self.mean), "std": list(self.std)}

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        """One pass over images (B, 3, H, W) in [-1, 1]; returns the images."""
        self._output(latents)
        return latents

    @torch.no_grad()
    def vectors(self, images: Tensor, size: int | None = None) -> Tensor:
        """One vector (B, C) of each image: its class token, or the mean of its patches where a network has none.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            size: side of the square that images are resized to, rounded to patches, at least one; None for their own
                size.

        Raises:
            DataError: images of an impossible size.
        """
        if size is not None:
            side = max(1, round(size / self.patch)) * self.patch
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        self.check_images(images)
        with own_precision(self.device):
            tokens: Tensor = self._output(images).last_hidden_state
        patches = (images.shape[2] // self.patch) * (images.shape[3] // self.patch)
        return tokens[:, 0] if tokens.shape[1] > patches else tokens.mean(dim=1)

    def _output(self, latents: Tensor) -> Any:
        """Output of the network."""
        pixels = (latents * self._factor + self._offset).to(self.dtype)
        further = dict(self.kind.call)
        if self.kind.shuffles:
            count = (pixels.shape[2] // self.patch) * (pixels.shape[3] // self.patch)
            further["noise"] = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
        return self.network(pixels, **further)

    def decode(self, latents: Tensor) -> Tensor:
        """Refused: there is no decoder."""
        raise ConfigError(
            f"{self.identity.name} makes no images; use a diffusion backbone: tiny, sd15, adm_lsun_horse …"
        )

    def finish(self, dtype: str, channels_last: bool) -> Self:
        """Convert the weights; frequencies of rotary position embeddings, and the normalisation, stay in float32."""
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()}
        super().finish(dtype, channels_last)
        for name, buffer in kept.items():
            path, _, last = name.rpartition(".")
            setattr(self.get_submodule(path), last, buffer)
        return self
