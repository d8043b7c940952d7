"""Heads that make descriptors of a pyramid."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.heads.descriptors import ConvDescriptors, PlainDescriptors

LEVELS = (torch.randn(2, 3, 8, 6), torch.randn(2, 5, 4, 3))


def test_levels_are_joined_at_the_finest_resolution() -> None:
    joined = PlainDescriptors((3, 5))(LEVELS)
    assert torch.equal(joined[:, :3], LEVELS[0])
    assert torch.equal(joined[:, 3:], interpolate(LEVELS[1], (8, 6), mode="bilinear", align_corners=False))
    assert not list(PlainDescriptors((3, 5)).parameters())


@pytest.mark.parametrize(("asked", "channels"), [(None, 8), (4, 4)])
def test_the_convolution_has_no_bias(asked: int | None, channels: int) -> None:
    head = ConvDescriptors((3, 5), asked)
    expected = conv2d(PlainDescriptors((3, 5))(LEVELS), head.conv.weight, padding=1)
    assert torch.equal(head(LEVELS), expected) and expected.shape == (2, channels, 8, 6)
    assert [name for name, _ in head.named_parameters()] == ["conv.weight"]


def test_there_must_be_channels() -> None:
    with pytest.raises(ConfigError, match=r"in_channels=\[\]"):
        PlainDescriptors(())
    with pytest.raises(ConfigError, match=r"head\.decode\.out_channels=0"):
        ConvDescriptors((3,), 0)
