"""guided-diffusion (ADM) checkpoints as diffusers' ``UNet2DModel``: the same function, under other names.

The architecture is read off the tensors, but for two things that leave no trace in them: the size of the images it
was trained on, and the channels of an attention head. Facts: guided-diffusion's network, and the flags in its README.

What differs besides names:

* Attention keeps one matrix for queries, keys and values, grouped by head (head 0's q, k, v, head 1's …: the "legacy"
  order, which all published checkpoints have); diffusers has three matrices over all heads.
* diffusers' middle block has no norm before its attention under scale-shift, unless ``attn_norm_num_groups`` is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from gate_lightning.errors import ConfigError, WeightsError

__all__ = ["ADMArchitecture", "adm_unet", "convert_adm", "read_architecture"]

State = Mapping[str, Tensor]

_GROUPS = 32
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}  # and qkv, which is split
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class ADMArchitecture:
    """Shape of a guided-diffusion U-Net.

    Attributes:
        channels: of each level, finest first.
        attention: which levels have attention.
        res_blocks: residual blocks of a level on the way down; one more on the way up.
        head_channels: channels of an attention head.
        in_channels, out_channels: of the images and of the prediction (6: with a learned variance).
        scale_shift: the time embedding scales and shifts, else it is added.
        residual_resampling: sizes change in residual blocks, else in plain convolutions.
        image_size: side in pixels of the images it was trained on.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    res_blocks: int = 2
    head_channels: int = 64
    in_channels: int = 3
    out_channels: int = 6
    scale_shift: bool = True
    residual_resampling: bool = True
    image_size: int = 256

    def __post_init__(self) -> None:
        # the middle has attention whatever the levels have
        attended = {
            *(width for width, has in zip(self.channels, self.attention, strict=True) if has),
            self.channels[-1],
        }
        odd = sorted(width for width in attended if self.head_channels < 1 or width % self.head_channels)
        if odd:
            raise ConfigError(
                f"head_channels={self.head_channels} does not divide the {', '.join(map(str, odd))} channels of the "
                f"attention layers; set backbone.head_channels to what the model was trained with (num_head_channels)"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of ``UNet2DModel``."""
        plain = "Resnet{}sampleBlock2D" if self.residual_resampling else "{}Block2D"
        down, up = (plain.format(way if self.residual_resampling else way.capitalize()) for way in ("Down", "Up"))
        return {
            "sample_size": self.image_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "layers_per_block": self.res_blocks,
            "block_out_channels": self.channels,
            "down_block_types": tuple("AttnDownBlock2D" if has else down for has in self.attention),
            "up_block_types": tuple("AttnUpBlock2D" if has else up for has in reversed(self.attention)),
            "downsample_type": "resnet" if self.residual_resampling else "conv",
            "upsample_type": "resnet" if self.residual_resampling else "conv",
            "attention_head_dim": self.head_channels,
            "norm_num_groups": _GROUPS,
            "attn_norm_num_groups": _GROUPS,
            "norm_eps": 1e-5,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "flip_sin_to_cos": True,
            "freq_shift": 0,
        }


def adm_unet(state: State, head_channels: int = 64, image_size: int = 256) -> UNet2DModel:
    """The network of a guided-diffusion state dict; its tensors are those of ``state`` where they need no splitting.

    Args:
        state: as guided-diffusion saves it.
        head_channels: channels of an attention head (its ``num_head_channels``).
        image_size: side in pixels of the images it was trained on.

    Raises:
        WeightsError: another kind of state dict; the message says which, or lists the keys that do not fit.
        ConfigError: head channels that do not divide the attention's channels.
    """
    architecture = read_architecture(state, head_channels, image_size)
    with torch.device("meta"):
        unet = UNet2DModel(**architecture.config)
    converted = convert_adm(state, architecture)
    wanted = {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    if wanted != found:
        wrong = [
            f"{name} {found.get(name, 'missing')} (expected {wanted.get(name, 'nothing')})"
            for name in dict.fromkeys([*wanted, *found])
            if wanted.get(name) != found.get(name)
        ]
        raise WeightsError(
            f"the checkpoint does not fit the U-Net that its own keys describe; {len(wrong)} tensors differ: "
            f"{'; '.join(wrong[:4])}. Expected one trained by guided-diffusion"
        )
    unet.load_state_dict(converted, assign=True)
    return unet


def read_architecture(state: State, head_channels: int = 64, image_size: int = 256) -> ADMArchitecture:
    """The shape of the network that a guided-diffusion state dict belongs to; see ``adm_unet``."""
    _refuse_others(state)
    count = 1 + max(int(match[1]) for key in state if (match := re.match(r"output_blocks\.(\d+)\.", key)))
    # behind residual block and attention: what goes up
    up = re.compile(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight")
    ends = sorted({int(match[1]) for key in state if (match := up.fullmatch(key))})
    levels = len(ends) + 1
    repeats = count // levels
    if count % levels or ends != [repeats * (level + 1) - 1 for level in range(levels - 1)] or repeats < 2:
        raise WeightsError(
            f"{count} output blocks, of which {ends} change the size: no guided-diffusion U-Net, whose levels have "
            f"equally many blocks"
        )
    first = [repeats * (levels - 1 - level) for level in range(levels)]  # of each level's output blocks, finest first
    channels = tuple(len(_get(state, f"output_blocks.{block}.0.out_layers.3.weight")) for block in first)
    embedding = _get(state, "time_embed.0.weight").shape[1]
    if embedding != channels[0]:
        raise WeightsError(
            f"the time embedding has {embedding} channels, the finest level {channels[0]}; only models where both are "
            f"equal can be converted (all published ones but those for 512 pixels)"
        )
    time = len(_get(state, "output_blocks.0.0.emb_layers.1.weight"))
    return ADMArchitecture(
        channels=channels,
        attention=tuple(f"output_blocks.{block}.1.qkv.weight" in state for block in first),
        res_blocks=repeats - 1,
        head_channels=head_channels,
        in_channels=_get(state, "input_blocks.0.0.weight").shape[1],
        out_channels=len(_get(state, "out.2.weight")),
        scale_shift=time == 2 * channels[-1],
        residual_resampling=not any(re.fullmatch(r"output_blocks\.\d+\.[12]\.conv\.weight", key) for key in state),
        image_size=image_size,
    )


def convert_adm(state: State, architecture: ADMArchitecture) -> dict[str, Tensor]:
    """The state dict of the ``UNet2DModel`` with ``architecture.config``. Keys without a place keep their names."""
    converted: dict[str, Tensor] = {}
    left = dict(state)
    for source, target in _renamed(architecture):
        for part in ("weight", "bias"):
            if f"{source}.{part}" in left:
                tensor = left.pop(f"{source}.{part}")
                # attention projects with convolutions over positions, (C', C, 1)
                converted[f"{target}.{part}"] = tensor.flatten(1) if tensor.ndim == 3 else tensor
    for source, target in _modules(architecture, attention=True):
        for part in ("weight", "bias"):
            if f"{source}.qkv.{part}" in left:
                fused = left.pop(f"{source}.qkv.{part}")
                for name, tensor in zip("qkv", _split_heads(fused, architecture.head_channels), strict=True):
                    converted[f"{target}.to_{name}.{part}"] = tensor
    return converted | left


def _split_heads(fused: Tensor, head_channels: int) -> list[Tensor]:
    """(heads · 3 · head_channels, C, 1) or without the last two → three of (heads · head_channels, C)."""
    grouped = fused.flatten(1) if fused.ndim == 3 else fused
    if len(fused) % (3 * head_channels):  # the shapes are compared, and named, later
        return list(grouped.chunk(3))
    grouped = grouped.unflatten(0, (-1, 3, head_channels))
    return [grouped[:, part].flatten(0, 1).contiguous() for part in range(3)]


def _renamed(architecture: ADMArchitecture) -> Iterator[tuple[str, str]]:
    yield from _OUTSIDE.items()
    for source, target in _modules(architecture, attention=False):
        # a resampling convolution stands where a residual block would
        yield from ((f"{source}.{name}", f"{target}.conv") for name in ("op", "conv"))
        yield from ((f"{source}.{name}", f"{target}.{ours}") for name, ours in _RESIDUAL.items())
    for source, target in _modules(architecture, attention=True):
        yield from ((f"{source}.{name}", f"{target}.{ours}") for name, ours in _ATTENTION.items())


def _modules(architecture: ADMArchitecture, attention: bool) -> Iterator[tuple[str, str]]:
    """(path in guided-diffusion, path in diffusers) of attention layers, or of residual and resampling blocks."""
    levels = range(len(architecture.channels))
    block = 1
    for level in levels:
        for repeat in range(architecture.res_blocks):
            part = "attentions" if attention else "resnets"
            yield f"input_blocks.{block}.{int(attention)}", f"down_blocks.{level}.{part}.{repeat}"
            block += 1
        if level < levels[-1]:
            if not attention:
                yield f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0"
            block += 1
    if attention:
        yield "middle_block.1", "mid_block.attentions.0"
    else:
        yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"))
    for level in levels:
        has_attention = architecture.attention[-1 - level]
        for repeat in range(architecture.res_blocks + 1):
            block = level * (architecture.res_blocks + 1) + repeat
            part = "attentions" if attention else "resnets"
            if has_attention or not attention:
                yield f"output_blocks.{block}.{int(attention)}", f"up_blocks.{level}.{part}.{repeat}"
        if level < levels[-1] and not attention:
            yield f"output_blocks.{block}.{1 + has_attention}", f"up_blocks.{level}.upsamplers.0"


def _get(state: State, key: str) -> Tensor:
    if key not in state:
        raise WeightsError(f"no {key} in the checkpoint, which looks like guided-diffusion's otherwise; is it whole?")
    return state[key]


def _refuse_others(state: State) -> None:
    """Raise WeightsError unless these are the keys of an unconditional guided-diffusion U-Net over RGB images."""
    if not any(key.startswith("output_blocks.") for key in state):
        raise WeightsError(
            f"no guided-diffusion U-Net: none of its {len(state)} keys starts with output_blocks. "
            f"First keys: {', '.join(list(state)[:6])}"
        )
    if "label_emb.weight" in state:
        raise WeightsError(
            f"a class-conditional model ({len(state['label_emb.weight'])} classes); expected an unconditional one, for "
            f"ImageNet 256x256_diffusion_uncond.pt"
        )
    channels = _get(state, "input_blocks.0.0.weight").shape[1]
    if channels != 3:
        raise WeightsError(f"the model reads {channels} channels (6: an upsampler); expected 3, an RGB image")
