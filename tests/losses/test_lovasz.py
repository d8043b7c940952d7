"""Lovász-softmax against set functions computed one pixel at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.losses.lovasz import LovaszSoftmaxLoss, lovasz_gradient


def example(batch=3, classes=5, ignore=255):
    """Random logits; class 4 is in no mask, the last image has no labelled pixel."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(batch, classes, 4, 5, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, classes - 1, (batch, 4, 5), generator=generator)
    masks[0, :2] = ignore
    masks[-1] = ignore
    return logits, masks


def jaccard_loss(truth: set[int], mistaken: set[int]) -> float:
    """1 - IoU of a class whose pixels are ``truth`` when exactly the pixels ``mistaken`` are called wrong (eq. 6)."""
    called = truth ^ mistaken
    return 1 - len(truth & called) / len(truth | called)


def slow_class_loss(errors: np.ndarray, truth: set[int]) -> float:
    """Lovász extension by its definition: errors in falling order, times what each set function step adds."""
    total, mistaken, before = 0.0, set(), 0.0
    for pixel in sorted(range(len(errors)), key=lambda index: -errors[index]):
        mistaken.add(pixel)
        after = jaccard_loss(truth, mistaken)
        total += errors[pixel] * (after - before)
        before = after
    return total


def slow(logits: np.ndarray, masks: np.ndarray, ignore: int, weights=None) -> float | None:
    """Loss of pixels (K, P) and labels (P,); None without a labelled pixel of a weight above 0."""
    keep = masks != ignore
    logits, masks = logits[:, keep], masks[keep]
    if masks.size == 0:
        return None
    chances = np.exp(logits) / np.exp(logits).sum(axis=0)
    losses, shares = [], []
    for label in np.unique(masks):
        shares.append(1.0 if weights is None else weights[label])
        truth = set(np.flatnonzero(masks == label).tolist())
        errors = np.array([1 - p if index in truth else p for index, p in enumerate(chances[label])])
        losses.append(slow_class_loss(errors, truth))
    return float(np.dot(losses, shares) / np.sum(shares)) if np.sum(shares) else None


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 1.0, 3.0]])
@pytest.mark.parametrize("ignore", [255, -1, 4])
def test_one_loss_over_the_batch_equals_the_definition(ignore, weights):
    logits, masks = example(ignore=ignore)
    expected = slow(logits.movedim(1, 0).flatten(1).numpy(), masks.flatten().numpy(), ignore, weights)
    loss = LovaszSoftmaxLoss(ignore, class_weight=weights)(logits, masks)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_per_image_is_the_mean_over_images_with_a_label():
    logits, masks = example()
    single = [slow(logits[b].flatten(1).numpy(), masks[b].flatten().numpy(), 255) for b in range(3)]
    assert single[2] is None
    assert LovaszSoftmaxLoss(per_image=True)(logits, masks).item() == pytest.approx(np.mean(single[:2]), abs=1e-12)


def test_per_image_leaves_images_without_a_weighted_class_out():
    logits, masks = example()
    masks[1] = 2
    weights = [0.5, 2.0, 0.0, 1.0, 3.0]
    expected = slow(logits[0].flatten(1).numpy(), masks[0].flatten().numpy(), 255, weights)
    loss = LovaszSoftmaxLoss(class_weight=weights, per_image=True)(logits, masks)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("per_image", [False, True])
def test_its_gradient_is_that_of_finite_differences(per_image):
    logits, masks = example()
    loss = LovaszSoftmaxLoss(per_image=per_image)
    assert torch.autograd.gradcheck(lambda x: loss(x, masks), logits.requires_grad_())


def test_for_hard_decisions_it_is_one_minus_the_mean_iou():
    generator = torch.Generator().manual_seed(0)
    masks, called = torch.randint(0, 3, (2, 2, 8, 8), generator=generator)
    logits = 100.0 * torch.nn.functional.one_hot(called, 3).movedim(-1, 1).double()
    ious = [((masks == k) & (called == k)).sum() / ((masks == k) | (called == k)).sum() for k in range(3)]
    loss = LovaszSoftmaxLoss()(logits, masks)
    assert loss.item() == pytest.approx(1 - torch.stack(ious).double().mean().item(), abs=1e-7)


def test_slopes_of_a_class_sum_to_one_for_many_pixels_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(2, 300_000, generator=generator)
    foreground = torch.rand(2, 300_000, generator=generator) < torch.tensor([[0.3], [0.0]])
    foreground[1, 7] = True
    slopes = lovasz_gradient(errors, foreground)
    assert (slopes >= 0).all()
    torch.testing.assert_close(slopes.double().sum(dim=1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_half_precision_is_computed_in_single():
    logits, masks = example()
    half = logits.to(torch.float16)
    loss = LovaszSoftmaxLoss()(half, masks)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LovaszSoftmaxLoss()(half.float(), masks))
