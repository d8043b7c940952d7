"""Image generation from noise, for tools and previews in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters, PromptEmbeds
from gate_lightning.errors import ConfigError, NotFiniteError
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.finite import all_finite, other_precision, shares
from gate_lightning.utils.seeding import torch_generator

__all__ = ["Control", "Sampling", "image_side", "sample_images"]

_SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


@dataclass(frozen=True)
class Sampling:
    """Sampler, guidance and size of images for `sample_images`.

    Attributes:
        sampler: ``ddim``: deterministic after the initial noise; ``ddpm``: ancestral, with the schedule's variance even
            for models with a learned one.
        steps: number of sampler steps, at least 1.
        guidance: weight of the classifier-free guidance, e = e_uncond + guidance · (e_prompt - e_uncond); 1 is none. A
            backbone without text has none.
        size: side in pixels.
        adapters: (name, scale) of loaded adapters.
        seed: seed of the noise.

    Raises:
        ConfigError: an unknown sampler, or a number out of range.
    """

    sampler: str
    steps: int
    guidance: float
    size: int
    adapters: Adapters = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.sampler, "sampler", _SCHEDULERS)
        whole_number(self.steps, "steps", 1)


@dataclass(frozen=True)
class Control:
    """Control images of a batch.

    Attributes:
        name: name of a loaded ControlNet.
        images: (B, 3, size, size) in [0, 1].
        scale: factor of the residuals.
    """

    name: str
    images: Tensor
    scale: float = 1.0


def image_side(backbone: Backbone, size: int | None = None) -> int:
    """Side in pixels of the images a backbone makes; None for its native size.

    Raises:
        ConfigError: it generates no images, or none of that size.
    """
    if not backbone.schedule.config:
        raise ConfigError(f"{backbone.identity.name} makes no images; use a diffusion backbone: tiny, sd15 …")
    side = backbone.native_size if size is None else size
    whole_number(side, f"side of images from {backbone.identity.name}", backbone.minimum_size)
    if side % backbone.size_multiple:
        raise ConfigError(f"size={size}: {backbone.identity.name} makes multiples of {backbone.size_multiple}")
    return side


@torch.no_grad()
def sample_images(
    backbone: Backbone, prompts: Sequence[str], first: int, how: Sampling, control: Control | None = None
) -> np.ndarray:
    """Generate one image per prompt; they have the numbers ``first``, ``first`` + 1 …

    The noise of an image is keyed by (seed, number): neither the batch nor the other prompts change it.

    Args:
        backbone: a diffusion model.
        prompts: B texts; those of equal token length share the passes.
        first: number of the first image.
        how: sampler settings.
        control: control images, or None.

    Returns:
        uint8 (B, size, size, 3).

    Raises:
        ConfigError: more steps than the backbone's schedule has, or another number of control images than prompts.
    """
    if how.steps > backbone.schedule.length:
        raise ConfigError(f"steps={how.steps}: {backbone.identity.name} has {backbone.schedule.length} timesteps")
    if control is not None and len(control.images) != len(prompts):
        raise ConfigError(f"{len(control.images)} control images for {len(prompts)} prompts; expected one for each")
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(backbone.text_length(prompt, how.adapters), []).append(row)
    images = np.empty((len(prompts), how.size, how.size, 3), np.uint8)
    for rows in groups.values():
        generators = [torch_generator("image", how.seed, first + row) for row in rows]
        own = None if control is None else Control(control.name, control.images[rows], control.scale)
        latents = _denoised(backbone, [prompts[row] for row in rows], generators, how, own)
        _check_finite(backbone, latents, [prompts[row] for row in rows])
        decoded = backbone.decode(latents.to(backbone.dtype)).float()
        _check_finite(backbone, decoded, [prompts[row] for row in rows])
        decoded = decoded.clamp(-1, 1)
        images[rows] = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return images


def _check_finite(backbone: Backbone, value: Tensor, prompts: Sequence[str]) -> None:
    """Raise NotFiniteError rather than write black images."""
    if not all_finite((value,)):
        raise NotFiniteError(
            f"generated images are not finite ({shares(value)}), of {prompts[0]!r} and {len(prompts) - 1} more "
            f"prompts; {backbone.identity.name}, {other_precision(backbone.dtype)}"
        )


def _denoised(
    backbone: Backbone,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    how: Sampling,
    control: Control | None,
) -> Tensor:
    """Latents (B, c, h, w) float32 at the end of the steps, from the generators' noise."""
    side, adapters = how.size // backbone.latent_stride, how.adapters
    shape = (backbone.latent_channels, side, side)
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(backbone.device)
    scheduler = _SCHEDULERS[how.sampler].from_config(dict(backbone.schedule.config))
    scheduler.set_timesteps(how.steps)
    embeds = backbone.encode_text(prompts, adapters)
    guided = how.guidance != 1.0 and "prompt" in backbone.supports
    uncond = backbone.encode_text([""] * len(prompts), adapters) if guided else None
    for timestep in scheduler.timesteps.tolist():
        noisy = latents.to(backbone.dtype)
        if uncond is None:
            prediction = _predicted(backbone, noisy, timestep, embeds, how, control)
        elif uncond.hidden.shape == embeds.hidden.shape:
            both, twice = PromptEmbeds.cat([uncond, embeds]), torch.cat([noisy, noisy])
            prediction = _guided(_predicted(backbone, twice, timestep, both, how, control).chunk(2), how.guidance)
        else:  # prompts of several windows: the empty one is shorter
            parts = (_predicted(backbone, noisy, timestep, part, how, control) for part in (uncond, embeds))
            prediction = _guided(parts, how.guidance)
        # one generator per image: what the ancestral sampler adds does not depend on the batch either
        latents = scheduler.step(prediction, timestep, latents, generator=generators, return_dict=False)[0]
    return latents


def _guided(parts: Iterable[Tensor], guidance: float) -> Tensor:
    uncond, prompted = parts
    return uncond + guidance * (prompted - uncond)


def _predicted(
    backbone: Backbone, noisy: Tensor, timestep: int, embeds: PromptEmbeds, how: Sampling, control: Control | None
) -> Tensor:
    """The denoiser's prediction (B, c, h, w), float32."""
    residuals = None
    if control is not None:
        repeated = control.images.to(noisy).repeat(len(noisy) // len(control.images), 1, 1, 1)
        given = backbone.control_residuals(control.name, noisy, timestep, embeds, repeated)
        residuals = {path: residual * control.scale for path, residual in given.items()}
    steering = [how.adapters] * len(noisy) if how.adapters else None
    return backbone.denoise(noisy, timestep, embeds, residuals, steering).float()
