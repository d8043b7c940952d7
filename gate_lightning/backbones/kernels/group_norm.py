"""Group norm of channels_last maps on GPUs, in that format and two kernels.

torch's own on CUDA computes in the contiguous format: it copies a channels_last map there, the next convolution copies
the result back, and one block of threads sums a whole group, however large. Here many blocks sum parts of it. Their
number depends on the shape alone and partial sums are added in a fixed order, so results are the same in every run.

The kernels are an operator of torch, ``gate_lightning::group_norm_channels_last``, with the arguments of
`torch.nn.functional.group_norm`: recordings of a pass see it as one operation. They are written in Triton, which
comes with torch's builds for GPUs; on a CPU the operator is torch's group norm.
"""

from __future__ import annotations

import functools
import logging
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch for a CPU
    triton = tl = None

__all__ = ["group_norm_channels_last", "group_norm_fits", "plain_group_norm"]

log = logging.getLogger(__name__)

_NAME = "gate_lightning::group_norm_channels_last"
#: types of maps, and the relative L2 distance from float64 above which the kernels are not used
_TYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
#: channels and groups that a program works on at once, side by side in memory; at least one group
_CHANNELS, _GROUPS = 128, 16
#: values of a tile, which a program holds in registers
_TILE = 4096
#: programs that keep a large GPU busy: about four on each of its processors
_PROGRAMS = 512
#: most parts of a group, which are summed again by every program that normalizes
_MOST_PARTS = 256
#: maps on which a GPU is tried, and their groups
_TRIED, _TRIED_GROUPS = (torch.Size((2, 40, 3, 5)), torch.Size((1, 320, 40, 41))), 20
#: largest number of values that has an offset of 32 bits, and of images that a grid of programs has
_MOST_VALUES, _MOST_IMAGES = 2**31 - 1, 2**16 - 1


def group_norm_fits(input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
    """True if the operator is to be called: for maps (B, C, H, W) on a GPU that are channels_last and not contiguous.

    A GPU on which Triton cannot compile (no C compiler, too old), or gives something else than torch, is found out by
    trying, once, with a warning.
    """
    if not input.is_cuda or triton is None or input.ndim != 4 or input.dtype not in _TYPES or torch.is_grad_enabled():
        return False
    if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
        return False
    channels = input.shape[1]
    usual = all(one is not None and one.shape == (channels,) for one in (weight, bias)) and channels % num_groups == 0
    return usual and 0 < len(input) <= _MOST_IMAGES and input[0].numel() <= _MOST_VALUES and _works(input.device)


def plain_group_norm(input: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The operator's result by torch: on a CPU, and in graphs for the compiler, which fuses torch's operations."""
    output = torch.group_norm(input, num_groups, weight, bias, eps)
    return output.contiguous(memory_format=torch.channels_last)


class _Shares(NamedTuple):
    """Division of a map among programs, by its shape alone.

    Attributes:
        width: channels of a group.
        groups: that a program works on at once.
        tile: positions that it reads at once.
        rows: positions that it works on in all, a multiple of ``tile``.
        parts: programs that share a group.
    """

    width: int
    groups: int
    tile: int
    rows: int
    parts: int

    @classmethod
    def of(cls, shape: torch.Size, num_groups: int) -> _Shares:
        images, channels, positions = shape[0], shape[1], shape[2] * shape[3]
        width = channels // num_groups
        groups = max(1, min(_CHANNELS // width, _GROUPS, num_groups))
        tile = max(1, _TILE // _power_of_two(groups * width))
        wanted = min(-(-_PROGRAMS // (images * -(-num_groups // groups))), _MOST_PARTS)
        rows = tile * -(-positions // (wanted * tile))
        return cls(width, groups, tile, rows, -(-positions // rows))


def _power_of_two(number: int) -> int:
    """The smallest one that is no less."""
    return 1 << (number - 1).bit_length()


def fused_group_norm(input: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm by the kernels: channels_last (B, C, H, W) of float32, float16 or bfloat16 → the same.

    Args:
        input: computed with in float32.
        num_groups: C is a multiple of it.
        weight, bias: (C,), of any of these types.
        eps: added to the variance.
    """
    shares = _Shares.of(input.shape, num_groups)
    count, channels, height, width = input.shape
    output = torch.empty_like(input, memory_format=torch.channels_last)
    moments = input.new_empty(count * num_groups, shares.parts, 2, dtype=torch.float32)
    grid = (-(-num_groups // shares.groups), shares.parts, count)
    sizes = {"channels": channels, "width": shares.width, "at_once": shares.groups, "tile": shares.tile}
    sizes |= {"block": _power_of_two(shares.groups * shares.width), "block_groups": _power_of_two(shares.groups)}
    with torch.cuda.device_of(input):
        _moments_kernel[grid](input, moments, height * width, shares.rows, shares.parts, **sizes)
        given = (input, output, moments, weight.contiguous(), bias.contiguous(), eps)
        parts = _power_of_two(shares.parts)
        _apply_kernel[grid](*given, height * width, shares.rows, shares.parts, **sizes, block_parts=parts)
    return output


def _jit(kernel: Any) -> Any:
    if triton is None:
        return kernel
    return triton.jit(kernel, do_not_specialize=["positions", "rows", "parts"])  # compiled once for all sizes


@_jit
def _moments_kernel(
    input: tl.tensor,  # (B, positions, channels)
    moments: tl.tensor,  # (B · groups, parts, 2): mean and sum of squared deviations from it
    positions: tl.tensor,
    rows: tl.tensor,
    parts: tl.tensor,
    channels: tl.constexpr,
    width: tl.constexpr,
    at_once: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    block_groups: tl.constexpr,
) -> None:
    part = tl.program_id(1)
    image = tl.program_id(2)
    first = tl.program_id(0) * at_once
    column = tl.arange(0, block)
    inside = (column < at_once * width) & (first * width + column < channels)
    start = part * rows
    count = tl.minimum(rows, positions - start)
    begin = input + image.to(tl.int64) * positions * channels + start * channels + first * width + column
    # sums of differences from the first value of the channel: exact however far the mean is from 0
    shift = tl.load(begin, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((tile, block), tl.float32)
    squares = tl.zeros((tile, block), tl.float32)
    for row in range(0, count, tile):
        at = row + tl.arange(0, tile)
        mask = (at < count)[:, None] & inside[None, :]
        values = tl.load(begin[None, :] + at[:, None] * channels, mask=mask, other=0.0).to(tl.float32)
        values = tl.where(mask, values - shift[None, :], 0.0)
        sums += values
        squares += values * values
    sum_ = tl.sum(sums, 0)
    mean = shift + sum_ / count
    spread = tl.sum(squares, 0) - sum_ * (sum_ / count)
    # channels to groups: deviations within channels, and of the channels' means
    group = tl.arange(0, block_groups)
    member = column[:, None] // width == group[None, :]
    group_mean = tl.sum(tl.where(member, mean[:, None], 0.0), 0) / width
    between = mean[:, None] - group_mean[None, :]
    group_spread = tl.sum(tl.where(member, spread[:, None] + count * between * between, 0.0), 0)
    target = moments + ((image * (channels // width) + first + group) * parts + part) * 2
    valid = (group < at_once) & (first + group < channels // width)
    tl.store(target, group_mean, mask=valid)
    tl.store(target + 1, group_spread, mask=valid)


@_jit
def _apply_kernel(
    input: tl.tensor,  # (B, positions, channels)
    output: tl.tensor,
    moments: tl.tensor,  # as above
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    positions: tl.tensor,
    rows: tl.tensor,
    parts: tl.tensor,
    channels: tl.constexpr,
    width: tl.constexpr,
    at_once: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    block_groups: tl.constexpr,
    block_parts: tl.constexpr,
) -> None:
    # what was read last is still in the cache
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    image = tl.num_programs(2) - 1 - tl.program_id(2)
    first = tl.program_id(0) * at_once
    # parts to groups, in the order of the parts
    group = tl.arange(0, block_groups)
    other = tl.arange(0, block_parts)
    source = moments + ((image * (channels // width) + first + group)[:, None] * parts + other[None, :]) * 2
    valid = ((group < at_once) & (first + group < channels // width))[:, None] & (other < parts)[None, :]
    means = tl.load(source, mask=valid, other=0.0)
    spreads = tl.load(source + 1, mask=valid, other=0.0)
    counts = tl.maximum(tl.minimum(rows, positions - other * rows), 0).to(tl.float32)[None, :]
    mean = tl.sum(means * counts, 1) / positions
    between = tl.where(valid, means - mean[:, None], 0.0)
    variance = (tl.sum(spreads, 1) / width + tl.sum(counts * between * between, 1)) / positions
    factor = 1.0 / tl.sqrt(variance + eps)
    # groups to channels
    column = tl.arange(0, block)
    inside = (column < at_once * width) & (first * width + column < channels)
    member = column[:, None] // width == group[None, :]
    mean_of = tl.sum(tl.where(member, mean[None, :], 0.0), 1)[None, :]
    scale = tl.sum(tl.where(member, factor[None, :], 0.0), 1)
    scale = (scale * tl.load(weight + first * width + column, mask=inside, other=0.0).to(tl.float32))[None, :]
    shift = tl.load(bias + first * width + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    start = part * rows
    count = tl.minimum(rows, positions - start)
    begin = image.to(tl.int64) * positions * channels + start * channels + first * width + column
    for row in range(0, count, tile):
        at = row + tl.arange(0, tile)
        mask = (at < count)[:, None] & inside[None, :]
        where = begin[None, :] + at[:, None] * channels
        values = tl.load(input + where, mask=mask, other=0.0).to(tl.float32)
        values = (values - mean_of) * scale + shift
        tl.store(output + where, values.to(output.dtype.element_ty), mask=mask)


@functools.cache
def _works(device: torch.device) -> bool:
    """True if the kernels run on a GPU, and give what torch gives: of one part and of many, in every type."""
    for shape, dtype in product(_TRIED, _TYPES):
        values = torch.arange(float(shape.numel()), device=device).sin().view(shape) + 3.0
        maps = values.to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias = maps[0, :, 0, 0], maps[0, :, 1, 0]
        try:
            found = group_norm_channels_last(maps, _TRIED_GROUPS, weight, bias, 1e-5).double()
        except Exception as error:  # of Triton, its compilers and its folder of compiled kernels
            log.warning("group norm of torch, which copies channels_last maps: Triton fails on %s: %s", device, error)
            return False
        expected = torch.group_norm(maps.double(), _TRIED_GROUPS, weight.double(), bias.double(), 1e-5)
        distance = float((found - expected).norm() / expected.norm())
        if not distance < _TYPES[dtype]:
            log.warning(
                "group norm of torch, which copies channels_last maps: on %s Triton's is off by %.0e of %s in %s",
                *(device, distance, tuple(shape), dtype),
            )
            return False
    return True


torch.library.define(_NAME, "(Tensor input, int num_groups, Tensor weight, Tensor bias, float eps) -> Tensor")
torch.library.impl(_NAME, "cpu", plain_group_norm)
torch.library.impl(_NAME, "cuda", fused_group_norm)
torch.library.register_fake(_NAME, lambda input, *_: torch.empty_like(input, memory_format=torch.channels_last))
#: the operator: input, num_groups, weight, bias, eps → output
group_norm_channels_last: Any = torch.ops.gate_lightning.group_norm_channels_last.default
