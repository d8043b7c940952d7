"""Cross-entropy over valid pixels, against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from gate_lightning.errors import ConfigError
from gate_lightning.losses.cross_entropy import CrossEntropyLoss

WEIGHTS = [0.5, 2.0, 0.0, 1.0]


def example(ignore=255):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 4, (2, 5, 6), generator=generator)
    masks[0, 1:3] = ignore
    return logits, masks


def slow(logits, masks, ignore, weights, smoothing) -> float:
    total = count = 0.0
    classes = logits.shape[1]
    for b, row, column in np.ndindex(*masks.shape):
        label = masks[b, row, column]
        if label == ignore:
            continue
        scores = logits[b, :, row, column]
        log_probabilities = scores - np.log(np.exp(scores).sum())
        for k in range(classes):
            target = (1 - smoothing) * (k == label) + smoothing / classes
            total -= target * weights[k] * log_probabilities[k]
        count += weights[label]
    return total / count


@pytest.mark.parametrize("ignore", [255, -1, 2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_the_mean_over_pixels_that_count(ignore, weights, smoothing):
    logits, masks = example(ignore)
    loss = CrossEntropyLoss(ignore, class_weight=weights, label_smoothing=smoothing)(logits, masks)
    expected = slow(logits.numpy(), masks.numpy(), ignore, weights or [1.0] * 4, smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_it_agrees_with_torch_where_torch_is_defined():
    logits, masks = example()
    expected = functional.cross_entropy(logits, masks, ignore_index=255)
    torch.testing.assert_close(CrossEntropyLoss()(logits, masks), expected)


def test_logits_of_ignored_pixels_get_no_gradient():
    logits, masks = example()
    logits.requires_grad_()
    CrossEntropyLoss()(logits, masks).backward()
    ignored = (masks == 255)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).all()


def test_half_precision_is_summed_in_single():
    logits, masks = example()
    half = logits.to(torch.bfloat16)
    loss = CrossEntropyLoss()(half, masks)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, CrossEntropyLoss()(half.float(), masks))


def test_class_weights_are_not_part_of_a_checkpoint():
    assert CrossEntropyLoss(class_weight=WEIGHTS).state_dict() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0"),
        ({"class_weight": [1.0, -1.0]}, "class_weight is"),
        ({"class_weight": [0.0, 0.0]}, "not all of them 0"),
        ({"class_weight": [1.0, float("nan")]}, "finite weights"),
    ],
)
def test_numbers_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        CrossEntropyLoss(**options)


def test_a_wrong_number_of_class_weights_is_refused():
    with pytest.raises(ConfigError, match="3 entries for 4 classes"):
        CrossEntropyLoss(class_weight=[1.0, 1.0, 1.0])(*example())
