"""Plain vision transformers of the ``transformers`` library: which are known, and the ids of their layers.

``patch-out`` is the convolution that makes tokens of patches, ``embed-out`` its tokens with their position embedding.
``block-i-out`` is the output of block i, counted from 0, and ``block-i-self-q``, ``-k``, ``-v`` are the queries, keys
and values of its attention, all heads one behind the other, before rotary position embedding. ``norm-out`` is the last
block's output after the final norm (``last_hidden_state``), for networks that have one for all tokens. Class and
register tokens are left out of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import transformers
from torch import nn

from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.errors import WeightsError

__all__ = ["ARCHITECTURES", "KINDS", "VisionKind", "patch_size", "vision_layers"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_PROJECTIONS = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}
_ANY_SIZE = MappingProxyType({"interpolate_pos_encoding": True})


@dataclass(frozen=True)
class VisionKind:
    """A class of networks.

    Attributes:
        model: its class.
        norm: path of the norm that ends all tokens; "" where there is none.
        statistics: mean and standard deviation of RGB in [0, 1], where the weights come without.
        order: in which attention projects.
        arguments: further ones of the constructor.
        call: further ones of a pass.
        shuffles: the network reads its patches in a random order unless it is told one (MAE).
    """

    model: type[Any]
    norm: str = "layernorm"
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
    order: str = "qkv"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    shuffles: bool = False


#: ``model_type`` of config.json → kind
KINDS: Mapping[str, VisionKind] = {
    "dinov2": VisionKind(transformers.Dinov2Model),
    "dinov2_with_registers": VisionKind(transformers.Dinov2WithRegistersModel),
    "dinov3_vit": VisionKind(transformers.DINOv3ViTModel, norm="norm"),
    # DINO, and what is trained on classes
    "vit": VisionKind(transformers.ViTModel, arguments={"add_pooling_layer": False}, call=_ANY_SIZE, statistics=_HALF),
    "vit_mae": VisionKind(transformers.ViTMAEModel, call=_ANY_SIZE, shuffles=True),
    # the norm behind CLIP's blocks reads its class token alone
    "clip": VisionKind(transformers.CLIPVisionModel, norm="", statistics=_CLIP, call=_ANY_SIZE),
    "siglip": VisionKind(transformers.SiglipVisionModel, norm="post_layernorm", statistics=_HALF, call=_ANY_SIZE),
}

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
#: architectures of ``weights=random``: name → model_type and config
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dinov2_base": ("dinov2", {**_BASE, "patch_size": 14, "image_size": 518}),
    "dinov2_base_registers": ("dinov2_with_registers", {**_BASE, "patch_size": 14, "image_size": 518}),
    "dinov3_base": ("dinov3_vit", {**_BASE, "intermediate_size": 3072, "patch_size": 16, "num_register_tokens": 4}),
    "dinov2_tiny": ("dinov2", {**_TINY, "mlp_ratio": 2, "patch_size": 4, "image_size": 32}),
    "dinov3_tiny": (
        "dinov3_vit",
        {**_TINY, "intermediate_size": 64, "patch_size": 8, "image_size": 32, "num_register_tokens": 2},
    ),
}


def patch_size(config: Any) -> int:
    """Side of a patch in pixels.

    Raises:
        WeightsError: patches that are no squares, or images without three colours.
    """
    size = config.patch_size
    sides = set(size) if isinstance(size, Sequence) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int) or side < 1:
        raise WeightsError(f"a vision transformer with patches of {size!r}; expected square ones, such as 14")
    if config.num_channels != 3:
        raise WeightsError(
            f"a vision transformer that reads {config.num_channels} channels; expected 3, red green blue"
        )
    return side


def vision_layers(network: nn.Module, kind: VisionKind) -> dict[str, LayerSpec]:
    """Layer id → LayerSpec, in the order of computation.

    Raises:
        WeightsError: a network whose parts are not found.
    """
    config: Any = network.config
    stride, width = patch_size(config), int(config.hidden_size)
    convolution = next(path for path, module in network.named_modules() if isinstance(module, nn.Conv2d))

    def tokens(path: str, channels: int = width) -> LayerSpec:
        return LayerSpec(path, "tokens", channels, stride, offset=None)  # the patches are the last of the sequence

    layers = {
        "patch-out": LayerSpec(convolution, "output", width, stride),
        "embed-out": tokens(convolution.partition(".")[0]),
    }
    for index, (path, block) in enumerate(_blocks(network)):
        for part in kind.order:
            inner, module = _projection(block, part)
            layers[f"block-{index}-self-{part}"] = tokens(f"{path}.{inner}", module.out_features)
        layers[f"block-{index}-out"] = tokens(path)
    if kind.norm:
        layers["norm-out"] = tokens(kind.norm)
    return layers


def _blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    path, blocks = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.ModuleList))
    yield from ((f"{path}.{name}", block) for name, block in blocks.named_children())


def _projection(block: nn.Module, part: str) -> tuple[str, nn.Linear]:
    for path, module in block.named_modules():
        if path.rpartition(".")[2] in _PROJECTIONS[part] and isinstance(module, nn.Linear):
            return path, module
    raise WeightsError(f"{type(block).__name__} has no {' or '.join(_PROJECTIONS[part])}; layers are not known for it")
