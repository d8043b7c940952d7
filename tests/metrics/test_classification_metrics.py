"""Accuracy of classified images."""

from __future__ import annotations

import math

import numpy as np
import torch

from gate_lightning.metrics.classification import ClassificationMetrics

CLASSES = ("a", "b", "c", "d")


def test_scores_are_those_of_plain_counting() -> None:
    rng = np.random.default_rng(0)
    truth, called = rng.integers(0, 3, 200), rng.integers(0, 4, 200)  # d is predicted and never true
    truth[:20] = 255  # padding
    metrics = ClassificationMetrics(CLASSES, ignore_index=255)
    for part in range(0, 200, 50):
        rows = slice(part, part + 50)
        metrics.update(torch.from_numpy(called[rows]), torch.from_numpy(truth[rows]))
    truth, called = truth[20:], called[20:]
    right = [((truth == k) & (called == k)).sum() for k in range(4)]
    scores = metrics.scores()
    assert math.isclose(float(scores["Acc"]), (truth == called).mean(), rel_tol=1e-6)
    assert math.isclose(float(scores["mAcc"]), np.mean([right[k] / (truth == k).sum() for k in range(3)]), rel_tol=1e-6)
    rows = metrics.per_class()
    assert list(rows) == list(CLASSES)
    for k, name in enumerate(CLASSES[:3]):
        assert math.isclose(rows[name]["Acc"], right[k] / (truth == k).sum())
        assert math.isclose(rows[name]["Precision"], right[k] / (called == k).sum())
        recall, precision = rows[name]["Acc"], rows[name]["Precision"]
        assert math.isclose(rows[name]["F1"], 2 * recall * precision / (recall + precision))
        assert math.isclose(rows[name]["share"], (truth == k).mean())
    assert math.isnan(rows["d"]["Acc"])
    assert rows["d"]["Precision"] == rows["d"]["share"] == 0
