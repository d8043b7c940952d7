"""Catching activations of an unmodified network with forward hooks, and stopping it once all are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.attention_maps import AttentionWeights, AveragedAttention, Grids, Keep

__all__ = ["FeatureRecorder"]


class _AllRecorded(Exception):  # noqa: N818 - it is no error
    """Thrown through the network's forward when nothing more is needed from it."""


class FeatureRecorder:
    """While open, keeps the activations of some layers of one forward pass and ends that pass early.

    The pass ends by an exception from the hook that completes the set, which this context manager swallows: exact for
    any latent size, unlike leaving out blocks, and without touching the network. Hooks are removed whatever happens.
    Recorders may be nested: a pass ends when all that are open on its denoiser have what they want.

    Example:
        >>> from gate_lightning import load_backbone
        >>> backbone = load_backbone("tiny")
        >>> latents, prompt = torch.zeros(1, 4, 16, 16), backbone.encode_text(["a house"])
        >>> with FeatureRecorder(backbone, ["up-level1-upsampler-out"]) as recorder, torch.no_grad():
        ...     _ = backbone.denoise(latents, 50, prompt)
        >>> recorder.features["up-level1-upsampler-out"].shape
        torch.Size([1, 96, 8, 8])

    Args:
        backbone: its ``denoiser`` is listened to.
        layers: layer ids or aliases.
        stop: end the pass after the last of them, and leave later passes alone; False lets passes finish and keeps the
            activations of the last one.

    Attributes:
        features: layer as it was asked for → (B, C, h, w), attention weights (B, heads, queries, keys).

    Raises:
        ConfigError: no layer, or one this backbone does not have.
    """

    def __init__(self, backbone: Backbone, layers: Iterable[str], stop: bool = True) -> None:
        self.backbone = backbone
        self.denoiser = backbone.denoiser
        self.specs: Mapping[str, LayerSpec] = {layer: backbone.layer_spec(layer) for layer in layers}
        if not self.specs:
            raise ConfigError("no layers to read; name at least one layer id or preset")
        self.stop = stop
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._grids: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        self.features = {}
        self._grids.clear()
        _open.setdefault(self.denoiser, []).append(self)
        try:
            for path in dict.fromkeys(path for spec in self.specs.values() for path in _grids_of(spec)):
                module = self.denoiser.get_submodule(path)
                self._handles.append(module.register_forward_pre_hook(_GridHook(self._grids, path)))
            for layer, spec in self.specs.items():
                self._listen(layer, spec)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._remove()
        return isinstance(error, _AllRecorded)

    @property
    def done(self) -> bool:
        """Nothing more is wanted from the pass."""
        return self.stop and len(self.features) == len(self.specs)

    def _listen(self, layer: str, spec: LayerSpec) -> None:
        module = self.denoiser.get_submodule(spec.module)
        match spec.kind:
            case "input":
                self._handles.append(module.register_forward_pre_hook(_InputHook(self.keep, layer)))
            case "output":
                self._handles.append(module.register_forward_hook(_OutputHook(self.keep, layer)))
            case "tokens":
                hook = _TokenHook(self.keep, layer, self._grids, spec.grid)
                self._handles.append(module.register_forward_hook(hook))
            case "attention":
                self._handles.extend(AttentionWeights(self.keep, layer, module).listen(module))
            case "averaged":
                self._handles.extend(AveragedAttention(self.keep, layer, spec, self._grids).listen(self.denoiser))
            case "image":
                image = _ImageHook(self.keep, layer, self.backbone)
                self._handles.append(module.register_forward_hook(image, with_kwargs=True))

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        listening = _open.get(self.denoiser, [])
        if self in listening:
            listening.remove(self)

    def keep(self, layer: str, activation: Tensor) -> None:
        """Take one activation; called by the hooks."""
        if self.done:  # of a later pass, while another recorder is open
            return
        self.features[layer] = activation
        if all(recorder.done for recorder in _open[self.denoiser]):
            raise _AllRecorded


#: the recorders that are open, by the denoiser they listen to
_open: WeakKeyDictionary[nn.Module, list[FeatureRecorder]] = WeakKeyDictionary()


def _grids_of(spec: LayerSpec) -> list[str]:
    sources = [source.grid for sources in spec.sources for source in sources]
    return [grid for grid in (spec.grid, *sources) if grid]


# Hooks are classes, not closures: a module must stay picklable whatever is registered on it.


class _GridHook:
    def __init__(self, grids: dict[str, tuple[int, int]], path: str) -> None:
        self.grids, self.path = grids, path

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        self.grids[self.path] = (height, width)


class _InputHook:
    def __init__(self, keep: Keep, layer: str) -> None:
        self.keep, self.layer = keep, layer

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.keep(self.layer, inputs[0])


class _OutputHook:
    def __init__(self, keep: Keep, layer: str) -> None:
        self.keep, self.layer = keep, layer

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        # transformers and down blocks return tuples, the activation first
        self.keep(self.layer, output if isinstance(output, Tensor) else output[0])


class _TokenHook:
    def __init__(self, keep: Keep, layer: str, grids: Grids, grid: str) -> None:
        self.keep, self.layer, self.grids, self.grid = keep, layer, grids, grid

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        height, width = self.grids[self.grid]
        # (B, N, C) → (B, C, h, w)
        self.keep(self.layer, output.transpose(1, 2).unflatten(2, (height, width)))


class _ImageHook:
    def __init__(self, keep: Keep, layer: str, backbone: Backbone) -> None:
        self.keep, self.layer, self.backbone = keep, layer, backbone

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        latents, timestep = (*inputs, *(named[key] for key in ("sample", "timestep") if key in named))[:2]
        told = int(torch.as_tensor(timestep).flatten()[0])
        self.keep(self.layer, self.backbone.image_after_step(latents, output[0], told))
