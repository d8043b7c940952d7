"""Feature extraction: images → feature maps of every branch, with all shared work done once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from gate_lightning.backbones.base import Backbone, check_backbone
from gate_lightning.backbones.kernels.dispatch import fast_ops
from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.errors import DataError, NotFiniteError
from gate_lightning.features.branch import Branch, check_branches
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.branches import branch_info, noised_to, prepare_branch
from gate_lightning.features.reading.limits import SampleLimit, passes
from gate_lightning.features.reading.noise import batch_noise, explicit_noise, noise_of_branches
from gate_lightning.features.reading.passes import Known, run_pass
from gate_lightning.features.reading.reassembly import GatheredFeatures
from gate_lightning.features.reading.recorded import PassKind, Recordings
from gate_lightning.features.reading.steering import GivenImages, SteeredBranch, conditioning_of
from gate_lightning.features.reading.text import TextCache
from gate_lightning.ops.padding import check_batch, pad_batch
from gate_lightning.ops.rows import moved_like, rows_of
from gate_lightning.structures import BranchFeatures, Conditions, FeatureInfo, Features
from gate_lightning.techniques.base import Conditioning, ControlSource
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.finite import all_finite, damaged_weights, other_precision, shares
from gate_lightning.utils.precision import own_precision

__all__ = ["FeatureExtractor"]


class FeatureExtractor(nn.Module):
    """Frozen feature extractor: one backbone, several branches.

    Per batch the images are encoded once, control images are made once, and branches of equal timestep go through
    the denoiser as one batch that ends after the last layer any of them reads; so do branches of equal trajectory,
    and trajectories to several timesteps share the passes with which they begin.
    Texts are encoded once per run. Features of an ensemble are summed up draw by draw. The result equals
    separate passes, one branch, draw and image at a time, up to rounding. All is computed in the type of the backbone's
    weights: an autocast around it (``trainer.precision=bf16-mixed``) has no effect.

    Its state dict is empty: frozen weights are not saved in checkpoints (``description`` identifies them).

    Args:
        backbone: the frozen network.
        branches: ways to read it, with different names.
        seed: of the noise.
        noise: "per_branch": branches with different noise seeds see different noise; "shared": one noise for all, and
            one ControlNet pass for branches that differ only behind it.
        posterior: latents are the "mean" of the autoencoder's posterior, or a keyed "sample" of it.
        max_samples: most samples (images × branches × draws of an ensemble) in one denoiser pass, and most images that
            are encoded at once; bounds memory. None for no limit, but one draw of an ensemble at a time. Where a GPU's
            memory does not suffice it is halved, with a warning.
        fast: compute convolutions and the like in faster ways where there are some, equal up to rounding
            (backbones/kernels/dispatch.py); False runs every operation as the networks state it.
        passes: the backbone is run "eager", operation by operation; "replayed": its second pass of a kind (branches,
            timestep, sizes) is recorded, and run as one graph from then on, on a GPU as a CUDA graph; "compiled": that
            graph is compiled before; "auto": on a GPU passes met ten times are replayed, all others are eager.
            Weights are frozen: a recording does not see all of what is written into them later.

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
        fast: bool = True,
        passes: PassKind = "auto",
    ) -> None:
        super().__init__()
        check_choice(noise, "noise", ("per_branch", "shared"))
        check_choice(posterior, "posterior", ("mean", "sample"))
        if max_samples is not None:
            whole_number(max_samples, "max_samples", 1, optional="no limit")
        check_backbone(backbone)
        branches = check_branches(branches)
        branches = [replace(branch, layers=resolve_layers(backbone, branch.layers)) for branch in branches]
        for branch in branches:
            prepare_branch(backbone, branch, posterior)
        self.backbone = backbone
        self.branches = tuple(branches)
        self.seed = whole_number(seed, "seed")
        self.noise = noise
        self.posterior = posterior
        self.fast = fast
        self.recordings = Recordings(passes)
        self.limit = SampleLimit(max_samples, "a pass of the denoiser", self.recordings.give_up)
        self._encoding = SampleLimit(max_samples, "encoding", self.recordings.give_up)
        self._texts = TextCache()
        #: branch → layer id → FeatureInfo, in the order of branches and layers
        self.feature_info: dict[str, dict[str, FeatureInfo]] = {
            branch.name: branch_info(backbone, branch) for branch in branches
        }
        self.register_load_state_dict_post_hook(_miss_no_frozen_weights)

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""
        return tuple(branch.name for branch in self.branches if branch.concatenated)

    @property
    def description(self) -> dict[str, Any]:
        """Everything the features depend on besides images and conditions, JSON-able."""
        return {
            "backbone": self.backbone.description,
            "branches": [branch.description for branch in self.branches],
            "seed": self.seed,
            "noise": self.noise,
            "posterior": self.posterior,
        }

    def check_room(self, images: int, values: int) -> None:
        """Check nothing: no features are stored."""

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of a batch of images.

        Args:
            images: (B, 3, H, W) in [-1, 1]. Sides that are no multiple of the backbone's ``size_multiple`` are padded
                at the bottom and the right, control images with them (`ops.padding.pad_batch`).
            conditions: sample ids, captions, control images … of the batch.

        Returns:
            Branch name → layer id → (B, C, h, w) of the padded images, in the dtype of ``images``.

        Raises:
            DataError: images of an impossible size or on another device, or conditions that do not fit them.
            NotFiniteError: features with NaN or infinite values; names layer, branch, image, and what to try.
        """
        check_batch(images, conditions)
        images, conditions = pad_batch(images, conditions, self.backbone.size_multiple)
        self.backbone.check_images(images)
        if images.device != self.backbone.device:
            raise DataError(
                f"the images are on {images.device}, the weights of {self.backbone.identity.name} on "
                f"{self.backbone.device}; move the images and conditions there (.to), or the extractor"
            )
        with own_precision(self.backbone.device):
            return self.read(*self.encode(images), images, conditions)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the latents of images (B, 3, H, W), see `Backbone.encode_moments`."""
        with fast_ops(self.fast):
            parts = self._encoding.in_parts(len(images), lambda rows: self._moments(images[rows]))
        if len(parts) == 1:
            return parts[0]
        mean, std = (torch.cat(moments) for moments in zip(*parts, strict=True))
        return mean, std

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.encode_moments`."""

        def moments() -> list[Tensor]:
            return list(self.backbone.encode_moments(images))

        mean, std = self.recordings.run(self.backbone, ("moments",), [images], moments)
        return mean, std

    @torch.no_grad()
    def read(self, mean: Tensor, std: Tensor, images: Tensor, conditions: Conditions) -> Features:
        """Features of images with given latent moments.

        Args:
            mean, std: moments of the latents as from ``backbone.encode_moments``, (B, c, h, w).
            images: the images (B, 3, H, W), for control images; sides are multiples of ``size_multiple``.
            conditions: see ``forward``.
        """
        with own_precision(self.backbone.device):
            while True:
                try:
                    return self._read(mean, std, images, conditions)
                except torch.OutOfMemoryError:
                    if not self.recordings.give_up():
                        raise

    def _read(self, mean: Tensor, std: Tensor, images: Tensor, conditions: Conditions) -> Features:
        """See `read`."""
        steered, given = self.steer(mean, std, images, conditions)
        gathered = {branch.name: GatheredFeatures(branch) for branch in self.branches}
        known: Known = {}

        def run(group: list[SteeredBranch]) -> list[BranchFeatures]:
            with fast_ops(self.fast):
                return run_pass(self.backbone, group, given, known, self.recordings)

        for group, passed in passes(steered, self.limit, run):
            for one, features in zip(group, passed, strict=True):
                gathered[one.branch.name].add(one, features)
        read = {name: features.result(images.dtype) for name, features in gathered.items()}
        if not all_finite(value for layers in read.values() for value in layers.values()):
            raise self._not_finite(read, conditions)
        return read

    def steer(
        self, mean: Tensor, std: Tensor, images: Tensor, conditions: Conditions
    ) -> tuple[list[SteeredBranch], GivenImages]:
        """Denoiser inputs of all draws of all branches, and what they make of the images; arguments as for `read`."""
        names = [branch.name for branch in self.branches]
        conditions = noise_of_branches(conditions, names, names)
        steered = [one for branch in self.branches for one in self._steer(branch, mean, std, images, conditions)]
        sources: dict[ControlSource, Tensor] = {}
        for control in (control for one in steered for control in one.conditioning.controls):
            if control.source not in sources:
                sources[control.source] = control.source(images, conditions)
        names = list(dict.fromkeys(prompt.name for one in steered for prompt in one.conditioning.image_prompts))
        return steered, GivenImages(sources, {name: self.backbone.image_prompts(name).tokens(images) for name in names})

    def _not_finite(self, read: Features, conditions: Conditions) -> NotFiniteError:
        """Error that names layer, branch and image, and says why."""
        first = next(
            (branch, layer, row, value[row])
            for branch, layers in read.items()
            for layer, value in layers.items()
            for row in range(len(value))
            if not all_finite((value[row],))
        )
        branch, layer, row, value = first
        broken = damaged_weights(self.backbone)
        reason = other_precision(self.backbone.dtype)
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            reason = (
                f"{reason}. The weights themselves are not finite: {broken[0]}{more}; another precision will not help, "
                "take a file that is whole"
            )
        return NotFiniteError(
            f"features are not finite: layer {layer} of branch {branch!r}, image {conditions.sample_ids[row]!r} "
            f"({shares(value)}); {self.backbone.identity.name}, {reason}"
        )

    def _steer(
        self, branch: Branch, mean: Tensor, std: Tensor, images: Tensor, conditions: Conditions
    ) -> list[SteeredBranch]:
        """Draws of the branch, each split by length of the prompts."""
        conditioning = conditioning_of(branch, images, conditions, self.backbone)
        embeds = self._texts.encode(self.backbone, conditioning.prompts, conditioning.adapters)
        parts: dict[int, list[int]] = {}
        for index, one in enumerate(embeds):
            parts.setdefault(one.hidden.shape[1], []).append(index)
        prompt_embeds = [(tuple(rows), PromptEmbeds.cat([embeds[index] for index in rows])) for rows in parts.values()]
        steered: list[SteeredBranch] = []
        for member in range(branch.ensemble):
            latents = self._latents(branch, member, mean, std, conditions)
            steered += [
                SteeredBranch(
                    branch=branch,
                    member=member,
                    rows=rows,
                    latents=rows_of(latents, rows),
                    prompt_embeds=own,
                    conditioning=conditioning,
                    inputs=self._inputs(branch, member, rows, conditioning, conditions),
                )
                for rows, own in prompt_embeds
            ]
        return steered if conditioning.guidance == 1.0 else [self._guided(one, conditions) for one in steered]

    def _guided(self, steered: SteeredBranch, conditions: Conditions) -> SteeredBranch:
        """The same with its twin under the negative prompt."""
        conditioning = steered.conditioning.unprompted(self.backbone)
        (embeds,) = self._texts.encode(self.backbone, conditioning.prompts[:1], conditioning.adapters)
        unprompted = replace(
            steered,
            prompt_embeds=PromptEmbeds.cat([embeds] * len(steered)),
            conditioning=conditioning,
            inputs=self._inputs(steered.branch, steered.member, steered.rows, conditioning, conditions),
        )
        return replace(steered, unprompted=unprompted)

    def _inputs(
        self, branch: Branch, member: int, rows: Sequence[int], conditioning: Conditioning, conditions: Conditions
    ) -> tuple[Any, ...]:
        """Equal for draws whose ControlNets see equal inputs; a trajectory or noise of its own sets a branch apart."""
        prompts = tuple(conditioning.prompts[index] for index in rows)
        text_adapters = self.backbone.text_adapters(conditioning.adapters)
        own_noise = any(
            isinstance(given, Mapping) and branch.name in given
            for given in (conditions.noise, conditions.posterior_noise)
        )
        own = branch.name if own_noise or conditioning.trajectory is not None else None
        return (self._noise_seed(branch), _draw(branch, member), tuple(rows), prompts, text_adapters, own)

    def _latents(self, branch: Branch, member: int, mean: Tensor, std: Tensor, conditions: Conditions) -> Tensor:
        """Latents (B, c, h, w) of one draw, noised to the start of the branch's trajectory."""
        clean = mean
        if self.posterior == "sample":
            clean = mean + std * self._noise(branch, member, mean, conditions, "posterior")
        elif conditions.posterior_noise is not None:
            raise DataError("explicit posterior noise, but the posterior's mean is read; set posterior=sample")
        level = noised_to(self.backbone, branch)
        if level is None:
            return clean
        return self.backbone.schedule.add_noise(
            clean, self._noise(branch, member, mean, conditions, "diffusion"), level
        )

    def _noise(
        self, branch: Branch, member: int, mean: Tensor, conditions: Conditions, kind: Literal["posterior", "diffusion"]
    ) -> Tensor:
        given = conditions.posterior_noise if kind == "posterior" else conditions.noise
        explicit = explicit_noise(given, branch.name, mean.shape, branch.ensemble, member)
        if explicit is not None:
            return moved_like(explicit, mean)
        draw, noise_seed = _draw(branch, member), self._noise_seed(branch)
        return moved_like(batch_noise(mean.shape[1:], conditions, self.seed, draw, noise_seed, kind), mean)

    def _noise_seed(self, branch: Branch) -> int | None:
        return branch.noise_seed if self.noise == "per_branch" else None

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Empty: frozen weights are not saved."""
        return OrderedDict() if destination is None else destination


def _draw(branch: Branch, member: int) -> int:
    return branch.noise_index * branch.ensemble + member


def _miss_no_frozen_weights(module: nn.Module, incompatible: _IncompatibleKeys) -> None:
    # a strict load of a checkpoint finds none of the frozen weights, and must not
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    missing = [key for key in incompatible.missing_keys if key[key.rfind("backbone.") :] not in own]
    incompatible.missing_keys[:] = missing
