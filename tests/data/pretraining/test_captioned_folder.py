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
