"""Backbones and candidates of content shift: which can be read, how, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, GateError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.recorded import PassKind
from gate_lightning.features.reading.steering import conditioning_of
from gate_lightning.structures import BranchFeatures, Conditions, FeatureInfo, ImageBatch
from gate_lightning.tasks.content_shift.candidates import Candidate, listed_candidates, shuffled
from gate_lightning.tasks.content_shift.repainting import Repainter
from gate_lightning.techniques.base import Conditioning
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.utils.units import GIB

__all__ = ["Cost", "ShiftReader"]

#: candidate, timestep, draw of the noise
_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Cost:
    """Cost of a candidate's features of one image: passes of the denoiser, and seconds here, encoding included."""

    passes: float
    seconds: float


class ShiftReader(nn.Module):
    """Backbones and candidates; makes the batches that measures read.

    Args:
        backbones: by the names that branches give.
        branches: the candidates; a plain one is added where there is none.
        timesteps: at which features are compared; None for those of the branches.
        noises: numbers of noises of the plain branches that are the controls of equal cost.
        fused: lists of timesteps whose plain features are a candidate together.
        seed: of the noise.
        posterior: latents are the "mean" of the autoencoder's posterior, or a keyed "sample" of it.
        max_samples: most samples in one pass of the denoiser; None for no limit.
        memory_gib: features of a batch that are kept for the next measure.
        passes: how the backbone is run, see FeatureExtractor.
        key: of ``timesteps``, for messages.

    Attributes:
        candidates: the rows, by name.
        left_out: candidate, or candidate and timestep, → why it cannot be read.
        repainter: image to image under the candidates.

    Raises:
        ConfigError: a number out of range, or layers that are no maps.
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        branches: Sequence[Branch],
        timesteps: Sequence[int] | None = None,
        noises: Sequence[int] = (),
        fused: Sequence[Sequence[int]] = (),
        seed: int = 0,
        posterior: Literal["mean", "sample"] = "mean",
        max_samples: int | None = 64,
        memory_gib: float = 2.0,
        passes: PassKind = "auto",
        key: str = "task.timesteps",
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict({name or "main": backbone for name, backbone in backbones.items()})
        if not number(memory_gib, "task.memory_gib") > 0:
            raise ConfigError(f"task.memory_gib={memory_gib}: expected GiB of memory above 0")
        for count in noises:
            whole_number(count, "task.noises", 2)
        for together in fused:
            if not isinstance(together, Sequence) or len(set(together)) < 2:
                shown = list(together) if isinstance(together, Sequence) else together
                raise ConfigError(
                    f"task.fused: {shown} is no list of different timesteps; expected lists, [[50,150,400]]"
                )
        found, self.left_out = listed_candidates(branches, backbones, sorted(set(noises)), fused)
        self.candidates = {one.name: one for one in found}
        own = tuple(dict.fromkeys(branch.timestep for branch in branches if branch.timestep >= 0)) or (-1,)
        self.timesteps = own if timesteps is None else tuple(dict.fromkeys(timesteps))
        if not self.timesteps:
            raise ConfigError("task.timesteps names no timestep; give at least one, or null for those of the branches")
        self.seed, self.posterior = seed, posterior
        self.max_samples, self.limit, self.passes = max_samples, int(memory_gib * GIB), passes
        self._alone: dict[_Key, str | None] = {}
        self._made: dict[tuple[object, ...], FeatureExtractor] = {}
        self.repainter = Repainter(self)
        for plain in (one for one in found if one.kind == "plain"):
            for timestep in self.timesteps:
                self.backbone(plain.name).check_timestep(timestep, "timestep" if timesteps is None else key)
        if min(self.timesteps) < 0 and own != (-1,):
            raise ConfigError(
                f"{key}={list(self.timesteps)}: candidates are compared under noise, at timesteps from 0; clean "
                "latents are a candidate of their own: techniques=[{name: clean, techniques: [], timestep: -1}, …]"
            )

    @property
    def description(self) -> dict[str, Any]:
        """Everything the features depend on besides images and conditions, JSON-able."""
        return {
            "backbones": {name: one.description for name, one in self.backbones.items() if isinstance(one, Backbone)},
            "branches": [{**one.branch.description, "name": name} for name, one in self.candidates.items()],
            "timesteps": list(self.timesteps),
            "seed": self.seed,
            "posterior": self.posterior,
        }

    def backbone(self, candidate: str) -> Backbone:
        """The frozen network that a candidate reads."""
        found = self.backbones[self.candidates[candidate].branch.backbone or "main"]
        assert isinstance(found, Backbone)
        return found

    def plain(self, candidate: str) -> str:
        """Name of the plain candidate of the same backbone."""
        backbone = self.candidates[candidate].branch.backbone
        return next(n for n, one in self.candidates.items() if one.kind == "plain" and one.branch.backbone == backbone)

    def layers(self, candidate: str) -> dict[str, FeatureInfo]:
        """Layers of a candidate that are maps."""
        info = self.backbone(candidate).feature_info(self.candidates[candidate].branch.layers)
        return {layer: one for layer, one in info.items() if one.stride and one.channels}

    def reason(self, candidate: str, timestep: int, draw: int = 0) -> str | None:
        """Reason why a candidate cannot be read there; None if it can."""
        key = (candidate, timestep, draw)
        if key not in self._alone:
            try:
                self._extractor([candidate], timestep, draw)
                self._alone[key] = None
            except GateError as error:
                self._tell(key, error)
        return self._alone[key]

    def shuffle_captions(self, batches: Sequence[ImageBatch]) -> list[Conditions | None]:
        """Add the rows of shuffled captions; returns their conditions of every batch, None of one without captions.

        Every image has the caption of the next image of the sample.
        """
        captions = [caption for batch in batches for caption in batch.conditions.captions or (None,) * len(batch)]
        rolled = captions[1:] + captions[:1]
        others: list[Conditions | None] = []
        for batch in batches:
            own, rolled = rolled[: len(batch)], rolled[len(batch) :]
            given = [text for text in own if text is not None]
            whole = len(given) == len(batch) and batch.conditions.captions is not None
            others.append(replace(batch.conditions, captions=tuple(given)) if whole else None)
        for one in list(self.candidates.values()):
            if one.kind == "candidate" and self._reads_captions(one, batches, others):
                row = shuffled(one)
                self.candidates[row.name] = row
        return others

    def cost(self, batch: ImageBatch, candidate: str, timestep: int) -> Cost | None:
        """Cost of a candidate's features of one image, measured alone on a batch after a first pass; None if they
        cannot be read."""
        if self.reason(candidate, timestep) is not None:
            return None
        extractor, backbone = self._extractor([candidate], timestep, 0), self.backbone(candidate)
        samples: list[int] = []
        # before a pass, as the last one ends behind the last layer that is read
        handle = backbone.register_forward_pre_hook(lambda module, inputs: samples.append(len(inputs[0])))
        try:
            try:
                extractor(batch.images, batch.conditions)
            except GateError as error:  # its images lack something
                self._tell((candidate, timestep, 0), error)
                return None
            samples.clear()
            _wait(backbone.device)
            began = time.perf_counter()
            extractor(batch.images, batch.conditions)
            _wait(backbone.device)
            return Cost(sum(samples) / len(batch), (time.perf_counter() - began) / len(batch))
        finally:
            handle.remove()

    def group(self, candidate: str, timestep: int, draw: int) -> list[str]:
        """Candidates that are read together with one: of its backbone, captions, timestep and draw."""
        wanted = self.candidates[candidate]
        return [
            name
            for name, one in self.candidates.items()
            if one.branch.backbone == wanted.branch.backbone
            and (one.kind == "shuffled") == (wanted.kind == "shuffled")
            and self.reason(name, timestep, draw) is None
        ]

    def read(
        self, names: Sequence[str], timestep: int, draw: int, moments: tuple[Tensor, Tensor], padded: ImageBatch
    ) -> dict[str, BranchFeatures]:
        """Features of several candidates; of those whose images lack something nothing, and the reason is kept."""
        try:
            found = self._extractor(names, timestep, draw).read(*moments, padded.images, padded.conditions)
            return {name: _joined([found[part] for part in self._parts(name, timestep)]) for name in names}
        except GateError as error:
            if len(names) > 1:
                one_by_one = [self.read([name], timestep, draw, moments, padded) for name in names]
                return {name: features for found in one_by_one for name, features in found.items()}
            if self.candidates[names[0]].kind == "plain":
                raise
            self._tell((names[0], timestep, draw), error)
            return {}

    def _tell(self, key: _Key, error: GateError) -> None:
        candidate, timestep, draw = key
        self._alone[key] = str(error)
        noise = ", further noises" if draw else ""
        self.left_out.setdefault(f"{candidate} at t = {timestep}{noise}", str(error))

    def _extractor(self, names: Sequence[str], timestep: int, draw: int) -> FeatureExtractor:
        key = (tuple(names), timestep, draw)
        if key not in self._made:
            branches = [
                replace(self.candidates[name].branch, name=part, timestep=own, noise_index=draw)
                for name in names
                for part, own in self._parts(name, timestep).items()
            ]
            backbone = self.backbone(names[0])
            self._made[key] = FeatureExtractor(
                *(backbone, branches, self.seed, "per_branch", self.posterior, self.max_samples), passes=self.passes
            )
        return self._made[key]

    def _parts(self, name: str, timestep: int) -> dict[str, int]:
        """Branches of a candidate and the timesteps at which they are read."""
        at = self.candidates[name].read_at(timestep)
        return {name: at[0]} if len(at) == 1 else {f"{name}@{own}": own for own in at}

    def _reads_captions(
        self, candidate: Candidate, batches: Sequence[ImageBatch], others: Sequence[Conditions | None]
    ) -> bool:
        """True if other captions give a candidate other prompts."""
        for batch, other in zip(batches, others, strict=True):
            if other is None:
                return False
            try:
                if self._prompts(candidate, batch, batch.conditions) != self._prompts(candidate, batch, other):
                    return True
            except GateError:  # it is told of when it is read
                return False
        return False

    def _prompts(self, candidate: Candidate, batch: ImageBatch, conditions: Conditions) -> tuple[str, ...]:
        return self.conditioning(candidate.name, batch.images, conditions).prompts

    def conditioning(self, candidate: str, images: Tensor, conditions: Conditions) -> Conditioning:
        """Conditioning of a candidate's passes over images (B, 3, H, W) in [-1, 1]."""
        branch = self.candidates[candidate].branch
        return conditioning_of(branch, images, conditions, self.backbone(candidate))


def _joined(parts: Sequence[BranchFeatures]) -> BranchFeatures:
    """Features of several passes as one, channels behind channels, with the mean of their energies."""
    if len(parts) == 1:
        return parts[0]
    return {layer: torch.cat([one[layer] for one in parts], dim=1) / len(parts) ** 0.5 for layer in parts[0]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
