"""Catching activations of an unmodified network with forward hooks, and stopping it once all are there."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gate_lightning.backbones.base import Backbone, LayerSpec
from gate_lightning.errors import ConfigError

__all__ = ["FeatureRecorder"]


class _AllRecorded(Exception):  # noqa: N818 - it is no error
    """Thrown through the network's forward when nothing more is needed from it."""


class FeatureRecorder:
    """While open, keeps the activations of some layers of one forward pass and ends that pass early.

    The pass ends by an exception from the hook that completes the set, which this context manager swallows: exact for
    any latent size, unlike leaving out blocks, and without touching the network. Hooks are removed whatever happens.

    Example:
        >>> with FeatureRecorder(backbone, layers) as recorder:
        ...     backbone.denoise(latents, timestep, prompt_embeds)
        >>> recorder.features["up-level1-upsampler-out"].shape

    Args:
        backbone: its ``denoiser`` is listened to.
        layers: layer ids.
        stop: end the pass after the last of them; False lets it finish.

    Attributes:
        features: layer id → (B, C, h, w), attention maps (B, heads, queries, keys).
    """

    def __init__(self, backbone: Backbone, layers: Iterable[str], stop: bool = True) -> None:
        self.denoiser = backbone.denoiser
        self.specs = {layer: backbone.layers[layer] for layer in layers}
        if not self.specs:
            raise ConfigError("no layers to read; name at least one layer id or preset")
        self.stop = stop
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._grids: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        self.features = {}
        self._grids = {}
        try:
            for path in {spec.grid for spec in self.specs.values() if spec.grid}:
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

    def _listen(self, layer: str, spec: LayerSpec) -> None:
        module = self.denoiser.get_submodule(spec.module)
        if spec.kind == "input":
            self._handles.append(module.register_forward_pre_hook(_InputHook(self, layer)))
        elif spec.kind == "output":
            self._handles.append(module.register_forward_hook(_OutputHook(self, layer)))
        elif spec.kind == "tokens":
            self._handles.append(module.register_forward_hook(_TokenHook(self, layer, self._grids, spec.grid)))
        else:
            assert isinstance(module, Attention)
            hook = _AttentionHook(self, layer, module)
            self._handles.append(module.to_q.register_forward_hook(hook.keep_queries))
            self._handles.append(module.to_k.register_forward_hook(hook.finish_with_keys))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def keep(self, layer: str, activation: Tensor) -> None:
        """Take one activation; called by the hooks."""
        self.features[layer] = activation
        if self.stop and len(self.features) == len(self.specs):
            raise _AllRecorded


# Hooks are classes, not closures: a module must stay picklable whatever is registered on it.


class _GridHook:
    def __init__(self, grids: dict[str, tuple[int, int]], path: str) -> None:
        self.grids, self.path = grids, path

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        self.grids[self.path] = (height, width)


class _InputHook:
    def __init__(self, recorder: FeatureRecorder, layer: str) -> None:
        self.recorder, self.layer = recorder, layer

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.recorder.keep(self.layer, inputs[0])


class _OutputHook:
    def __init__(self, recorder: FeatureRecorder, layer: str) -> None:
        self.recorder, self.layer = recorder, layer

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        # transformers and down blocks return tuples, the activation first
        self.recorder.keep(self.layer, output if isinstance(output, Tensor) else output[0])


class _TokenHook:
    def __init__(self, recorder: FeatureRecorder, layer: str, grids: dict[str, tuple[int, int]], grid: str) -> None:
        self.recorder, self.layer, self.grids, self.grid = recorder, layer, grids, grid

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        height, width = self.grids[self.grid]
        # (B, N, C) → (B, C, h, w)
        self.recorder.keep(self.layer, output.transpose(1, 2).unflatten(2, (height, width)))


class _AttentionHook:
    """Attention weights from the queries and keys that pass by; the network itself keeps its fused kernel."""

    def __init__(self, recorder: FeatureRecorder, layer: str, attention: Attention) -> None:
        self.recorder, self.layer = recorder, layer
        self.heads, self.scale = int(attention.heads), float(attention.scale)
        self.queries: Tensor | None = None

    def keep_queries(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.queries = output

    def finish_with_keys(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert self.queries is not None  # attention processors project queries first
        queries, keys = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.queries, output))
        # float32, as the softmax of half-precision scores is too coarse
        scores = torch.matmul(queries.float(), keys.float().transpose(2, 3)) * self.scale
        self.queries = None
        self.recorder.keep(self.layer, scores.softmax(dim=-1).to(output.dtype))
