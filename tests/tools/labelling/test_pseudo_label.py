"""Labels of an ensemble for images without any, and the data set made of them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.errors import CacheError, ConfigError, DataError
from gate_lightning.pixel_classifiers.votes import js_divergence, majority_vote
from gate_lightning.tools.labelling.labelled_folder import Entry, LabelledFolder
from gate_lightning.tools.labelling.pseudo_label import pseudo_label
from gate_lightning.tools.labelling.student_set import kept, student_set
from tests.support.folders import CLASSES, make_folder, make_image, write

SIZES = {"train": [(16, 16)] * 3, "val": [(16, 16)], "test": [(16, 16)] * 2}


class Colours(torch.nn.Module):
    """Three members that tell classes by colour channel and agree the less the bluer the image is."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def frozen_description(self) -> dict[str, str]:
        return {"network": "colours"}

    def ensemble(self, images, conditions, size):
        self.calls += 1
        maps = torch.nn.functional.interpolate(images.double(), size, mode="nearest")
        blue = maps[:, 2:].clamp(0)
        logits = [4 * maps + 6 * blue * torch.roll(torch.eye(3)[0], member).view(3, 1, 1) for member in range(3)]
        rows = [torch.stack([member[row] for member in logits]) for row in range(len(images))]
        labels = torch.stack([majority_vote(row.argmax(1), 3) for row in rows])
        return labels, torch.stack([js_divergence(row) for row in rows])


@pytest.fixture
def trained(tmp_path: Path) -> SimpleNamespace:
    root = make_folder(tmp_path / "data", SIZES)
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    pool = LabelScarceDataModule(FolderDataModule(str(root), crop_size=16), size=16, image_size=16)
    components = SimpleNamespace(datamodule=pool, labels=pool.labels)
    return SimpleNamespace(task=Colours(), components=components, folder=tmp_path, checkpoint=checkpoint)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    for number, blue in enumerate((0, 240, 160, 200)):
        image = make_image(20, 20, number) // 2
        image[..., 2] = blue
        write(folder / (f"deep/{number}.png" if number == 3 else f"{number}.png"), image)
    (folder / "captions.txt").write_text("".join(f"{'deep/' * (n == 3)}{n}.png\timage {n}\n" for n in range(4)))
    return folder


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_most_uncertain_images_come_first(trained, images, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "labels of 4 images" in pseudo_label(trained, images, out)
    entries = LabelledFolder(out).read_table()
    assert [entry.name for entry in entries] == ["1", "deep/3", "2", "0"]
    loader = trained.components.datamodule.prediction(images).predict_dataloader()
    for name, batch in zip(("0", "1", "2", "deep/3"), loader, strict=True):
        labels, divergence = Colours().ensemble(batch.images, batch.conditions, (20, 20))
        np.testing.assert_array_equal(mask(out / f"masks/train/{name}.png"), labels[0].numpy())
        entry = next(entry for entry in entries if entry.name == name)
        highest = np.sort(divergence.numpy().ravel())[-40:]  # a tenth of 20 × 20
        assert entry.uncertainty == pytest.approx(highest.mean())
        assert entry.mean_divergence == pytest.approx(float(divergence.mean()))
        shares = [float(part.rsplit(" ", 2)[1]) for part in entry.classes.split("; ")]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.2)
        heat = np.asarray(Image.open(out / f"uncertainty/{name}.png")).astype(int).sum(axis=2)
        order = np.argsort(divergence.numpy().ravel().clip(max=math.log(2)))
        assert heat.ravel()[order[-1]] > heat.ravel()[order[0]] or np.ptp(divergence.numpy()) < 1e-3
        assert np.asarray(Image.open(out / f"overlays/{name}.png")).shape == (20, 20, 3)


def test_the_result_is_a_data_set(trained, images, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pseudo_label(trained, images, out)
    for kind in ("images", "masks"):
        (out / kind / "val").mkdir()
        (out / kind / "val/0.png").write_bytes((out / kind / "train/0.png").read_bytes())
    with (out / "captions.txt").open("a") as file:
        file.write("val/0\timage 0\n")
    read = FolderDataModule(str(out), crop_size=20)
    assert read.labels.classes == CLASSES
    assert read.labels.palette == trained.components.labels.palette
    source = read.source("train")
    assert [source.load(index).caption for index in range(4)] == [f"image {number}" for number in range(4)]
    np.testing.assert_array_equal(source.load(3).mask, mask(out / "masks/train/deep/3.png"))


def test_the_same_command_goes_on_and_leaves_corrected_masks_alone(trained, images, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pseudo_label(trained, images, out)
    calls = trained.task.calls
    table = (out / "uncertainty.csv").read_bytes()
    corrected = np.full((20, 20), 2, np.uint8)
    Image.fromarray(corrected).save(out / "masks/train/1.png")
    (out / ".records/2.json").unlink()  # what a kill while writing leaves
    (out / "uncertainty.csv").unlink()
    assert "3 there already" in pseudo_label(trained, images, out)
    assert trained.task.calls == calls + 1
    np.testing.assert_array_equal(mask(out / "masks/train/1.png"), corrected)
    assert (out / "uncertainty.csv").read_bytes() == table
    trained.checkpoint.write_bytes(b"other weights")
    with pytest.raises(CacheError, match="labels written by other settings"):
        pseudo_label(trained, images, out)


def test_large_images_are_labelled_in_small(trained, images, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("gate_lightning.tools.labelling.pseudo_label.MOST_PIXELS", 10 * 10)
    asked = []
    whole = trained.task.ensemble
    trained.task.ensemble = lambda images, conditions, size: asked.append(size) or whole(images, conditions, size)
    pseudo_label(trained, images, tmp_path / "out")
    assert set(asked) == {(10, 10)}
    assert mask(tmp_path / "out/masks/train/0.png").shape == (20, 20)


def test_arrays_beside_images(trained, images, tmp_path: Path) -> None:
    pseudo_label(trained, images, tmp_path / "png")
    pseudo_label(trained, images, tmp_path / "npy", layout="npy")
    for name in ("0", "deep/3"):
        labels = np.load(tmp_path / f"npy/train/{name}.npy")
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, mask(tmp_path / f"png/masks/train/{name}.png"))
        assert (tmp_path / f"npy/train/{name}.png").read_bytes() == (images / f"{name}.png").read_bytes()


def test_masks_in_the_numbers_of_the_data_set(trained, images, tmp_path: Path) -> None:
    pseudo_label(trained, images, tmp_path / "plain")
    plain = mask(tmp_path / "plain/masks/train/0.png")
    numbered = FolderDataModule(str(tmp_path / "data"), crop_size=16, label_map={7: 0, 0: 1, 9: 2, 200: 2})
    trained.components.datamodule.dataset = numbered
    pseudo_label(trained, images, tmp_path / "png", numbering="files")
    pseudo_label(trained, images, tmp_path / "npy", layout="npy")
    files = [mask(tmp_path / "png/masks/train/0.png"), np.load(tmp_path / "npy/train/0.npy")]
    for values in files:
        np.testing.assert_array_equal(values, np.array([7, 0, 9])[plain])
        np.testing.assert_array_equal(numbered.reader.label_map.apply(values)[0], plain)
    coloured = [Image.open(tmp_path / f"{kind}/masks/train/0.png").convert("RGB") for kind in ("plain", "png")]
    np.testing.assert_array_equal(*map(np.asarray, coloured))
    with pytest.raises(ConfigError, match="another layout or numbering"):
        student_set(trained, tmp_path / "png", tmp_path / "student")


def test_what_cannot_be_labelled_is_refused(trained, images, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder or npy"):
        pseudo_label(trained, images, tmp_path / "out", layout="coco")
    for tool in (pseudo_label, student_set):
        with pytest.raises(ConfigError, match="give input="):
            tool(trained, None, tmp_path / "out")
    trained.task = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="no ensemble"):
        pseudo_label(trained, images, tmp_path / "out")


def test_all_broken_images_are_named_before_anything_is_labelled(trained, images, tmp_path: Path) -> None:
    (images / "captions.txt").unlink()
    for name in ("a_page.jpg", "deep/empty.png"):
        (images / name).write_bytes(b"<html>"[: 6 * (name == "a_page.jpg")])
    (images / "notes.md").write_text("no image, and none that claims to be one")
    with pytest.raises(DataError, match=r"2 of 6 images(?s:.)*a_page\.jpg(?s:.)*empty\.png"):
        pseudo_label(trained, images, tmp_path / "out")
    assert trained.task.calls == 0
    assert not (tmp_path / "out").exists()


def entries(count: int) -> list[Entry]:
    order = np.random.default_rng(0).permutation(count)
    return [Entry(float(value), 0.0, f"{value}.png", f"{value}", "") for value in order]


def test_the_filters_drop_what_they_say() -> None:
    described = [entry.uncertainty for entry in kept(entries(1000), 0.1)]
    assert described == list(range(900))
    # sorted ascending, indices 30 … N - portion + 30 (segmentation.md §1.11)
    released = [entry.uncertainty for entry in kept(entries(1000), 0.1, "released")]
    assert released == list(range(30, 930))
    assert len(kept(entries(9), 0.1)) == 9
    with pytest.raises(DataError, match="leaves none of 20"):
        kept(entries(20), 0.1, "released")
    for settings in ((1.0, "described"), (-0.1, "described"), (0.1, "most")):
        with pytest.raises(ConfigError):
            kept(entries(20), *settings)


def contents(source) -> set[bytes]:
    samples = [source.load(index) for index in range(len(source))]
    return {sample.image.tobytes() + sample.mask.tobytes() for sample in samples}


def test_a_student_s_data_set(trained, images, tmp_path: Path) -> None:
    labelled, out = tmp_path / "labelled", tmp_path / "student"
    with pytest.raises(DataError, match="pseudo_label"):
        student_set(trained, labelled, out)
    pseudo_label(trained, images, labelled)
    assert "3 of 4" in student_set(trained, labelled, out, drop_uncertain=0.25)
    read = FolderDataModule(str(out), crop_size=16)
    assert [read.source("train").sample_id(i) for i in range(3)] == [
        f"images/train/{n}.png" for n in ("0", "2", "deep/3")
    ]
    pool = trained.components.datamodule
    for split, own in (("val", "train"), ("test", "test")):
        source, expected = read.source(split), pool.source(own)
        assert len(source) == len(expected)
        assert contents(source) == contents(expected)
    table, text = labelled / "uncertainty.csv", (labelled / "uncertainty.csv").read_text()
    for name, message in (("../../../x.png", "leaves its folder"), ("/x.png", "leaves its folder")):
        table.write_text(text.replace("deep/3.png", name))
        with pytest.raises(DataError, match=rf"uncertainty\.csv, row 'deep/3': the path '{name}' {message}"):
            student_set(trained, labelled, tmp_path / "other")
    table.write_text(text)
    secret, image = write(tmp_path / "secret.png", make_image(4, 4)), labelled / "images/train/deep/3.png"
    kept_image = image.read_bytes()
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(DataError, match=r"'deep/3\.png' is a link out of .*secret\.png"):
        student_set(trained, labelled, tmp_path / "other")
    image.unlink()
    image.write_bytes(kept_image)
    # a mask corrected in the meantime is taken over
    Image.fromarray(np.full((20, 20), 1, np.uint8)).save(labelled / "masks/train/2.png")
    student_set(trained, labelled, out, drop_uncertain=0.25)
    assert (mask(out / "masks/train/2.png") == 1).all()
    with pytest.raises(CacheError, match=r"drop_uncertain: 0.25 → 0.5"):
        student_set(trained, labelled, out, drop_uncertain=0.5)
