"""Latents and captions of rendered scenes, computed once and kept in one file."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.datamodule import (
    TRAIN_SEED,
    VAL_SEED,
    ModuleSource,
    PretrainingDataModule,
    is_target,
    stacked,
    three_channels,
)
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.scenes.captions import caption, single_object_prompts
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import SceneSpec
from gate_lightning.errors import CacheError, first_line
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.utils.files import write_atomically
from gate_lightning.utils.seeding import data_generator

__all__ = ["CAPTION_SHARES", "Encoder", "SceneLatents", "build_cache", "read_latents", "wordings"]

log = logging.getLogger(__name__)

#: how often each wording of a scene's caption is drawn in training; guidance needs the empty one
CAPTION_SHARES: dict[str, float] = {
    "fine": 0.45,
    "full": 0.15,
    "kinds": 0.15,
    "short": 0.10,
    "coarse": 0.05,
    "empty": 0.10,
}
_SHORT = {(kind, color): prompt for prompt, kind, color in single_object_prompts()}
#: scenes encoded by a process in one go
_CHUNK = 500

#: seeds, and whether the scene is of the target domain
Scenes = Sequence[tuple[int, bool]]


class Encoder(Protocol):
    """Images → latents; it is pickled into other processes."""

    @property
    def identity(self) -> str:
        """Text that changes whenever the results would."""

    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""


def wordings(spec: SceneSpec) -> list[str]:
    """One caption per key of `CAPTION_SHARES`, in that order."""
    objects = [_SHORT[o.kind, o.color].removeprefix("a photo of ") for o in sorted(spec.objects, key=lambda o: o.x)]
    texts = {
        "fine": caption(spec, "fine"),
        "full": caption(spec, "fine", wording="full"),
        "kinds": caption(spec, "kinds"),
        "short": "a photo of " + " and ".join(objects) if objects else "a photo",
        "coarse": caption(spec, "coarse"),
        "empty": "",
    }
    return [texts[name] for name in CAPTION_SHARES]


class _CachedLatents(ModuleSource):
    """Latents of a cache file, each with a caption drawn by `CAPTION_SHARES`, in validation its fine one."""

    def __init__(self, data: SceneLatents, split: str) -> None:
        self.data, self.split = data, split
        self._bounds = np.cumsum(list(CAPTION_SHARES.values()))

    @cached_property
    def content(self) -> tuple[Tensor, list[str]]:
        """Latents (N, c, h, w) float16 and the captions of all, in their wordings."""
        return read_latents(self.data.path(self.split), len(self), len(self._bounds))

    def __len__(self) -> int:
        return len(self.data.scenes[self.split])

    def sample_id(self, index: int) -> str:
        """Seed of the scene."""
        return str(self.data.scenes[self.split][index])

    def __getitem__(self, requests: Sequence[SampleRequest]) -> CaptionedBatch:
        indices = [request.index for request in requests]
        control = self.data.make_control
        scenes = [] if control is None else [self.data.image(self.split, index) for index in indices]
        return CaptionedBatch(
            tuple(self._caption(request) for request in requests),
            latents=self.content[0][indices].float(),
            control_images=(stacked([three_channels(control(scene)) for scene in scenes]) + 1) / 2 if control else None,
        )

    def _caption(self, request: SampleRequest) -> str:
        which = 0
        if self.split == "train":
            chance = data_generator("caption", self.data.seed, request.index, request.epoch).random()
            which = min(int(np.searchsorted(self._bounds, chance, side="right")), len(self._bounds) - 1)
        return self.content[1][request.index * len(self._bounds) + which]


class SceneLatents(PretrainingDataModule):
    """Scenes as cached latents, for the U-Net, its ControlNet and its CleanDIFT student.

    Args:
        encoder: used only where the cache is missing.
        cache: folder of the cache files; a file is named by everything that decides its content.
        train_length: different training scenes.
        val_length: held-out scenes, with their "fine" caption.
        target_share: share of the target domain in both, spread evenly.
        size: side of the rendered images in pixels.
        processes: how many processes build the cache; None takes every core.
        make_control: image uint8 (H, W, 3) → control image uint8 (H, W) or (H, W, 3), of the scene rendered again,
            which costs a fiftieth of the training step; None for no control images.
        batch_size, eval_batch_size, num_workers, seed: see `PretrainingDataModule`.
    """

    batch_type = CaptionedBatch

    def __init__(
        self,
        encoder: Encoder,
        cache: str | Path,
        train_length: int = 120_000,
        val_length: int = 256,
        target_share: float = 0.0,
        size: int = 64,
        processes: int | None = None,
        make_control: Callable[[np.ndarray], np.ndarray] | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.scenes = {
            "train": range(TRAIN_SEED, TRAIN_SEED + whole_number(train_length, "dataset.train_length", 1)),
            "val": range(VAL_SEED, VAL_SEED + whole_number(val_length, "dataset.val_length", 1)),
        }
        self.target_share = number(target_share, "dataset.target_share", 0, 1)
        self.encoder, self.cache, self.size, self.processes = encoder, Path(cache), size, processes
        self.make_control = make_control

    def prepare_data(self) -> None:
        """Build the cache files that are missing."""
        for split, seeds in self.scenes.items():
            if not self.path(split).exists():
                build_cache(self.path(split), self.encoder, seeds, self.size, self.processes, self.target_share)

    def make_source(self, split: str) -> ModuleSource:
        """Scenes whose cache is opened with the first batch (memory-mapped: the processes share it)."""
        return _CachedLatents(self, split)

    def image(self, split: str, index: int) -> np.ndarray:
        """uint8 (size, size, 3) image of a scene."""
        seeds = self.scenes[split]
        return render(_scene(seeds[index], is_target(index, self.target_share)), size=self.size).image

    def path(self, split: str) -> Path:
        """The cache file of a split."""
        seeds = self.scenes[split]
        text = f"{self.encoder.identity}|{seeds}|{self.size}|{list(CAPTION_SHARES)}"
        text += f"|{self.target_share}" if self.target_share else ""
        return self.cache / f"scenes-{len(seeds)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


def read_latents(path: Path, scenes: int, wordings: int) -> tuple[Tensor, list[str]]:
    """Latents (N, c, h, w) float16 and N × ``wordings`` captions of a file that `build_cache` wrote.

    Raises:
        CacheError: missing, damaged, or of another number of scenes.
    """
    try:
        tensors = load_file(path)
        latents, captions = tensors["latents"], bytes(tensors["captions"].numpy()).decode().split("\n")
    except Exception as error:  # of safetensors, and of what a damaged file leads to
        reason = first_line(error)
        raise CacheError(f"{path} is no cache of latents ({reason}); delete it, it is built again") from error
    if latents.ndim != 4 or not latents.is_floating_point() or len(latents) != scenes:
        found = f"latents {latents.dtype} {tuple(latents.shape)}"
        raise CacheError(f"{path} holds {found}, expected those of {scenes} scenes; delete it, it is built again")
    if len(captions) != scenes * wordings:
        raise CacheError(
            f"{path} holds {len(captions)} captions, expected {wordings} of each of {scenes} scenes; delete it, it is "
            "built again"
        )
    if not latents.isfinite().all():
        raise CacheError(f"{path} holds latents that are not finite; delete it, it is built again")
    return latents, captions


def build_cache(
    path: Path,
    encoder: Encoder,
    seeds: range,
    size: int = 64,
    processes: int | None = None,
    target_share: float = 0.0,
) -> None:
    """Render, caption and encode scenes into one file.

    It holds ``latents`` (N, 4, h, w) float16 and ``captions``, all wordings as UTF-8 lines. It is there only when it is
    whole.

    Args:
        path: result.
        encoder: see `Encoder`.
        seeds: of the scenes.
        size: side of the rendered images in pixels.
        processes: worker processes, one thread each; 1 works in this process, None takes every core.
        target_share: share of the target domain.

    Raises:
        CacheError: it cannot be written.
    """
    scenes = [(seed, is_target(seed - seeds.start, target_share)) for seed in seeds]
    ranges = [scenes[start : start + _CHUNK] for start in range(0, len(scenes), _CHUNK)]
    workers = min(processes or os.cpu_count() or 1, len(ranges))
    latents: list[Tensor] = []
    captions: list[str] = []
    for encoded, texts in _encode_all(encoder, ranges, size, workers):
        latents.append(encoded)
        captions += texts
        if len(latents) % 20 == 0 or len(latents) == len(ranges):
            log.info("latent cache: %d of %d scenes", min(len(latents) * _CHUNK, len(seeds)), len(seeds))
    lines = torch.frombuffer(bytearray("\n".join(captions).encode()), dtype=torch.uint8)
    tensors = {"latents": torch.cat(latents), "captions": lines}
    write_atomically(path, save(tensors, metadata={"encoder": encoder.identity}))


def _encode_all(
    encoder: Encoder, ranges: Sequence[Scenes], size: int, workers: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Results of `_encode_range` in order, as they arrive."""
    if workers == 1:
        yield from (_encode_range(encoder, scenes, size) for scenes in ranges)
        return
    # Spawned, not forked: the caller may hold a process group and running threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_encode_range, [encoder] * len(ranges), ranges, [size] * len(ranges))


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _encode_range(encoder: Encoder, scenes: Scenes, size: int) -> tuple[Tensor, list[str]]:
    """Latents (N, C, h, w) float16 and all wordings of one stretch of scenes."""
    specs = [_scene(seed, target) for seed, target in scenes]
    latents = [
        encoder.latents(stacked([render(spec, size=size).image for spec in specs[i : i + 25]])).half()
        for i in range(0, len(specs), 25)
    ]
    return torch.cat(latents), [text for spec in specs for text in wordings(spec)]


def _scene(seed: int, target: bool) -> SceneSpec:
    return sample_scene(seed, domain="target" if target else "source")
