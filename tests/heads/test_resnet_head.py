"""The student network: strides by dilation, its input, its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.resnet import ResNetHead

DECODER = {"type": "FCNHead", "channels": 8, "num_convs": 1, "concat_input": False, "dropout_ratio": 0.0}


def build(output_stride: int = 8, **settings) -> ResNetHead:
    torch.manual_seed(0)
    small = {"depth": 18, "width": 4, "norm": "GN", "decoder": DECODER, **settings}
    return ResNetHead([3], [1], 5, output_stride=output_stride, **small)


def random_image(batch: int = 2, height: int = 64, width: int = 48) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("output_stride", [4, 8, 16, 32])
def test_stages_stop_at_the_output_stride(output_stride):
    head = build(output_stride).eval()
    maps = head.network(random_image())
    assert [64 // found.shape[-2] for found in maps] == [stride for stride in (4, 8, 16, 32) if stride <= output_stride]
    assert head([random_image()]).shape == (2, 5, 64, 48)


def test_dilation_sees_as_far_as_striding():
    """The same weights see the same neighbourhood, only more densely: their receptive fields reach equally far."""
    reach = {}
    for output_stride in (8, 32):
        network = build(output_stride, norm="BN", depth=50, width=2).eval().double().network
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.01)
        image = random_image(1, 768, 32).double().requires_grad_(True)
        deepest = network(image)[-1]
        deepest[0, :, deepest.shape[-2] // 2, deepest.shape[-1] // 2].sum().backward()
        rows = torch.nonzero(image.grad.abs().sum(dim=(0, 1, 3)) > 0)
        reach[output_stride] = int(rows.max() - rows.min())
    assert reach[8] == pytest.approx(reach[32], rel=0.05)


def test_images_are_normalised_as_imagenet_classifiers_want_them():
    head = build().eval()
    seen = []
    head.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    head([torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64) * 2 - 1])
    head([torch.ones(1, 3, 64, 64)])
    torch.testing.assert_close(seen[0], torch.zeros_like(seen[0]), atol=1e-5, rtol=0)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[1][0, :, 5, 5], expected)


@pytest.mark.parametrize("norm", ["GN", "BN"])
@pytest.mark.slow
def test_it_learns_a_image_by_heart(norm):
    head = build(8, norm=norm, decoder={"type": "ASPPHead", "channels": 8, "dilations": (1, 2), "dropout_ratio": 0.0})
    masks = torch.zeros(2, 32, 32, dtype=torch.long)
    masks[0, :16], masks[1, :, 16:] = 1, 2
    images = random_image(2, 32, 32) * 0.2 + (masks[:, None] - 1) * 0.8
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head([images]), masks)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize(
    ("channels", "strides", "settings", "words"),
    [
        ([8], [4], {}, "backbone=pixels"),
        ([3], [1], {"depth": 20}, "18, 34, 50"),
        ([3], [1], {"output_stride": 2}, "4, 8, 16 or 32"),
        ([3], [1], {"width": 0}, "a whole number from 1"),
        ([3], [1], {"depth": 18, "width": 4, "norm": "LN"}, "GN, BN"),
    ],
)
def test_what_cannot_work_is_refused(channels, strides, settings, words):
    with pytest.raises(ConfigError, match=words):
        ResNetHead(channels, strides, 5, **settings)
