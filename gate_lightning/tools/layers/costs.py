"""Operations of the denoiser up to each layer, counted in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import LayerSpec

__all__ = ["Costs", "layer_costs"]


_PROJECTIONS = ("to_q", "to_k")


@dataclass(frozen=True)
class Costs:
    """Operations (multiplications and additions) for one image.

    Attributes:
        encoder: operations of the image encoder.
        denoiser: operations of a whole pass of the denoiser.
        layers: layer id → (shape without batch, operations of the denoiser until its output is there).
    """

    encoder: int
    denoiser: int
    layers: dict[str, tuple[tuple[int, ...], int]]


def layer_costs(backbone: Backbone, height: int, width: int) -> Costs:
    """Operations up to every layer of a backbone; on the meta device this takes neither memory nor arithmetic.

    Matrix products and convolutions are counted, attention as its two products. Reading attention weights takes one
    product more than the pass itself, reading the image after one step takes the decoder.

    Args:
        backbone: any backbone.
        height, width: pixels of the image.
    """
    counter = FlopCounterMode(display=False)
    modules = _Modules(backbone.denoiser, counter, (height, width))
    specs = {**backbone.layers, **backbone.derived}
    # the plain kernel, as the counter does not know the fused one of every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, ExitStack() as stack:
        latents, _ = backbone.encode_moments(torch.zeros(1, 3, height, width, device=backbone.device))
        encoder = counter.get_total_flops()
        prompt = backbone.encode_text([""])
        modules.listen(specs.values(), stack)
        modules.start()
        prediction = backbone.denoise(latents, 1, prompt)
        denoiser = modules.operations
        found = {layer: modules.cost(spec) for layer, spec in specs.items() if spec.kind != "image"}
        for layer in (layer for layer, spec in specs.items() if spec.kind == "image"):
            image = backbone.image_after_step(latents, prediction, 1)
            found[layer] = (tuple(image.shape[1:]), modules.operations)
    return Costs(encoder, denoiser, {layer: found[layer] for layer in specs})


class _Modules:
    """Operations counted at the entry and exit of modules, and output shapes of the attention projections."""

    def __init__(self, denoiser: nn.Module, counter: FlopCounterMode, size: tuple[int, int]) -> None:
        self.denoiser, self.counter, self.size = denoiser, counter, size
        self.before = 0
        self.entered: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.projections: dict[str, torch.Size] = {}

    def start(self) -> None:
        """Begin the count of the denoiser's pass."""
        self.before = self.counter.get_total_flops()

    @property
    def operations(self) -> int:
        """Operations of the denoiser's pass so far."""
        return int(self.counter.get_total_flops()) - self.before

    def listen(self, specs: Iterable[LayerSpec], stack: ExitStack) -> None:
        """Hook every module that a layer's cost is computed from."""
        for path in {path for spec in specs for path in _paths(spec)}:
            module = self.denoiser.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(partial(self._enter, path)).remove)
            stack.callback(module.register_forward_hook(partial(self._leave, path)).remove)

    def _enter(self, path: str, module: nn.Module, inputs: Any) -> None:
        self.entered[path] = self.operations

    def _leave(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.left[path] = self.operations
        if path.endswith(_PROJECTIONS):
            self.projections[path] = output.shape

    def cost(self, spec: LayerSpec) -> tuple[tuple[int, ...], int]:
        """Shape without batch, and operations, of a layer."""
        if spec.kind == "attention":
            queries, keys, width = self._weights(spec)
            return (spec.channels, queries, keys), self._done(spec) + 2 * queries * keys * width
        if spec.kind == "averaged":
            sources = [source for sources in spec.sources for source in sources]
            products = sum(2 * math.prod(self._weights(source)) for source in sources)
            channels = sum(self._weights(sources[0])[1] for sources in spec.sources)
            return (channels, *spec.grid(*self.size)), max(map(self._done, sources)) + products
        operations = (self.entered if spec.kind.startswith("input") else self.left)[spec.module]
        return (spec.channels, *spec.grid(*self.size)), operations

    def _weights(self, spec: LayerSpec) -> tuple[int, int, int]:
        """Numbers of queries and keys, and their channels."""
        queries, keys = (self.projections[path] for path in _paths(spec))
        return queries[1], keys[1], queries[2]

    def _done(self, spec: LayerSpec) -> int:
        """Operations until queries and keys are there."""
        return max(self.left[path] for path in _paths(spec))


def _paths(spec: LayerSpec) -> list[str]:
    """Paths of the modules that a layer's cost is computed from."""
    if spec.kind == "image":
        return []
    if spec.kind == "averaged":
        return [path for sources in spec.sources for source in sources for path in _paths(source)]
    if spec.kind == "attention":
        return [f"{spec.module}.{projection}" for projection in _PROJECTIONS]
    return [spec.module]
