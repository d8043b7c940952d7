"""ADE20K: facts, layout, labels, mistakes in words, and a small run up to a submission."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.utils import get_classes, get_palette
from PIL import Image

from gate_lightning.data.segmentation.ade20k import ADE20KDataModule
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.metrics.segmentation import SegmentationMetrics
from gate_lightning.tools.check_data import check_data
from tests.support.benchmarks import ADE_SIZES, blocks, make_ade20k
from tests.support.composition import composed
from tests.support.folders import make_image, write

SMALL = {"scale": (128, 64), "crop_size": 64, "batch_size": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_ade20k(tmp_path / "ADEChallengeData2016")


def test_names_and_colours_are_the_fields(root: Path) -> None:
    module = ADE20KDataModule(str(root))
    assert list(module.labels.classes) == [name.strip() for name in get_classes("ade20k")]
    assert [list(colour) for colour in module.labels.palette] == get_palette("ade20k")
    assert module.card.prompt_fine.startswith("a highly realistic photo of the real world. It can be")
    assert len(module.card.branches) == 3
    assert module.labels.submission == tuple(range(1, 151))


def test_labels_start_at_one_and_zero_is_ignored(root: Path) -> None:
    source = ADE20KDataModule(str(root), **SMALL).source("val")
    values = np.array(Image.open(root / "annotations/validation/ADE_val_00000001.png")).astype(int)
    expected = np.where(values == 0, 255, values - 1)
    sample = source.load(0)
    assert sample.sample_id == "images/validation/ADE_val_00000001.jpg"
    np.testing.assert_array_equal(sample.mask, expected)
    assert source.sizes(1) == (ADE_SIZES["validation"][1],) * 2


def test_masks_that_are_shifted_already_are_read_on_request(tmp_path: Path) -> None:
    root = make_ade20k(tmp_path, low=0, high=149)
    module = ADE20KDataModule(str(root), reduce_zero_label=False, **SMALL)
    values = np.array(Image.open(root / "annotations/validation/ADE_val_00000001.png"))
    np.testing.assert_array_equal(module.source("val").load(0).mask, values)


def test_training_and_evaluation_batches(root: Path) -> None:
    module = ADE20KDataModule(str(root), **SMALL)
    module.setup("fit")
    for batch in module.train_dataloader():
        assert batch.images.shape == (2, 3, 64, 64)
        assert batch.masks.shape == (2, 64, 64)
        assert ((batch.masks < 150) | (batch.masks == 255)).all()
    shapes = {name: size for batch in module.val_dataloader() for name, size in _sizes(batch)}
    assert shapes["images/validation/ADE_val_00000002.jpg"] == ((77, 64), (60, 50))


def _sizes(batch: object) -> list[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    names = batch.conditions.sample_ids  # type: ignore[attr-defined]
    sizes = (tuple(batch.images.shape[2:]), tuple(batch.masks.shape[1:]))  # type: ignore[attr-defined]
    return [(name, sizes) for name in names]


def test_images_smaller_than_the_crop_are_padded_with_ignored(root: Path) -> None:
    module = ADE20KDataModule(str(root), scale=(128, 64), crop_size=64, ratio_range=(0.5, 1.0), batch_size=4)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert batch.images.shape[2:] == (64, 64)
    padded = batch.masks[:, -1, -1] == 255
    assert padded.any()
    assert (batch.images[padded][:, :, -1, -1].abs() < 0.005).all()


def test_unaugmented_images_are_the_same_in_every_epoch(root: Path) -> None:
    module = ADE20KDataModule(str(root), augment=False, **SMALL)
    module.setup("fit")
    first, second = ({n: i for b in module.train_dataloader() for n, i in _images(b)} for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _images(batch: object) -> list[tuple[str, torch.Tensor]]:
    return list(zip(batch.conditions.sample_ids, batch.images, strict=True))  # type: ignore[attr-defined]


def test_a_wrong_root_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "ADEChallengeData2016").mkdir()
    with pytest.raises(
        DataError, match=r"no images/: looked for images/\{training,validation\} and annotations.*found"
    ):
        ADE20KDataModule(str(tmp_path))
    with pytest.raises(DataError, match="does not exist: looked for images"):
        ADE20KDataModule(str(tmp_path / "nowhere"))


def test_a_whole_data_set_has_no_errors(root: Path, tmp_path: Path) -> None:
    report = check_data(ADE20KDataModule(str(root)), output=str(tmp_path / "out"))
    assert [split.count for split in report.splits] == [4, 2]
    assert report.splits[0].pixels.sum() == sum(height * width for height, width in ADE_SIZES["training"])
    assert "150, the last class" not in str(report)
    # 150 classes in four small images: not all the missing ones are listed
    assert "more classes in the masks" in report.warnings[0]
    assert report.warnings[0].count("(") == 8


BREAKS = {
    "missing mask": (
        "annotations/training/ADE_train_00000002.png",
        None,
        "ADE_train_00000002.jpg: image without mask",
    ),
    "missing image": ("images/training/ADE_train_00000003.jpg", None, "ADE_train_00000003.png: mask without image"),
    "other size": ("annotations/validation/ADE_val_00000001.png", blocks(40, 64, 0, 150, 0), "image is 64×48"),
    "beyond 150": ("annotations/validation/ADE_val_00000001.png", blocks(48, 64, 0, 151, 0), "not those of the full"),
    "255": ("annotations/training/ADE_train_00000001.png", blocks(48, 64, 0, 255, 0) | 255, "reduce_zero_label=false"),
    "RGB": ("annotations/training/ADE_train_00000001.png", make_image(48, 64), "RGB mask and ADEChallengeData2016.zip"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_said_in_words(root: Path, what: str) -> None:
    name, content, expected = BREAKS[what]
    (root / name).unlink()
    if content is not None:
        write(root / name, content)
    report = ADE20KDataModule(str(root), **SMALL).check("full")
    assert len(report.errors) == 1
    assert expected in report.errors[0]
    if "missing" in what:
        folder = "annotations" if what == "missing mask" else "images"
        assert f"expected {folder}/training/…" in report.errors[0]


def test_zero_label_mistakes_are_said_in_words(tmp_path: Path) -> None:
    official = ADE20KDataModule(str(make_ade20k(tmp_path / "a")), reduce_zero_label=False, **SMALL)
    assert "dataset.reduce_zero_label=true" in official.check("full").errors[0]
    shifted = ADE20KDataModule(str(make_ade20k(tmp_path / "b", high=149)), **SMALL)
    assert any("dataset.reduce_zero_label=false" in warning for warning in shifted.check("full").warnings)


def test_crops_that_never_fit_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop_size=2048 never fits: images are at most 4096×1024"):
        ADE20KDataModule(str(root), crop_size=2048)
    with pytest.raises(ConfigError, match="expected a number of pixels, or"):
        ADE20KDataModule(str(root), crop_size=(1, 2, 3))


def test_there_is_no_test_truth(root: Path) -> None:
    module = ADE20KDataModule(str(root), **SMALL)
    assert not module.has_test
    with pytest.raises(DataError, match="submission=true"):
        module.setup("test")
    assert [module.images_of("test").sample_id(0)] == ["images/testing/ADE_test_00000001.jpg"]
    shutil.rmtree(root / "images/testing")
    with pytest.raises(DataError, match=r"looked for .*images/testing and .*release_test/testing"):
        module.images_of("test")


def test_real_images(shared_dir: Path) -> None:
    root = shared_dir / "data/ADEChallengeData2016"
    module = ADE20KDataModule(str(root))
    source = module.source("val")
    assert len(source) == 3
    names = (root / "objectInfo150.txt").read_text().splitlines()[1:]
    first = [row.split("\t")[-1].split(",")[0].strip() for row in names]
    assert sum(ours != theirs for ours, theirs in zip(module.labels.classes, first, strict=True)) <= 16
    for index in range(3):
        mask = source.load(index).mask
        assert mask is not None
        values = np.array(Image.open(root / f"annotations/validation/ADE_val_0000000{index + 1}.png"))
        np.testing.assert_array_equal(mask == 255, values == 0)
        np.testing.assert_array_equal(mask[mask != 255] + 1, values[values != 0])


def test_corrupted_masks_score_as_a_second_computation_says(shared_dir: Path) -> None:
    """The second one counts in the files' own values, class by class, and never sees 255 or a confusion matrix."""
    root = shared_dir / "data/ADEChallengeData2016"
    source, metrics = ADE20KDataModule(str(root)).source("val"), SegmentationMetrics(150)
    rng = np.random.default_rng(0)
    overlap, union, labelled = (dict.fromkeys(range(1, 151), 0) for _ in range(3))
    for index in range(len(source)):
        truth = np.array(Image.open(root / "annotations/validation" / f"{Path(source.sample_id(index)).stem}.png"))
        # moved by some pixels, a tenth of the pixels anything; 0 is no answer, so it becomes the last class
        called = np.where(rng.random(truth.shape) < 0.1, rng.integers(1, 151, truth.shape), np.roll(truth, 9, (0, 1)))
        called[called == 0] = 150
        for value in range(1, 151):
            right, said = truth == value, (called == value) & (truth > 0)
            overlap[value] += int((right & said).sum())
            union[value] += int((right | said).sum())
            labelled[value] += int(right.sum())
        mask = torch.from_numpy(source.load(index).mask.astype(np.int64))
        metrics.update(torch.from_numpy(called.astype(np.int64) - 1)[None], mask[None])
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert 0.001 < found["mIoU"] < 0.9
    assert found["mIoU"] == pytest.approx(np.mean([overlap[v] / union[v] for v in union if union[v]]), abs=1e-6)
    assert found["mAcc"] == pytest.approx(np.mean([overlap[v] / labelled[v] for v in union if labelled[v]]), abs=1e-6)
    assert found["aAcc"] == pytest.approx(sum(overlap.values()) / sum(labelled.values()), abs=1e-6)


@pytest.mark.slow
def test_a_run_reaches_a_submission_that_scores_the_same(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = [
        "dataset=ade20k", f"dataset.root={root}", "dataset.scale=[128,64]", "dataset.crop_size=64",
        "dataset.batch_size=2", "dataset.num_workers=0", "backbone.weights=random", "techniques=none",
        "head.decode.channels=16", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu",
        "callbacks=quiet", "logger=none",
    ]  # fmt: skip
    train(composed(*given), given, run)
    reported = json.loads((run / "metrics.json").read_text())
    for split, count in (("val", 2), ("test", 1)):
        override = [f"run={run}", f"split={split}", "submission=true"]
        evaluate(composed(*override, name="eval"), override, tmp_path)
        assert len(list((run / f"submission_{split}").iterdir())) == count
    hits = total = 0
    for path in sorted((run / "submission_val").glob("*.png")):
        prediction = Image.open(path)
        truth = np.array(Image.open(root / "annotations/validation" / path.name))
        assert prediction.mode == "L"
        assert np.array(prediction).min() >= 1
        hits += int((np.array(prediction) == truth)[truth > 0].sum())
        total += int((truth > 0).sum())
    assert hits / total == pytest.approx(reported["val/aAcc"], abs=1e-6)
    override = [f"run={run}", "split=test", "submission=true", f"output={run / 'submission_val'}"]
    with pytest.raises(DataError, match=r"submission_val holds 2 files of something else"):
        evaluate(composed(*override, name="eval"), override, tmp_path)
