"""Closed-form probes against least squares on the positions themselves, and counts against the project's metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.probe import class_shares, iou_counts, moments, probe
from gate_lightning.metrics.content_shift.statistic import mean_iou
from gate_lightning.metrics.segmentation import confusion_counts, scores


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (5, 6, 8) and a mask of three classes at twice the size, some of it unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(5, 6, 8, generator=generator) * torch.tensor([1.0, 5, 0.1, 2, 1])[:, None, None] + 3
    mask = torch.randint(0, 4, (12, 16), generator=generator)
    return features, torch.where(mask == 3, 255, mask)


def test_ridge_is_least_squares_with_a_penalty() -> None:
    features, mask = example()
    shares = class_shares(mask, 3, (6, 8))
    found = probe("ridge", moments(features, shares), features).flatten(1).T.numpy()
    x, y = features.double().flatten(1).T.numpy(), shares.flatten(1).T.numpy()
    weight = y.sum(axis=1)
    mean = (weight[:, None] * x).sum(0) / weight.sum()
    z = (x - mean) / np.sqrt((weight[:, None] * (x - mean) ** 2).sum(0) / weight.sum())
    base = y.sum(0) / weight.sum()
    # rows that the labelled share of a position weighs, and rows of the penalty
    root = np.sqrt(weight)[:, None]
    target = np.divide(y, root, out=np.zeros_like(y), where=root > 0) - root * base
    rows = np.vstack([root * z, np.sqrt(0.01 * weight.sum()) * np.eye(5)])
    solution, *_ = np.linalg.lstsq(rows, np.vstack([target, np.zeros((5, 3))]), rcond=None)
    np.testing.assert_allclose(found, z @ solution + base, atol=1e-9)


def test_centroids_are_means_of_classes() -> None:
    features, mask = example(1)
    whole = torch.where(mask == 255, 0, mask)[::2, ::2]
    shares = class_shares(whole, 3, (6, 8))
    called = probe("centroid", moments(features, shares), features).argmax(dim=0)
    x = features.double().flatten(1).T
    z = (x - x.mean(0)) / x.std(0, correction=0)
    centres = torch.stack([z[whole.flatten() == k].mean(0) for k in range(3)])
    assert torch.equal(called.flatten(), torch.cdist(z, centres).argmin(dim=1))


def test_shares_are_those_of_labelled_pixels() -> None:
    mask = torch.tensor([[0, 1, 255, 255], [0, 0, 1, 255]])
    assert class_shares(mask, 2, (1, 2)).tolist() == [[[0.75, 0.0]], [[0.25, 0.25]]]


def test_what_was_not_seen_is_never_called() -> None:
    features, mask = example()
    shares = class_shares(torch.where(mask == 2, 255, mask), 3, (6, 8))
    for kind in ("ridge", "centroid"):
        found = probe(kind, moments(features, shares), features)
        assert bool((found[2] == -torch.inf).all())
        assert bool(found[:2].isfinite().all())
    with pytest.raises(ConfigError, match="no labelled position"):
        probe("ridge", moments(features, torch.zeros(3, 6, 8)), features)


def test_counts_give_the_projects_miou() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (3, 9, 9), generator=generator)
    masks[masks == 3] = 255
    called = torch.randint(0, 3, (3, 9, 9), generator=generator)
    counts = torch.stack([iou_counts(one, mask, 4) for one, mask in zip(called, masks, strict=True)])
    expected = scores(confusion_counts(called, masks, 4, 255))["mIoU"]
    assert float(mean_iou(counts.mean(dim=0))) == pytest.approx(float(expected))
