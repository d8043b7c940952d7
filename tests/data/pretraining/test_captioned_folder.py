"""Images with several captions each, in the layout of a data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.data.pretraining.captioned_files import list_captioned
from gate_lightning.data.pretraining.captioned_folder import CaptionedFolder, CaptionedImages
from gate_lightning.data.samples import SampleRequest
from gate_lightning.errors import DataError
from gate_lightning.ops.edges import canny


def write(root: Path, *texts: str) -> Path:
    """Images at the ends in .png, texts elsewhere ("path=text")."""
    for entry in texts:
        name, _, text = entry.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            cv2.imwrite(str(path), np.full((12, 20, 3), 90, np.uint8))
        else:
            path.write_text(text.replace("|", "\n"))
    return root


def listed(root: Path, styles: list[str] | None = None) -> list[tuple[str, str]]:
    return [(entry.path.name, entry.caption) for entry in list_captioned(root, styles)]


IMAGES = ("images/train/a.png", "images/train/deep/b.png", "images/val/c.png")
TAGS = ("captions_tags/train/a.txt=cat, grass", "captions_tags/train/deep/b.txt=dog")
SENTENCES = ("captions.txt=train/a.png\ta cat|train/deep/b.png\ta dog|val/c.png\ta house",)


def test_every_image_is_there_once_for_each_style(tmp_path: Path) -> None:
    root = write(tmp_path, *IMAGES, *TAGS, *SENTENCES)
    assert listed(root) == [
        *(("a.png", ""), ("b.png", "")),
        *(("a.png", "a cat"), ("b.png", "a dog")),
        *(("a.png", "cat, grass"), ("b.png", "dog")),
    ]
    assert listed(root, ["tags"]) == [("a.png", "cat, grass"), ("b.png", "dog")]
    both = CaptionedFolder(list_captioned(root, ["captions", "tags"]), 8)
    assert both[[SampleRequest(3), SampleRequest(0)]].captions == ("dog", "a cat")


def test_without_captions_there_are_images_alone_or_texts_beside_them(tmp_path: Path) -> None:
    root = write(tmp_path, *IMAGES)
    assert listed(root) == [("a.png", ""), ("b.png", "")]
    write(root, "images/train/a.txt= a cat ")
    assert listed(root) == [("a.png", "a cat"), ("b.png", "")]


def test_images_without_splits(tmp_path: Path) -> None:
    root = write(tmp_path, "images/a.png", "captions/a.txt=a cat")
    assert listed(root) == [("a.png", ""), ("a.png", "a cat")]


def test_images_are_read_as_everywhere_else(tmp_path: Path) -> None:
    """Transparency on white, 16 bits, .tif; hidden files and folders are no images; broken ones are named."""
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "b.tif")
    write(tmp_path, ".hidden.png", "images_of_others/x.png")
    entries = list_captioned(tmp_path)
    assert [entry.path.name for entry in entries] == ["a.png", "b.tif"]
    images = CaptionedFolder(entries, 8)[[SampleRequest(0), SampleRequest(1)]].images
    assert torch.equal(images, torch.ones(2, 3, 8, 8))
    whole = write(tmp_path / "set", "images/train/a.png", "images/train/.thumbs/a.png", "images/train/b.png")
    broken = whole / "images/train/b.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    assert len(list_captioned(whole)) == 2
    with pytest.raises(DataError, match=r"b\.png does not decode"):  # at the start, not when its turn comes
        CaptionedImages(whole, size=8).setup()
    assert [error.split()[0] for error in CaptionedImages(whole, size=8).check().errors] == [str(broken)]


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    write(tmp_path, "3_tags/a.png", "3_tags/a.txt=a cat", "3_tags/b.txt=no image", "3_tags/a.caption=x")
    write(tmp_path, "cats/c.png", "3_tags/deep/d.png", "3_tags/x.heic=x")
    data = CaptionedImages(tmp_path, size=8)
    assert [(entry.path.name, entry.caption, entry.repeats) for entry in data.entries] == [("a.png", "a cat", 3)]
    left_out, elsewhere = data.check().warnings
    assert "3 left out: 1 .caption (a.caption), 1 .txt (b.txt), 1 .heic (x.heic)." in left_out
    assert "2 images left out that are in sub-folders not named <repeats>_<style> (3_tags/deep/d.png, …)" in elsewhere


def test_accents_in_two_encodings_are_one_name(tmp_path: Path) -> None:
    write(tmp_path, "1_tags/caf\u00e9.png", "1_tags/cafe\u0301.txt=a cup")
    assert listed(tmp_path) == [("caf\u00e9.png", "a cup")]


def test_captions_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("ein\nKäfer".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.txt, line 2: .*save the file as UTF-8"):
        list_captioned(tmp_path)


def test_repeats_squares_and_the_images_that_the_loss_is_followed_on(tmp_path: Path) -> None:
    write(tmp_path, "3_tags/a.png", "3_tags/a.txt=a cat", "1_empty/b.png")
    data = CaptionedImages(tmp_path, size=8, flip=True, random_crop=True, val_length=2, batch_size=2)
    data.setup()
    assert (len(data.source("train")), len(data.source("val"))) == (4, 2)
    assert [len(batch) for batch in data.train_dataloader()] == [2, 2]
    validation = next(iter(data.val_dataloader()))
    assert validation.captions == ("", "a cat")
    assert validation.images.shape == (2, 3, 8, 8)


def test_missing_styles_and_captions_are_named(tmp_path: Path) -> None:
    root = write(tmp_path, *IMAGES, TAGS[0])
    with pytest.raises(DataError, match=r"no caption for 'deep/b' of train \(1 of 2 are missing\)"):
        list_captioned(root)
    with pytest.raises(DataError, match=r"style 'poems': .* neither captions_poems/train.*expected empty, tags"):
        list_captioned(root, ["poems"])
    flat = write(tmp_path / "flat", "a.png")
    with pytest.raises(DataError, match=r"styles=\['tags'\] needs images in .*images; found \['a\.png'\]"):
        list_captioned(flat, ["tags"])
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"No image in .*10_tags.*found \['images'\]"):
        list_captioned(tmp_path / "empty")
    with pytest.raises(DataError, match="None is not a folder"):
        list_captioned(None)


def drawn(path: Path, seed: int, size: tuple[int, int] = (20, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def test_strips_are_named(tmp_path: Path) -> None:
    drawn(tmp_path / "strip.png", 0, (3, 300))
    with pytest.raises(DataError, match=r"strip.png: 300×3 pixels"):
        CaptionedImages(tmp_path, size=16).setup("fit")


def test_images_held_out_are_validated_on_with_all_their_captions(tmp_path: Path) -> None:
    for style in ("3_empty", "3_tags"):
        for name in "abcd":
            drawn(tmp_path / style / f"{name}.png", ord(name))
    module = CaptionedImages(tmp_path, 16, held_out=2, val_length=8)
    assert module.validated == {"a.png", "d.png"}
    train, val = module.make_source("train"), module.make_source("val")
    assert (len(train), len(val)) == (2 * 2 * 3, 2 * 2)
    assert {entry.path.name for entry in train.entries} == {"b.png", "c.png"}
    assert {entry.path.name for entry in val.entries} == module.validated
    with pytest.raises(DataError, match="held_out=4 of 4 images leaves none"):
        CaptionedImages(tmp_path, 16, held_out=4).make_source("train")


def test_control_images_of_a_folder_are_cut_as_their_images(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "deep/b")):
        drawn(tmp_path / "set" / "images" / "train" / f"{name}.png", index)
        drawn(tmp_path / "controls" / "train" / f"{name}.png", index)  # the image itself: any difference shows
    module = CaptionedImages(
        tmp_path / "set", 16, flip=True, random_crop=True, control_folder=tmp_path / "controls", make_control=canny
    )
    source = module.make_source("train")
    for epoch in range(4):
        batch = source[[SampleRequest(index, epoch=epoch) for index in range(2)]]
        assert batch.control_images is not None and batch.images is not None
        torch.testing.assert_close(batch.control_images * 2 - 1, batch.images)
    drawn(tmp_path / "controls" / "train" / "a.png", 0, (10, 16))
    with pytest.raises(DataError, match=r"a\.png has 16×10 pixels .* has 32×20"):
        CaptionedImages(tmp_path / "set", 16, control_folder=tmp_path / "controls").make_source("train")
    (tmp_path / "controls" / "train" / "a.png").unlink()
    with pytest.raises(DataError, match=r"no dataset.control_folder control image for .*a\.png.*1 of 2"):
        CaptionedImages(tmp_path / "set", 16, control_folder=tmp_path / "controls").make_source("train")


def test_control_images_are_made_of_the_square(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png", 0)
    batch = CaptionedImages(tmp_path, 16, make_control=canny).make_source("train")[[SampleRequest(0)]]
    assert batch.control_images is not None and batch.images is not None
    square = ((batch.images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    edges = torch.from_numpy(canny(square)).float() / 255
    assert torch.equal(batch.control_images[0], edges.expand(3, -1, -1))
    assert CaptionedImages(tmp_path, 16).make_source("train")[[SampleRequest(0)]].control_images is None
