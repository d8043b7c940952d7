"""Operations with exact gradients against torch's own, and which operations a training step is left with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gate_lightning.heads.linear import LinearHead
from gate_lightning.heads.mmseg import WORKING_TYPES, MMSegHead
from gate_lightning.losses.base import PixelLoss
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.losses.dice import DiceLoss
from gate_lightning.losses.focal import FocalLoss
from gate_lightning.losses.lovasz import LovaszSoftmaxLoss
from gate_lightning.losses.ohem import OhemCrossEntropyLoss
from gate_lightning.ops import exact

#: whose CUDA kernels torch.use_deterministic_algorithms refuses (its documentation names the modules)
REFUSED = (
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "grid_sampler_2d_backward",
    "reflection_pad2d_backward",
    "cumsum",
    "histc",
    "put_",
)


class Recorded(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        exact = name == "cumsum" and kwargs and not kwargs.get("dtype", torch.float32).is_floating_point
        if not exact:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def both(call: Callable[[Tensor], Tensor], maps: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Value and gradient as torch computes them, and as they are within the context."""
    results = []
    for mode in (None, exact.ExactGradients("cpu")):
        own = maps.clone().requires_grad_()
        if mode is None:
            value = call(own)
        else:
            with mode:
                value = call(own)
        weights = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((value * weights).sum(), own)
        results.append((value.detach(), gradient))
    return results[0], results[1]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", [(24, 32), (7, 5), (1, 9), (6, 8)])
def test_a_resize_has_the_same_values_and_gradients(size: tuple[int, int], corners: bool) -> None:
    maps = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    expected, actual = both(lambda x: F.interpolate(x, size, mode="bilinear", align_corners=corners), maps)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, (2, 3), (4, None)])
def test_a_pooling_has_the_same_values_and_gradients(size: Any) -> None:
    maps = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    expected, actual = both(lambda x: F.adaptive_avg_pool2d(x, size), maps)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_cross_entropy_has_the_same_values_and_gradients(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(2, 4, 6, 5, generator=generator), torch.randint(0, 4, (2, 6, 5), generator=generator)
    masks[0, :2] = 255
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0]) if weighted else None
    options: Any = {"weight": weights, "ignore_index": 255, "label_smoothing": 0.1, "reduction": "sum"}
    expected, actual = both(lambda x: F.cross_entropy(x, masks, **options), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_other_modes_and_other_devices_are_left_alone() -> None:
    maps = torch.randn(1, 2, 4, 4)
    for mode in (exact.ExactGradients("cpu"), exact.ExactGradients("cuda")):
        with mode, Recorded() as seen:
            F.interpolate(maps, scale_factor=2.0)
            F.interpolate(maps, (8, 8), mode="bilinear", antialias=True)
            F.adaptive_avg_pool2d(maps[0], 2)
        assert {"upsample_nearest2d", "_upsample_bilinear2d_aa", "_adaptive_avg_pool2d"} <= {*seen.names}
    with exact.ExactGradients(), Recorded() as seen:
        F.interpolate(maps.requires_grad_(), (8, 8), mode="bilinear").sum().backward()
    assert "upsample_bilinear2d_backward" in seen.names


@pytest.mark.parametrize("told", [False, True])
def test_it_is_there_where_torch_is_told_to_be_deterministic(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    monkeypatch.setattr(exact.ExactGradients, "__enter__", lambda self: entered.append(self))
    monkeypatch.setattr(exact.ExactGradients, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: told)
    with exact.exact_gradients():
        pass
    assert len(entered) == told


WIDTHS, STRIDES = (8, 12, 16), (4, 8, 16)
HEADS = ("LinearHead", *WORKING_TYPES)
LOSSES = (CrossEntropyLoss, LovaszSoftmaxLoss, DiceLoss, FocalLoss, OhemCrossEntropyLoss)


def head_of(name: str) -> nn.Module:
    options: Any = {"in_channels": WIDTHS, "strides": STRIDES, "num_classes": 3}
    if name == "EMAHead":
        options |= {"ema_channels": 16, "num_bases": 8, "num_stages": 2}
    return LinearHead(**options) if name == "LinearHead" else MMSegHead(**options, type=name, channels=32)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("context", [True, False])
def test_a_training_step_is_left_with_exact_operations(name: str, context: bool) -> None:
    head = head_of(name)
    levels = [torch.randn(2, width, 32 // stride, 32 // stride) for width, stride in zip(WIDTHS, STRIDES, strict=True)]
    masks = torch.randint(0, 3, (2, 32, 32))
    with exact.ExactGradients("cpu" if context else "cuda"), Recorded() as seen:
        logits = F.interpolate(head(levels), (32, 32), mode="bilinear")
        losses: list[PixelLoss] = [loss() for loss in LOSSES]
        torch.stack([loss(logits, masks) for loss in losses]).sum().backward()
    refused = {*seen.names} & {*REFUSED}
    assert not refused if context else {"upsample_bilinear2d_backward", "nll_loss2d_forward"} <= refused
