"""Unconditional pixel-space diffusion models: guided-diffusion's (ADM), and DDPM's of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from gate_lightning.backbones.adm.layers import adm_layers
from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.backbones.specs import Adapters, PromptEmbeds, Residuals
from gate_lightning.errors import WeightsError
from gate_lightning.structures import Identity

__all__ = ["ADM_SCHEDULE", "ADMBackbone", "check_unconditional"]

#: noise schedule of DDPM and of all published guided-diffusion models for 256 pixels.
ADM_SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
_RGB = 3
_LEARNED_VARIANCE = 6  # the first three channels are the noise, the others the variance


class ADMBackbone(Backbone):
    """A U-Net that denoises images themselves, frozen.

    Latents are the images in [-1, 1]; there is no text and nothing that steers. Convolutions and attention take any
    size that can be halved as often as the network does.

    Args:
        unet: without conditions, over RGB images; the prediction has 3 channels, or 6 with a learned variance.
        schedule: the noise schedule that the U-Net was trained on.
        identity: which weights these are.

    Raises:
        WeightsError: a network of another kind.
    """

    family = "adm"

    def __init__(self, unet: UNet2DModel, schedule: NoiseSchedule, identity: Identity) -> None:
        super().__init__()
        check_unconditional(unet.config)
        self.unet = unet
        self.identity = identity
        self.schedule = schedule
        self.layers = adm_layers(unet)
        self.aliases = {"mid": "middle_block"}
        # sides are halved by averaging pairs, and doubled again to meet the skips
        self.size_multiple = self.minimum_size = 2 ** (len(unet.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.native_size = max(side) if isinstance(side, Sequence) else int(side)
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net, where layer paths start."""
        return self.unet

    @property
    def description(self) -> dict[str, object]:
        """Weights, head channels and noise schedule, JSON-able."""
        settings = {"head_channels": self.unet.config.attention_head_dim, "schedule": dict(self.schedule.config)}
        return {**super().description, **settings}

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        """One pass of the U-Net; the prediction (B, 3, H, W) without the learned variance."""
        prediction: Tensor = self.unet(latents, self.schedule.time_tensor(timestep, latents.device), return_dict=False)[
            0
        ]
        return prediction[:, :_RGB]


def check_unconditional(config: Mapping[str, Any]) -> None:
    """Raise WeightsError unless the config of a ``UNet2DModel`` is that of an unconditional model over RGB images."""
    wrong = []
    if config.get("in_channels", 3) != _RGB:
        wrong.append(f"it reads {config['in_channels']} channels (expected 3)")
    if config.get("out_channels", 3) not in (_RGB, _LEARNED_VARIANCE):
        wrong.append(f"it predicts {config['out_channels']} channels (expected 3, or 6 with a learned variance)")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        wrong.append("it is class-conditional")
    if config.get("time_embedding_type", "positional") != "positional":
        wrong.append(f"its time embedding is {config['time_embedding_type']} (expected positional, as DDPM's)")
    if config.get("center_input_sample"):
        wrong.append("it reads images in [0, 1]")
    sides = config.get("sample_size")
    if not isinstance(sides, int) and not (isinstance(sides, list | tuple) and sides and isinstance(sides[0], int)):
        wrong.append("its config has no sample_size, the side of the images it was trained on")
    if wrong:
        raise WeightsError(f"no unconditional pixel-space diffusion model: {'; '.join(wrong)}")
