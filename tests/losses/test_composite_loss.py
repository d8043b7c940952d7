"""Weighted sums of losses, and what all losses have in common."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.losses.composite import CompositeLoss
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.losses.dice import DiceLoss
from gate_lightning.losses.focal import FocalLoss
from gate_lightning.losses.lovasz import LovaszSoftmaxLoss
from gate_lightning.losses.ohem import OhemCrossEntropyLoss

LOSSES = {
    "cross_entropy": CrossEntropyLoss,
    "cross_entropy-weighted": partial(CrossEntropyLoss, class_weight=[1.0, 0.0, 2.0], label_smoothing=0.1),
    "lovasz": LovaszSoftmaxLoss,
    "lovasz-per_image": partial(LovaszSoftmaxLoss, per_image=True),
    "lovasz-weighted": partial(LovaszSoftmaxLoss, class_weight=[1.0, 0.0, 2.0], per_image=True),
    "dice": DiceLoss,
    "dice-weighted": partial(DiceLoss, class_weight=[1.0, 0.0, 2.0], smooth=0.0, per_image=True),
    "focal": FocalLoss,
    "focal-weighted": partial(FocalLoss, gamma=0.5, class_weight=[1.0, 0.0, 2.0]),
    "ohem": partial(OhemCrossEntropyLoss, min_kept=4),
    "ohem-weighted": partial(OhemCrossEntropyLoss, threshold=0.1, min_kept=0.5, class_weight=[1.0, 0.0, 2.0]),
    "composite": partial(CompositeLoss, {"cross_entropy": CrossEntropyLoss, "lovasz": LovaszSoftmaxLoss}),
}


def example(ignore=255):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    masks = torch.randint(0, 3, (2, 4, 4), generator=generator)
    masks[0, 0] = ignore
    return logits, masks


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_valid_pixel_loss_and_gradient_are_zero(name):
    logits, masks = example()
    loss = LOSSES[name](ignore_index=255)(logits, torch.full_like(masks, 255))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_do_not_count(name):
    logits, masks = example()
    changed = torch.where((masks == 255)[:, None], 50.0, logits)
    loss = LOSSES[name](ignore_index=255)
    torch.testing.assert_close(loss(logits, masks), loss(changed, masks))
    assert loss(logits, masks).item() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_descending_the_loss_finds_the_masks(name):
    _, masks = example()
    masks = torch.where(masks == 1, 2, masks)  # the class of weight zero need not be found
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    optimizer, loss = torch.optim.Adam([logits], lr=0.2), LOSSES[name](ignore_index=255)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, masks).backward()
        optimizer.step()
    valid = masks != 255
    assert torch.equal(logits.argmax(dim=1)[valid], masks[valid])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("value", "ignore"), [(3, 255), (255, 3), (-1, 255), (-100, -1)])
def test_label_values_that_are_no_class_are_named(name, value, ignore):
    logits, masks = example(ignore)
    masks[1, 2, 3] = value
    with pytest.raises(
        DataError, match=f"label values {value}; expected 0 … 2 for 3 classes, or ignore_index={ignore} "
    ):
        LOSSES[name](ignore_index=ignore)(logits, masks)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("change", [lambda x: x[:, :2], lambda x: x.int(), lambda x: x[:1], lambda x: x[:, None]])
def test_masks_that_do_not_fit_the_logits_are_refused(name, change):
    logits, masks = example()
    with pytest.raises(ConfigError, match=r"expected\s+\(B, K, H, W\) and \(B, H, W\)"):
        LOSSES[name](ignore_index=255)(logits, change(masks))


def test_the_sum_is_weighted_and_its_terms_are_not():
    logits, masks = example(7)
    composite = CompositeLoss(
        {"a": CrossEntropyLoss, "b": LovaszSoftmaxLoss(7), "c": LovaszSoftmaxLoss}, {"a": 0.5, "b": 3.0}, ignore_index=7
    )
    ce, lovasz = CrossEntropyLoss(7)(logits, masks), LovaszSoftmaxLoss(7)(logits, masks)
    assert composite.terms(logits, masks) == {"a": ce, "b": lovasz, "c": lovasz}
    torch.testing.assert_close(composite(logits, masks), 0.5 * ce + 4.0 * lovasz)


@pytest.mark.parametrize(
    ("losses", "weights", "words"),
    [
        ({}, None, "no loss to add up"),
        ({"a": CrossEntropyLoss}, {"b": 1.0}, "weights name b; the losses are: a"),
        ({"a": CrossEntropyLoss(0)}, None, "loss 'a' ignores 0, the others 255"),
    ],
)
def test_a_sum_that_cannot_work_is_refused(losses, weights, words):
    with pytest.raises(ConfigError, match=words):
        CompositeLoss(losses, weights)
