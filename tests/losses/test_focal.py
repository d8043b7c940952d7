"""Focal loss, against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.losses.focal import FocalLoss
from tests.support.loss_oracle import WEIGHTS, example, pixels


@pytest.mark.parametrize("ignore", [255, -1, 2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_it_is_the_formula_pixel_by_pixel(ignore, weights, gamma):
    logits, masks = example(ignore)
    total = count = 0.0
    for _, chances, label in pixels(logits, masks, ignore):
        weight = 1.0 if weights is None else weights[label]
        total -= weight * (1 - chances[label]) ** gamma * np.log(chances[label])
        count += weight
    loss = FocalLoss(ignore, gamma=gamma, class_weight=weights)(logits, masks)
    assert loss.item() == pytest.approx(total / count, abs=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_without_gamma_it_is_cross_entropy(weights):
    logits, masks = example()
    expected = CrossEntropyLoss(class_weight=weights)(logits, masks)
    torch.testing.assert_close(FocalLoss(gamma=0.0, class_weight=weights)(logits, masks), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_is_that_of_the_formula_and_finite_where_all_is_right(gamma):
    logits, masks = (part[..., 2:4, :2].clone() for part in example())
    loss = FocalLoss(gamma=gamma)
    assert torch.autograd.gradcheck(lambda x: loss(x, masks), logits.requires_grad_())
    certain = torch.nn.functional.one_hot(masks.clamp(0, 3), 4).movedim(-1, 1).float() * 1000
    certain.requires_grad_()
    loss(certain, masks).backward()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("gamma", [-1.0, float("inf"), float("nan")])
def test_a_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(ConfigError, match="gamma is"):
        FocalLoss(gamma=gamma)
