"""Reader of the original LoRA format (cloneofsimo/lora), which numbers layers instead of naming them.

Keys are ``unet:<i>:up``, ``unet:<i>:down`` and the same for ``text_encoder``; the header names the classes of the
adapted modules. Entry i belongs to the i-th adapted layer in PyTorch's order of the modules of the networks *of that
time* (``lora_diffusion/lora.py``: ``save_safeloras`` enumerates ``extract_lora_ups_down``, which iterates over
``model.modules()``, then over ``named_modules()`` of each module of an adapted class). That is the order in which the
classes' constructors register their children:

* U-Net (diffusers up to 0.16): down blocks, up blocks, middle block; in a block attentions before resnets; in a
  transformer block attn1, ff, attn2; in an attention to_q, to_k, to_v, to_out; in a resnet conv1, time_emb_proj, conv2,
  conv_shortcut. Newer versions of diffusers register ff behind attn2.
* CLIP text encoder: layer by layer k_proj, v_proj, q_proj, out_proj.

Shapes confirm the order of blocks, and of q, k and out in cross-attention. They do not distinguish k from v, nor the
four layers of a self-attention: there the order is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from gate_lightning.errors import WeightsError
from gate_lightning.utils.text import parse_json

__all__ = ["is_numbered", "numbered_layers", "numbered_tokens"]

_KEY = re.compile(r"^(?P<part>\w+):(?P<index>[0-9]{1,6}):(?P<role>up|down)$")
#: header entry of keys that are learned tokens
_TOKEN = "<embed>"
#: adapted classes where the header names none: the defaults of the original code
_DEFAULTS = {"unet": ("CrossAttention", "Attention", "GEGLU"), "text_encoder": ("CLIPAttention",)}
#: classes by their former and by today's name
_CLASSES = {
    "CrossAttention": ("Attention",),
    "Attention": ("Attention",),
    "GEGLU": ("GEGLU",),
    "ResnetBlock2D": ("ResnetBlock2D",),
    "CLIPAttention": ("CLIPAttention",),
}
#: children of one module in the order of their registration
_SIBLINGS = (
    ("down_blocks", "up_blocks", "mid_block"),
    ("attentions", "resnets"),
    ("to_q", "to_k", "to_v", "to_out"),
    ("conv1", "time_emb_proj", "conv2", "conv_shortcut"),
    ("k_proj", "v_proj", "q_proj", "out_proj"),
)
#: of a transformer block, in former and in newer networks
_TRANSFORMER = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))


def is_numbered(keys: Iterable[object]) -> bool:
    """True if a file with these keys is of this format."""
    return any(isinstance(key, str) and _KEY.match(key) for key in keys)


def numbered_layers(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], networks: Mapping[str, nn.Module]
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Down and up matrices by part and module path.

    Raises:
        WeightsError: layers of an unknown class, or of a network with other layers.
    """
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for part, entries in _entries(path, tensors, header).items():
        if part not in networks:
            raise WeightsError(f"{path} is for another architecture: this backbone has no {part}")
        found[part] = _placed(path, part, entries, _targets(path, part, header), networks[part])
    return found


def numbered_tokens(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, Tensor]:
    """Learned tokens of the file, (n, C) each.

    Raises:
        WeightsError: a token that is no vectors of numbers.
    """
    named = {key: tensor for key, tensor in tensors.items() if header.get(key) == _TOKEN}
    wrong = [key for key, one in named.items() if not one.ndim or not one.numel() or not one.is_floating_point()]
    if wrong:
        raise WeightsError(f"{path} marks {wrong[0]} as a learned token, which holds no vectors of numbers")
    return {token: vectors.reshape(-1, vectors.shape[-1]) for token, vectors in named.items()}


def _entries(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """(down, up) by part, in the order of their numbers."""
    halves: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            if header.get(key) == _TOKEN:
                continue
            raise WeightsError(f"{path} mixes numbered layers with {key}; expected unet:<i>:up, unet:<i>:down, …")
        halves.setdefault(match["part"], {}).setdefault(int(match["index"]), {})[match["role"]] = tensor
    entries: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for part, numbered in halves.items():
        flat = [index for index, pair in numbered.items() if any(one.ndim not in (2, 4) for one in pair.values())]
        if flat:
            raise WeightsError(f"{path}: {part}:{flat[0]} holds no matrices")
        whole = [index for index in sorted(numbered) if len(numbered[index]) == 2]
        if whole != list(range(len(numbered))):
            missing = min(set(range(max(numbered) + 1)) - set(whole))
            raise WeightsError(f"{path} is incomplete: it lacks {part}:{missing}:up or {part}:{missing}:down")
        entries[part] = [(numbered[index]["down"], numbered[index]["up"]) for index in whole]
    return entries


def _targets(path: Path, part: str, header: Mapping[str, str]) -> set[str]:
    """Today's names of the adapted classes."""
    where = f"{path}: the classes of {part} in its header"
    named = parse_json(header[part], where, WeightsError, list) if part in header else _DEFAULTS.get(part, ())
    if not all(isinstance(name, str) for name in named):
        raise WeightsError(f"{where}: {named!r:.80}, expected names")
    unknown = sorted({*named} - _CLASSES.keys())
    if unknown:
        raise WeightsError(
            f"{path} adapts layers of {', '.join(unknown)}, whose order is not known; expected {', '.join(_CLASSES)}"
        )
    return {now for name in named for now in _CLASSES[name]}


def _placed(
    path: Path, part: str, entries: list[tuple[Tensor, Tensor]], targets: set[str], network: nn.Module
) -> dict[str, tuple[Tensor, Tensor]]:
    """The entries by the module paths they belong to: the order whose shapes fit."""
    convolutions = any(down.ndim == 4 for down, _ in entries)
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    layers = {
        f"{outer}.{inner}": layer
        for outer, module in network.named_modules()
        if type(module).__name__ in targets
        for inner, layer in module.named_modules()
        if isinstance(layer, kinds)
    }
    if len(layers) != len(entries):
        raise WeightsError(
            f"{path} is a LoRA for another architecture: {len(entries)} layers for the {part}, this backbone has "
            f"{len(layers)} of {', '.join(sorted(targets))}"
        )
    misfit = ""
    for transformer in _TRANSFORMER:
        places = {name: place for group in (*_SIBLINGS, transformer) for place, name in enumerate(group)}
        ordered = sorted(layers, key=partial(_place, places))
        wrong = [
            (index, name)
            for index, (name, (down, up)) in enumerate(zip(ordered, entries, strict=True))
            if (up.shape[0], *down.shape[1:2]) != tuple(layers[name].weight.shape[:2])
        ]
        if not wrong:
            return dict(zip(ordered, entries, strict=True))
        index, name = wrong[0]
        down, up = entries[index]
        misfit = misfit or (
            f"{part}:{index} is {tuple(down.shape)} and {tuple(up.shape)}, {name} of this backbone "
            f"{tuple(layers[name].weight.shape)}"
        )
    raise WeightsError(f"{path} is a LoRA for another architecture: {misfit}")


def _place(places: Mapping[str, int], path: str) -> list[int]:
    return [int(name) if name.isdigit() else places.get(name, 0) for name in path.split(".")]
