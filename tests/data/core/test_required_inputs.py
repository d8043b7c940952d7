"""Control images from a folder beside the data set follow their images through every transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.data.core.prediction import PredictionDataModule
from gate_lightning.data.core.reading import read_images
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.samples import BatchDataset, SampleRequest, collate_masks
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.folders import make_folder, make_image, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images whose control images are the images themselves: whatever happens to one must happen to the other."""
    made = make_folder(tmp_path / "data", {"train": [(24, 32), (40, 40)], "val": [(24, 32), (30, 20)]})
    for path in (made / "images").rglob("*.png"):
        target = tmp_path / "copies" / path.relative_to(made / "images")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return made


def module(root: Path, required_inputs: RequiredInputs | None = None, **own: object) -> FolderDataModule:
    data = FolderDataModule(str(root), crop_size=16, batch_size=2, photometric=False, **own)  # type: ignore[arg-type]
    data.attach_inputs(required_inputs or RequiredInputs({"copy": str(root.parent / "copies")}))
    return data


def test_control_images_are_resized_cropped_and_flipped_with_their_images(root: Path) -> None:
    data = module(root)
    views = BatchDataset(data.source("train"), data.train_transform, collate_masks, random=True)
    seen = []
    for epoch in range(8):
        batch = views[[SampleRequest(0, epoch), SampleRequest(1, epoch)]]
        control = batch.conditions.control_images["copy"]
        inside = (batch.masks != 255)[:, None].expand_as(control)  # the padding is black in one and grey in the other
        assert torch.allclose(control[inside] * 2 - 1, batch.images[inside], atol=1e-6)
        seen.append(batch.images)
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_evaluation_and_prediction_hand_them_out_too(root: Path) -> None:
    data = module(root, augment=False)
    batches = [*data.val_dataloader(), *data.prediction(root / "images").predict_dataloader()]
    assert len(batches) == 2 + 4
    for batch in batches:
        assert torch.allclose(batch.conditions.control_images["copy"] * 2 - 1, batch.images, atol=1e-6)
        assert not batch.conditions.training


def test_training_batches_say_so_and_are_views_where_dropout_needs_them(root: Path) -> None:
    data = module(root, augment=False)
    batch = next(iter(data.train_dataloader()))
    assert (batch.conditions.training, batch.conditions.views) == (True, ("", ""))
    data = module(root, RequiredInputs(random_views=True), augment=False)
    batch = next(iter(data.train_dataloader()))
    assert (batch.conditions.training, batch.conditions.views) == (True, ("draw0", "draw0"))
    assert all(not batch.conditions.views[0] for batch in data.val_dataloader())


def test_generated_images_have_them_by_name(tmp_path: Path) -> None:
    data = ScenesDataModule(train=1, val=1, test=1, size=16)
    name = ScenesDataModule(train=1, val=1, test=1, size=16).source("val").sample_id(0)
    write(tmp_path / f"{name}.png", make_image(16, 16, 5))
    data.attach_inputs(RequiredInputs({"depth": str(tmp_path)}))
    (batch,) = data.val_dataloader()
    expected = torch.from_numpy(make_image(16, 16, 5)).permute(2, 0, 1) / 255
    assert torch.allclose(batch.conditions.control_images["depth"][0], expected)


def test_another_size_is_refused_in_words(root: Path) -> None:
    write(root.parent / "copies/val/001.png", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match=r"val/001\.png has 30×20 pixels .*'images/val/001\.png' has 20×30"):
        module(root).source("val")


def test_an_orientation_that_a_control_image_may_lack_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path, copy = root / "images/val/001.png", root.parent / "copies/val/001.png"
    for name in ("images/val/001.png", "masks/val/001.png"):
        image = Image.open(root / name).copy()
        image.save(root / name, exif=exif)
    module(root).source("val")
    assert "1 images are turned or mirrored by their EXIF orientation (first 'images/val/001.png')" in caplog.text
    assert "their copy control images were made" in caplog.text
    caplog.clear()
    read_images(path, control_images={"copy": copy})
    assert "1 images are turned or mirrored by their EXIF orientation (first '001.png')" in caplog.text
    caplog.clear()
    copy.write_bytes(path.read_bytes())  # both have one
    sample = module(root).source("val").load(0)
    assert (sample.controls["copy"] == sample.image).all()
    assert not caplog.text


def test_a_missing_control_image_is_named_with_their_number(root: Path) -> None:
    (root.parent / "copies/train/001.png").rename(root.parent / "copies/train/0001.png")
    with pytest.raises(
        DataError,
        match=r"no copy control image for 'images/train/001\.png' \(1 of 2 .*'train/0001\.png'.*at its own path",
    ):
        module(root).source("train")
    with pytest.raises(DataError, match=r"folder of copy control images .*nowhere .*does not exist"):
        RequiredInputs({"copy": str(root / "nowhere")}).attach(module(root).source("val"))


def test_checks_see_every_image_of_a_split(root: Path) -> None:
    seen: list[list[str]] = []
    data = module(root, RequiredInputs(checks=(lambda ids: seen.append(list(ids)),)))
    data.setup("fit")
    loader = PredictionDataModule(root / "images/val", required_inputs=RequiredInputs(checks=(seen.append,)))
    list(loader.predict_dataloader())
    assert [len(ids) for ids in seen] == [2, 2, 2]
    assert seen[0] == ["images/train/001.png", "images/train/town/000.png"]


def test_inputs_are_attached_before_images_are_read(root: Path) -> None:
    data = module(root)
    data.attach_inputs(RequiredInputs())  # nothing was read yet
    data.setup("fit")
    with pytest.raises(ConfigError, match="attach_inputs comes before setup, and FolderDataModule has read train, val"):
        data.attach_inputs(RequiredInputs())
