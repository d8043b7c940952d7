"""The released amalgamations against residual blocks as they were released, trained beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.released import ReleasedConcat, ReleasedJoined, ReleasedRefiner, ReleasedWeighted
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.structures import FeatureInfo

LAYERS = {"fine": FeatureInfo(6, 8), "coarse": FeatureInfo(4, 16)}
INFO = {"first": LAYERS, "second": LAYERS}


class DeadBlocks(nn.Module):
    """The oracle: one block with every convolution, scale and shift at zero, run several times."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.block(x)
        return x


def trained(module: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
    return module.eval()(x)


@pytest.mark.parametrize("times", [(4,), (4, 2, 1)])
def test_the_blocks_that_cannot_learn_are_shifts(times: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 5, 4, generator=generator, dtype=torch.float64)
    target = x + torch.randn(6, 1, 1, generator=generator, dtype=torch.float64)
    blocks = nn.Sequential(*(DeadBlocks(6, count) for count in times)).double()
    expected = trained(blocks, x, target)
    torch.testing.assert_close(trained(ReleasedRefiner(6, times).double(), x, target), expected, rtol=0, atol=1e-9)
    assert (expected - x).abs().min() > 0.01
    assert all(name.endswith("4.bias") for name, value in blocks.named_parameters() if value.detach().any())


def features() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {
        branch: {
            layer: torch.randn(2, info.channels, 32 // info.stride, 32 // info.stride, generator=generator)
            for layer, info in LAYERS.items()
        }
        for branch in INFO
    }


def test_what_the_configurations_run_concatenates_three_kinds_of_blocks() -> None:
    amalgamation = ReleasedConcat(INFO)
    assert amalgamation.out_channels == (12, 8)
    given = features()
    plain = torch.cat([given["first"]["fine"], given["second"]["fine"]], dim=1)
    torch.testing.assert_close(amalgamation(given).levels[0], plain)
    nn.init.ones_(amalgamation.refiners[0].shifts)
    torch.testing.assert_close(amalgamation(given).levels[0], plain + 7)


def test_the_class_for_gate_shifts_before_and_after_its_weights() -> None:
    torch.manual_seed(0)
    released = ReleasedWeighted(INFO).eval()
    assert released.out_channels == (6, 4)
    plain = WeightedAmalgamation(INFO, per_channel=True, norm="BN").eval()
    plain.load_state_dict({name: value for name, value in released.state_dict().items() if "assigners" in name})
    torch.testing.assert_close(released(features()).levels, plain(features()).levels)
    nn.init.constant_(released.before[0][1].shifts, 0.5)
    nn.init.constant_(released.after[0].shifts, 10.0)
    given = features()
    given["second"]["fine"] = given["second"]["fine"] + 4 * 0.5
    torch.testing.assert_close(released(features()).levels[0], plain(given).levels[0] + 20)


def joined(**options: bool) -> ReleasedJoined:
    torch.manual_seed(0)
    return ReleasedJoined(INFO, **options)


def test_the_network_for_correspondence_stays_in_training_as_released() -> None:
    made, maps = joined().eval(), features()
    state = torch.random.get_rng_state()
    first = made(maps).levels[0]
    assert torch.equal(torch.random.get_rng_state(), state)  # training's numbers are left alone
    torch.manual_seed(0)
    torch.testing.assert_close(first, made.train()(maps).levels[0])  # the same layers, under the numbers of seed 0
    made.eval()
    assert torch.equal(made(maps).levels[0], first)
    alone = {branch: {layer: map_[:1] for layer, map_ in of.items()} for branch, of in maps.items()}
    assert not torch.allclose(made(alone).levels[0], first[:1], atol=1e-4)  # statistics of the batch
    assert not any("running" in name or "tracked" in name for name in made.state_dict())


def test_it_can_be_evaluated_as_usual() -> None:
    made, maps = joined(always_training=False), features()
    made(maps)
    made.eval()
    plain = WeightedAmalgamation(INFO, per_channel=True, norm="BN", joined=True)
    plain.load_state_dict(made.state_dict())
    assert torch.equal(made(maps).levels[0], plain.eval()(maps).levels[0])
    alone = {branch: {layer: map_[:1] for layer, map_ in of.items()} for branch, of in maps.items()}
    torch.testing.assert_close(made(alone).levels[0], made(maps).levels[0][:1])
