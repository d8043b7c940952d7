"""Which module of a network a LoRA file's name means.

Files name the modules of diffusers' networks, with dots (diffusers, PEFT) or underscores (kohya). For SDXL kohya's
tools name those of the original implementation instead (``input_blocks_4_1_…``), whose blocks are numbered through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["LayerNames", "split_part"]

#: prefixes of a part of the pipeline; longer ones before those that they begin with
_PREFIXES = {
    "unet": ("base_model.model.unet.", "unet.", "lora_unet_"),
    "text_encoder_2": ("base_model.model.text_encoder_2.", "text_encoder_2.", "lora_te2_"),
    "text_encoder": ("base_model.model.text_encoder.", "text_encoder.", "lora_te1_", "lora_te_"),
}
#: diffusers' former names of the text encoder's attention layers
_FORMER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_BLOCK = re.compile(
    r"^(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<at>\d+)\."
    r"(?P<rest>.+)$"
)
_MIDDLE = re.compile(r"^mid_block\.(?P<kind>resnets|attentions)\.(?P<at>\d+)\.(?P<rest>.+)$")
_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}
_RESNET["conv_shortcut"] = "skip_connection"
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def split_part(name: str) -> tuple[str, str]:
    """(part, name of the layer) of a name in a file; files of a U-Net alone carry no prefix."""
    for part, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                return part, name.removeprefix(prefix)
    return "unet", name.removeprefix("base_model.model.")


class LayerNames:
    """Module paths of a network's linear layers and convolutions by the names that LoRA files give them.

    Args:
        network: a U-Net or text encoder.
    """

    def __init__(self, network: nn.Module) -> None:
        self._paths: dict[str, str] = {}
        originals = dict(_original_names(network))
        for path, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for name in (path, originals.get(path, path)):
                    # files of older transformers say text_model
                    for spelled in (name, f"text_model.{name}"):
                        self._paths.setdefault(spelled, path)
                        self._paths.setdefault(spelled.replace(".", "_"), path)

    def find(self, name: str) -> str | None:
        """Path of the module that the file calls ``name``, or None."""
        name = name.replace(".processor.", ".")
        begin, _, last = name.rpartition(".")
        former = f"{begin}.{_FORMER[last]}" if last in _FORMER else name
        short = [one.removeprefix("text_model.").removeprefix("text_model_") for one in (name, former)]
        candidates = (name, f"{name}.0", former, *short)
        return next((self._paths[candidate] for candidate in candidates if candidate in self._paths), None)


def _original_names(network: nn.Module) -> Iterator[tuple[str, str]]:
    """(path, name in the original implementation) of a U-Net's modules."""
    blocks: dict[str, Any] = {side: getattr(network, f"{side}_blocks", ()) for side in ("down", "up")}
    if not all(blocks.values()):
        return
    counts = {side: len(made[0].resnets) for side, made in blocks.items()}
    for path, _ in network.named_modules():
        if match := _BLOCK.match(path):
            with_attention = bool(getattr(blocks[match["side"]][int(match["block"])], "attentions", None))
            yield path, _in_block(match, counts[match["side"]], with_attention)
        elif match := _MIDDLE.match(path):
            # resnet 0, attention 0, resnet 1, …
            place = 2 * int(match["at"]) + (match["kind"] == "attentions")
            yield path, f"middle_block.{place}.{_rest(match)}"
        elif path in _ENDS:
            yield path, _ENDS[path]


def _in_block(match: re.Match[str], count: int, with_attention: bool) -> str:
    block, at, kind = int(match["block"]), int(match["at"]), match["kind"]
    if match["side"] == "down":
        # each block: its resnets (with their attention), then the downsampler; 0 is conv_in
        number = 1 + block * (count + 1) + (count if kind == "downsamplers" else at)
        place = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
        rest = "op" if kind == "downsamplers" else _rest(match)
        return f"input_blocks.{number}.{place}.{rest}"
    # the upsampler belongs to the last resnet of its block
    number = block * count + (count - 1 if kind == "upsamplers" else at)
    place = {"resnets": "0", "attentions": "1", "upsamplers": "2" if with_attention else "1"}[kind]
    return f"output_blocks.{number}.{place}.{_rest(match)}"


def _rest(match: Mapping[str, str] | re.Match[str]) -> str:
    return _RESNET.get(match["rest"], match["rest"]) if match["kind"] == "resnets" else match["rest"]
