"""Captions in files, and shuffled ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.data.files.captions import derangement, read_captions
from gate_lightning.errors import ConfigError, DataError
from tests.support.folders import SIZES, make_folder

NAMES = ["001", "002", "003", "town/000"]
TEXTS = [
    "a road of train 1, really.",
    "a car of train 2, really.",
    "a sky of train 3, really.",
    "a sky of train 0, really.",
]


@pytest.mark.parametrize("captions", ["files", "table"])
def test_captions_are_read_as_they_are(tmp_path: Path, captions: str) -> None:
    root = make_folder(tmp_path, captions=captions)
    assert read_captions(root, "train", NAMES) == TEXTS
    assert len(read_captions(root, "val", ["001", "town/000"])) == len(SIZES["val"])


def test_no_captions(tmp_path: Path) -> None:
    assert read_captions(make_folder(tmp_path), "train", NAMES) is None


def test_missing_captions_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path, captions="files")
    (root / "captions/train/002.txt").unlink()
    with pytest.raises(DataError, match=r"captions/train has no caption for '002' of train \(1 of 4 are missing\)"):
        read_captions(root, "train", NAMES)


def test_both_kinds_of_captions_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, captions="files")
    (root / "captions.txt").write_text("train/001.png\tx")
    with pytest.raises(DataError, match="keep one of them"):
        read_captions(root, "train", NAMES)


def test_lines_without_tab_are_named(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("train/001.png\ta\n\ntrain/002.png a\n")
    with pytest.raises(DataError, match="line 3"):
        read_captions(tmp_path, "train", NAMES)


@pytest.mark.parametrize("length", [2, 3, 10, 101])
def test_nobody_keeps_the_own_caption(length: int) -> None:
    orders = [derangement(length, seed, "train").tolist() for seed in range(20)]
    for order in orders:
        assert sorted(order) == list(range(length))
        assert all(index != moved for index, moved in enumerate(order))
    assert orders[0] == derangement(length, 0, "train").tolist()
    assert length == 2 or len({tuple(order) for order in orders}) > 1


def test_all_cycles_of_four_are_drawn() -> None:
    assert len({tuple(derangement(4, seed)) for seed in range(200)}) == 6


def test_a_single_caption_cannot_be_shuffled() -> None:
    with pytest.raises(ConfigError, match="at least 2 images"):
        derangement(1, 0)
