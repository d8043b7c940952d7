"""Boundary IoU against repeated erosions of every class's mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.metrics.boundary import BoundaryMetrics, boundary_band

CLASSES = 5


def blobs(seed: int, images: int = 3, size: tuple[int, int] = (40, 30)) -> tuple[torch.Tensor, torch.Tensor]:
    """Patchy masks with ignored and predictions that miss outlines; class 3 is only predicted, class 4 is nowhere."""
    rng = np.random.default_rng(seed)
    masks, predictions = [], []
    for _ in range(images):
        smooth = cv2.resize(rng.random((5, 4)), size[::-1], interpolation=cv2.INTER_CUBIC)
        mask = np.digitize(smooth, [0.35, 0.65])
        prediction = np.roll(mask, (1, 2), (0, 1))
        prediction[5:12, 3:9] = 3
        mask[20:31, 12:18] = 255
        masks.append(mask)
        predictions.append(prediction)
    return torch.from_numpy(np.stack(predictions)), torch.from_numpy(np.stack(masks))


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask without what `width` erosions by 3×3 leave, the border padded by one pixel of nothing."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    left = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & ~left.astype(bool)


@pytest.mark.parametrize("width", [1, 3, 50])
def test_the_band_is_what_erosions_take_away(width):
    labels = blobs(0)[0]
    found = boundary_band(labels, width).numpy()
    for image, bands in zip(labels.numpy(), found, strict=True):
        for label in np.unique(image):
            assert np.array_equal(bands & (image == label), band(image == label, width))


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.06])
@pytest.mark.parametrize("seed", range(2))
def test_it_equals_erosions_class_by_class(seed, ratio):
    predictions, masks = blobs(seed)
    metrics = BoundaryMetrics(CLASSES, 255, list("abcde"), ratio)
    for prediction, mask in zip(predictions, masks, strict=True):
        metrics.update(prediction[None], mask[None])
    width = max(round(ratio * np.hypot(40, 30)), 1)
    ious = []
    for k in range(CLASSES):
        shared = either = 0
        for prediction, mask in zip(predictions.numpy(), masks.numpy(), strict=True):
            counted = mask != 255
            truth, called = band(mask == k, width), band((prediction == k) & counted, width)
            shared, either = shared + (truth & called).sum(), either + (truth | called).sum()
        ious.append(shared / either if either else float("nan"))
    assert [row["boundary_IoU"] for row in metrics.per_class().values()] == pytest.approx(ious, nan_ok=True)
    assert metrics.compute()["boundary_mIoU"].item() == pytest.approx(np.nanmean(ious))
    assert np.isnan(ious[4])
    assert ious[3] == 0.0
    assert 0.0 < np.nanmean(ious) < 1.0


def test_the_mask_itself_is_perfect_and_outlines_weigh_more_than_insides():
    _predictions, masks = blobs(0)
    perfect, shifted, thick = BoundaryMetrics(CLASSES), BoundaryMetrics(CLASSES), BoundaryMetrics(CLASSES, ratio=0.9)
    perfect.update(torch.where(masks == 255, 0, masks), masks)
    assert perfect.compute()["boundary_mIoU"] == 1.0
    moved = torch.where(masks == 255, 0, masks).roll((1, 1), (1, 2))
    shifted.update(moved, masks)
    thick.update(moved, masks)  # bands that reach everywhere: plain IoU
    assert shifted.compute()["boundary_mIoU"] < thick.compute()["boundary_mIoU"]


def test_two_processes_get_what_one_would():
    predictions, masks = blobs(1)
    whole = BoundaryMetrics(CLASSES)
    whole.update(predictions, masks)
    ranks = [BoundaryMetrics(CLASSES), BoundaryMetrics(CLASSES)]
    for index, rank in enumerate(ranks):
        rank.update(predictions[index::2], masks[index::2])
    gathered = {tuple(r.shared.tolist()): [r.shared.clone() for r in ranks] for r in ranks}
    gathered |= {tuple(r.either.tolist()): [r.either.clone() for r in ranks] for r in ranks}
    for rank in ranks:
        rank.distributed_available_fn = lambda: True
        rank.dist_sync_fn = lambda tensor, group: gathered[tuple(tensor.tolist())]
        assert rank.compute() == whole.compute()
        assert str(rank.per_class()) == str(whole.per_class())


def test_what_does_not_fit_is_refused():
    predictions, masks = blobs(0)
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match="boundary_ratio"):
            BoundaryMetrics(CLASSES, ratio=ratio)
    with pytest.raises(ConfigError, match="names"):
        BoundaryMetrics(CLASSES, class_names=["a"])
    with pytest.raises(ConfigError, match="shape of the masks"):
        BoundaryMetrics(CLASSES).update(predictions[:1], masks)
    with pytest.raises(DataError, match="label values 2"):
        BoundaryMetrics(2).update(predictions, masks)
