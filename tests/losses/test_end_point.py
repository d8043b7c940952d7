"""The end-point error of a soft argmax, against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.losses.end_point import EndPointLoss


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(source: Tensor, target: Tensor, at: Tensor, goal: Tensor, temperature: float) -> float:
    """Distance of one keypoint from the mean of all places by their shares."""
    query, total, x_mean, y_mean = source[:, int(at[1]), int(at[0])], 0.0, 0.0, 0.0
    for y in range(target.shape[1]):
        for x in range(target.shape[2]):
            other = target[:, y, x]
            share = math.exp(float(query @ other / (query.norm() * other.norm())) / temperature)
            total, x_mean, y_mean = total + share, x_mean + share * x, y_mean + share * y
    return math.hypot(x_mean / total - float(goal[0]), y_mean / total - float(goal[1]))


def test_it_is_the_mean_distance_over_keypoints_and_pairs() -> None:
    source, target = maps(0, 2, 5, 4, 3), maps(1, 2, 5, 3, 6)
    first = torch.tensor([[[0.0, 3.0], [2.0, 1.0]], [[2.0, 2.0], [math.nan, math.nan]]], dtype=torch.float64)
    second = torch.tensor([[[5.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    loss = EndPointLoss(temperature=0.2, noise=0.0)(source, target, first, second)
    distances = [[by_loop(source[0], target[0], first[0, k], second[0, k], 0.2) for k in (0, 1)]]
    distances.append([by_loop(source[1], target[1], first[1, 0], second[1, 0], 0.2)])
    assert float(loss) == pytest.approx(sum(sum(one) / len(one) for one in distances) / 2)
    rough = EndPointLoss(temperature=0.2, noise=0.0)(source, target, first + 0.4, second - 0.3)
    assert torch.equal(rough, loss)  # places are rounded and stay inside


def test_noise_on_the_targets_is_a_share_of_their_objects_in_training_alone() -> None:
    # one place: what is found is (0, 0), and so is the target
    source = target = torch.ones(1, 2, 1, 1)
    places = torch.zeros(1, 4000, 2)
    loss, lengths = EndPointLoss(noise=0.05), torch.tensor([40.0])
    torch.manual_seed(0)
    # the length of a Gaussian vector of two dimensions is σ · √(π / 2) on average
    assert float(loss(source, target, places, places, lengths)) == pytest.approx(2 * math.sqrt(math.pi / 2), rel=0.03)
    assert loss.eval()(source, target, places, places).item() == 0.0
    with pytest.raises(ConfigError, match="a pair has none"):
        loss.train()(source, target, places, places, torch.tensor([math.nan]))
    with pytest.raises(ConfigError, match="a pair has none"):
        loss(source, target, places, places)


def test_gradients_are_finite_and_point_to_the_target() -> None:
    source, target = maps(0, 1, 5, 3, 3).requires_grad_(), maps(1, 1, 5, 3, 3).requires_grad_()
    first, second = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[2.0, 0.0]]])
    loss = EndPointLoss(temperature=0.3, noise=0.0)
    before = loss(source, target, first, second)
    before.backward()
    assert source.grad is not None and target.grad is not None
    assert source.grad.isfinite().all() and target.grad.isfinite().all() and target.grad.any()
    moved = loss(source - 0.01 * source.grad, target - 0.01 * target.grad, first, second)
    assert moved < before
    nowhere = torch.full((1, 1, 2), math.nan)
    nothing = loss(source, target, nowhere, nowhere)
    assert nothing.item() == 0.0 and nothing.requires_grad


@pytest.mark.parametrize(("options", "key"), [({"temperature": 0.0}, "temperature"), ({"noise": -1.0}, "noise")])
def test_impossible_settings_are_refused(options: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.{key}"):
        EndPointLoss(**options)
