"""Images that a frozen diffusion model makes from noise: what DatasetDDPM labels and trains its student on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters, PromptEmbeds
from gate_lightning.errors import ConfigError
from gate_lightning.tools.devices import device_of, place
from gate_lightning.tools.labelling.labelled_folder import write_png
from gate_lightning.utils.files import claim, clean_leftovers, digest_of, write_atomically
from gate_lightning.utils.progress import Progress

__all__ = ["Sampling", "generate", "prompts_of", "sample_images"]

_SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}
#: name of the one adapter that is loaded
_ADAPTER = "generate"


@dataclass(frozen=True)
class Sampling:
    """How images are made; see `generate`.

    Raises:
        ConfigError: an unknown sampler.
    """

    sampler: str
    steps: int
    guidance: float
    size: int
    adapters: Adapters = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in _SCHEDULERS:
            raise ConfigError(f"sampler={self.sampler}: expected {' or '.join(_SCHEDULERS)}")


def generate(
    backbone: Backbone,
    output: str | Path,
    datamodule: Any = None,
    prompts: Sequence[str] | None = None,
    count: int = 100,
    sampler: Literal["ddim", "ddpm"] = "ddim",
    steps: int = 30,
    guidance: float = 4.0,
    size: int | None = None,
    adapter: str | None = None,
    adapter_scale: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
) -> str:
    """Write ``<output>/000000.png`` … and ``captions.txt`` with what each image was asked to show.

    Image i starts from noise of (seed, i) alone, and belongs to the batch that i // batch_size says: a run that was
    stopped goes on with the same command and writes the very images of an uninterrupted one, in however many
    processes, and a larger ``count`` adds images to those that are there.

    Args:
        backbone: what makes the images.
        output: folder.
        datamodule: data set whose captions of training images are the prompts, its fine prompt where it has none;
            None for "a photo". No image or mask of it is looked at otherwise.
        prompts: texts instead, one after another and from the beginning again.
        count: images.
        sampler: ``ddim`` (nothing random behind the start) or ``ddpm`` (ancestral; DatasetDDPM's, with 1000 steps. A
            learned variance is not used: the noise added back is the schedule's).
        steps: of the sampler.
        guidance: how far to go from the prediction without words to the one with; 1 is no guidance. A backbone without
            text has none.
        size: side in pixels; None for the backbone's native size.
        adapter: LoRA file that steers the backbone (``asset:tiny/lora/moderate.safetensors``, say), or None.
        adapter_scale: of its weights.
        batch_size: images made together; another one gives other last bits.
        seed: of the noise.
        device: "auto" (a GPU where there is one) or a torch device.

    Returns:
        What was done, in words.

    Raises:
        ConfigError: settings out of range, or a backbone that makes no images.
        CacheError: ``output`` holds images made by other settings, or cannot be written.
    """
    _check_counts(count=count, steps=steps, batch_size=batch_size)
    texts = [" ".join(text.split()) for text in (prompts or prompts_of(datamodule))]
    adapters: Adapters = () if adapter is None else ((_ADAPTER, adapter_scale),)
    how = Sampling(sampler, steps, guidance, _side(backbone, size), adapters, seed)
    if adapter is not None:
        backbone.require_adapter(_ADAPTER, adapter)
    rank, world = place()
    folder = Path(output).expanduser()
    texts_digest = digest_of(texts)
    description = {**asdict(how), "batch_size": batch_size, "prompts": texts_digest, "backbone": backbone.description}
    claim(folder / "manifest.json", description, "images", lambda: any(folder.glob("*.png")))
    clean_leftovers(folder)
    if rank == 0:
        _write_captions(folder, texts, count)
    backbone.to(device_of(device))
    firsts = range(0, count, batch_size)[rank::world]
    progress = Progress(sum(min(batch_size, count - first) for first in firsts), rank, world, "generated images")
    for first in firsts:
        # the whole batch, whichever of it are missing: its size has a say in the last bits
        asked = [texts[(first + row) % len(texts)] for row in range(batch_size)]
        wanted = range(first, min(first + batch_size, count))
        written = _write_missing(folder, wanted, partial(sample_images, backbone, asked, first, how))
        progress.bytes += sum(written)
        progress.step(len(written), len(wanted) - len(written))
    return f"{progress.summary()}: {folder}"


def _write_missing(folder: Path, wanted: range, made: Callable[[], np.ndarray]) -> list[int]:
    """Sizes in bytes of the images that were not there; the batch is only made if there are some."""
    missing = [index for index in wanted if not _image(folder, index).is_file()]
    images = made() if missing else np.empty(0)
    return [write_png(_image(folder, index), images[index - wanted.start]) for index in missing]


def prompts_of(datamodule: Any) -> list[str]:
    """Captions of a data set's training images, in their order; its fine prompt where it has none.

    Args:
        datamodule: a data set, a pool of few labelled images around one, or None for "a photo".
    """
    if datamodule is None:
        return ["a photo"]
    pool = getattr(datamodule, "dataset", datamodule)
    source = pool.source("train")
    captions = [source.load(index).caption for index in range(len(source))]
    told = [text for text in captions if text]
    return told or [pool.card.prompt_fine]


@torch.no_grad()
def sample_images(backbone: Backbone, prompts: Sequence[str], first: int, how: Sampling) -> np.ndarray:
    """Images number ``first``, ``first`` + 1 …, one per prompt.

    Args:
        backbone: what makes them.
        prompts: B texts; those of equal token length share the passes.
        first: number of the first image; its noise is keyed by it.
        how: the settings.

    Returns:
        uint8 (B, size, size, 3).

    Raises:
        ConfigError: more steps than the backbone's schedule has.
    """
    if how.steps > backbone.schedule.length:
        raise ConfigError(f"steps={how.steps}: {backbone.identity.name} has {backbone.schedule.length} timesteps")
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(backbone.text_length(prompt, how.adapters), []).append(row)
    images = np.empty((len(prompts), how.size, how.size, 3), np.uint8)
    for rows in groups.values():
        generators = [torch.Generator().manual_seed(how.seed * 1_000_003 + first + row) for row in rows]
        latents = _denoised(backbone, [prompts[row] for row in rows], generators, how)
        decoded = backbone.decode(latents.to(backbone.dtype)).float().clamp(-1, 1)
        images[rows] = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return images


def _denoised(backbone: Backbone, prompts: Sequence[str], generators: list[torch.Generator], how: Sampling) -> Tensor:
    """Latents (B, c, h, w) float32 at the end of the steps, from the generators' noise."""
    side, adapters = how.size // backbone.latent_stride, how.adapters
    shape = (backbone.latent_channels, side, side)
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(backbone.device)
    scheduler = _SCHEDULERS[how.sampler].from_config(dict(backbone.schedule.config))
    scheduler.set_timesteps(how.steps)
    told = backbone.encode_text(prompts, adapters)
    guided = how.guidance != 1.0 and "prompt" in backbone.supports
    untold = backbone.encode_text([""] * len(prompts), adapters) if guided else None
    for timestep in scheduler.timesteps.tolist():
        prediction = _predicted(backbone, latents.to(backbone.dtype), timestep, told, untold, how)
        # one generator per image: what the ancestral sampler adds does not depend on the batch either
        latents = scheduler.step(prediction, timestep, latents, generator=generators, return_dict=False)[0]
    return latents


def _predicted(
    backbone: Backbone, noisy: Tensor, timestep: int, told: PromptEmbeds, untold: PromptEmbeds | None, how: Sampling
) -> Tensor:
    """What the denoiser says (B, c, h, w), float32, guided away from what it says without words."""
    steering = [how.adapters] * len(noisy) if how.adapters else None
    if untold is None:
        return backbone.denoise(noisy, timestep, told, adapters=steering).float()
    if untold.hidden.shape == told.hidden.shape:
        both = backbone.denoise(
            torch.cat([noisy, noisy]),
            timestep,
            PromptEmbeds.cat([untold, told]),
            adapters=None if steering is None else [*steering, *steering],
        )
        without, with_words = both.float().chunk(2)
    else:  # prompts of several windows: what is said to nothing is shorter
        without, with_words = (
            backbone.denoise(noisy, timestep, embeds, adapters=steering).float() for embeds in (untold, told)
        )
    return without + how.guidance * (with_words - without)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}: expected an integer of 1 or more")


def _side(backbone: Backbone, size: int | None) -> int:
    """Side of the images, once it is known that the backbone makes some."""
    if not backbone.schedule.config:
        raise ConfigError(f"{backbone.identity.name} makes no images; use a diffusion backbone: tiny, sd15 …")
    side = backbone.native_size if size is None else size
    if isinstance(side, bool) or not isinstance(side, int) or side < backbone.minimum_size:
        raise ConfigError(f"size={size!r}: {backbone.identity.name} needs at least {backbone.minimum_size} pixels")
    if side % backbone.size_multiple:
        raise ConfigError(f"size={size}: {backbone.identity.name} makes multiples of {backbone.size_multiple}")
    return side


def _image(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _write_captions(folder: Path, texts: Sequence[str], count: int) -> None:
    """What every image was asked to show, those of an earlier and larger count included."""
    there = max((int(path.stem) + 1 for path in folder.glob("[0-9]*.png")), default=0)
    lines = (f"{_image(folder, index).name}\t{texts[index % len(texts)]}\n" for index in range(max(count, there)))
    write_atomically(folder / "captions.txt", "".join(lines).encode())
