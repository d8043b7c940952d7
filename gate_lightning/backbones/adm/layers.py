"""Layer ids of an unconditional U-Net (``UNet2DModel``), in guided-diffusion's counting.

``input_blocks.i``, ``middle_block`` and ``output_blocks.i`` are the outputs of guided-diffusion's blocks of these
names; the last is DIFT's and DatasetDDPM's index. A block is a residual block, the attention behind it, and, at the end
of a level on the way up, the upsampling: ``output_blocks.5`` is the output of all three. Going down is a block of its
own.

Inside a block, ``-res-increment`` is what the residual block adds, ``-res-out`` its output, ``-self-q``, ``-self-k``,
``-self-v`` and ``-self-map`` belong to the attention, ``-self-out`` is its output, ``-up-increment`` and
``-down-increment`` what a resampling residual block adds. A part that is the last of its block has no id of its own: it
is the block's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.errors import WeightsError

__all__ = ["adm_layers"]

Entry = tuple[str, LayerSpec]
#: what may be inside: one residual block or convolution after another, with attention or not
_BLOCKS = {f"{kind}{way}Block2D" for kind in ("", "Attn") for way in ("Down", "Up")}
_BLOCKS |= {"ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "UNetMidBlock2D"}


def adm_layers(unet: UNet2DModel) -> dict[str, LayerSpec]:
    """Layer id → LayerSpec, in the order of computation.

    Raises:
        WeightsError: a network with blocks of other kinds.
    """
    names = {type(block).__name__ for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)}
    if names - _BLOCKS:
        raise WeightsError(
            f"a U-Net with {', '.join(sorted(names - _BLOCKS))}; layers are known for {', '.join(sorted(_BLOCKS))}"
        )
    return dict(_in_order(unet))


def _in_order(unet: Any) -> Iterator[Entry]:
    stride = 1
    yield "unet-in", LayerSpec("conv_in", "input", unet.conv_in.in_channels, stride)
    yield "input_blocks.0", LayerSpec("conv_in", "output", unet.conv_in.out_channels, stride)
    index = 1
    for level, block in enumerate(unet.down_blocks):
        path = f"down_blocks.{level}"
        for repeat in range(len(block.resnets)):
            yield from _block(f"input_blocks.{index}", _parts(block, path, repeat), stride)
            index += 1
        if block.downsamplers:
            stride *= 2
            yield from _resample(f"input_blocks.{index}", "down", block.downsamplers[0], path, stride)
            index += 1
    yield from _middle(unet.mid_block, stride)
    index = 0
    for level, block in enumerate(unet.up_blocks):
        path = f"up_blocks.{level}"
        for repeat in range(len(block.resnets)):
            goes_up = bool(block.upsamplers) and repeat == len(block.resnets) - 1
            name = f"output_blocks.{index}"
            yield from _block(name, _parts(block, path, repeat), stride, followed=goes_up)
            if goes_up:
                stride //= 2
                yield from _resample(name, "up", block.upsamplers[0], path, stride)
            index += 1
    yield "unet-out", LayerSpec("conv_out", "output", unet.conv_out.out_channels, stride)


def _parts(block: Any, path: str, repeat: int) -> list[tuple[str, Any]]:
    """(path, module) of a residual block and the attention behind it."""
    parts = [(f"{path}.resnets.{repeat}", block.resnets[repeat])]
    attentions = getattr(block, "attentions", ())
    if repeat < len(attentions):
        parts.append((f"{path}.attentions.{repeat}", attentions[repeat]))
    return parts


def _block(name: str, parts: list[tuple[str, Any]], stride: int, followed: bool = False) -> Iterator[Entry]:
    """Ids inside a block, then, unless it is ``followed`` by an upsampling, the block's own."""
    for number, (path, module) in enumerate(parts):
        last = number == len(parts) - 1 and not followed
        if isinstance(module, Attention):
            yield from _attention(name, path, module, stride)
            out, channels = "self-out", module.to_out[0].out_features
        else:
            yield f"{name}-res-increment", LayerSpec(f"{path}.conv2", "output", module.out_channels, stride)
            out, channels = "res-out", module.out_channels
        yield name if last else f"{name}-{out}", LayerSpec(path, "output", channels, stride)


def _attention(name: str, path: str, attention: Attention, stride: int) -> Iterator[Entry]:
    for part in "qkv":
        channels = getattr(attention, f"to_{part}").out_features
        yield f"{name}-self-{part}", LayerSpec(f"{path}.to_{part}", "tokens", channels, stride)
    yield f"{name}-self-map", LayerSpec(path, "attention", attention.heads, 0)


def _resample(name: str, way: str, module: Any, path: str, stride: int) -> Iterator[Entry]:
    path = f"{path}.{way}samplers.0"
    if isinstance(module, ResnetBlock2D):
        yield f"{name}-{way}-increment", LayerSpec(f"{path}.conv2", "output", module.out_channels, stride)
    yield name, LayerSpec(path, "output", module.out_channels, stride)


def _middle(block: Any, stride: int) -> Iterator[Entry]:
    """Residual block, attention, residual block; the last of them is the block's output."""
    parts = [("mid_block.resnets.0", block.resnets[0])]
    for index, resnet in enumerate(block.resnets[1:]):
        if block.attentions[index] is not None:
            parts.append((f"mid_block.attentions.{index}", block.attentions[index]))
        parts.append((f"mid_block.resnets.{index + 1}", resnet))
    *inner, (path, last) = parts
    for number, part in enumerate(inner):
        # the two residual blocks would have equal names
        name = "middle_block" if number else "middle_block-repeat0"
        yield from _block(name, [part], stride, followed=True)
    yield from _block("middle_block", [(path, last)], stride)
