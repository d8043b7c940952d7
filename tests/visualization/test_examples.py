from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.errors import DataError
from gate_lightning.visualization.examples import LONGEST, read_examples, write_examples
from gate_lightning.visualization.predictions import PredictedImage

CLASSES = ("sky", "<script>alert(1)</script>")
PALETTE = ((10, 20, 30), (200, 100, 0))


def example(name: str, size: tuple[int, int] = (5, 7), **more: object) -> PredictedImage:
    rng = np.random.default_rng(len(name))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    truth, prediction = rng.integers(0, 2, (2, *size))
    truth[0, 0] = -1
    return PredictedImage(name, image, truth, prediction, **more)  # type: ignore[arg-type]


def test_examples_come_back(tmp_path: Path) -> None:
    spread = np.linspace(0, 0.7, 35, dtype=np.float32).reshape(5, 7)
    first, worst = example("a/ü \"b'.png", miou=0.25), example("c", uncertainty=spread)
    write_examples(tmp_path, [first, worst], CLASSES, PALETTE, -1)
    found = read_examples(tmp_path)
    assert found is not None
    assert (found.classes, found.palette) == (CLASSES, PALETTE)
    back, other = found.rows
    assert (back.name, other.name) == (first.name, "c")
    assert back.miou == 0.25
    assert np.array_equal(back.image, first.image)
    assert np.array_equal(back.prediction, first.prediction)
    assert np.array_equal(back.truth, np.where(first.truth == -1, 255, first.truth))
    assert other.uncertainty is not None
    assert np.abs(other.uncertainty - spread).max() <= 0.7 / 255


def test_label_files_have_the_colours_of_the_classes(tmp_path: Path) -> None:
    row = example("a")
    write_examples(tmp_path, [row], CLASSES, PALETTE, -1)
    seen = np.asarray(Image.open(tmp_path / "0_prediction.png").convert("RGB"))
    assert np.array_equal(seen, np.array(PALETTE)[row.prediction])


def test_large_images_are_shrunk_together(tmp_path: Path) -> None:
    truth = np.zeros((100, 2 * LONGEST), np.int64)
    truth[:, LONGEST:] = 1
    image = np.repeat(np.uint8(255 * truth)[..., None], 3, axis=2)
    write_examples(tmp_path, [PredictedImage("wide", image, truth, truth)], CLASSES, PALETTE, 255)
    found = read_examples(tmp_path)
    assert found is not None
    (back,) = found.rows
    assert back.image.shape == (50, LONGEST, 3)
    assert np.array_equal(back.truth, back.image[..., 0] // 255)


def test_no_folder_no_examples(tmp_path: Path) -> None:
    assert read_examples(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 3},
        {"palette": [[1, 2]]},
        {"examples": [{"name": "a"}]},
        {"examples": [{"name": "a", "miou": "much"}]},
        {"examples": [{"name": "a", "miou": None}, {"name": "b", "miou": None}]},
        {"examples": [{"name": "a", "miou": None, "largest_uncertainty": 1.0}]},
        {"classes": ["only one"]},
    ],
)
def test_damaged_examples_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_examples(tmp_path, [example("a")], CLASSES, PALETTE, -1)
    path = tmp_path / "examples.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=str(tmp_path)):
        read_examples(tmp_path)
