"""Cross-entropy of the hard pixels, against sorting by hand and mmsegmentation's where that is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.losses.ohem import OhemCrossEntropyLoss
from tests.support.loss_oracle import WEIGHTS, example, pixels


def by_hand(logits, masks, ignore, threshold, kept, weights) -> float:
    found = sorted((chances[label], label) for _, chances, label in pixels(logits, masks, ignore))
    below = sum(chance < threshold for chance, _ in found)
    chosen = found[: max(below, min(kept, len(found)))]
    shares = [1.0 if weights is None else weights[label] for _, label in chosen]
    losses = [-share * np.log(chance) for share, (chance, _) in zip(shares, chosen, strict=True)]
    return sum(losses) / sum(shares)


@pytest.mark.parametrize("ignore", [255, -1, 2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("threshold", "kept"), [(0.3, 1), (0.01, 7), (0.7, 20), (0.7, 1000)])
def test_it_is_the_mean_over_the_least_probable_pixels(ignore, weights, threshold, kept):
    logits, masks = example(ignore)
    loss = OhemCrossEntropyLoss(ignore, threshold=threshold, min_kept=kept, class_weight=weights)(logits, masks)
    assert loss.item() == pytest.approx(by_hand(logits, masks, ignore, threshold, kept, weights), abs=1e-12)


@pytest.mark.parametrize(("threshold", "kept"), [(0.3, 1), (0.01, 7), (0.7, 20)])
def test_it_equals_mmsegmentations(threshold, kept):
    from mmseg.models.losses.ohem_cross_entropy_loss import OhemCrossEntropy

    logits, masks = example()
    expected = OhemCrossEntropy(ignore_label=255, thres=threshold, min_kept=kept)(logits, masks)
    torch.testing.assert_close(OhemCrossEntropyLoss(threshold=threshold, min_kept=kept)(logits, masks), expected)


def test_a_share_is_of_the_labelled_pixels():
    logits, masks = example()
    labelled = int((masks != 255).sum())
    expected = OhemCrossEntropyLoss(threshold=0.01, min_kept=math.ceil(0.3 * labelled))(logits, masks)
    assert OhemCrossEntropyLoss(threshold=0.01, min_kept=0.3)(logits, masks) == expected
    assert OhemCrossEntropyLoss(threshold=0.01, min_kept=0.4)(logits, masks) < expected


def test_equal_pixels_all_count():
    _, masks = example()
    logits = torch.zeros(2, 4, 5, 6)
    loss = OhemCrossEntropyLoss(threshold=0.1, min_kept=3)(logits, masks)
    torch.testing.assert_close(loss, CrossEntropyLoss()(logits, masks))


def test_easy_pixels_get_no_gradient():
    logits, masks = example()
    logits.requires_grad_()
    OhemCrossEntropyLoss(threshold=0.3, min_kept=1)(logits, masks).backward()
    chances = logits.detach().softmax(dim=1).gather(1, masks.clamp(max=3)[:, None])[:, 0]
    hard = (chances < 0.3) & (masks != 255)
    assert 0 < hard.sum() < (masks != 255).sum()
    assert torch.equal(logits.grad.abs().sum(dim=1) > 0, hard)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.1}, {"min_kept": 0}, {"min_kept": 2.5}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is"):
        OhemCrossEntropyLoss(**options)
