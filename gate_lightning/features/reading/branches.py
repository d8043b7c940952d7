"""A branch on a backbone: its weights, what its layers give, and where its denoising starts."""

from __future__ import annotations

from dataclasses import replace

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import CATEGORY, Branch
from gate_lightning.structures import FeatureInfo
from gate_lightning.techniques.base import Trajectory

__all__ = ["branch_info", "noised_to", "prepare_branch"]


def prepare_branch(backbone: Backbone, branch: Branch, posterior: str) -> None:
    """Load the branch's weights into the backbone.

    Args:
        backbone: the frozen network.
        branch: its layers by id.
        posterior: latents are the "mean" of the autoencoder's posterior or a "sample" of it.

    Raises:
        ConfigError: the backbone cannot serve the branch.
        WeightsError: weights that a technique needs are missing or broken.
    """
    backbone.check_timestep(branch.timestep)
    for technique in branch.techniques:
        technique.prepare(backbone)
    trajectory = _trajectory(branch)
    if trajectory is not None:
        trajectory.check(backbone, branch.timestep)
    if noised_to(backbone, branch) is None and posterior == "mean" and (branch.ensemble > 1 or branch.noise_index > 0):
        reason = "reads clean latents" if trajectory is None else "finds its noise by inversion"
        raise ConfigError(
            f"branch {branch.name!r} {reason}, so that all its draws would be equal (ensemble={branch.ensemble}, "
            f"noise_index={branch.noise_index}); leave several noises out, or sample the posterior"
        )


def branch_info(backbone: Backbone, branch: Branch) -> dict[str, FeatureInfo]:
    """Channels and stride of each layer. Averaged cross-attention has a channel per token of the branch's prompt."""
    info = backbone.feature_info(branch.layers)
    lengths = [technique.prompt_length(backbone) for technique in branch.techniques]
    own = [length for length in lengths if length is not None]
    plain = 0 if CATEGORY in branch.prompt else backbone.text_length(branch.prompt)
    tokens = own[-1] if own else plain
    for layer in branch.layers if tokens else ():
        spec = backbone.layer_spec(layer)
        if spec.kind == "averaged" and spec.channels:
            info[layer] = replace(info[layer], channels=tokens * len(spec.sources))
    return info


def _trajectory(branch: Branch) -> Trajectory | None:
    return next((technique for technique in branch.techniques if isinstance(technique, Trajectory)), None)


def noised_to(backbone: Backbone, branch: Branch) -> int | None:
    """Timestep to which the clean latents are noised; None for no noise."""
    trajectory = _trajectory(branch)
    if backbone.schedule.reads_clean or (branch.timestep < 0 and trajectory is None):
        return None
    return branch.timestep if trajectory is None else trajectory.start(branch.timestep)
