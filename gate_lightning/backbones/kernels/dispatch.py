"""Faster operations for frozen networks, equal up to rounding.

Within a context, torch functions called by the network are replaced; modules, weights and hooks are unchanged, and a
hook on a convolution sees its output as usual. On a CPU

* in float32, large 3 × 3 convolutions run by Winograd's algorithm (winograd.py);
* in float32, activations are channels_last, which that and the other convolutions there prefer. In that format torch's
  group norm of large maps is inaccurate (32 groups of 128 × 512 × 512: relative error 2e-5) and is replaced;
* in bfloat16, attention over many keys is computed by blocks of plain matrix products instead of the fused kernel;
* in bfloat16, a 3 × 3 convolution after nearest-neighbour upsampling by 2 becomes four 2 × 2 convolutions of the map
  before upsampling, one for each position within a doubled pixel: 2.25 times fewer operations;
* freed memory is kept for the next layer: with large maps, an activation function spends most of its time on fresh
  pages from the system.

On a GPU with Triton, group norms of channels_last maps are computed in that format (group_norm.py).

On every device, divisions by one, the last operation of diffusers' blocks, are skipped.

Risks: a ``TorchFunctionMode`` sees every torch call of the thread while a pass runs, the networks' own and other hooks'
alike; and glibc's allocator keeps freed memory for the whole process (``mallopt``), after which its thresholds are
fixed instead of adaptive. ``FeatureExtractor(fast=False)`` touches neither.

Other calls (another device, small or strided convolutions, gradients …) are unchanged.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gate_lightning.backbones.kernels.group_norm import group_norm_channels_last, group_norm_fits
from gate_lightning.backbones.kernels.winograd import winograd_conv2d

__all__ = ["fast_ops"]

#: smallest convolution that gains from Winograd's algorithm
_MIN_CHANNELS, _MIN_POSITIONS = 128, 2 * 16 * 16
#: smallest number of positions for which summing the kernels pays off
_MIN_DOUBLED = 256
#: values per group up to which torch's group norm is exact enough in channels_last (4e-7)
_GROUP_VALUES = 2**18
#: fewest keys and the queries at a time of attention in bfloat16: a block of scores stays in the cache
_MIN_KEYS, _QUERIES = 256, 256
#: columns that a processor multiplies at a time in bfloat16
_COLUMNS = 16
#: attribute of an upsampled map: the map before upsampling
_DOUBLED = "_gate_doubled_from"
#: of a convolution's stride, padding, dilation and groups
_DEFAULTS = (1, 0, 1, 1)


@contextmanager
def fast_ops(enabled: bool = True) -> Iterator[None]:
    """Context of the faster operations; without effect while gradients are recorded."""
    if not enabled or torch.is_grad_enabled():
        yield
        return
    with _kept_memory(), _FastOps():
        yield


class _FastOps(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _FASTER.get(func, func)(*args, **(kwargs or {}))


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any, **named: Any) -> Tensor:
    # stride, padding, dilation, groups
    settings: list[Any] = [*geometry, *_DEFAULTS[len(geometry) :]]
    usual = all(setting in (1, (1, 1), [1, 1]) for setting in settings) and not named and weight.shape[2:] == (3, 3)
    if input.ndim == 4 and _plain(input, weight):
        large = min(weight.shape[:2]) >= _MIN_CHANNELS and input[:, 0].numel() >= _MIN_POSITIONS
        if large and usual:
            return winograd_conv2d(input, weight, bias)
        input = input.contiguous(memory_format=torch.channels_last)
    elif usual and _DOUBLED in input.__dict__ and weight.dtype == torch.bfloat16:
        return _doubled_conv2d(input.__dict__[_DOUBLED], weight, bias)
    return torch.conv2d(input, weight, bias, *geometry, **named)


def _interpolate(input: Tensor, *others: Any, **named: Any) -> Tensor:
    output = F.interpolate(input, *others, **named)
    doubled = tuple(output.shape[2:]) == tuple(2 * side for side in input.shape[2:])
    nearest = not others and named.get("mode", "nearest") == "nearest"
    large = input.ndim == 4 and input[:, 0].numel() >= _MIN_DOUBLED
    if large and doubled and nearest and input.dtype == torch.bfloat16 and input.device.type == "cpu":
        output.__dict__[_DOUBLED] = input
    return output


def _doubled_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3 × 3 convolution of ``input`` upsampled by 2 (nearest): (B, C, H, W) → (B, O, 2H, 2W)."""
    count, _, height, width = input.shape
    padded = F.pad(input, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    output = padded.new_empty(count, 2 * height, 2 * width, len(weight)).permute(0, 3, 1, 2)
    first, second, third = weight.float().unbind(dim=2)
    # which rows of the kernel meet the upper and the lower of two neighbours; then the same for columns
    for row, pair in enumerate(((first, second + third), (first + second, third))):
        left, middle, right = torch.stack(pair, dim=2).unbind(dim=3)
        for column, taps in enumerate(((left, middle + right), (left + middle, right))):
            kernel = torch.stack(taps, dim=3).to(weight).contiguous(memory_format=torch.channels_last)
            part = padded[:, :, row : row + height + 1, column : column + width + 1]
            output[:, :, row::2, column::2] = torch.conv2d(part, kernel, bias)
    return output


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if group_norm_fits(input, num_groups, weight, bias):
        return group_norm_channels_last(input, num_groups, weight, bias, eps)
    large = input.ndim == 4 and input[0].numel() > num_groups * _GROUP_VALUES
    if not large or weight is None or bias is None or not _plain(input, weight) or input.is_contiguous():
        return F.group_norm(input, num_groups, weight, bias, eps)
    maps = input.permute(0, 2, 3, 1)  # (B, H, W, C)
    count, height, width, channels = maps.shape
    size = height * width * channels // num_groups
    # rows in float32, the few sums of rows in float64
    sums = maps.sum(dim=2).double().sum(dim=1).view(count, num_groups, -1).sum(dim=2, keepdim=True)
    squares = torch.linalg.vector_norm(maps, dim=2).double().square().sum(dim=1)
    mean = sums / size
    variance = squares.view(count, num_groups, -1).sum(dim=2, keepdim=True) / size - mean.square()
    scale = (variance + eps).rsqrt() * weight.double().view(num_groups, -1)
    shift = bias.double().view(num_groups, -1) - mean * scale
    scale, shift = (term.to(input).view(count, 1, 1, channels) for term in (scale, shift))
    return torch.addcmul(shift, maps, scale).permute(0, 3, 1, 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Tensor:
    scale = named.get("scale") or query.shape[-1] ** -0.5
    plain = not others and not any(setting for name, setting in named.items() if name != "scale")
    fits = query.dtype == torch.bfloat16 and query.device.type == "cpu" and key.shape[-2] >= _MIN_KEYS
    if not plain or not fits or query.ndim != 4 or query.shape[:2] != key.shape[:2]:
        return F.scaled_dot_product_attention(query, key, value, *others, **named)
    output = torch.empty_like(query)  # the strides of the query: (B, N, heads, d) underneath
    width = value.shape[-1]
    # products with 48 columns take less time than with 40
    values = F.pad(value, (0, -width % _COLUMNS)).contiguous()
    queries, keys = (query * scale).contiguous(), key.transpose(2, 3).contiguous()
    for image in range(query.shape[0]):
        for head in range(query.shape[1]):
            blocks = queries[image, head].split(_QUERIES)
            scores = (torch.mm(block, keys[image, head]).softmax(dim=-1) for block in blocks)
            results = [torch.mm(weights, values[image, head]) for weights in scores]
            output[image, head] = torch.cat(results)[:, :width]
    return output


def _divide(input: Any, other: Any, **named: Any) -> Any:
    by_one = isinstance(input, Tensor) and input.is_floating_point() and isinstance(other, float | int) and other == 1
    return input if by_one and not named else torch.Tensor.div(input, other, **named)


_FASTER: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: _conv2d,
    F.group_norm: _group_norm,
    F.interpolate: _interpolate,
    F.scaled_dot_product_attention: _attention,
    torch.Tensor.div: _divide,
}


def _plain(*tensors: Tensor) -> bool:
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Context in which glibc keeps freed memory; afterwards its thresholds are the largest of its adaptive ones."""
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    trim, threshold, maps = -1, -3, -4  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt(trim, 2**31 - 1)
    mallopt(maps, 0)
    try:
        yield
    finally:
        mallopt(maps, 65536)
        mallopt(threshold, 32 * 2**20)
        mallopt(trim, 64 * 2**20)


def _mallopt() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
