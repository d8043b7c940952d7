"""The way of the released code, for comparison: every branch is a pipeline of its own that does all of its work.

Per branch and call: the prompt and the negative prompt are encoded, the image is encoded and noised, its edges and
the ControlNet are computed, and the whole U-Net runs while hooks keep the layers. A LoRA is part of the weights. Real
pipelines hold a copy of the weights each; here they share one so that it fits in memory, with the LoRA merged into them
and taken out again outside of what is timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone

Recorded = dict[str, Tensor]


@dataclass(frozen=True)
class NaiveBranch:
    """What one pipeline does: prompt, ControlNet or not, LoRA file or none."""

    name: str
    prompt: str
    control: str = ""
    lora: Path | None = None


class NaiveLoop:
    """Features of images, one pipeline after another.

    Args:
        backbone: its networks are used as they are, without anything of the engine.
        layers: layer ids whose module's output is the feature map.
        timestep: of all branches.
    """

    def __init__(self, backbone: UNetBackbone, layers: Sequence[str], timestep: int) -> None:
        self.backbone, self.timestep = backbone, timestep
        self.paths = {layer: backbone.layers[layer].module for layer in layers}
        self.scheduler = DDPMScheduler.from_config(dict(backbone.schedule.config))

    @torch.no_grad()
    def read(self, branch: NaiveBranch, images: Tensor, noise: Tensor) -> Recorded:
        """Layer id → (B, C, h, w) for images (B, 3, H, W) in [-1, 1], under the given noise (B, c, h, w)."""
        parts = self.backbone
        text, _negative = (self._embed([prompt] * len(images)) for prompt in (branch.prompt, ""))
        clean = parts.vae.encode(images).latent_dist.mode() * parts.scaling_factor
        timestep = torch.full((len(images),), self.timestep, device=images.device)
        latents = self.scheduler.add_noise(clean, noise, timestep)
        down = middle = None
        if branch.control:
            down, middle = parts.controlnets[branch.control](
                latents,
                timestep,
                encoder_hidden_states=text,
                controlnet_cond=edges(images),
                return_dict=False,
            )
        recorded: Recorded = {}
        handles = [
            parts.unet.get_submodule(path).register_forward_hook(_Keep(recorded, layer))
            for layer, path in self.paths.items()
        ]
        try:
            parts.unet(
                latents,
                timestep,
                encoder_hidden_states=text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )
        finally:
            for handle in handles:
                handle.remove()
        return recorded

    @contextmanager
    def merged(self, lora: Path | None) -> Iterator[None]:
        """While open, the U-Net's weights hold the LoRA (strength 1); afterwards they are again what they were."""
        pairs = load_file(lora) if lora else {}
        names = [name.removesuffix(".lora_A.weight") for name in pairs if name.endswith(".lora_A.weight")]
        saved = {name: self._weight(name).clone() for name in names}
        try:
            for name in names:
                delta = pairs[f"{name}.lora_B.weight"].double() @ pairs[f"{name}.lora_A.weight"].double()
                weight = self._weight(name)
                weight.add_(delta.to(weight))
            yield
        finally:
            for name, weight in saved.items():
                self._weight(name).copy_(weight)

    def _weight(self, name: str) -> Tensor:
        return self.backbone.unet.get_parameter(f"{name.removeprefix('unet.')}.weight").data

    def _embed(self, prompts: list[str]) -> Tensor:
        parts = self.backbone
        tokens = parts.tokenizer(
            prompts, padding="max_length", max_length=parts.max_tokens, truncation=True, return_tensors="pt"
        )
        embeds: Tensor = parts.text_encoder(tokens.input_ids.to(parts.device))[0]
        return embeds


def edges(images: Tensor) -> Tensor:
    """Canny edges (B, 3, H, W), 0 or 1, of images (B, 3, H, W) in [-1, 1]."""
    pixels = ((images.float().cpu() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    maps = torch.stack([torch.from_numpy(cv2.Canny(image.numpy(), 100, 200)) for image in pixels])
    return (maps[:, None] > 0).expand(-1, 3, -1, -1).to(images)


class _Keep:
    def __init__(self, recorded: Recorded, layer: str) -> None:
        self.recorded, self.layer = recorded, layer

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        self.recorded[self.layer] = output if isinstance(output, Tensor) else output[0]
