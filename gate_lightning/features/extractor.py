"""Pictures in, feature maps of every branch out: the plan that does no work twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch, check_branches
from gate_lightning.features.noise import batch_noise
from gate_lightning.features.passes import SteeredBranch, group_branches, run_pass
from gate_lightning.features.text import TextCache
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.techniques.base import Conditioning, ControlSource

__all__ = ["FeatureExtractor"]


class FeatureExtractor(nn.Module):
    """Backbone × branches → feature maps, frozen.

    Per batch the pictures are encoded once, control pictures are made once, and branches of equal timestep go through
    the denoiser as one batch that ends after the last layer any of them reads. Texts are encoded once per run. The
    result equals separate passes, one branch at a time, up to rounding.

    Its state dict is empty: frozen weights are not saved in checkpoints (``description`` says which they are).

    Args:
        backbone: the frozen network.
        branches: ways to read it, with different names.
        seed: of the noise.
        noise: "per_branch": branches with different noise seeds see different noise; "shared": one noise for all, and
            one ControlNet pass for branches that differ only behind it.
        posterior: latents are the "mean" of the autoencoder's posterior, or a keyed "sample" of it.
        max_samples: most samples (pictures × branches) in one denoiser pass, or None for no limit; bounds memory.

    Raises:
        ConfigError: branches that this backbone cannot serve.
        WeightsError: weights that a technique needs are missing or broken.
    """

    def __init__(
        self,
        backbone: Backbone,
        branches: Sequence[Branch],
        seed: int = 0,
        noise: Literal["per_branch", "shared"] = "per_branch",
        posterior: Literal["mean", "sample"] = "mean",
        max_samples: int | None = None,
    ) -> None:
        super().__init__()
        if noise not in ("per_branch", "shared"):
            raise ConfigError(f"noise={noise!r}: expected per_branch or shared")
        if posterior not in ("mean", "sample"):
            raise ConfigError(f"posterior={posterior!r}: expected mean or sample")
        if max_samples is not None and max_samples < 1:
            raise ConfigError(f"max_samples={max_samples}: expected at least 1, or null for no limit")
        check_branches(branches)
        for branch in branches:
            backbone.check_timestep(branch.timestep)
            for technique in branch.techniques:
                technique.prepare(backbone)
        self.backbone = backbone
        self.branches = tuple(branches)
        self.seed = seed
        self.noise = noise
        self.posterior = posterior
        self.max_samples = max_samples
        self._texts = TextCache()
        #: branch → layer id → FeatureInfo, in the order of branches and layers
        self.feature_info: dict[str, dict[str, FeatureInfo]] = {
            branch.name: backbone.feature_info(branch.layers) for branch in branches
        }
        self.register_load_state_dict_post_hook(_miss_no_frozen_weights)

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""
        return tuple(branch.name for branch in self.branches if branch.concatenated)

    @property
    def description(self) -> dict[str, Any]:
        """All that the features depend on besides the pictures, JSON-able."""
        return {
            "backbone": self.backbone.description,
            "branches": [branch.description for branch in self.branches],
            "seed": self.seed,
            "noise": self.noise,
            "posterior": self.posterior,
        }

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1]; sides a multiple of the backbone's ``size_multiple``.
            conditions: sample ids, captions, control pictures … of the batch.

        Returns:
            Branch name → layer id → (B, C, h, w), in the dtype of ``images``.

        Raises:
            DataError: pictures of an impossible size, or conditions that do not fit them.
        """
        self.backbone.check_images(images)
        if len(conditions) != len(images):
            raise DataError(f"{len(images)} pictures, but conditions for {len(conditions)}; give one entry per picture")
        return self.read(*self.backbone.encode_moments(images), images, conditions)

    @torch.no_grad()
    def read(self, mean: Tensor, std: Tensor, images: Tensor, conditions: Conditions) -> Features:
        """Features of pictures that are encoded already.

        Args:
            mean, std: moments of the latents as from ``backbone.encode_moments``, (B, c, h, w).
            images: the pictures (B, 3, H, W), for control pictures.
            conditions: see ``forward``.
        """
        steered = [self._steer(branch, mean, std, images, conditions) for branch in self.branches]
        sources: dict[ControlSource, Tensor] = {}
        for control in (control for one in steered for control in one.conditioning.controls):
            if control.source not in sources:
                sources[control.source] = control.source(images, conditions)
        features: Features = {}
        for group in group_branches(steered, self.max_samples):
            features |= run_pass(self.backbone, group, sources)
        return {
            branch.name: {layer: activation.to(images.dtype) for layer, activation in features[branch.name].items()}
            for branch in self.branches
        }

    def _steer(
        self, branch: Branch, mean: Tensor, std: Tensor, images: Tensor, conditions: Conditions
    ) -> SteeredBranch:
        conditioning = Conditioning(prompts=(branch.prompt,) * len(images))
        for technique in branch.techniques:
            conditioning = technique.apply(conditioning, images, conditions, self.backbone)
        noise_seed = branch.noise_seed if self.noise == "per_branch" else None
        clean = mean
        if self.posterior == "sample":
            clean = mean + std * self._draw(mean, conditions, branch.draw, noise_seed, "posterior")
        noise = conditions.noise
        if noise is None:
            noise = self._draw(mean, conditions, branch.draw, noise_seed, "diffusion")
        elif noise.shape != mean.shape:
            raise DataError(f"explicit noise of shape {tuple(noise.shape)} for latents of shape {tuple(mean.shape)}")
        adapters = conditioning.adapters
        return SteeredBranch(
            branch=branch,
            latents=self.backbone.add_noise(clean, noise.to(mean), branch.timestep),
            prompt_embeds=self._texts.encode(self.backbone, conditioning.prompts, adapters),
            conditioning=conditioning,
            inputs=(noise_seed, branch.draw, conditioning.prompts, self.backbone.text_adapters(adapters)),
        )

    def _draw(self, mean: Tensor, conditions: Conditions, draw: int, noise_seed: int | None, kind: str) -> Tensor:
        return batch_noise(mean.shape[1:], conditions, self.seed, draw, noise_seed, kind).to(mean)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Empty: frozen weights are identified, never saved."""
        return OrderedDict() if destination is None else destination


def _miss_no_frozen_weights(module: nn.Module, incompatible: _IncompatibleKeys) -> None:
    # a strict load of a checkpoint finds none of the frozen weights, and must not
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    missing = [key for key in incompatible.missing_keys if key[key.rfind("backbone.") :] not in own]
    incompatible.missing_keys[:] = missing
