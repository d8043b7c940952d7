"""Layer presets, resolved on a backbone.

A preset has one choice of layers for each family of networks (Stable Diffusion 1.x and 2.x, SDXL, ADM, vision
transformers), as in the field's code; the first choice whose layers all exist is used. Without one, the preset is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gate_lightning.backbones.base import Backbone, check_backbone
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_type, did_you_mean

__all__ = ["preset_names", "resolve_layers"]

#: layers of a preset on a backbone, or None if it does not have them
Choice = Callable[[Backbone], tuple[str, ...] | None]

_PRACTICAL_SD = (
    "up-level1-repeat1-vit-block0-cross-q",
    "up-level1-repeat2-res-out",
    "up-level2-repeat1-vit-block0-cross-q",
    "up-level3-repeat0-vit-block0-self-k",
)
_PRACTICAL_XL = (
    "up-level0-repeat0-vit-block7-out",
    "up-level0-repeat0-vit-block5-out",
    "up-level1-repeat0-vit-block0-cross-q",
    "up-level1-repeat0-vit-block0-out",
)
_AMALGAMATION = (
    "up-level1-repeat1-vit-block0-cross-q",
    "up-level2-repeat1-vit-block0-cross-q",
    "up-level2-upsampler-out",
    "up-level3-repeat0-vit-block0-self-k",
)
_LEGACY_XL = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-repeat2-res-out")
#: DatasetDDPM's blocks, which GATE concatenates to its label-scarce features
_DDPM_SEGMENTATION = tuple(f"output_blocks.{block}" for block in (5, 6, 7, 8, 12))


def resolve_layers(backbone: Backbone, layers: str | Sequence[str]) -> tuple[str, ...]:
    """Layers of a preset, layer id or alias, or of a list of these, in the given order.

    Aliases are kept, as features are reported by the requested name; presets give layer ids.

    Raises:
        ConfigError: a name this backbone does not know (the message lists its presets and near misses), or the same
            layer twice, also by two of its names.
    """
    check_backbone(backbone)
    check_type(layers, "layers", str | Sequence, "a preset, a layer id, or a list of them")
    names = [layers] if isinstance(layers, str) else list(layers)
    resolved: list[str] = []
    for name in names:
        resolved += _resolve(backbone, str(name))
    if not resolved:
        raise ConfigError(f"layers={layers!r} names no layer; presets: {', '.join(preset_names(backbone))}")
    ids = [backbone.layer_id(layer) for layer in resolved]
    doubled = sorted({layer for layer in ids if ids.count(layer) > 1})
    if doubled:
        raise ConfigError(f"layers={layers!r} names {', '.join(doubled)} more than once")
    return tuple(resolved)


def preset_names(backbone: Backbone) -> list[str]:
    """Presets with layers on this backbone."""
    return [name for name in _PRESETS if _preset(backbone, name) is not None]


def _resolve(backbone: Backbone, name: str) -> tuple[str, ...]:
    if name in backbone.layers or name in backbone.derived or name in backbone.aliases:
        return (name,)
    chosen = _preset(backbone, name)
    if chosen is not None:
        return chosen
    presets = preset_names(backbone)
    near = did_you_mean(name, [*presets, *backbone.layers, *backbone.derived, *backbone.aliases], 4)
    problem = "has no layers for the preset" if name in _PRESETS else "has no layer or preset"
    raise ConfigError(
        f"{backbone.identity.name} {problem} {name!r}; {near}presets: {', '.join(presets)}. "
        f"Its {len(backbone.layers)} layer ids run from {next(iter(backbone.layers))} to {list(backbone.layers)[-1]}"
    )


def _preset(backbone: Backbone, name: str) -> tuple[str, ...] | None:
    if name not in _PRESETS:
        return None
    if backbone.family == "pixels":  # every preset is its whole pyramid
        return tuple(backbone.layers)
    choices = (choice(backbone) for choice in _PRESETS[name])
    return next((chosen for chosen in choices if chosen is not None), None)


def _named(*names: str, xl: bool = False) -> Choice:
    """Choice of layers by id or alias; with ``xl`` only for networks of three levels."""

    def choice(backbone: Backbone) -> tuple[str, ...] | None:
        # the ids of SDXL exist in other networks too, with another meaning
        if xl and "up_blocks[3]" in backbone.aliases:
            return None
        there = all(name in backbone.layers or name in backbone.aliases for name in names)
        return tuple(map(backbone.layer_id, names)) if there else None

    return choice


def _matching(pattern: str) -> Choice:
    """Choice of all layer ids that match a regular expression."""
    return lambda backbone: tuple(layer for layer in backbone.layers if re.fullmatch(pattern, layer)) or None


def _block_outputs(backbone: Backbone) -> tuple[str, ...] | None:
    return tuple(layer for name, layer in backbone.aliases.items() if re.fullmatch(r"up_blocks\.\d+", name)) or None


def _fine_up_block(backbone: Backbone) -> tuple[str, ...] | None:
    """DIFT's layer for semantic correspondence, the output of the second up block; that of the third where the second's
    grid has less than 16 × 16 positions at the native size.

    The embedded model's has 8 × 8, and position alone finds as many points.
    """
    blocks = [backbone.aliases.get(f"up_blocks[{number}]") for number in (1, 2)]
    layers = [layer for layer in blocks if layer is not None]
    fine = (layer for layer in layers if backbone.native_size >= 16 * backbone.layers[layer].stride)
    chosen = next(fine, layers[0] if layers else None)
    return None if chosen is None else (chosen,)


def _last_blocks(count: int) -> Choice:
    """Choice of the outputs of a vision transformer's last blocks."""

    def choice(backbone: Backbone) -> tuple[str, ...] | None:
        blocks = [layer for layer in backbone.layers if re.fullmatch(r"block-\d+-out", layer)]
        return tuple(blocks[-count:]) if len(blocks) >= count else None

    return choice


_DIFT_SEMANTIC = (_fine_up_block, _named("output_blocks.4"))
_PRESETS: dict[str, tuple[Choice, ...]] = {
    # the output of every up block, with its upsampler where there is one
    "legacy": (_block_outputs,),
    # what GATE's segmentation reads: the output of every upsampler, coarse to fine
    "gate_segmentation": (_matching(r"up-level\d+-upsampler-out"),),
    "practical": (_named(*_PRACTICAL_SD), _named(*_PRACTICAL_XL, xl=True)),
    "amalgamation": (_named(*_AMALGAMATION),),
    "amalgamation_small": (_named(*_AMALGAMATION[1:]),),
    "full": (_matching(".+"),),
    "xl_legacy": (_named(*_LEGACY_XL, xl=True),),
    "xl_practical": (_named(*_PRACTICAL_XL, xl=True),),
    "pg_amalgamation": (_named("up-level0-repeat0-vit-block3-out", xl=True),),
    # DIFT's choices: semantic correspondence, HPatches, DAVIS
    "dift": _DIFT_SEMANTIC,
    "dift_semantic": _DIFT_SEMANTIC,
    "dift_geometric": (_named("up_blocks[2]"), _named("output_blocks.11")),
    "dift_temporal": (_named("up_blocks[2]"), _named("output_blocks.7")),
    "hyperfeatures": (_matching(r"up-level\d+-repeat\d+-res-increment"),),
    "cleandift": (_named("mid", *(f"us{count}" for count in range(1, 11))),),
    "ddpm_segmentation": (_named(*_DDPM_SEGMENTATION),),
    # of vision transformers: what they are read at in the field (DINOv2's linear heads, SD+DINO)
    "last": (_last_blocks(1),),
    "last4": (_last_blocks(4),),
    "pixels": (),
}
