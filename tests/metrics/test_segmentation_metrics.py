"""Segmentation metrics against a loop over pixels and mmsegmentation's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.metrics.segmentation import SegmentationMetrics

CLASSES = 6


def example(seed: int, images: int = 4, ignore: int = 255) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 4 is predicted but never labelled, class 5 is nowhere; some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 4, (images, 9, 7), generator=generator)
    guesses = torch.randint(0, 5, masks.shape, generator=generator)
    right = torch.rand(masks.shape, generator=generator) < 0.5
    predictions = torch.where(right, masks, guesses)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = ignore
    return predictions, masks


def slow(predictions: np.ndarray, masks: np.ndarray, ignore: int, classes: int) -> dict[str, list[float] | float]:
    confusion = [[0] * classes for _ in range(classes)]
    for label, called in zip(masks.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if label != ignore:
            confusion[label][called] += 1
    ious, accuracies, precisions, dices = [], [], [], []
    for k in range(classes):
        labelled, called = sum(confusion[k]), sum(row[k] for row in confusion)
        union = labelled + called - confusion[k][k]
        ious.append(confusion[k][k] / union if union else float("nan"))
        accuracies.append(confusion[k][k] / labelled if labelled else float("nan"))
        precisions.append(confusion[k][k] / called if called else float("nan"))
        dices.append(2 * confusion[k][k] / (labelled + called) if union else float("nan"))
    total = sum(map(sum, confusion))
    return {
        "IoU": ious,
        "Acc": accuracies,
        "Precision": precisions,
        "Dice": dices,
        "share": [sum(row) / total for row in confusion],
        "aAcc": sum(confusion[k][k] for k in range(classes)) / total,
        "mIoU": float(np.mean([value for value in ious if value == value])),
        "mAcc": float(np.mean([value for value in accuracies if value == value])),
    }


@pytest.mark.parametrize("ignore", [255, -1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_a_loop_over_pixels(seed, ignore):
    predictions, masks = example(seed, ignore=ignore)
    metrics = SegmentationMetrics(CLASSES, ignore, list("abcdef"))
    for image, mask in zip(predictions, masks, strict=True):
        metrics.update(image[None], mask[None])
    expected = slow(predictions.numpy(), masks.numpy(), ignore, CLASSES)
    values = metrics.compute()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {name: expected[name] for name in ("aAcc", "mIoU", "mAcc")}, abs=1e-7
    )
    table = metrics.per_class()
    for column in ("IoU", "Acc", "Precision", "Dice", "share"):
        assert [table[name][column] for name in "abcdef"] == pytest.approx(expected[column], abs=1e-12, nan_ok=True)
    assert np.isnan(table["f"]["IoU"])
    assert np.isnan(table["e"]["Acc"])
    assert table["e"]["IoU"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_mmsegmentation(seed):
    from mmseg.evaluation.metrics import IoUMetric

    predictions, masks = example(seed)
    pairs = zip(predictions, masks, strict=True)
    areas = [IoUMetric.intersect_and_union(image, mask, CLASSES, 255) for image, mask in pairs]
    totals = [sum(parts) for parts in zip(*areas, strict=True)]
    theirs = IoUMetric.total_area_to_metrics(*totals, ["mIoU"], None, 1)
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(predictions, masks)
    ours, table = metrics.compute(), metrics.per_class().values()
    assert ours["aAcc"].item() == pytest.approx(float(theirs["aAcc"]), abs=1e-6)
    assert ours["mIoU"].item() == pytest.approx(float(np.nanmean(theirs["IoU"])), abs=1e-6)
    assert ours["mAcc"].item() == pytest.approx(float(np.nanmean(theirs["Acc"])), abs=1e-6)
    assert [row["IoU"] for row in table] == pytest.approx(list(map(float, theirs["IoU"])), abs=1e-6, nan_ok=True)


def test_it_reports_what_mmsegmentations_metric_does():
    """Through its own collection over images, in percent, to its rounding to two decimals."""
    from mmseg.evaluation.metrics import IoUMetric

    theirs = IoUMetric(iou_metrics=["mIoU", "mDice", "mFscore"])
    theirs.dataset_meta = {"classes": list("abcdef")}
    metrics = SegmentationMetrics(CLASSES, class_names=list("abcdef"))
    for seed in range(3):
        predictions, masks = example(seed)
        metrics.update(predictions, masks)
        samples = [
            {"pred_sem_seg": {"data": image[None]}, "gt_sem_seg": {"data": mask[None]}}
            for image, mask in zip(predictions, masks, strict=True)
        ]
        theirs.process({}, samples)
    reported, ours = theirs.compute_metrics(theirs.results), metrics.compute()
    for name in ("aAcc", "mIoU", "mAcc"):
        assert round(100 * ours[name].item(), 2) == pytest.approx(float(reported[name]), abs=1e-5)
    rows = metrics.per_class().values()
    for theirs_name, name in (("mDice", "Dice"), ("mPrecision", "Precision"), ("mRecall", "Acc")):
        mean = float(np.nanmean([row[name] for row in rows]))
        assert round(100 * mean, 2) == pytest.approx(float(reported[theirs_name]), abs=1e-5)


def test_the_confusion_matrix_has_masks_in_rows():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[0, 0, 0]]]))
    assert metrics.confusion_matrix().tolist() == [[1, 2], [0, 0]]


def test_logits_count_as_their_arg_max():
    predictions, masks = example(0)
    logits = torch.nn.functional.one_hot(predictions, CLASSES).movedim(-1, 1).float() + 0.1
    first, second = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
    first.update(predictions, masks)
    second.update(logits, masks)
    assert torch.equal(first.confusion, second.confusion)
    assert first.confusion.dtype == torch.int64


def test_two_processes_get_what_one_would():
    """Each process holds half of the images; the gathering is what torchmetrics would do over a process group."""
    predictions, masks = example(0)
    whole = SegmentationMetrics(CLASSES)
    whole.update(predictions, masks)
    ranks = [SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)]
    for index, rank in enumerate(ranks):
        rank.update(predictions[index::2], masks[index::2])
    assert not torch.equal(ranks[0].confusion, whole.confusion)
    gathered = [rank.confusion.clone() for rank in ranks]
    for rank in ranks:
        own = rank.confusion.clone()
        rank.distributed_available_fn = lambda: True
        rank.dist_sync_fn = lambda tensor, group: gathered
        assert rank.compute() == whole.compute()
        torch.testing.assert_close(
            [list(row.values()) for row in rank.per_class().values()],
            [list(row.values()) for row in whole.per_class().values()],
            equal_nan=True,
        )
        assert torch.equal(rank.confusion_matrix(), whole.confusion)
        assert torch.equal(rank.confusion, own)


def test_reset_forgets():
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(*example(0))
    metrics.reset()
    assert metrics.confusion.sum() == 0


def test_nothing_counted_is_not_a_number():
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255))
    assert all(torch.isnan(value) for value in metrics.compute().values())


def test_a_label_outside_the_classes_is_refused():
    metrics = SegmentationMetrics(3)
    with pytest.raises(DataError, match="label values 7"):
        metrics.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 7))


@pytest.mark.parametrize(
    "predictions",
    [
        torch.zeros(1, 3, 2, dtype=torch.int64),
        torch.zeros(1, 4, 2, 2),
        torch.zeros(1, 2, 2),
        torch.full((1, 2, 2), 3),
        torch.full((1, 2, 2), -1),
    ],
)
def test_predictions_that_do_not_fit_are_refused(predictions):
    with pytest.raises(ConfigError, match="expected"):
        SegmentationMetrics(3).update(predictions, torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(("count", "names"), [(1, None), (3, ["a", "b"]), (2, ["a", "a"])])
def test_class_names_that_do_not_fit_are_refused(count, names):
    with pytest.raises(ConfigError, match="class_names"):
        SegmentationMetrics(count, class_names=names)
