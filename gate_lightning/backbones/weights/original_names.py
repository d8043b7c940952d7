"""Names that a diffusers U-Net's modules have in the original implementations (guided-diffusion, latent diffusion).

There the blocks are numbered through: ``input_blocks.0`` is the first convolution, the downsampling of a level a block
of its own; the upsampling of a level belongs to its last block in ``output_blocks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["original_names"]

_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<at>\d+)\."
    r"(?P<rest>.+)"
)
_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<at>\d+)\.(?P<rest>.+)")
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
#: module inside a block → its original name; equal names are left out
_INSIDE = {
    "resnets": _RESIDUAL,
    "attentions": {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"},
    "downsamplers": {**_RESIDUAL, "conv": "op"},
    "upsamplers": _RESIDUAL,
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_names(network: nn.Module) -> Iterator[tuple[str, str]]:
    """(module path, original name) of the modules of a U-Net; none for other networks."""
    blocks: dict[str, Any] = {side: getattr(network, f"{side}_blocks", ()) for side in ("down", "up")}
    if not all(blocks.values()):
        return
    counts = {side: len(made[0].resnets) for side, made in blocks.items()}
    for path, _ in network.named_modules():
        if match := _BLOCK.fullmatch(path):
            with_attention = bool(getattr(blocks[match["side"]][int(match["block"])], "attentions", None))
            place = _place(match, counts[match["side"]], with_attention)
        elif match := _MIDDLE.fullmatch(path):  # resnet 0, attention 0, resnet 1, …
            place = f"middle_block.{2 * int(match['at']) + (match['kind'] == 'attentions')}"
        else:
            if path in _OUTSIDE:
                yield path, _OUTSIDE[path]
            continue
        yield path, f"{place}.{_INSIDE[match['kind']].get(match['rest'], match['rest'])}"


def _place(match: re.Match[str], count: int, with_attention: bool) -> str:
    """Original name of a residual block, attention or resampling in a level of ``count`` residual blocks."""
    block, at, kind = int(match["block"]), int(match["at"]), match["kind"]
    if match["side"] == "down":
        number = 1 + block * (count + 1) + (count if kind == "downsamplers" else at)
        return f"input_blocks.{number}.{int(kind == 'attentions')}"
    if kind == "upsamplers":
        return f"output_blocks.{block * count + count - 1}.{1 + with_attention}"
    return f"output_blocks.{block * count + at}.{int(kind == 'attentions')}"
