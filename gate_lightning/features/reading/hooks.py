"""Recording activations of an unmodified network with forward hooks, and ending its pass after the last one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gate_lightning.backbones.base import Backbone, check_backbone
from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.reading.attention_maps import AttentionWeights, AveragedAttention, Keep
from gate_lightning.utils.checks import check_type

__all__ = ["FeatureRecorder"]


class _AllRecorded(Exception):  # noqa: N818 - it is no error
    """Raised inside the network's forward to end a pass when all activations are recorded."""


class FeatureRecorder:
    """Context that records the activations of some layers in one forward pass and ends that pass early.

    The hook that completes the set ends the pass by an exception, which the context suppresses; this is exact for any
    latent size and leaves the network unmodified. Recorders may be nested: a pass ends when all open recorders of its
    denoiser are complete.

    Example:
        >>> import torch
        >>> from gate_lightning import load_backbone
        >>> backbone = load_backbone("tiny")
        >>> latents, prompt = torch.zeros(1, 4, 16, 16), backbone.encode_text(["a house"])
        >>> with FeatureRecorder(backbone, ["up-level1-upsampler-out"]) as recorder, torch.no_grad():
        ...     _ = backbone.denoise(latents, 50, prompt)
        >>> recorder.features["up-level1-upsampler-out"].shape
        torch.Size([1, 96, 8, 8])

    Args:
        backbone: backbone whose ``denoiser`` is recorded.
        layers: layer ids or aliases, one or several.
        stop: end the pass after the last layer and ignore later passes; False lets passes finish and keeps the
            activations of the last one.

    Attributes:
        features: layer by the given name → (B, C, h, w), or attention weights (B, heads, queries, keys).

    Raises:
        ConfigError: no layer, or one this backbone does not have.
    """

    def __init__(self, backbone: Backbone, layers: str | Iterable[str], stop: bool = True) -> None:
        check_backbone(backbone)
        check_type(layers, "layers", Iterable, "layer ids or aliases")
        self.backbone = backbone
        self.denoiser = backbone.denoiser
        listed = [layers] if isinstance(layers, str) else layers
        self.specs: Mapping[str, LayerSpec] = {layer: backbone.layer_spec(layer) for layer in listed}
        if not self.specs:
            raise ConfigError("no layers to read; name at least one layer id or preset")
        self.stop = stop
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self.features = {}
        self._size = None
        _open.setdefault(self.denoiser, []).append(self)
        try:
            self._handles.append(self.backbone.register_forward_pre_hook(self._begin))
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
        """True once all layers are recorded and the pass may end."""
        return self.stop and len(self.features) == len(self.specs)

    def _listen(self, layer: str, spec: LayerSpec) -> None:
        module = self.denoiser.get_submodule(spec.module)
        match spec.kind:
            case "input" | "input_tokens":
                before = _Activation(self, layer, spec).before
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            case "output" | "tokens":
                self._handles.append(module.register_forward_hook(_Activation(self, layer, spec).after))
            case "attention":
                self._handles.extend(AttentionWeights(self.keep, layer, module).listen(module))
            case "averaged":
                average = AveragedAttention(self.keep, layer, spec, self.image_size)
                self._handles.extend(average.listen(self.denoiser))
            case "image":
                self._handles.append(self.backbone.register_forward_hook(_ImageHook(self.keep, layer)))

    def _begin(self, backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
        stride = self.backbone.latent_stride
        height, width = inputs[0].shape[-2:]
        self._size = height * stride, width * stride

    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images in the running pass."""
        if self._size is None:
            raise ConfigError(
                "layers of tokens are read from passes through backbone.denoise, not of the network alone"
            )
        return self._size

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        listening = _open.get(self.denoiser, [])
        if self in listening:
            listening.remove(self)

    def keep(self, layer: str, activation: Tensor) -> None:
        """Store one activation; called by the hooks."""
        if self.done:  # of a later pass, while another recorder is open
            return
        self.features[layer] = activation
        if all(recorder.done for recorder in _open[self.denoiser]):
            raise _AllRecorded


#: open recorders by denoiser
_open: WeakKeyDictionary[nn.Module, list[FeatureRecorder]] = WeakKeyDictionary()


# Hooks are methods of classes, not closures: a module must stay picklable whatever is registered on it.


class _Activation:
    """Hooks that record an input or output of a module; tokens are reshaped to a map."""

    def __init__(self, recorder: FeatureRecorder, layer: str, spec: LayerSpec) -> None:
        self.recorder, self.layer, self.spec = recorder, layer, spec

    def before(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Forward pre-hook; records an input, by position or name."""
        element = self.spec.element
        if isinstance(element, int):
            self._keep(inputs[element])
        else:  # by name, whether it was given by name or by position
            self._keep(inspect.signature(module.forward).bind(*inputs, **named).arguments[element])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Forward hook; records the output, or an element of a tuple output."""
        self._keep(output if isinstance(output, Tensor) else output[self.spec.element])

    def _keep(self, activation: Tensor) -> None:
        if self.spec.kind in ("tokens", "input_tokens"):
            activation = self._map(activation)
        self.recorder.keep(self.layer, activation)

    def _map(self, tokens: Tensor) -> Tensor:
        """(B, N, C) → (B, C, h, w), of the image's tokens alone."""
        grid = self.spec.grid(*self.recorder.image_size())
        count, length = grid[0] * grid[1], tokens.shape[1]
        first = length - count if self.spec.offset is None else self.spec.offset
        if not 0 <= first <= length - count:
            raise DataError(
                f"layer {self.layer}: {self.spec.module} has {length} tokens, expected at least "
                f"{max(first, 0) + count}: {grid[0]} × {grid[1]} of the image"
            )
        return tokens[:, first : first + count].transpose(1, 2).unflatten(2, grid)


class _ImageHook:
    def __init__(self, keep: Keep, layer: str) -> None:
        self.keep, self.layer = keep, layer

    def __call__(self, backbone: Any, inputs: tuple[Any, ...], prediction: Tensor) -> None:
        latents, timestep = inputs[:2]
        self.keep(self.layer, backbone.image_after_step(latents, prediction, timestep))
