"""Tables and images that are there whole or not at all."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.errors import CacheError
from gate_lightning.utils.files import write_csv, write_image


def test_a_table_is_read_back_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    rows = [["a, b", 1, 0.5], ['say "ü"', 2, float("nan")]]
    write_csv(path, ["name", "n", "x"], rows)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["name", "n", "x"], ["a, b", "1", "0.5"], ['say "ü"', "2", "nan"]]
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


def test_an_image_is_read_back_as_it_was_given(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    write_image(tmp_path / "image.png", Image.fromarray(pixels))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), pixels)


def test_a_table_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.mkdir()
    with pytest.raises(CacheError, match="cannot be written"):
        write_csv(path, ["a"], [])
    assert list(tmp_path.iterdir()) == [path]
