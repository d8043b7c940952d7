"""Images from prompts: deterministic DDIM sampling with classifier-free guidance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones.tiny.tokenizer import load_tokenizer
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.encoding import model_folder

log = logging.getLogger(__name__)


@dataclass
class SamplingParts:
    """The parts of a Stable Diffusion 1.x or 2.x model, wherever they come from."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    autoencoder: AutoencoderKL
    scheduler: DDIMScheduler
    controlnet: ControlNetModel | None = None

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings (B, L, C)."""
        ids = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.text_encoder.device))[0]


def load_parts(
    folder: str | Path, controlnet: str | Path | None = None, adapter: str | Path | None = None
) -> SamplingParts:
    """Parts of a model folder in float32, in evaluation mode.

    Args:
        folder: Stable Diffusion folder, or "tiny", the embedded one.
        controlnet: folder of a ControlNet.
        adapter: adapter file that `gate_lightning.tasks.pretraining.lora` wrote (U-Net part).

    Raises:
        ConfigError: the adapter file holds nothing for the U-Net.
    """
    folder = model_folder(folder)
    load = {"torch_dtype": torch.float32, "local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **load).eval()
    if adapter is not None:
        path = Path(adapter)
        unet.load_lora_adapter(path.parent, weight_name=path.name, prefix="unet", use_safetensors=True)
        # diffusers only warns when a file has no matching weights.
        if not getattr(unet, "peft_config", None):
            raise ConfigError(f"{path} holds no adapter for a U-Net (no keys that start with 'unet.').")
    return SamplingParts(
        unet=unet.requires_grad_(False),
        text_encoder=CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", dtype=torch.float32, local_files_only=True
        ).eval(),
        tokenizer=load_tokenizer(folder),
        autoencoder=AutoencoderKL.from_pretrained(folder, subfolder="vae", **load).eval(),
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True),
        controlnet=None if controlnet is None else ControlNetModel.from_pretrained(controlnet, **load).eval(),
    )


@torch.no_grad()
def sample(
    parts: SamplingParts,
    prompts: Sequence[str],
    steps: int = 30,
    guidance: float = 4.0,
    seed: int = 0,
    batch_size: int = 24,
    control: Tensor | None = None,
    control_scale: float = 1.0,
) -> np.ndarray:
    """One image per prompt.

    Image i starts from noise that depends on ``seed`` and i only, so neither the batch size nor the other prompts
    change it.

    Args:
        parts: the model.
        prompts: N texts.
        steps: DDIM steps.
        guidance: how far to go from the prediction without words to the one with; 1 is no guidance.
        seed: of the start noise.
        batch_size: images at a time.
        control: (N, 3, H, W) in [0, 1], with a ControlNet.
        control_scale: weight of its residuals.

    Returns:
        uint8 (N, H, W, 3).

    Raises:
        ConfigError: a control image without a ControlNet, or their number differs from the prompts'.
    """
    if control is not None and (parts.controlnet is None or len(control) != len(prompts)):
        raise ConfigError(
            f"{len(control)} control images for {len(prompts)} prompts, ControlNet: {parts.controlnet is not None}; "
            f"expected one image per prompt and a ControlNet folder."
        )
    side = parts.unet.config.sample_size
    images: list[np.ndarray] = []
    for first in range(0, len(prompts), batch_size):
        chosen = slice(first, first + batch_size)
        noise = torch.stack(
            [
                torch.randn(
                    (parts.unet.config.in_channels, side, side),
                    generator=torch.Generator().manual_seed(seed * 1_000_003 + first + i),
                )
                for i in range(len(prompts[chosen]))
            ]
        )
        latents = _denoise(
            parts, prompts[chosen], noise, steps, guidance, None if control is None else control[chosen], control_scale
        )
        decoded = parts.autoencoder.decode(latents / parts.autoencoder.config.scaling_factor).sample
        images.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(images)


def _denoise(
    parts: SamplingParts,
    prompts: Sequence[str],
    latents: Tensor,
    steps: int,
    guidance: float,
    control: Tensor | None,
    control_scale: float,
) -> Tensor:
    """Latents (B, C, h, w) at the end of the DDIM steps, from noise of that shape."""
    guided = guidance != 1.0
    latents = latents.to(parts.unet.device)
    embeddings = parts.embed([*([""] * len(prompts) if guided else []), *prompts])
    if control is not None and guided:
        control = torch.cat([control, control])
    parts.scheduler.set_timesteps(steps)
    for timestep in parts.scheduler.timesteps:
        doubled = torch.cat([latents, latents]) if guided else latents
        residuals = {}
        if control is not None and parts.controlnet is not None:
            down, mid = parts.controlnet(
                doubled, timestep, embeddings, control, conditioning_scale=control_scale, return_dict=False
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        prediction = parts.unet(doubled, timestep, embeddings, **residuals).sample
        if guided:
            without, with_words = prediction.chunk(2)
            prediction = without + guidance * (with_words - without)
        latents = parts.scheduler.step(prediction, timestep, latents).prev_sample
    return latents


def grid(images: np.ndarray, columns: int, zoom: int = 1) -> np.ndarray:
    """Images uint8 (N, H, W, 3) as one (rows * H * zoom, columns * W * zoom, 3), white where none is left."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    filled = np.full((rows * columns, height, width, 3), 255, dtype=np.uint8)
    filled[:count] = images
    joined = filled.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return np.kron(joined, np.ones((zoom, zoom, 1), dtype=np.uint8)) if zoom > 1 else joined


def write_samples(
    folder: str | Path,
    output: str | Path,
    prompts: Sequence[str],
    repeats: int = 4,
    steps: int = 30,
    guidance: float = 4.0,
    seed: int = 0,
    adapter: str | Path | None = None,
) -> None:
    """Sample ``repeats`` images per prompt into ``<output>/samples.png``, one row per prompt.

    Args:
        folder: model folder.
        output: folder for the image.
        prompts: texts.
        repeats: images per prompt.
        steps, guidance, seed: see `sample`.
        adapter: adapter file, or None.
    """
    images = sample(
        load_parts(folder, adapter=adapter), [p for p in prompts for _ in range(repeats)], steps, guidance, seed
    )
    path = Path(output) / "samples.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), grid(images, repeats, zoom=2)[..., ::-1])
    log.info("%d images: %s", len(images), path)
