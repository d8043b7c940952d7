"""Aliases of a U-Net's layers in other code bases, and layers averaged over several others.

Aliases, all derived from the layer ids by counting (``r`` counts the residual blocks of an up level, each with the
transformer behind it):

* ``up_blocks[i]``, also ``up_blocks.i`` (which needs no quotes on a command line): the output of a whole up block, its
  upsampler included; DIFT's ``up_ft_index``. Likewise ``down_blocks[i]``, and ``mid_block``.
* ``hyperfeatures-i-r``: Hyperfeatures' state of a decoder's residual block after its second convolution, before the
  residual is added and before the transformer: ``up-level{i}-repeat{r}-res-increment``.
* ``mid``, ``us1`` …: CleanDIFT's maps. ``mid`` is the output of the middle block. ``us`` counts the residual blocks of
  the whole up stage from 1 and stands for the output after block, transformer, and, behind a level's last block, the
  upsampler. With three blocks a level us3, us6, us9 are up_blocks 0, 1, 2, and us10 is the first of the last level:
  channels 1280 × 6, 640 × 3, 320 and sides 1/64 × 2, 1/32 × 3, 1/16 × 3, 1/8 × 2 of the image's in us1 … us10,
  as published.
* ``fine0`` …: the layers of DIFT's sweep (its appendix): the same blocks and the upsamplers, each counted for itself.
* ``attn``: GATE's attention feature, ``attn-up-cross``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby

from gate_lightning.backbones.specs import LayerSpec

__all__ = ["averaged_attention", "unet_aliases"]

Layers = Mapping[str, LayerSpec]


def unet_aliases(layers: Layers) -> dict[str, str]:
    """Alias → layer id, for a table as ``unet_layers`` makes it."""
    aliases = dict(_blocks(layers))
    parts = list(_up_parts(layers))
    aliases |= {f"fine{index}": layer for index, (_, layer) in enumerate(parts)}
    # an upsampler replaces the block before it
    after_blocks = [list(run)[-1][1] for _, run in groupby(parts, key=lambda part: part[0])]
    aliases |= {f"us{count}": layer for count, layer in enumerate(after_blocks, start=1)}
    for layer in layers:
        if match := re.fullmatch(r"up-level(\d+)-repeat(\d+)-res-increment", layer):
            aliases[f"hyperfeatures-{match[1]}-{match[2]}"] = layer
    aliases["attn"] = "attn-up-cross"
    return aliases


def _blocks(layers: Layers) -> Iterator[tuple[str, str]]:
    """Aliases of whole blocks → the layer of their last output."""
    last: dict[tuple[str, str], str] = {}
    for layer in layers:
        if match := re.match(r"(up|down)-level(\d+)-", layer):
            last[match[1], match[2]] = layer
        elif layer.startswith("mid-"):
            last["mid", ""] = layer
    for (place, level), layer in last.items():
        if place == "mid":
            yield from (("mid", layer), ("mid_block", layer))
        else:
            yield from ((f"{place}_blocks[{level}]", layer), (f"{place}_blocks.{level}", layer))


def _up_parts(layers: Layers) -> Iterator[tuple[tuple[int, int], str]]:
    """((level, repeat), last output) of every block of the up stage; upsamplers as a part of their own."""
    last: dict[tuple[int, int, bool], str] = {}
    level = repeat = 0
    for layer in layers:
        if match := re.match(r"up-level(\d+)-repeat(\d+)-", layer):
            level, repeat = int(match[1]), int(match[2])
            last[level, repeat, False] = layer
        elif re.fullmatch(rf"up-level{level}-upsampler-out", layer):
            last[level, repeat, True] = layer
    for (level, repeat, _), layer in last.items():
        yield (level, repeat), layer


def averaged_attention(layers: Layers, tokens: int, latent_stride: int) -> dict[str, LayerSpec]:
    """Attention averaged over heads and over the layers of a place, by size: layer id → LayerSpec.

    ``attn-{down,mid,up}-{cross,self}`` is what the released code keeps: maps between 1/2 and 1/4 of the latents' side
    (1/16 and 1/32 of the image's for Stable Diffusion), one mean for each size, each resized (nearest) to the
    latents' size, concatenated in the order in which the network computes the sizes: 32 then 16 pixels per position on
    the way up, the other way round on the way down. ``attn-up-cross-stride8-32`` keeps 8 to 32 pixels per position
    instead, ``attn-up-cross-stride8`` one size; every range that occurs is there.

    A cross map has one channel per prompt token (more where a prompt is longer than ``tokens``), a self map one per
    position attended to, so its channels depend on the image's size.

    Args:
        layers: table as ``unet_layers`` makes it.
        tokens: of a prompt.
        latent_stride: pixels of the image per position of the latents.
    """
    averaged = {}
    for place in ("down", "mid", "up"):
        for kind in ("self", "cross"):
            sizes = _maps_by_stride(layers, place, kind)
            usual = [stride for stride in sizes if 2 * latent_stride <= stride <= 4 * latent_stride]
            ranges = {f"attn-{place}-{kind}": usual} if usual else {}
            for fine in sorted(sizes):
                for coarse in sorted(stride for stride in sizes if stride >= fine):
                    name = f"stride{fine}" if fine == coarse else f"stride{fine}-{coarse}"
                    ranges[f"attn-{place}-{kind}-{name}"] = [s for s in sizes if fine <= s <= coarse]
            for name, strides in ranges.items():
                channels = tokens * len(strides) if kind == "cross" else 0
                sources = tuple(tuple(sizes[stride]) for stride in strides)
                averaged[name] = LayerSpec("", "averaged", channels, latent_stride, sources=sources)
    return averaged


def _maps_by_stride(layers: Layers, place: str, kind: str) -> dict[int, list[LayerSpec]]:
    """Attention layers by pixels per query, in the order computed."""
    sizes: dict[int, list[LayerSpec]] = {}
    for layer, spec in layers.items():
        if spec.kind == "attention" and layer.startswith(f"{place}-") and layer.endswith(f"-{kind}-map"):
            queries = layers[layer.removesuffix("map") + "q"]
            sizes.setdefault(queries.stride, []).append(replace(spec, stride=queries.stride))
    return sizes
