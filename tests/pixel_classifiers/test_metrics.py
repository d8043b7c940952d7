"""The mIoU of the label-scarce data sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gate_lightning.metrics.segmentation import SegmentationMetrics
from gate_lightning.pixel_classifiers.metrics import LabelScarceMetrics
from tests.support.paths import GOLDEN


def _oracle(predictions: np.ndarray, masks: np.ndarray, classes: int, ignore: int) -> float:
    ious = []
    for value in range(classes):
        if value == ignore:
            continue
        called, right = predictions == value, masks == value
        union = (called | right).sum()
        ious.append((called & right).sum() / union if union else 0.0)
    return float(np.mean(ious))


@pytest.mark.parametrize("ignore", [255, 0])
def test_it_is_the_plain_definition_over_all_pixels(ignore):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 5, (6, 8, 9))
    masks[rng.random(masks.shape) < 0.2] = ignore
    predictions = np.where(rng.random(masks.shape) < 0.5, masks % 6, rng.integers(0, 5, masks.shape))
    predictions[predictions > 5] = 1
    metrics = LabelScarceMetrics(7, ignore)  # classes 5 and 6 occur nowhere
    plain = SegmentationMetrics(7, ignore)
    for called, mask in zip(np.array_split(predictions, 3), np.array_split(masks, 3), strict=True):
        metrics.update(torch.from_numpy(called), torch.from_numpy(mask))
        plain.update(torch.from_numpy(called), torch.from_numpy(mask))
    found = metrics.compute()
    assert found["mIoU_ddpm"].item() == pytest.approx(_oracle(predictions, masks, 7, ignore), abs=1e-6)
    assert found["mIoU_ddpm"] < found["mIoU"]
    for name, value in plain.compute().items():
        assert found[name].item() == value.item()
    assert next(iter(found)) == "mIoU_ddpm"  # the headline
    rows = metrics.per_class()
    assert rows["6"]["IoU_ddpm"] == 0
    assert math.isnan(rows["6"]["IoU"])
    assert math.isnan(rows["0"]["IoU_ddpm"]) == (ignore == 0)
    ious = [row["IoU_ddpm"] for row in rows.values() if not math.isnan(row["IoU_ddpm"])]
    assert np.mean(ious) == pytest.approx(found["mIoU_ddpm"].item(), abs=1e-6)


def test_logits_count_as_their_arg_max():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(4, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    masks[0, 0] = 255
    one, two = LabelScarceMetrics(4), LabelScarceMetrics(4)
    one.update(logits, masks)
    two.update(logits.argmax(1), masks)
    assert {name: value.item() for name, value in one.compute().items()} == {
        name: value.item() for name, value in two.compute().items()
    }


def test_reset_forgets_unlabelled_pixels_too():
    metrics = LabelScarceMetrics(3)
    metrics.update(torch.ones(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255))
    assert metrics.unlabelled.tolist() == [0, 4, 0]
    metrics.reset()
    assert metrics.unlabelled.tolist() == [0, 0, 0]


def test_the_reference_value():
    with np.load(GOLDEN / "q_compute_iou.npz") as golden:
        metrics = LabelScarceMetrics(21)
        metrics.update(torch.from_numpy(golden["preds"]), torch.from_numpy(golden["gts"]))
        assert metrics.compute()["mIoU_ddpm"].item() == pytest.approx(golden["miou"].item(), abs=1e-6)
        assert abs(metrics.compute()["mIoU"].item() - golden["miou"].item()) > 1e-3
