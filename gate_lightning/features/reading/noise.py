"""Noise keyed per sample: independent of batch, order, device and process; and noise given by the caller."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gate_lightning.errors import DataError
from gate_lightning.structures import Conditions, Noise
from gate_lightning.utils.checks import did_you_mean
from gate_lightning.utils.seeding import keyed_noise

__all__ = ["batch_noise", "explicit_noise", "noise_of_branches"]


def batch_noise(
    shape: Sequence[int],
    conditions: Conditions,
    seed: int,
    draw: int = 0,
    noise_seed: int | None = 0,
    kind: str = "diffusion",
) -> Tensor:
    """Standard normal noise (B, *shape), each sample's from its own key.

    Args:
        shape: shape of one sample, (c, h, w).
        conditions: sample ids, views and windows of the batch.
        seed: seed of the run.
        draw: index among several noises of a branch.
        noise_seed: seed of the branch, or None for one noise for all branches.
        kind: "diffusion" or "posterior".
    """
    samples = zip(conditions.sample_ids, conditions.views, conditions.windows, strict=True)
    noises = [
        keyed_noise(shape, kind, seed, sample_id, view, list(window), draw, noise_seed)
        for sample_id, view, window in samples
    ]
    return torch.stack(noises)


def noise_of_branches(conditions: Conditions, names: Collection[str], every: Collection[str]) -> Conditions:
    """Conditions with the explicit noise of some branches; noise not given by branch is unchanged.

    Args:
        conditions: conditions of a batch.
        names: names of the branches wanted.
        every: names of all branches.

    Raises:
        DataError: noise for a branch that does not exist.
    """

    def chosen(given: Noise | None) -> Noise | None:
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if name not in every:
                hint = f"{did_you_mean(name, every)}the branches are {', '.join(every)}"
                raise DataError(f"explicit noise for a branch {name!r}; {hint}")
        return {name: value for name, value in given.items() if name in names} or None

    return replace(conditions, noise=chosen(conditions.noise), posterior_noise=chosen(conditions.posterior_noise))


def explicit_noise(given: Noise | None, branch: str, shape: Sequence[int], draws: int, draw: int) -> Tensor | None:
    """One draw (B, c, h, w) of a branch's explicit noise; None without explicit noise.

    Args:
        given: (B, c, h, w), or (B, E, c, h, w) for an ensemble of E draws, or such tensors by branch.
        branch: name of the branch.
        shape: shape of one draw, that of the latents.
        draws: number E of draws of the branch, 1 without an ensemble.
        draw: index of the draw.

    Raises:
        DataError: noise of another shape or number of draws.
    """
    if isinstance(given, Mapping):
        given = given.get(branch)
    if given is None:
        return None
    expected = tuple(shape) if draws == 1 else (shape[0], draws, *shape[1:])
    if given.shape != expected:
        raise DataError(
            f"explicit noise of shape {tuple(given.shape)} for latents of shape {tuple(shape)}"
            + (f" and an ensemble of {draws}; expected {expected}" if draws > 1 else "")
        )
    return given if draws == 1 else given[:, draw]
