"""Soft Dice, against sums over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.losses.dice import DiceLoss
from tests.support.loss_oracle import WEIGHTS, example, pixels


def by_hand(entries, weights, smooth) -> float | None:
    overlap, total, size = np.zeros(4), np.zeros(4), np.zeros(4)
    for chances, label in entries:
        overlap[label] += chances[label]
        total += chances
        total[label] += 1
        size[label] += 1
    losses, shares = [], []
    for k in range(4):
        if size[k]:
            shares.append(1.0 if weights is None else weights[k])
            losses.append(shares[-1] * (1 - (2 * overlap[k] + smooth) / (total[k] + smooth)))
    return sum(losses) / sum(shares) if sum(shares) else None


@pytest.mark.parametrize("ignore", [255, -1, 2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("per_image", [False, True])
def test_it_is_the_formula_over_the_classes_present(ignore, weights, smooth, per_image):
    logits, masks = example(ignore, images=3)
    masks[masks == 1] = 3  # absent
    masks[2] = ignore  # an image without a labelled pixel
    entries = list(pixels(logits, masks, ignore))
    groups = [[e[1:] for e in entries if e[0] == b] for b in range(3)] if per_image else [[e[1:] for e in entries]]
    expected = [value for group in groups if (value := by_hand(group, weights, smooth)) is not None]
    loss = DiceLoss(ignore, class_weight=weights, smooth=smooth, per_image=per_image)(logits, masks)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_perfect_prediction_costs_nothing_and_the_worst_all():
    _, masks = example()
    right = torch.nn.functional.one_hot(masks.clamp(max=3), 4).movedim(-1, 1) * 1000.0
    assert DiceLoss(smooth=0.0)(right, masks).item() == pytest.approx(0.0, abs=1e-6)
    assert DiceLoss(smooth=0.0)(right.roll(1, dims=1), masks).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"smooth": 0.0, "class_weight": WEIGHTS}])
def test_the_gradient_is_that_of_the_formula(options):
    logits, masks = (part[..., :3, :2].clone() for part in example())
    loss = DiceLoss(**options)
    assert torch.autograd.gradcheck(lambda x: loss(x, masks), logits.requires_grad_())


@pytest.mark.parametrize("smooth", [-1.0, float("inf")])
def test_a_smooth_out_of_range_is_refused(smooth):
    with pytest.raises(ConfigError, match="smooth is"):
        DiceLoss(smooth=smooth)
