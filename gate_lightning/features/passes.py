"""Denoising passes: the steered branches of one batch that run through the denoiser together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone, PromptEmbeds, Residuals
from gate_lightning.features.branch import Branch
from gate_lightning.features.hooks import FeatureRecorder
from gate_lightning.structures import BranchFeatures
from gate_lightning.techniques.base import Conditioning, Control, ControlSource

__all__ = ["SteeredBranch", "group_branches", "run_pass"]


@dataclass(frozen=True)
class SteeredBranch:
    """One branch of one batch, ready to be denoised.

    Attributes:
        branch: what is read.
        latents: noisy latents (B, c, h, w).
        prompt_embeds: of its B prompts.
        conditioning: the controls and adapters.
        inputs: equal for branches whose ControlNet would see equal latents and prompts.
    """

    branch: Branch
    latents: Tensor
    prompt_embeds: PromptEmbeds
    conditioning: Conditioning
    inputs: tuple[object, ...]


def group_branches(branches: Sequence[SteeredBranch], max_samples: int | None) -> list[list[SteeredBranch]]:
    """Branches that share a pass: those of equal timestep, at most ``max_samples`` samples (but one branch)."""
    groups: list[list[SteeredBranch]] = []
    for timestep in dict.fromkeys(steered.branch.timestep for steered in branches):
        same = [steered for steered in branches if steered.branch.timestep == timestep]
        size = len(same) if max_samples is None else max(1, max_samples // len(same[0].latents))
        groups += [same[start : start + size] for start in range(0, len(same), size)]
    return groups


def run_pass(
    backbone: Backbone, group: Sequence[SteeredBranch], control_images: dict[ControlSource, Tensor]
) -> dict[str, BranchFeatures]:
    """Features of the branches of a group, from one batched pass of the denoiser.

    Args:
        backbone: see Backbone.
        group: branches of equal timestep.
        control_images: the pictures of every control source that occurs.
    """
    wanted = {layer for steered in group for layer in steered.branch.layers}
    rows = [steered.conditioning.adapters for steered in group for _ in steered.latents]
    with FeatureRecorder(backbone, [layer for layer in backbone.layers if layer in wanted]) as recorder:
        backbone.denoise(
            torch.cat([steered.latents for steered in group]),
            group[0].branch.timestep,
            PromptEmbeds.cat([steered.prompt_embeds for steered in group]),
            _residuals(backbone, group, control_images),
            rows,
        )
    features: dict[str, BranchFeatures] = {}
    start = 0
    for steered in group:
        end = start + len(steered.latents)
        features[steered.branch.name] = {layer: recorder.features[layer][start:end] for layer in steered.branch.layers}
        start = end
    return features


def _residuals(
    backbone: Backbone, group: Sequence[SteeredBranch], control_images: dict[ControlSource, Tensor]
) -> Residuals | None:
    """Summed ControlNet residuals of the whole group, zero for branches without ControlNet; None where none has one."""
    if not any(steered.conditioning.controls for steered in group):
        return None
    computed = _control_outputs(backbone, group, control_images)
    per_branch = []
    for steered in group:
        total: list[Tensor] | None = None
        for control in steered.conditioning.controls:
            scaled = [control.scale * part for part in computed[_control_key(steered, control)]]
            total = scaled if total is None else [a + b for a, b in zip(total, scaled, strict=True)]
        per_branch.append(total)
    shapes = next(iter(computed.values()))
    parts = [
        torch.cat([torch.zeros_like(shape) if parts is None else parts[index] for parts in per_branch])
        for index, shape in enumerate(shapes)
    ]
    return tuple(parts[:-1]), parts[-1]


def _control_outputs(
    backbone: Backbone, group: Sequence[SteeredBranch], control_images: dict[ControlSource, Tensor]
) -> dict[tuple[object, ...], list[Tensor]]:
    """Residuals (skips, then middle) at scale 1 by control key: each ControlNet once, on its distinct inputs only."""
    users: dict[str, dict[tuple[object, ...], tuple[SteeredBranch, Control]]] = {}
    for steered in group:
        for control in steered.conditioning.controls:
            users.setdefault(control.name, {}).setdefault(_control_key(steered, control), (steered, control))
    outputs: dict[tuple[object, ...], list[Tensor]] = {}
    for name, distinct in users.items():
        down, middle = backbone.control_residuals(
            name,
            torch.cat([steered.latents for steered, _ in distinct.values()]),
            group[0].branch.timestep,
            PromptEmbeds.cat([steered.prompt_embeds for steered, _ in distinct.values()]),
            torch.cat([control_images[control.source] for _, control in distinct.values()]),
        )
        chunks = [part.chunk(len(distinct)) for part in (*down, middle)]
        for index, key in enumerate(distinct):
            outputs[key] = [part[index] for part in chunks]
    return outputs


def _control_key(steered: SteeredBranch, control: Control) -> tuple[object, ...]:
    return (control.name, control.source, *steered.inputs)
