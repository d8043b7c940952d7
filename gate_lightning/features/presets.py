"""Named choices of layers, each resolved on the network at hand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gate_lightning.backbones.base import Backbone, LayerSpec
from gate_lightning.errors import ConfigError

__all__ = ["preset_names", "resolve_layers"]

Layers = Mapping[str, LayerSpec]

_PRACTICAL = (
    "up-level1-repeat1-vit-block0-cross-q",
    "up-level1-repeat2-res-out",
    "up-level2-repeat1-vit-block0-cross-q",
    "up-level3-repeat0-vit-block0-self-k",
)
_AMALGAMATION = (
    "up-level1-repeat1-vit-block0-cross-q",
    "up-level2-repeat1-vit-block0-cross-q",
    "up-level2-upsampler-out",
    "up-level3-repeat0-vit-block0-self-k",
)


def resolve_layers(backbone: Backbone, layers: str | Sequence[str]) -> tuple[str, ...]:
    """Layer ids of a preset name, a layer id, or a list of both, in the order given.

    Raises:
        ConfigError: a name this backbone does not know; the message lists its presets and near misses.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    resolved: list[str] = []
    for name in names:
        resolved += _resolve(backbone, str(name))
    if not resolved:
        raise ConfigError(f"layers={layers!r} names no layer; presets: {', '.join(preset_names(backbone))}")
    doubled = sorted({layer for layer in resolved if resolved.count(layer) > 1})
    if doubled:
        raise ConfigError(f"layers={layers!r} names {', '.join(doubled)} more than once")
    return tuple(resolved)


def preset_names(backbone: Backbone) -> list[str]:
    """Presets that this backbone has layers for."""
    return [name for name in _PRESETS if _preset(backbone, name) is not None]


def _resolve(backbone: Backbone, name: str) -> tuple[str, ...]:
    if name in backbone.layers:
        return (name,)
    chosen = _preset(backbone, name)
    if chosen is not None:
        return chosen
    presets = preset_names(backbone)
    near = difflib.get_close_matches(name, [*presets, *backbone.layers], n=4, cutoff=0.6)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    problem = "has no layers for the preset" if name in _PRESETS else "has no layer or preset"
    raise ConfigError(
        f"{backbone.identity.name} {problem} {name!r}.{hint} Presets: {', '.join(presets)}. "
        f"Its {len(backbone.layers)} layer ids run from {next(iter(backbone.layers))} to {list(backbone.layers)[-1]}"
    )


def _preset(backbone: Backbone, name: str) -> tuple[str, ...] | None:
    if name not in _PRESETS:
        return None
    if backbone.family == "pixels":  # whatever is asked for, the control gives its whole pyramid
        return tuple(backbone.layers)
    return _PRESETS[name](backbone.layers)


def _fixed(ids: tuple[str, ...], layers: Layers) -> tuple[str, ...] | None:
    return ids if all(layer in layers for layer in ids) else None


def _upsamplers(layers: Layers) -> tuple[str, ...] | None:
    """What GATE's segmentation reads: the output of every upsampler, coarse to fine."""
    return tuple(layer for layer in layers if re.fullmatch(r"up-level\d+-upsampler-out", layer)) or None


def _legacy(layers: Layers) -> tuple[str, ...] | None:
    """The output of every up block: its upsampler, or the last output of the last block."""
    levels = sorted({int(match[1]) for layer in layers if (match := re.match(r"up-level(\d+)-", layer))})
    outputs = [_block_output(level, layers) for level in levels]
    return tuple(output for (output,) in filter(None, outputs)) or None


def _block_output(level: int, layers: Layers) -> tuple[str, ...] | None:
    """The output of one up block, DIFT's ``up_ft_index``."""
    own = [layer for layer in layers if layer.startswith(f"up-level{level}-")]
    return (own[-1],) if own else None


def _pixels(layers: Layers) -> None:
    return None


_PRESETS: dict[str, Callable[[Layers], tuple[str, ...] | None]] = {
    "legacy": _legacy,
    "gate_segmentation": _upsamplers,
    "practical": partial(_fixed, _PRACTICAL),
    "amalgamation": partial(_fixed, _AMALGAMATION),
    "dift": partial(_block_output, 1),
    **{f"dift-up{level}": partial(_block_output, level) for level in range(4)},
    "pixels": _pixels,
}
