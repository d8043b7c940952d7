"""Unlabelled images: a folder or one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gate_lightning.data.core.prediction import ImageSource, PredictionBatch, PredictionDataModule
from gate_lightning.data.core.unlabelled import UnlabelledImages
from gate_lightning.data.samples import Sample
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.transforms.basic import Resize
from gate_lightning.errors import DataError
from tests.support.folders import make_image, write
from tests.support.toy_data import ToyModule, trainer_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, size in {"b.png": (20, 30), "a/c.bmp": (40, 20), "a/d.png": (20, 30)}.items():
        write(tmp_path / name, make_image(*size, seed=len(name)))
    (tmp_path / "notes.md").write_text("x")
    return tmp_path


def test_images_one_by_one(images: Path) -> None:
    module = PredictionDataModule(images)
    found = dict(module)
    assert len(module) == 3
    assert list(found) == ["a/c", "a/d", "b"]
    assert (found["b"] == make_image(20, 30, seed=5)).all()


def test_batches_are_resized_and_remember_the_files(images: Path) -> None:
    module = ScenesDataModule(size=16).prediction(images)
    batches = list(module.predict_dataloader())
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [(32, 16), (16, 24), (16, 24)]
    assert [batch.sizes for batch in batches] == [((40, 20),), ((20, 30),), ((20, 30),)]
    assert [batch.paths for batch in batches] == [(str(images / name),) for name in ("a/c.bmp", "a/d.png", "b.png")]
    assert batches[0].conditions.sample_ids == ("a/c.bmp",)
    assert batches[0].conditions.captions is None
    moved = batches[0].to("cpu")
    assert isinstance(moved, PredictionBatch)
    assert moved.paths == batches[0].paths
    together = ScenesDataModule(size=16).prediction(images, eval_batch_size=4).predict_dataloader()
    assert [len(batch) for batch in together] == [1, 2]


def test_prepared_image_is_the_batch_image(images: Path) -> None:
    data = ScenesDataModule(size=16)
    batch = next(iter(data.prediction(images / "b.png").predict_dataloader()))
    sample = Sample("b.png", make_image(20, 30, seed=5), controls={"copy": make_image(20, 30, seed=5)})
    prepared = data.prepare(sample)
    assert torch.equal(prepared.images, batch.images)
    assert torch.allclose(prepared.conditions.control_images["copy"] * 2 - 1, batch.images, atol=1e-6)


def test_lightning_predicts_every_image(images: Path) -> None:
    class Sizes(ToyModule):
        def predict_step(self, batch: PredictionBatch, batch_idx: int) -> Any:
            return batch.sizes

    trainer = trainer_of(images)
    predicted = trainer.predict(Sizes(), PredictionDataModule(images))
    assert predicted == [((40, 20),), ((20, 30),), ((20, 30),)]


def test_captions_beside_the_images(images: Path) -> None:
    (images / "captions.txt").write_text("a/c.bmp\ta tall thing\na/d.png\tone\nb.png\ttwo\n")
    batches = list(PredictionDataModule(images).predict_dataloader())
    assert [batch.conditions.captions for batch in batches] == [("a tall thing",), ("one",), ("two",)]


def test_what_cannot_be_predicted_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input .*nowhere does not exist"):
        PredictionDataModule(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        PredictionDataModule(tmp_path / "empty")
    write(images / "b.bmp", make_image(4, 4))
    with pytest.raises(DataError, match="two images called 'b'"):
        PredictionDataModule(images)


def test_strips_are_named_before_the_first_image(images: Path) -> None:
    write(images / "z.png", make_image(300, 3))
    with pytest.raises(DataError, match=r"z.png: 3×300 pixels"):
        PredictionDataModule(images, Resize(64)).predict_dataloader()
    unlabelled = UnlabelledImages(str(images), resize_short=64)
    assert "z.png: 3×300 pixels" in str(unlabelled.check().errors)
    with pytest.raises(DataError, match=r"z.png: 3×300 pixels"):
        unlabelled.test_dataloader()


def test_a_folder_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path / "my [1]" / "a.png", make_image(8, 8, seed=1))
    write(tmp_path / "my 1" / "b.png", make_image(8, 8, seed=1))
    assert ImageSource(str(tmp_path / "my [1]/*.png")).names == ["a"]
    assert ImageSource(str(tmp_path / "my ?/*.png")).names == ["my 1/b"]
