"""The Laplacian score on hand-made pairs, against SciPy, and what it does not see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.laplacian import contour_difference, contours


def test_known_pairs() -> None:
    flat, point = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    point[0, 0, 2, 2] = 3.0
    # a point of height 3: 12 in the middle and 3 on its four neighbours
    assert contour_difference(flat, point).tolist() == [24.0]
    both = point.clone()
    both[0, 1, 2, 2] = 4.0
    # over channels (3, 4) → 5: 20 + 4 · 5
    assert contour_difference(flat, both).tolist() == [40.0]
    assert contour_difference(point, both).tolist() == [16.0]
    assert contour_difference(both, both).tolist() == [0.0]
    moved = point.roll(1, dims=3)
    # the two middles differ by 9 each, six neighbours by 3 each
    assert contour_difference(point, moved).tolist() == [36.0]


def test_contours_are_those_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed (extra mat)")
    maps = np.random.default_rng(0).normal(size=(2, 7, 6, 9))
    edged = np.stack([[ndimage.laplace(channel, mode="nearest") for channel in one] for one in maps])
    np.testing.assert_allclose(contours(torch.from_numpy(maps)).numpy(), np.linalg.norm(edged, axis=1), atol=1e-12)


def rotated(features: Tensor) -> Tensor:
    matrix, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return torch.einsum("bchw,cd->bdhw", features, matrix)


@pytest.mark.parametrize(
    "unseen",
    [
        lambda f: f + torch.arange(6.0).view(1, 6, 1, 1),
        lambda f: f * torch.tensor([1.0, -1, 1, -1, -1, 1]).view(1, 6, 1, 1),
        lambda f: f[:, torch.tensor([3, 1, 5, 0, 2, 4])],
        rotated,
    ],
    ids=["constant", "sign", "permutation", "rotation"],
)
def test_what_the_score_does_not_see(unseen: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    reference, features = torch.randn(2, 3, 6, 8, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(contours(unseen(features)), contours(features))
    torch.testing.assert_close(
        contour_difference(unseen(reference), unseen(features)),
        contour_difference(reference, features),
        rtol=1e-5,
        atol=0,
    )


def test_it_sees_scale_and_place() -> None:
    features = torch.randn(1, 4, 8, 8)
    assert contour_difference(features, 2 * features) > 0
    assert contour_difference(features, features.roll(1, dims=2)) > 0


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"features are \(1, 2, 4, 4\) and their references \(1, 2, 8, 8\)"):
        contour_difference(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4))
