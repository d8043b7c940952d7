"""Denoising passes over several steered branches of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import PromptEmbeds, Residuals
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.structures import BranchFeatures
from gate_lightning.techniques.base import Conditioning, Control, ControlSource

__all__ = ["Known", "SteeredBranch", "group_branches", "run_pass"]

#: conditioning and timestep → inputs and prediction of a denoising pass on the way to a timestep that is read
Known = dict[tuple[object, ...], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SteeredBranch:
    """Denoiser input of one draw of one branch, for the images of a batch with prompts of one length.

    Attributes:
        branch: the branch.
        member: index of the draw in the branch's ensemble.
        rows: rising indices of the R images in the batch.
        latents: (R, c, h, w), at the noise level where the branch's trajectory starts.
        prompt_embeds: embeddings of R prompts.
        conditioning: the controls, adapters and trajectory.
        inputs: key of the ControlNets' inputs: equal for equal latents and prompts in every pass.
    """

    branch: Branch
    member: int
    rows: tuple[int, ...]
    latents: Tensor
    prompt_embeds: PromptEmbeds
    conditioning: Conditioning
    inputs: tuple[object, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def plan(self) -> tuple[object, ...]:
        """Key of batching: timestep, trajectory and length of the prompts."""
        return (self.branch.timestep, self.conditioning.trajectory, self.prompt_embeds.hidden.shape[1])


def group_branches(branches: Sequence[SteeredBranch], max_samples: int | None) -> list[list[SteeredBranch]]:
    """Groups that share a pass: of equal plan, with at most ``max_samples`` samples (but at least one branch).

    Without a limit, the draws of an ensemble are in different groups, so that one draw's features are held at a time.
    """
    plans: dict[tuple[object, ...], list[SteeredBranch]] = {}
    for steered in branches:
        member = steered.member if max_samples is None else 0
        plans.setdefault((member, *steered.plan), []).append(steered)
    groups: list[list[SteeredBranch]] = []
    for same in plans.values():
        group: list[SteeredBranch] = []
        for steered in same:
            if group and max_samples is not None and sum(map(len, group)) + len(steered) > max_samples:
                groups.append(group)
                group = []
            group.append(steered)
        groups.append(group)
    return groups


def run_pass(
    backbone: Backbone,
    group: Sequence[SteeredBranch],
    control_images: Mapping[ControlSource, Tensor],
    known: Known,
) -> list[BranchFeatures]:
    """Features of each member of a group, from one pass of the denoiser at the end of their trajectory.

    Args:
        backbone: the backbone.
        group: steered branches of equal plan.
        control_images: control images (B, 3, H, W) of every source.
        known: passes of other groups of this batch, to which those of this one are added: trajectories to several
            timesteps begin alike (an inversion), and no pass is made twice.
    """
    timestep, trajectory = group[0].branch.timestep, group[0].conditioning.trajectory
    denoiser = _SteeredDenoiser(backbone, group, control_images)
    latents = torch.cat([steered.latents for steered in group])
    if trajectory is not None:
        latents = trajectory.run(latents, timestep, partial(_remembered, denoiser, known), backbone)
    wanted = dict.fromkeys(layer for steered in group for layer in steered.branch.layers)
    with FeatureRecorder(backbone, wanted) as recorder:
        denoiser(latents, timestep)
    features: list[BranchFeatures] = []
    start = 0
    for steered in group:
        end = start + len(steered)
        features.append({layer: recorder.features[layer][start:end] for layer in steered.branch.layers})
        start = end
    return features


def _remembered(denoiser: _SteeredDenoiser, known: Known, latents: Tensor, timestep: int) -> Tensor:
    """The denoiser's prediction, from ``known`` if it has been asked for the same."""
    key = (*((one.rows, one.conditioning.steering) for one in denoiser.group), timestep)
    if key not in known or not torch.equal(known[key][0], latents):
        known[key] = (latents, denoiser(latents, timestep))
    return known[key][1]


class _SteeredDenoiser:
    """Denoiser under the conditioning of a group: (latents, timestep) → prediction."""

    def __init__(
        self, backbone: Backbone, group: Sequence[SteeredBranch], control_images: Mapping[ControlSource, Tensor]
    ) -> None:
        self.backbone = backbone
        self.group = group
        self.control_images = control_images
        self.prompt_embeds = PromptEmbeds.cat([steered.prompt_embeds for steered in group])
        self.adapters = [steered.conditioning.adapters for steered in group for _ in steered.rows]

    def __call__(self, latents: Tensor, timestep: int) -> Tensor:
        """Prediction for latents (N, c, h, w) of all members, in the dtype of the latents."""
        inputs = latents.to(self.backbone.dtype)
        residuals = self._residuals(inputs.split([len(steered) for steered in self.group]), timestep)
        return self.backbone.denoise(inputs, timestep, self.prompt_embeds, residuals, self.adapters).to(latents)

    def _residuals(self, latents: Sequence[Tensor], timestep: int) -> Residuals | None:
        """Summed ControlNet residuals of the group, zero for members without ControlNet; None where none has one."""
        if not any(steered.conditioning.controls for steered in self.group):
            return None
        computed = self._control_outputs(latents, timestep)
        shapes = {path: residual for residuals in computed.values() for path, residual in residuals.items()}
        totals: list[dict[str, Tensor]] = []
        for steered in self.group:
            total: dict[str, Tensor] = {}
            for control in steered.conditioning.controls:
                for path, residual in computed[_control_key(steered, control)].items():
                    scaled = control.scaled(residual, steered.rows)
                    total[path] = total[path] + scaled if path in total else scaled
            totals.append(total)
        return {
            path: torch.cat(
                [
                    total[path] if path in total else like.new_zeros(len(steered), *like.shape[1:])
                    for steered, total in zip(self.group, totals, strict=True)
                ]
            )
            for path, like in shapes.items()
        }

    def _control_outputs(self, latents: Sequence[Tensor], timestep: int) -> dict[tuple[object, ...], Residuals]:
        """Residuals at scale 1 by control key; each ControlNet runs once, on distinct inputs only."""
        users: dict[str, dict[tuple[object, ...], tuple[int, Control]]] = {}
        for index, steered in enumerate(self.group):
            for control in steered.conditioning.controls:
                users.setdefault(control.name, {}).setdefault(_control_key(steered, control), (index, control))
        outputs: dict[tuple[object, ...], Residuals] = {}
        for name, distinct in users.items():
            members = [self.group[index] for index, _ in distinct.values()]
            images = [
                self.control_images[control.source][list(member.rows)]
                for member, (_, control) in zip(members, distinct.values(), strict=True)
            ]
            residuals = self.backbone.control_residuals(
                name,
                torch.cat([latents[index] for index, _ in distinct.values()]),
                timestep,
                PromptEmbeds.cat([member.prompt_embeds for member in members]),
                torch.cat(images),
            )
            split = {path: part.split([len(member) for member in members]) for path, part in residuals.items()}
            for index, key in enumerate(distinct):
                outputs[key] = {path: parts[index] for path, parts in split.items()}
        return outputs


def _control_key(steered: SteeredBranch, control: Control) -> tuple[object, ...]:
    return (control.name, control.source, *steered.inputs)
