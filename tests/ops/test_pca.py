from __future__ import annotations

import numpy as np
import torch

from gate_lightning.ops.pca import principal_components, to_unit_range


def test_projection_equals_numpy_svd_up_to_sign() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 5, 6, 7)) * np.array([5, 3, 2, 1, 0.5])[:, None, None] + 4
    projection = principal_components([torch.from_numpy(maps[:1]), torch.from_numpy(maps[1:])], 3)
    vectors = maps.transpose(0, 2, 3, 1).reshape(-1, 5)
    _, _, axes = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    coordinates = projection(torch.from_numpy(maps)).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(np.abs(coordinates), np.abs((vectors - vectors.mean(0)) @ axes[:3].T), atol=1e-4)


def test_axes_are_the_same_whichever_gram_matrix_is_smaller() -> None:
    few = torch.randn(1, 40, 4, 5, generator=torch.Generator().manual_seed(0))
    repeated = few.repeat(3, 1, 1, 1)
    assert torch.allclose(principal_components([few]).axes, principal_components([repeated]).axes, atol=1e-4)


def test_sign_is_fixed_by_the_largest_entry() -> None:
    maps = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    axes = principal_components([maps]).axes
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    assert torch.allclose(principal_components([maps.flip(-1)]).axes, axes, atol=1e-5)


def test_features_with_fewer_directions_than_colours_give_zero_components() -> None:
    direction = torch.tensor([1.0, 2.0, 0.0, 0.0]).view(1, 4, 1, 1)
    maps = direction * torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    coordinates = principal_components([maps], 3)(maps)
    assert coordinates[:, 0].std() > 0.1
    assert coordinates[:, 1:].abs().max() < 1e-5
    assert principal_components([maps[:, :2]], 3).axes.shape == (2, 3)


def test_limits_are_shared_between_maps() -> None:
    low, high = torch.zeros(1, 1, 1, 3), torch.full((1, 1, 1, 3), 4.0)
    first, second = to_unit_range([low, high])
    assert first.eq(0).all()
    assert second.eq(1).all()


def test_constant_component_becomes_grey() -> None:
    (only,) = to_unit_range([torch.full((1, 2, 3, 3), 7.0)])
    assert only.eq(0.5).all()


def test_outliers_do_not_set_the_limits() -> None:
    values = torch.linspace(0, 1, 1000).view(1, 1, 10, 100).clone()
    values[0, 0, 0, 0] = -1e6
    (scaled,) = to_unit_range([values], quantile=0.01)
    assert 0.4 < float(scaled.median()) < 0.6
