"""Values that are not finite are found wherever they hide, and finite ones are never taken for such."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.errors import NotFiniteError
from gate_lightning.utils.finite import all_finite, check_outputs, not_finite_in, other_precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_in_any_tensor_is_found(dtype: torch.dtype, bad: float) -> None:
    tensors = [torch.randn(4, 5).to(dtype) for _ in range(3)]
    assert all_finite(tensors)
    tensors[1][2, 3] = bad
    assert not all_finite(tensors)
    tensors[1][3, 3] = -bad  # what cancels in a sum
    assert not all_finite(tensors)


def test_large_finite_values_are_finite() -> None:
    assert all_finite([torch.full((10,), torch.finfo(torch.float32).max)])
    assert all_finite([torch.full((10, 10), torch.finfo(torch.float16).max, dtype=torch.float16)])
    assert all_finite([torch.full((10,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)])
    assert all_finite([torch.tensor([1, 2]), torch.empty(0), torch.empty(3, device="meta")])


def test_where_in_a_nested_state() -> None:
    state = {"a": torch.ones(2), "b": [{"c": torch.tensor([1.0, float("nan")])}], "d": "text"}
    assert list(not_finite_in(state)) == ["b[0].c"]


def test_the_message_names_images_and_counts() -> None:
    with pytest.raises(NotFiniteError, match=r"made of a, b are not finite \(2 of 3 values: 1 NaN, 1 infinite\)"):
        check_outputs(torch.tensor([float("nan"), float("inf"), 1.0]), "what is made", ("a", "b"))


def test_the_precision_to_try() -> None:
    assert "backbone.dtype=bfloat16 or float32" in other_precision(torch.float16)
    assert "backbone.dtype=float32" in other_precision(torch.bfloat16)
    assert "computed in float32" in other_precision(torch.float32)
