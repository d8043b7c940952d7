"""The denoiser under the conditioning of several branches of one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from gate_lightning.backbones.adapters.image_prompts import ImageUse
from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import PromptEmbeds, Residuals
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.features.reading.recorded import Recordings
from gate_lightning.features.reading.steering import GivenImages, SteeredBranch
from gate_lightning.ops.rows import rows_of
from gate_lightning.structures import BranchFeatures
from gate_lightning.techniques.base import Control

__all__ = ["SteeredDenoiser"]

_Result = TypeVar("_Result")
#: index in the group, and whether under the negative prompt
_Place = tuple[int, bool]
#: attention is shares, which guidance would make negative, and its channels are the tokens of one prompt
_SHARES = ("attention", "averaged")


class SteeredDenoiser:
    """Denoiser under the conditioning of a group of branches: (latents, timestep) → prediction.

    Members with classifier-free guidance are there twice, under their prompt and under the negative one, in one pass if
    both have the same number of tokens; their prediction is e_∅ + s (e_p - e_∅) (Ho and Salimans 2022), and features
    are combined in the same way, except for attention maps, which are those under the prompt.

    Args:
        backbone: the backbone.
        group: steered branches with prompts of one length.
        given: control images and image tokens of the batch.
        recordings: how passes are run; None: operation by operation.
    """

    def __init__(
        self,
        backbone: Backbone,
        group: Sequence[SteeredBranch],
        given: GivenImages,
        recordings: Recordings | None = None,
    ) -> None:
        self.backbone = backbone
        self.group = group
        recordings = recordings or Recordings()
        members: dict[_Place, SteeredBranch] = {(index, False): steered for index, steered in enumerate(group)}
        members |= {(index, True): one.unprompted for index, one in enumerate(group) if one.unprompted is not None}
        by_length: dict[int, dict[_Place, SteeredBranch]] = {}
        for place, steered in members.items():
            by_length.setdefault(steered.prompt_embeds.hidden.shape[1], {})[place] = steered
        self._guided = len(members) > len(group)
        self._passes = [
            (list(same), _Pass(backbone, [*same.values()], given, recordings)) for same in by_length.values()
        ]

    def __call__(self, latents: Tensor, timestep: int) -> Tensor:
        """Prediction for latents (N, c, h, w) of all members, in the dtype of the latents."""
        predicted = self._run(latents, lambda one, own: one.predict(own, timestep))
        parts = [self._combined(index, predicted, lambda part: part) for index in range(len(self.group))]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def read(self, latents: Tensor, timestep: int) -> list[BranchFeatures]:
        """Features of each member; the passes end after the last layer that is read."""
        read = self._run(latents, lambda one, own: one.read(own, timestep))
        return [
            {layer: self._feature(index, read, layer) for layer in steered.branch.layers}
            for index, steered in enumerate(self.group)
        ]

    def _feature(self, index: int, read: Mapping[_Place, BranchFeatures], layer: str) -> Tensor:
        if self.backbone.layer_spec(layer).kind in _SHARES:
            return read[index, False][layer]
        return self._combined(index, read, lambda features: features[layer])

    def _run(self, latents: Tensor, function: Callable[[_Pass, Tensor], Sequence[_Result]]) -> dict[_Place, _Result]:
        """Results of all members."""
        parts = latents.split([len(steered) for steered in self.group])
        results: dict[_Place, _Result] = {}
        for places, one in self._passes:
            own = torch.cat([parts[index] for index, _ in places]) if self._guided else latents
            results |= zip(places, function(one, own), strict=True)
        return results

    def _combined(self, index: int, results: Mapping[_Place, _Result], chosen: Callable[[_Result], Tensor]) -> Tensor:
        """A member's result, under guidance e_∅ + s (e_p - e_∅)."""
        prompted = chosen(results[index, False])
        if (index, True) not in results:
            return prompted
        unprompted = chosen(results[index, True])
        return unprompted + self.group[index].conditioning.guidance * (prompted - unprompted)


class _Pass:
    """One pass of the denoiser over steered branches with prompts of one length."""

    def __init__(
        self, backbone: Backbone, group: Sequence[SteeredBranch], given: GivenImages, recordings: Recordings
    ) -> None:
        self.backbone = backbone
        self.group = group
        self.given = given
        self.recordings = recordings
        self.prompt_embeds = PromptEmbeds.cat([steered.prompt_embeds for steered in group])
        self.adapters = [steered.conditioning.adapters for steered in group for _ in steered.rows]
        self.sizes = [len(steered) for steered in group]
        ends = list(accumulate(self.sizes))
        #: rows of each member
        self.places = [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def predict(self, latents: Tensor, timestep: int) -> Sequence[Tensor]:
        """Prediction of each member for latents (N, c, h, w) of all, in their dtype."""
        (prediction,) = self._run(("prediction", timestep), latents, lambda: [self._denoised(latents, timestep)])
        return prediction.split(self.sizes)

    def read(self, latents: Tensor, timestep: int) -> list[BranchFeatures]:
        """Features of each member; the pass ends after the last layer that any of them reads."""
        wanted = dict.fromkeys(layer for steered in self.group for layer in steered.branch.layers)

        def features() -> list[Tensor]:
            with FeatureRecorder(self.backbone, wanted) as recorder:
                self._denoised(latents, timestep)
            return [recorder.features[layer] for layer in wanted]

        read = self._run(("features", timestep, *wanted), latents, features)
        split = {layer: value.split(self.sizes) for layer, value in zip(wanted, read, strict=True)}
        return [
            {layer: split[layer][index] for layer in steered.branch.layers} for index, steered in enumerate(self.group)
        ]

    def _run(self, what: tuple[object, ...], latents: Tensor, function: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Call the function, or replay its recording; all that it depends on is in the key, or given."""
        sources = dict.fromkeys(control.source for one in self.group for control in one.conditioning.controls)
        names = dict.fromkeys(prompt.name for one in self.group for prompt in one.conditioning.image_prompts)
        tokens = [part for name in names for part in vars(self.given.tokens[name]).values()]
        given = [latents, *self.prompt_embeds.tensors, *(self.given.controls[source] for source in sources), *tokens]
        # equal inputs of ControlNets, and equal control images, are the same place in the order of their first use
        inputs = list(dict.fromkeys(one.inputs for one in self.group))
        places = list(sources)
        members = tuple(
            (
                one.rows,
                inputs.index(one.inputs),
                one.conditioning.adapters,
                one.conditioning.image_prompts,
                tuple(
                    (control.name, control.scale, places.index(control.source)) for control in one.conditioning.controls
                ),
            )
            for one in self.group
        )
        if any(control.kept is not None for one in self.group for control in one.conditioning.controls):
            return function()  # another pass for every batch
        return self.recordings.run(self.backbone, (*what, members), given, function)

    def _denoised(self, latents: Tensor, timestep: int) -> Tensor:
        inputs = latents.to(self.backbone.dtype)
        residuals = self._residuals(inputs.split(self.sizes), timestep)
        with ExitStack() as stack:
            for name, uses in self._image_uses().items():
                adapter = self.backbone.image_prompts(name)
                stack.enter_context(adapter.applied(self.backbone.denoiser, uses))
            return self.backbone.denoise(inputs, timestep, self.prompt_embeds, residuals, self.adapters).to(latents)

    def _image_uses(self) -> dict[str, list[ImageUse]]:
        """Rows that see image tokens, by the name of the IP-Adapter."""
        uses: dict[str, list[ImageUse]] = {}
        for steered, rows in zip(self.group, self.places, strict=True):
            for prompt in steered.conditioning.image_prompts:
                tokens = self.given.tokens[prompt.name]
                own = (
                    rows_of(tokens.shown, steered.rows) if prompt.shown else tokens.unshown.expand(len(steered), -1, -1)
                )
                uses.setdefault(prompt.name, []).append(ImageUse(rows, own, prompt.scale))
        return uses

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
                rows_of(self.given.controls[control.source], member.rows)
                for member, (_, control) in zip(members, distinct.values(), strict=True)
            ]
            residuals = self.backbone.control_residuals(
                name,
                torch.cat([latents[index] for index, _ in distinct.values()]),
                timestep,
                PromptEmbeds.cat([self.prompt_embeds[self.places[index]] for index, _ in distinct.values()]),
                torch.cat(images),
            )
            split = {path: part.split([len(member) for member in members]) for path, part in residuals.items()}
            for index, key in enumerate(distinct):
                outputs[key] = {path: parts[index] for path, parts in split.items()}
        return outputs


def _control_key(steered: SteeredBranch, control: Control) -> tuple[object, ...]:
    return (control.name, control.source, *steered.inputs)
