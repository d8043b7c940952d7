"""The contrastive loss on keypoints, against a loop and against the released code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.losses.contrastive import KeypointContrastiveLoss
from tests.support.paths import GOLDEN


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(source: Tensor, target: Tensor, first: Tensor, second: Tensor, temperature: float) -> float:
    """One keypoint after the other, in both directions, by the definition."""

    def minus_log_share(here: Tensor, there: Tensor, at: Tensor, match: Tensor) -> float:
        query = here[:, int(at[1]), int(at[0])]
        shares = {}
        for y in range(there.shape[1]):
            for x in range(there.shape[2]):
                cosine = float(query @ there[:, y, x] / (query.norm() * there[:, y, x].norm()))
                shares[x, y] = math.exp(cosine / temperature)
        return -math.log(shares[int(match[0]), int(match[1])] / sum(shares.values()))

    forth = [minus_log_share(source, target, a, b) for a, b in zip(first, second, strict=True)]
    back = [minus_log_share(target, source, b, a) for a, b in zip(first, second, strict=True)]
    return (sum(forth) / len(forth) + sum(back) / len(back)) / 2


def test_it_is_the_mean_over_pairs_of_both_directions() -> None:
    source, target = maps(0, 2, 5, 4, 3), maps(1, 2, 5, 3, 6)
    first = torch.tensor([[[0.0, 3.0], [2.0, 1.0], [1.0, 0.0]], [[2.0, 2.0], [0.0, 0.0], [math.nan, math.nan]]])
    second = torch.tensor([[[5.0, 0.0], [0.0, 2.0], [3.0, 1.0]], [[1.0, 1.0], [4.0, 2.0], [0.0, 0.0]]])
    loss = KeypointContrastiveLoss(0.2).double()(source, target, first, second)
    expected = [
        by_loop(source[0], target[0], first[0], second[0], 0.2),
        by_loop(source[1], target[1], first[1, :2], second[1, :2], 0.2),  # the third has no place in the source
    ]
    assert float(loss) == pytest.approx(sum(expected) / 2, rel=1e-6)  # τ is a float32


def test_negatives_may_be_the_other_keypoints_alone() -> None:
    source, target = maps(0, 1, 5, 4, 3), maps(1, 1, 5, 3, 6)
    first = torch.tensor([[[0.0, 3.0], [2.0, 1.0], [1.0, 0.0]]])
    second = torch.tensor([[[5.0, 0.0], [0.0, 2.0], [3.0, 1.0]]])
    loss = KeypointContrastiveLoss(0.2, negatives="keypoints").double()(source, target, first, second)
    # maps of the keypoints alone
    small = [
        torch.stack([one[0, :, int(y), int(x)] for x, y in points[0]], dim=1)[:, None, :]
        for one, points in ((source, first), (target, second))
    ]
    at = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert float(loss) == pytest.approx(by_loop(*small, at, at, 0.2), rel=1e-6)
    with pytest.raises(ConfigError, match=r"loss\.negatives='all'"):
        KeypointContrastiveLoss(negatives="all")


def test_places_are_rounded_and_stay_inside() -> None:
    source, target, loss = maps(0, 1, 5, 4, 4), maps(1, 1, 5, 4, 4), KeypointContrastiveLoss().double()
    rough = loss(source, target, torch.tensor([[[3.4, -0.7], [9.0, 1.6]]]), torch.tensor([[[0.6, 5.0], [1.2, 1.0]]]))
    exact = loss(source, target, torch.tensor([[[3.0, 0.0], [3.0, 2.0]]]), torch.tensor([[[1.0, 3.0], [1.0, 1.0]]]))
    assert torch.equal(rough, exact)


def test_a_batch_without_keypoints_moves_nothing() -> None:
    source = maps(0, 1, 5, 4, 4).requires_grad_()
    nowhere = torch.full((1, 2, 2), math.nan)
    loss = KeypointContrastiveLoss().double()(source, maps(1, 1, 5, 4, 4), nowhere, nowhere)
    loss.backward()
    assert loss.item() == 0.0 and source.grad is not None and not source.grad.any()


def test_only_a_learned_temperature_is_trained_and_saved() -> None:
    fixed, learned = KeypointContrastiveLoss(0.07), KeypointContrastiveLoss(0.07, learned=True)
    assert not list(fixed.parameters()) and not fixed.state_dict()
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    assert learned.log_scale.exp().item() == pytest.approx(1 / 0.07)


def test_the_released_loss_is_reproduced() -> None:
    kept = np.load(GOLDEN / "r_correspondence.npz")
    source, target = (torch.from_numpy(kept[name]) for name in ("f1", "f2"))
    first, second = (torch.from_numpy(kept[f"{name}_points"]).float().flip(-1)[None] for name in ("source", "target"))
    loss = KeypointContrastiveLoss(0.07)(source, target, first, second)
    assert float(loss) == pytest.approx(float(kept["clip_loss"]), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"loss\.temperature"):
        KeypointContrastiveLoss(temperature)
