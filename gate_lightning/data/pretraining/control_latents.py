"""Cached latents together with the control image of the same scene, for ControlNet training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gate_lightning.data.pretraining.datamodule import TRAIN_SEED, VAL_SEED
from gate_lightning.data.pretraining.latents import CachedLatents, SceneLatents
from gate_lightning.data.scenes import render, sample_scene

ControlMaker = Callable[[np.ndarray], np.ndarray]
"""Image uint8 (H, W, 3) to control image uint8 (H, W) or (H, W, 3)."""


class ControlledLatents(CachedLatents):
    """`CachedLatents` plus ``control`` (3, S, S) in [0, 1], made from the scene rendered again.

    Rendering costs about a millisecond, a fiftieth of the training step; a cache of the edges would be in the way when
    their settings are tuned.

    Args:
        path: latent cache.
        first_seed: seed of the cache's scene 0.
        make_control: image to control image.
        size: side of the rendered image in pixels.
        choices: `CachedLatents`' other arguments.
    """

    def __init__(self, path: Path, first_seed: int, make_control: ControlMaker, size: int, **choices: Any) -> None:
        super().__init__(path, **choices)
        self.first_seed, self.make_control, self.size = first_seed, make_control, size

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``latents`` (4, h, w), ``tokens`` (L,), ``control`` (3, S, S)."""
        item = super().__getitem__(draw)
        spec = sample_scene(self.first_seed + draw % len(self))
        item["control"] = control_tensor(self.make_control(render(spec, size=self.size).image))
        return item


class ControlledSceneLatents(SceneLatents):
    """`SceneLatents` with control images.

    Args:
        make_control: image to control image, for example `gate_lightning.ops.edges.canny` with its settings.
        rest: `SceneLatents`' arguments.
    """

    def __init__(self, make_control: ControlMaker, **rest: Any) -> None:
        super().__init__(**rest)
        self.make_control = make_control

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and add the control images."""
        self.train_set = ControlledLatents(
            self._path(TRAIN_SEED, self.train_length), TRAIN_SEED, self.make_control, self.size, seed=self.seed
        )
        self.val_set = ControlledLatents(
            self._path(VAL_SEED, self.val_length), VAL_SEED, self.make_control, self.size, fixed="fine"
        )


def control_tensor(control: np.ndarray) -> torch.Tensor:
    """Control image uint8 (H, W) or (H, W, 3) as float32 (3, H, W) in [0, 1]."""
    if control.ndim == 2:
        control = np.repeat(control[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(control.transpose(2, 0, 1))).float().div_(255.0)
