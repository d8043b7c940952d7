"""Images with several captions each, in the layout of a data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gate_lightning.data.pretraining.captioned_folder import CaptionedFolder, list_captioned
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
    assert CaptionedFolder(root, 8, styles=["captions", "tags"])[3]["caption"] == "dog"


def test_without_captions_there_are_images_alone_or_texts_beside_them(tmp_path: Path) -> None:
    root = write(tmp_path, *IMAGES)
    assert listed(root) == [("a.png", ""), ("b.png", "")]
    write(root, "images/train/a.txt= a cat ")
    assert listed(root) == [("a.png", "a cat"), ("b.png", "")]


def test_images_without_splits(tmp_path: Path) -> None:
    root = write(tmp_path, "images/a.png", "captions/a.txt=a cat")
    assert listed(root) == [("a.png", ""), ("a.png", "a cat")]


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
