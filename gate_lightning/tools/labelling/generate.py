"""Images that a frozen diffusion model makes from noise: what DatasetDDPM labels and trains its student on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.sampled import SampledImages
from gate_lightning.techniques.sampling import Sampling, image_side, sample_images
from gate_lightning.tools.devices import device_of, place
from gate_lightning.tools.labelling.labelled_folder import write_png
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import claim, clean_leftovers, digest_of, write_atomically
from gate_lightning.utils.progress import Progress

__all__ = ["generate", "prompts_of"]

#: name of the one adapter that is loaded
_ADAPTER = "generate"


def generate(
    backbone: Backbone,
    output: str | Path,
    datamodule: ImageDataModule | SampledImages | None = None,
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
    whole_number(count, "count", 1)
    whole_number(batch_size, "batch_size", 1)
    texts = [" ".join(text.split()) for text in (prompts or prompts_of(datamodule))]
    adapters: Adapters = () if adapter is None else ((_ADAPTER, adapter_scale),)
    how = Sampling(sampler, steps, guidance, image_side(backbone, size), adapters, seed)
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


def prompts_of(datamodule: ImageDataModule | SampledImages | None) -> list[str]:
    """Captions of a data set's training images, in their order; its fine prompt where it has none.

    Args:
        datamodule: a data set, a pool of few labelled images around one, or None for "a photo".
    """
    if datamodule is None:
        return ["a photo"]
    pool = datamodule.underlying
    source = pool.source("train")
    captions = [source.load(index).caption for index in range(len(source))]
    given = [text for text in captions if text]
    return given or [pool.card.prompt_fine]


def _image(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _write_captions(folder: Path, texts: Sequence[str], count: int) -> None:
    """Write what every image was asked to show, those of an earlier and larger count included."""
    there = max((int(path.stem) + 1 for path in folder.glob("[0-9]*.png")), default=0)
    lines = (f"{_image(folder, index).name}\t{texts[index % len(texts)]}\n" for index in range(max(count, there)))
    write_atomically(folder / "captions.txt", "".join(lines).encode())
