"""Denoising passes over several steered branches of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.features.reading.denoiser import SteeredDenoiser
from gate_lightning.features.reading.recorded import Recordings
from gate_lightning.features.reading.steering import GivenImages, SteeredBranch
from gate_lightning.structures import BranchFeatures

__all__ = ["Known", "group_branches", "latents_at", "run_pass"]

#: conditioning and timestep → inputs and prediction of a denoising pass on the way to a timestep that is read
Known = dict[tuple[object, ...], tuple[Tensor, Tensor]]


def group_branches(branches: Sequence[SteeredBranch], max_samples: int | None) -> list[list[SteeredBranch]]:
    """Groups that share a pass: of equal plan, with at most ``max_samples`` samples (but at least one image).

    Branches of more images are divided. Without a limit, the draws of an ensemble are in different groups, so that one
    draw's features are held at a time.
    """
    plans: dict[tuple[object, ...], list[SteeredBranch]] = {}
    for steered in branches:
        member = steered.member if max_samples is None else 0
        plans.setdefault((member, *steered.plan), []).append(steered)
    groups: list[list[SteeredBranch]] = []
    for same in plans.values():
        group: list[SteeredBranch] = []
        for steered in same if max_samples is None else (part for one in same for part in one.divided(max_samples)):
            if group and max_samples is not None and sum(one.samples for one in group) + steered.samples > max_samples:
                groups.append(group)
                group = []
            group.append(steered)
        groups.append(group)
    return groups


def run_pass(
    backbone: Backbone,
    group: Sequence[SteeredBranch],
    given: GivenImages,
    known: Known,
    recordings: Recordings | None = None,
) -> list[BranchFeatures]:
    """Features of each member of a group, from one pass of the denoiser at the end of their trajectory.

    Args:
        backbone: the backbone.
        group: steered branches of equal plan.
        given: control images and image tokens of the batch.
        known: passes of other groups of this batch, to which those of this one are added: trajectories to several
            timesteps begin alike (an inversion), and no pass is made twice.
        recordings: how passes are run; None: operation by operation.
    """
    denoiser = SteeredDenoiser(backbone, group, given, recordings)
    return denoiser.read(latents_at(denoiser, known), group[0].branch.timestep)


def latents_at(denoiser: SteeredDenoiser, known: Known) -> Tensor:
    """Latents (N, c, h, w) of all members of a group at their branches' timestep, by their trajectory if they have one.

    Args:
        denoiser: denoiser of the group.
        known: see `run_pass`.
    """
    first = denoiser.group[0]
    latents = torch.cat([steered.latents for steered in denoiser.group])
    if first.conditioning.trajectory is None:
        return latents
    predict = partial(_remembered, denoiser, known)
    return first.conditioning.trajectory.run(latents, first.branch.timestep, predict, denoiser.backbone)


def _remembered(denoiser: SteeredDenoiser, known: Known, latents: Tensor, timestep: int) -> Tensor:
    """The denoiser's prediction, from ``known`` if it has been asked for the same."""
    key = (*((one.rows, one.conditioning.steering) for one in denoiser.group), timestep)
    if key not in known or not torch.equal(known[key][0], latents):
        known[key] = (latents, denoiser(latents, timestep))
    return known[key][1]
