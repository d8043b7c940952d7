"""The Stable Diffusion family: AutoencoderKL + CLIP text encoder + UNet2DConditionModel + ControlNets + LoRA.

Stable Diffusion 1.x, 2.x, their fine-tunes and the embedded tiny model, all as ordinary diffusers networks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones.adapters import AdapterBank
from gate_lightning.backbones.base import Adapters, Backbone, PromptEmbeds, Residuals
from gate_lightning.backbones.compatibility import check_controlnet, check_parts
from gate_lightning.backbones.layer_table import unet_layers
from gate_lightning.backbones.lora_files import read_adapter
from gate_lightning.backbones.weights import PART_PATTERNS, find_weights, folder_digest, open_part, weight_files
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Identity

__all__ = ["UNetBackbone"]

log = logging.getLogger(__name__)


class UNetBackbone(Backbone):
    """A latent text-to-image diffusion model with a U-Net, frozen.

    Args:
        unet, vae, text_encoder, tokenizer: the parts of a Stable Diffusion pipeline.
        schedule: the noise schedule's config (``scheduler_config.json``): betas, number of timesteps, prediction type.
        identity: which weights these are.
        controlnet_sources: name → folder or hub id of ControlNets, each loaded when a branch first asks for it.
        offline: never ask the network for them.

    Raises:
        WeightsError: parts that do not belong together.
    """

    family = "unet"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        schedule: Mapping[str, Any],
        identity: Identity,
        controlnet_sources: Mapping[str, str] | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__()
        check_parts(unet.config, vae.config, text_encoder.config.to_dict(), len(tokenizer))
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.identity = identity
        self.controlnets = nn.ModuleDict()
        self.controlnet_sources = dict(controlnet_sources or {})
        self.controlnet_digests: dict[str, str] = {}
        self.offline = offline
        self.adapters = AdapterBank()
        self.supports = frozenset({"prompt", "controlnet", "lora"})
        scheduler = DDPMScheduler.from_config(dict(schedule))
        self.schedule = dict(schedule)
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        self.prediction_type = str(scheduler.config.prediction_type)
        # python floats: a half-precision module must not round the schedule
        self._alphas_cumprod: list[float] = scheduler.alphas_cumprod.double().tolist()
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)
        self.latent_channels = int(vae.config.latent_channels)
        self.latent_stride = 2 ** (len(vae.config.block_out_channels) - 1)
        self.layers = unet_layers(unet, self.latent_stride)
        # odd latents are exact (the U-Net goes back up to the size of each skip): only the autoencoder sets a multiple
        self.size_multiple = self.latent_stride
        self.minimum_size = self.latent_stride * 2 ** (len(unet.config.block_out_channels) - 1)
        sample_size = unet.config.sample_size
        sides = sample_size if isinstance(sample_size, Sequence) else [sample_size]
        self.native_size = max(sides) * self.latent_stride
        self.max_tokens = min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net."""
        return self.unet

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents (B, c, H/stride, W/stride) of images (B, 3, H, W)."""
        posterior = self.vae.encode(images.to(self.dtype)).latent_dist
        return (posterior.mean - self.shift_factor) * self.scaling_factor, posterior.std * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [-1, 1], of scaled latents."""
        decoded: Tensor = self.vae.decode(latents / self.scaling_factor + self.shift_factor, return_dict=False)[0]
        return decoded

    def encode_text(self, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """Prompt embeddings (B, max_tokens, C) as the pipeline makes them; longer prompts are cut, with a warning."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        for prompt in prompts:
            self._warn_if_cut(prompt)
        device = next(self.text_encoder.parameters()).device
        with self.adapters.applied(self.text_encoder, "text_encoder", [adapters] * len(prompts)):
            embeds: Tensor = self.text_encoder(tokens.to(device))[0]
        return PromptEmbeds(embeds)

    def text_adapters(self, adapters: Adapters) -> Adapters:
        """Those of ``adapters`` that change the text encoder."""
        return self.adapters.acting_on("text_encoder", adapters)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """√ᾱ·latents + √(1-ᾱ)·noise, ᾱ the schedule's cumulative product at ``timestep``."""
        alpha = self._alphas_cumprod[timestep]
        return math.sqrt(alpha) * latents + math.sqrt(1.0 - alpha) * noise.to(latents)

    def denoise(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None = None,
        adapters: Sequence[Adapters] | None = None,
    ) -> Tensor:
        """One pass of the U-Net, see Backbone.denoise. The timestep goes in as it is."""
        down, middle = residuals or (None, None)
        with self.adapters.applied(self.unet, "unet", adapters):
            prediction: Tensor = self.unet(
                latents,
                timestep,
                encoder_hidden_states=prompt_embeds.hidden,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        return prediction

    def control_residuals(
        self, name: str, latents: Tensor, timestep: int, prompt_embeds: PromptEmbeds, control_images: Tensor
    ) -> Residuals:
        """What the ControlNet ``name`` adds to the U-Net's skips and middle, at scale 1, see Backbone."""
        control_images = control_images.to(latents)
        down, middle = self.controlnets[name](
            latents,
            timestep,
            encoder_hidden_states=prompt_embeds.hidden,
            controlnet_cond=control_images,
            return_dict=False,
        )
        return tuple(down), middle

    def require_controlnet(self, name: str) -> None:
        """Load the ControlNet ``name`` unless it is there.

        Raises:
            ConfigError: no source is known for it.
            WeightsError: its weights are missing, broken or made for another U-Net.
        """
        if name in self.controlnets:
            return
        if name not in self.controlnet_sources:
            known = sorted({*self.controlnets, *self.controlnet_sources}) or "none"
            raise ConfigError(
                f"{self.identity.name} has no ControlNet {name!r} (known: {known}); "
                f"name its folder or hub id: backbone.controlnets.{name}=<folder>"
            )
        advice = f"Name the ControlNet's folder: backbone.controlnets.{name}=<folder>"
        folder = find_weights(self.controlnet_sources[name], None, PART_PATTERNS, self.offline, advice)
        self.add_controlnet(name, open_part(ControlNetModel, folder, self.dtype))
        self.controlnet_digests[name] = folder_digest(weight_files(folder), folder)

    def add_controlnet(self, name: str, controlnet: ControlNetModel) -> None:
        """Keep a ControlNet under ``name``, frozen.

        Raises:
            WeightsError: it is made for another U-Net.
        """
        check_controlnet(name, controlnet, self.unet, self.latent_stride, self.identity.name)
        # nn.Module.to, as diffusers' own warns about layers it would keep in float32 even where there are none
        self.controlnets[name] = nn.Module.to(controlnet, self.device, self.dtype).requires_grad_(False).eval()

    def require_adapter(self, name: str, source: str) -> None:
        """Load the LoRA of ``source`` under ``name`` unless it is there.

        Raises:
            ConfigError: another file has that name already.
            WeightsError: the file is missing, broken or made for another architecture.
        """
        if name in self.adapters:
            if self.adapters[name].source != source:
                raise ConfigError(
                    f"adapter {name!r} is {self.adapters[name].source} already, and {source} is to get the same name; "
                    f"give the second LoRA another role"
                )
            return
        advice = f"Train a LoRA with experiment=lora and name its file: technique.lora.weights.{name}=<file>"
        path = find_weights(source, None, ("*.safetensors",), self.offline, advice)
        if path.is_dir():
            path = path / "pytorch_lora_weights.safetensors"
        self.adapters.add(name, read_adapter(path, self.unet, self.text_encoder, source))

    @property
    def description(self) -> dict[str, object]:
        """Weights, ControlNets and adapters, JSON-able."""
        adapters = {name: self.adapters[name].digest for name in self.adapters.adapters}
        return {**super().description, "controlnets": dict(self.controlnet_digests), "adapters": adapters}

    def _warn_if_cut(self, prompt: str) -> None:
        if len(prompt.encode()) + 2 <= self.max_tokens:  # a token is at least one byte; two mark begin and end
            return
        count = len(self.tokenizer(prompt).input_ids)
        if count > self.max_tokens:
            log.warning(
                "A prompt of %d tokens is cut to the %d that the text encoder of %s reads: %.60s…",
                count,
                self.max_tokens,
                self.identity.name,
                prompt,
            )
