"""The range of label values."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.errors import DataError
from gate_lightning.ops.labels import check_label_range


def test_it_says_which_pixels_count():
    masks = torch.tensor([[0, 2, 255], [255, 1, 0]])
    assert check_label_range(masks, 3, 255).tolist() == [[True, True, False], [False, True, True]]
    assert check_label_range(masks.where(masks != 255, 2), 3, 2).tolist() == [[True, False, False], [False, True, True]]


def test_it_names_wrong_values_but_not_hundreds_of_them():
    with pytest.raises(DataError, match=r"label values -1, 3, 254; expected 0 … 2 for 3 classes"):
        check_label_range(torch.tensor([254, 3, 255, -1, 3, 0]), 3, 255)
    with pytest.raises(DataError, match=r"values 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, …; expected"):
        check_label_range(torch.arange(250), 3, 255)
