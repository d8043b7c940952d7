"""Image to image: images noised and denoised again under the conditioning of branches (Img2Img, SDEdit)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.kernels.dispatch import fast_ops
from gate_lightning.errors import ConfigError, NotFiniteError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.denoiser import SteeredDenoiser
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.limits import passes
from gate_lightning.features.reading.passes import Known, latents_at
from gate_lightning.features.reading.recorded import PassKind
from gate_lightning.features.reading.steering import SteeredBranch
from gate_lightning.ops.padding import pad_batch
from gate_lightning.structures import Conditions
from gate_lightning.techniques.schedule import ddim, noise_schedule, wide
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.utils.finite import all_finite, other_precision, shares
from gate_lightning.utils.precision import own_precision

__all__ = ["ImageToImage", "autoencoded", "start_of"]


class ImageToImage(nn.Module):
    """Images repainted by each branch: noised to a timestep, then denoised under the branch's whole conditioning.

    All branches see the same noise, keyed by image. Prompts, ControlNets, LoRAs, guidance and image prompts steer
    every pass, through the same steered denoiser that features are read by. A branch with a trajectory (inversion,
    denoising from above) brings its latents to the timestep in its own way. Noise indices and ensembles have no effect.

    The last step ends at timestep 0, whose noise is left, as in Stable Diffusion's own sampler.

    Args:
        backbone: a diffusion model.
        branches: ways to steer it; their timesteps have no effect.
        start: timestep to which images are noised, see `start_of`.
        steps: DDIM steps from there to timestep 0, as equal as whole timesteps allow; one pass each.
        seed, max_samples, fast, passes: see FeatureExtractor.

    Raises:
        ConfigError: a backbone that makes no images, a start outside the schedule, or more steps than timesteps.
    """

    def __init__(
        self,
        backbone: Backbone,
        branches: Sequence[Branch],
        start: int,
        steps: int = 20,
        seed: int = 0,
        max_samples: int | None = None,
        fast: bool = True,
        passes: PassKind = "auto",
    ) -> None:
        super().__init__()
        self.schedule = noise_schedule(backbone, "image to image")
        whole_number(start, "the start of image to image", 1, backbone.schedule.length - 1)
        whole_number(steps, "the steps of image to image", 1)
        if steps > start:
            raise ConfigError(f"image to image from timestep {start} in {steps} steps; choose at most {start} steps")
        self.levels = [round(start * left / steps) for left in range(steps, -1, -1)]
        moved = [replace(branch, timestep=start, ensemble=1, noise_index=0) for branch in branches]
        self.extractor = FeatureExtractor(
            backbone, moved, seed, "shared", max_samples=max_samples, fast=fast, passes=passes
        )

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Branch → images (B, 3, H, W) in [-1, 1], in the dtype of the given ones.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            conditions: of the images, as for features.

        Raises:
            DataError: images of an impossible size, or conditions that do not fit them.
            NotFiniteError: images with NaN or infinite values.
        """
        backbone = self.extractor.backbone
        padded, conditions = pad_batch(images, conditions, backbone.size_multiple)
        backbone.check_images(padded)
        with own_precision(backbone.device):
            made = self._made(images, padded, conditions)
        _check_finite(backbone, made, conditions)
        return made

    def _made(self, images: Tensor, padded: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        backbone = self.extractor.backbone
        made = {branch.name: torch.empty_like(images) for branch in self.extractor.branches}
        steered, given = self.extractor.steer(*self.extractor.encode(padded), padded, conditions)
        known: Known = {}

        def run(group: list[SteeredBranch]) -> Tensor:
            with fast_ops(self.extractor.fast):
                denoiser = SteeredDenoiser(backbone, group, given, self.extractor.recordings)
                latents = ddim(wide(latents_at(denoiser, known)), self.levels, denoiser, self.schedule)
                return _decoded(backbone, latents, images)

        for group, decoded in passes(steered, self.extractor.limit, run):
            for one, own in zip(group, decoded.split([len(one) for one in group]), strict=True):
                made[one.branch.name][list(one.rows)] = own
        return made


@torch.no_grad()
def autoencoded(backbone: Backbone, images: Tensor, fast: bool = True) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] encoded and decoded: what image to image loses even without noise."""
    padded, _ = pad_batch(images, Conditions(("",) * len(images)), backbone.size_multiple)
    backbone.check_images(padded)
    with own_precision(backbone.device), fast_ops(fast):
        return _decoded(backbone, backbone.encode(padded), images)


def start_of(backbone: Backbone, strength: float) -> int:
    """Timestep of a strength, a share in (0, 1] of the schedule: 1 is its last timestep.

    Raises:
        ConfigError: a strength outside, or a backbone without noise schedule.
    """
    length = noise_schedule(backbone, "image to image").length
    share = number(strength, "strength", 0)
    if not 0 < share <= 1 or round(share * (length - 1)) < 1:
        raise ConfigError(f"strength={strength}: expected a share of the {length} timesteps, above 0 and up to 1")
    return round(share * (length - 1))


def _decoded(backbone: Backbone, latents: Tensor, like: Tensor) -> Tensor:
    """Images in [-1, 1] of latents, of the size and dtype of ``like``."""
    height, width = like.shape[-2:]
    return backbone.decode(latents.to(backbone.dtype))[..., :height, :width].to(like.dtype).clamp(-1, 1)


def _check_finite(backbone: Backbone, made: Mapping[str, Tensor], conditions: Conditions) -> None:
    for branch, images in made.items():
        for row, image in enumerate(images):
            if not all_finite((image,)):
                raise NotFiniteError(
                    f"image to image of branch {branch!r}, image {conditions.sample_ids[row]!r}, is not finite "
                    f"({shares(image)}); {backbone.identity.name}, {other_precision(backbone.dtype)}"
                )
