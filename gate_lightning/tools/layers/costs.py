"""Operations that a denoiser has done when a layer is there, counted in one pass."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import LayerSpec

__all__ = ["Costs", "layer_costs"]


@dataclass(frozen=True)
class Costs:
    """Of one image; an operation is a multiplication or an addition.

    Attributes:
        encoder: operations of encoding the image.
        denoiser: of the whole pass of the denoiser.
        layers: layer id → (shape without batch, operations of the denoiser until it is there).
    """

    encoder: int
    denoiser: int
    layers: dict[str, tuple[tuple[int, ...], int]]


@dataclass(frozen=True)
class _Seen:
    shape: tuple[int, ...]
    operations: int


def layer_costs(backbone: Backbone, height: int, width: int) -> Costs:
    """Count. On a backbone whose parameters are on the meta device this takes neither memory nor arithmetic.

    What is counted are matrix products and convolutions; attention as its two products. Attention weights that are
    read cost one product more than the pass itself, the image after one step the decoder.

    Args:
        backbone: any.
        height, width: of the image in pixels.
    """
    counter = FlopCounterMode(display=False)
    modules = _Modules(backbone.denoiser, counter)
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
    """Shapes that modules were given and gave, and the operations done by then."""

    def __init__(self, denoiser: nn.Module, counter: FlopCounterMode) -> None:
        self.denoiser, self.counter = denoiser, counter
        self.before = 0
        self.inputs: dict[str, _Seen] = {}
        self.outputs: dict[str, _Seen] = {}

    def start(self) -> None:
        """What was done up to now is no part of the pass."""
        self.before = self.counter.get_total_flops()

    @property
    def operations(self) -> int:
        """Of the pass up to now."""
        return int(self.counter.get_total_flops()) - self.before

    def listen(self, specs: Any, stack: ExitStack) -> None:
        """Note all modules that a cost is made of."""
        for path in {path for spec in specs for path in _paths(spec)}:
            module = self.denoiser.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(self._note_input(path)).remove)
            stack.callback(module.register_forward_hook(self._note_output(path)).remove)

    def _note_input(self, path: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                self.inputs[path] = _Seen(tuple(inputs[0].shape), self.operations)

        return note

    def _note_output(self, path: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensor = output if isinstance(output, Tensor) else output[0]
            self.outputs[path] = _Seen(tuple(tensor.shape), self.operations)

        return note

    def cost(self, spec: LayerSpec) -> tuple[tuple[int, ...], int]:
        """Shape without batch, and operations."""
        if spec.kind == "attention":
            queries, keys, done = self._weights(spec)
            return (spec.channels, queries, keys), done + self._product(spec)
        if spec.kind == "averaged":
            sources = [source for sources in spec.sources for source in sources]
            done = max(self._weights(source)[2] for source in sources) + sum(map(self._product, sources))
            channels = sum(self._weights(sources[0])[1] for sources in spec.sources)
            return (channels, *self.inputs[spec.grid].shape[-2:]), done
        seen = (self.inputs if spec.kind == "input" else self.outputs)[spec.module]
        if spec.kind == "tokens":
            return (seen.shape[-1], *self.inputs[spec.grid].shape[-2:]), seen.operations
        return seen.shape[1:], seen.operations

    def _weights(self, spec: LayerSpec) -> tuple[int, int, int]:
        """Queries, keys, and operations done when both are there."""
        queries, keys = (self.outputs[f"{spec.module}.{part}"] for part in ("to_q", "to_k"))
        return queries.shape[1], keys.shape[1], max(queries.operations, keys.operations)

    def _product(self, spec: LayerSpec) -> int:
        queries, keys, _ = self._weights(spec)
        return 2 * queries * keys * self.outputs[f"{spec.module}.to_q"].shape[-1]


def _paths(spec: LayerSpec) -> list[str]:
    """The modules whose inputs and outputs a layer's shape and cost follow from."""
    if spec.kind == "image":
        return []
    if spec.kind == "averaged":
        return [spec.grid, *(path for sources in spec.sources for source in sources for path in _paths(source))]
    if spec.kind == "attention":
        return [f"{spec.module}.to_q", f"{spec.module}.to_k"]
    return [spec.module, spec.grid] if spec.grid else [spec.module]
