"""Hyperfeatures' inversion, as its released loop makes it, on Stable Diffusion's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from diffusers import DDPMScheduler
from torch import Tensor

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALPHAS = DDPMScheduler(**BETAS).alphas_cumprod.double()


def hyperfeatures(
    clean: Tensor, steps: int, predict: Callable[[Tensor, int], Tensor], length: int = 50
) -> list[Tensor]:
    """Latents at every call of Hyperfeatures' inversion, as its released loop makes them: a call is told the time of
    its latents, -1 at first, and moves them to the next one of 0, 20, 40 …"""
    ascending = list(range(0, 1000, 1000 // length))
    states, state = [], clean.double()
    for told, following in zip([-1, *ascending][:steps], ascending[:steps], strict=True):
        states.append(state)
        noise = predict(state, told)
        at, after = (1.0 if one < 0 else float(ALPHAS[one]) for one in (told, following))
        state = math.sqrt(after) * (state - math.sqrt(1 - at) * noise) / math.sqrt(at) + math.sqrt(1 - after) * noise
    return states
