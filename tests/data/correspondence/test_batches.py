"""Training batches of pairs: points follow their images, resized and mirrored, and a stopped run goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule

from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.correspondence.batches import PairSample, PairTransform, SquareBicubic, collate_pairs
from gate_lightning.data.correspondence.spair import SPairDataModule
from gate_lightning.data.samples import Sample
from gate_lightning.errors import ConfigError
from gate_lightning.structures import MIRRORED, Pair, PairBatch
from tests.support.pair_layouts import write_spair
from tests.support.toy_data import Stop, trainer_of

POINTS = ((3, 4), (10, 6), (7, 12))


def marked(
    width: int = 16, names: tuple[str, ...] = ("0", "1", "2"), category: str = "cat", **attributes: int
) -> PairSample:
    """A pair whose images are black, with a pixel of its own brightness at every point."""
    images, points = [], torch.tensor(POINTS, dtype=torch.float32)
    for _ in range(2):
        image = np.zeros((16, width, 3), dtype=np.uint8)
        for index, (x, y) in enumerate(POINTS):
            image[y, x] = 100 + 50 * index
        images.append(image)
    pair = Pair(
        "a", "b", points, points, (16, width), (16, width), category=category, keypoint_ids=names, attributes=attributes
    )
    return PairSample("a b", Sample("a", images[0]), Sample("b", images[1]), points, points, pair)


def brightness(sample: Sample, points: torch.Tensor) -> list[float]:
    return [float("nan") if torch.isnan(x) else float(sample.image[int(y), int(x), 0]) for x, y in points]


def test_mirrored_points_are_where_their_pixels_went() -> None:
    both = PairTransform(SquareBicubic(0), flip=1.0)(marked(), np.random.default_rng(0))
    assert both.views == (MIRRORED, MIRRORED)
    assert brightness(both.source, both.source_points) == brightness(both.target, both.target_points) == [100, 150, 200]


@pytest.mark.parametrize("seed", range(6))
def test_one_mirrored_image_has_its_points_renamed(seed: int) -> None:
    transform = PairTransform(SquareBicubic(0), flip_one=1.0, partners={"cat": {"0": "1", "1": "0"}})
    made = transform(marked(), np.random.default_rng(seed))
    assert sorted(made.views) == ["", MIRRORED]
    assert brightness(made.source, made.source_points) == [100, 150, 200]
    assert brightness(made.target, made.target_points) == [150, 100, 200]


def test_points_without_their_partner_are_absent() -> None:
    transform = PairTransform(
        SquareBicubic(0), flip_one=1.0, partners={"cat": {"0": "1", "1": "0", "2": "9", "9": "2"}}
    )
    made = transform(marked(), np.random.default_rng(1))
    assert (
        torch.isnan(made.source_points).any(1).tolist()
        == torch.isnan(made.target_points).any(1).tolist()
        == [False, False, True]
    )


def test_pairs_listed_as_mirror_images_are_mirrored() -> None:
    made = PairTransform(SquareBicubic(0))(marked(flip=1), np.random.default_rng(0))
    assert made.views == (MIRRORED, MIRRORED)
    assert brightness(made.target, made.target_points) == [100, 150, 200]


def test_points_are_resized_as_their_images() -> None:
    # a pixel that is enlarged n times has its centre in the middle of n pixels
    made = PairTransform(SquareBicubic(64))(marked(width=32), np.random.default_rng(0))
    expected = [((x + 0.5) * 2 - 0.5, (y + 0.5) * 4 - 0.5) for x, y in POINTS]
    assert [tuple(point) for point in made.source_points.tolist()] == expected
    assert made.source.image.shape == (64, 64, 3)
    column, row = (round(v) for v in expected[0])
    assert made.source.image[row - 4 : row + 5, column - 2 : column + 3].max() > 80


def test_batches_are_filled_with_nan() -> None:
    short = marked()
    short = PairSample(
        "s", short.source, short.target, short.source_points[:1], short.target_points[:1], short.pair, ("", MIRRORED)
    )
    batch = collate_pairs([marked(), short], training=True)
    assert isinstance(batch, PairBatch)
    assert batch.source_points.shape == (2, 3, 2)
    assert torch.isnan(batch.source_points[1, 1:]).all()
    assert not torch.isnan(batch.target_points[0]).any()
    assert batch.target.conditions.views == ("", MIRRORED)
    assert batch.source.conditions.training
    assert torch.isnan(marked().ignored().source_points).all()


class Recorder(LightningModule):
    """Remembers every pair, and trains a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.seen: list[Any] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch.source.conditions, batch.target.conditions, batch.source_points.tolist()))
        return ((batch.source_points - batch.target_points).nan_to_num() / 32 + self.weight).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert not isinstance(batch, PairBatch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], lr=0.1)


def test_a_stopped_run_goes_on_with_the_pairs_it_would_have_seen(tmp_path: Path) -> None:
    root = str(write_spair(tmp_path / "data", {"trn": ("cat", "dog", "cow"), "val": ("cat",)}))

    def data() -> SPairDataModule:
        return SPairDataModule(root, size=32, batch_size=2, flip=0.5, flip_one=0.5)

    whole, first, second = Recorder(), Recorder(), Recorder()
    settings: dict[str, Any] = {"max_steps": 8, "max_epochs": -1}
    trainer_of(tmp_path / "whole", **settings).fit(whole, data())
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer_of(tmp_path / "stopped", [Stop("on_train_batch_end", 4)], **settings).fit(first, data())
    trainer_of(tmp_path / "resumed", **settings).fit(second, data(), ckpt_path=tmp_path / "stopped/on_exception.ckpt")
    assert str(first.seen + second.seen) == str(whole.seen)
    assert {view for source, *_ in whole.seen for view in source.views} == {"", MIRRORED}
    assert torch.equal(second.weight, whole.weight)


def test_images_of_pairs_get_their_control_images(tmp_path: Path) -> None:
    root = write_spair(tmp_path, {"trn": ("cat", "dog"), "val": ("cat",)})
    data = SPairDataModule(str(root), size=32, batch_size=2)
    data.attach_inputs(RequiredInputs({"copy": str(root)}))  # the images themselves
    for batch in data.train_dataloader():
        for side in (batch.source, batch.target):
            torch.testing.assert_close(side.conditions.control_images["copy"] * 2 - 1, side.images, rtol=0, atol=1e-6)
    (batch,) = data.val_dataloader()
    assert set(batch.conditions.control_images) == {"copy"}


def test_images_of_their_own_sizes_are_trained_one_by_one(tmp_path: Path) -> None:
    root = str(write_spair(tmp_path, {"trn": ("cat",), "val": ("cat",)}))
    with pytest.raises(ConfigError, match=r"dataset.size=0 .* batch_size=2"):
        SPairDataModule(root, size=0, batch_size=2).train_dataloader()
    batch = next(iter(SPairDataModule(root, size=0, batch_size=1).train_dataloader()))
    assert {batch.source.images.shape[2:], batch.target.images.shape[2:]} == {(48, 64), (64, 72)}


def test_processes_of_the_loader_give_what_one_process_gives(tmp_path: Path) -> None:
    root = str(write_spair(tmp_path, {"trn": ("cat", "dog"), "val": ("cat",)}))
    alone, beside = (SPairDataModule(root, size=16, batch_size=2, flip=0.5, num_workers=count) for count in (0, 1))
    for one, other in zip(alone.train_dataloader(), beside.train_dataloader(), strict=True):
        assert one.source.conditions == other.source.conditions
        assert torch.equal(one.target.images, other.target.images)
        assert torch.equal(one.pairs[1].target_points, other.pairs[1].target_points)
