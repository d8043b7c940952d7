"""Denoiser inputs of branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from gate_lightning.backbones.adapters.image_prompts import ImageTokens
from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.features.branch import Branch
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, ControlSource

__all__ = ["GivenImages", "SteeredBranch", "conditioning_of"]


@dataclass(frozen=True)
class GivenImages:
    """Inputs that branches make of a batch of images, once for all of them.

    Attributes:
        controls: source of a ControlNet's images → control images (B, 3, H, W).
        tokens: name of an IP-Adapter → tokens of the images.
    """

    controls: Mapping[ControlSource, Tensor]
    tokens: Mapping[str, ImageTokens] = field(default_factory=dict)


@dataclass(frozen=True)
class SteeredBranch:
    """Denoiser input of one draw of one branch, for the images of a batch with prompts of one length.

    Attributes:
        branch: the branch.
        member: index of the draw in the branch's ensemble.
        rows: rising indices of the R images in the batch.
        latents: (R, c, h, w), at the noise level where the branch's trajectory starts.
        prompt_embeds: embeddings of R prompts.
        conditioning: the controls, adapters, guidance and trajectory.
        inputs: key of the ControlNets' inputs: equal for equal latents and prompts in every pass.
        unprompted: the same under the negative prompt, for classifier-free guidance; None without.
    """

    branch: Branch
    member: int
    rows: tuple[int, ...]
    latents: Tensor
    prompt_embeds: PromptEmbeds
    conditioning: Conditioning
    inputs: tuple[object, ...]
    unprompted: SteeredBranch | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def samples(self) -> int:
        """Samples in a denoiser pass: its images, twice under guidance."""
        return len(self) if self.unprompted is None else 2 * len(self)

    def divided(self, most: int) -> list[SteeredBranch]:
        """Parts of at most ``most`` samples, but at least one image."""
        if self.samples <= most:
            return [self]
        size = max(1, most * len(self) // self.samples)
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def _part(self, of: slice) -> SteeredBranch:
        rows = self.rows[of]
        return replace(
            self,
            rows=rows,
            latents=self.latents[of],
            prompt_embeds=self.prompt_embeds[of],
            inputs=(*self.inputs, rows),
            unprompted=None if self.unprompted is None else self.unprompted._part(of),
        )

    @property
    def plan(self) -> tuple[object, ...]:
        """Key of batching: timestep, trajectory and length of the prompts."""
        return (self.branch.timestep, self.conditioning.trajectory, self.prompt_embeds.hidden.shape[1])


def conditioning_of(branch: Branch, images: Tensor, conditions: Conditions, backbone: Backbone) -> Conditioning:
    """Conditioning of a branch's passes over images (B, 3, H, W) in [-1, 1]: its techniques applied in their order."""
    conditioning = Conditioning(prompts=branch.prompts(conditions))
    for technique in branch.techniques:
        conditioning = technique.apply(conditioning, images, conditions, backbone)
    return conditioning
