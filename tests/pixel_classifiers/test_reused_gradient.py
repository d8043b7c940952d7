"""A gradient written where the last one was: the same numbers, and never somebody else's memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gate_lightning.pixel_classifiers import reused_gradient
from gate_lightning.pixel_classifiers.reused_gradient import large_product


@pytest.fixture
def weight(monkeypatch) -> nn.Parameter:
    monkeypatch.setattr(reused_gradient, "LARGE", 1)
    return nn.Parameter(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))


def _rows(seed: int) -> Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed))


def _expected(rows: Tensor) -> Tensor:
    return torch.ones(2, 3, 5) @ rows.transpose(1, 2)


def test_the_memory_of_a_forgotten_gradient_is_used_again(weight):
    large_product(weight, _rows(1)).sum().backward()
    place = weight.grad.data_ptr()
    for seed in (2, 3):
        rows = _rows(seed).requires_grad_()
        product = large_product(weight, rows)
        weight.grad = None
        torch.testing.assert_close(product, weight @ rows)
        others = [torch.zeros(2, 3, 4) for _ in range(20)]  # what would get a freed block of that size
        product.sum().backward()
        assert weight.grad.data_ptr() == place
        assert all(not other.any() for other in others)
        torch.testing.assert_close(weight.grad, _expected(rows.detach()))
        torch.testing.assert_close(rows.grad, weight.detach().transpose(1, 2) @ torch.ones(2, 3, 5))


def test_a_gradient_that_was_not_forgotten_is_added_to(weight):
    for seed in (1, 2, 3):
        large_product(weight, _rows(seed)).sum().backward()
    torch.testing.assert_close(weight.grad, sum(_expected(_rows(seed)) for seed in (1, 2, 3)))


def test_a_gradient_that_somebody_keeps_stays(weight):
    large_product(weight, _rows(1)).sum().backward()
    kept, copy = weight.grad, weight.grad.clone()
    product = large_product(weight, _rows(2))
    weight.grad = None
    product.sum().backward()
    assert torch.equal(kept, copy)
    torch.testing.assert_close(weight.grad, _expected(_rows(2)))


def test_small_weights_and_evaluation_take_the_plain_way():
    small = nn.Parameter(torch.randn(2, 3, 4))
    large_product(small, _rows(1)).sum().backward()
    assert type(large_product(small, _rows(2)).grad_fn).__name__ == "BmmBackward0"
    with torch.no_grad():
        assert large_product(small, _rows(2)).grad_fn is None
