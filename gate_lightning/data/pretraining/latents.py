"""Latents and caption tokens of rendered scenes, computed once and kept in one file."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from gate_lightning.data.pretraining.datamodule import TRAIN_SEED, VAL_SEED, EndlessDataModule, to_pixels
from gate_lightning.data.scenes import SceneSpec, caption, render, sample_scene, single_object_prompts
from gate_lightning.errors import ConfigError

log = logging.getLogger(__name__)

CAPTION_SHARES: dict[str, float] = {
    "fine": 0.45,
    "full": 0.15,
    "kinds": 0.15,
    "short": 0.10,
    "coarse": 0.05,
    "empty": 0.10,
}
"""How often each wording of a scene's caption is drawn in training; the empty one is what guidance needs."""

_SHORT = {(kind, color): prompt for prompt, kind, color in single_object_prompts()}
_CHUNK = 500


class Encoder(Protocol):
    """What turns images and captions into what the U-Net sees.  Must survive pickling (it works in processes)."""

    @property
    def identity(self) -> str:
        """Text that changes whenever the results would."""

    def latents(self, pixels: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, L), padded."""


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


class CachedLatents(Dataset[dict[str, Any]]):
    """Latents with a randomly drawn caption each.

    Args:
        path: file written by `build_cache`.
        seed: of the caption choice; the choice also depends on the draw, so every pass chooses again.
        fixed: name of the only caption used, or None to draw by `CAPTION_SHARES`.
    """

    def __init__(self, path: Path, seed: int = 0, fixed: str | None = None) -> None:
        tensors = load_file(path)
        self.latents, self.tokens, self.seed = tensors["latents"], tensors["tokens"], seed
        self._bounds = np.cumsum(list(CAPTION_SHARES.values()))
        self._fixed = None if fixed is None else list(CAPTION_SHARES).index(fixed)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``latents`` (4, h, w) float32 and ``tokens`` (L,) int64."""
        index = draw % len(self)
        which = self._fixed
        if which is None:
            which = int(np.searchsorted(self._bounds, np.random.default_rng([self.seed, draw]).random(), side="right"))
        which = min(which, len(self._bounds) - 1)
        return {"latents": self.latents[index].float(), "tokens": self.tokens[index, which].long()}


class SceneLatents(EndlessDataModule):
    """Source-domain scenes as cached latents, for the U-Net.

    Args:
        encoder: turns images and captions into latents and tokens; used only where the cache is missing.
        cache: folder of the cache files; a file is named by everything that decides its content.
        train_length: different training scenes.
        val_length: held-out scenes, with their "fine" caption.
        size: side of the rendered images in pixels.
        processes: how many processes build the cache; None takes every core.
        loading: `EndlessDataModule`'s arguments.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: str | Path,
        train_length: int = 120_000,
        val_length: int = 256,
        size: int = 64,
        processes: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**{"batch_size": 64, "val_batch_size": 64, **loading})
        if train_length < 1 or val_length < 1:
            raise ConfigError(f"train_length is {train_length} and val_length {val_length}; expected at least 1 each.")
        self.encoder, self.cache, self.size, self.processes = encoder, Path(cache), size, processes
        self.train_length, self.val_length = train_length, val_length

    def prepare_data(self) -> None:
        """Build the cache files that are missing."""
        for first_seed, length in ((TRAIN_SEED, self.train_length), (VAL_SEED, self.val_length)):
            path = self._path(first_seed, length)
            if not path.exists():
                build_cache(path, self.encoder, first_seed, length, self.size, self.processes)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache (memory-mapped: the processes share it)."""
        self.train_set = CachedLatents(self._path(TRAIN_SEED, self.train_length), self.seed)
        self.val_set = CachedLatents(self._path(VAL_SEED, self.val_length), fixed="fine")

    def _path(self, first_seed: int, length: int) -> Path:
        text = f"{self.encoder.identity}|{first_seed}|{length}|{self.size}|{list(CAPTION_SHARES)}"
        return self.cache / f"scenes-{length}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


def build_cache(
    path: Path, encoder: Encoder, first_seed: int, length: int, size: int = 64, processes: int | None = None
) -> None:
    """Render, caption and encode scenes into one file: ``latents`` (N, 4, h, w) float16, ``tokens`` (N, V, L) int16.

    Written under a temporary name and renamed, so an interrupted build leaves nothing that looks finished.

    Args:
        path: result.
        encoder: see `Encoder`.
        first_seed: seed of the first scene; the others follow.
        length: number of scenes.
        size: side of the rendered images in pixels.
        processes: worker processes, one thread each; 1 works in this process, None takes every core.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = range(first_seed, first_seed + length, _CHUNK)
    ranges = [range(start, min(start + _CHUNK, first_seed + length)) for start in starts]
    workers = min(processes or os.cpu_count() or 1, len(ranges))
    done: list[tuple[np.ndarray, np.ndarray]] = []
    for result in _encode_all(encoder, ranges, size, workers):
        done.append(result)
        if len(done) % 20 == 0 or len(done) == len(ranges):
            log.info("Latent cache: %d of %d scenes.", min(len(done) * _CHUNK, length), length)
    tensors = {
        name: torch.from_numpy(np.concatenate(part))
        for name, part in zip(("latents", "tokens"), zip(*done, strict=True), strict=True)
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"encoder": encoder.identity, "first_seed": str(first_seed)})
    temporary.replace(path)


def _encode_all(
    encoder: Encoder, ranges: Sequence[range], size: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Results of `_encode_range` in order, as they arrive."""
    if workers == 1:
        yield from (_encode_range(encoder, seeds, size) for seeds in ranges)
        return
    # Spawned, not forked: the caller may hold a process group and running threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_encode_range, [encoder] * len(ranges), ranges, [size] * len(ranges))


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _encode_range(encoder: Encoder, seeds: range, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents and tokens of one stretch of seeds."""
    specs = [sample_scene(seed) for seed in seeds]
    latents: list[np.ndarray] = []
    for i in range(0, len(specs), 25):
        pixels = torch.stack([to_pixels(render(spec, size=size).image) for spec in specs[i : i + 25]])
        latents.append(encoder.latents(pixels).half().numpy())
    texts = [text for spec in specs for text in wordings(spec)]
    tokens = encoder.tokens(texts).to(torch.int16).unflatten(0, (len(specs), -1)).numpy()
    return np.concatenate(latents), tokens
