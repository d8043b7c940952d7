"""Closeness of images against torchmetrics, OpenCV and NumPy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.image import StructuralSimilarityIndexMeasure

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.closeness import (
    cosine_distance,
    edge_agreement,
    edge_strength,
    mean_squared_error,
    structural_similarity,
)
from tests.support.small_networks import random_images

IMAGES = random_images(3, 40, 48)
MADE = (IMAGES + 0.3 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
MEASURES = (mean_squared_error, structural_similarity, edge_agreement)


def test_ssim_is_torchmetrics_on_images_in_0_1() -> None:
    found = structural_similarity(IMAGES, MADE)
    for image, made, value in zip(IMAGES, MADE, found, strict=True):
        metric = StructuralSimilarityIndexMeasure(data_range=1.0)
        assert float(metric((made[None] + 1) / 2, (image[None] + 1) / 2)) == pytest.approx(float(value), abs=1e-6)


def test_error_and_edges_are_opencv_s_and_numpy_s() -> None:
    for index in range(len(IMAGES)):
        pair = [(one[index].permute(1, 2, 0).numpy() + 1) / 2 for one in (IMAGES, MADE)]
        assert mean_squared_error(IMAGES, MADE)[index] == pytest.approx(((pair[0] - pair[1]) ** 2).mean(), rel=1e-5)
        strengths = []
        for image in pair:
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            across, down = (
                cv2.Sobel(gray, cv2.CV_64F, *way, ksize=3, borderType=cv2.BORDER_REPLICATE) for way in ((1, 0), (0, 1))
            )
            strengths.append(np.hypot(across, down))
        shares = torch.from_numpy(pair[0]).permute(2, 0, 1)[None]
        np.testing.assert_allclose(edge_strength(shares)[0].numpy(), strengths[0], atol=1e-5)
        expected = np.corrcoef(strengths[0].ravel(), strengths[1].ravel())[0, 1]
        assert edge_agreement(IMAGES, MADE)[index] == pytest.approx(expected, abs=1e-5)


def test_an_image_is_closest_to_itself_and_further_with_more_noise() -> None:
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
    worse = [(IMAGES + size * noise).clamp(-1, 1) for size in (0.0, 0.1, 0.5)]
    for measure, best in zip(MEASURES, (0.0, 1.0, 1.0), strict=True):
        rows = torch.stack([measure(IMAGES, one) for one in worse])
        assert (rows[0] - best).abs().max() < 1e-5
        distances = (rows - best).abs()
        assert (distances[1:] > distances[:-1]).all()


def test_the_readings_disagree_where_they_should() -> None:
    darker = IMAGES * 0.5 - 0.5  # the look changes, the contours stay
    assert edge_agreement(IMAGES, darker).min() > 0.99
    assert mean_squared_error(IMAGES, darker).min() > 0.02
    blank = torch.zeros_like(IMAGES)
    assert torch.equal(edge_agreement(IMAGES, blank), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(edge_agreement(blank, blank), torch.zeros(3, dtype=torch.float64))


def test_vectors_are_compared_by_their_direction() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    second = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-3.0, -4.0]])
    torch.testing.assert_close(cosine_distance(first, second), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))


def test_images_that_cannot_be_compared_are_refused() -> None:
    for measure in MEASURES:
        with pytest.raises(ConfigError, match=r"closeness compares two \(B, 3, H, W\)"):
            measure(IMAGES, MADE[..., 1:])
    with pytest.raises(ConfigError, match="SSIM compares windows of 11 × 11"):
        structural_similarity(IMAGES[..., :8], MADE[..., :8])
