"""CUB-200-2011: the 14 lists of cut-out birds, pairs of one class, and what is wrong with broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.correspondence.cub import PARTS, CUBDataModule, Cut
from gate_lightning.errors import ConfigError, DataError
from tests.support.pair_layouts import PART_COLOURS, write_cub

pytest.importorskip("scipy")


def test_cuts_are_the_released_ones() -> None:
    # by hand: 0-based 60 … 384 × 27 … 330, 5 % more: 43.75 … 400.25 × 11.8 … 345.2, rounded 44 … 400 × 12 … 345, and
    # 357 − 334 = 23 rows more, 12 of them above
    assert Cut.around((61, 28, 385, 331)) == Cut(44, 0, 357)
    # 0 … 9 × 0 … 19: −0.5 … 9.5 → −1 … 10 and −1 … 20: 12 × 22, and 10 columns more, 5 of them left
    assert Cut.around((1, 1, 10, 20)) == Cut(-6, -1, 22)


def test_parts_are_where_their_colours_are_in_the_cut(tmp_path: Path) -> None:
    data = CUBDataModule(str(write_cub(tmp_path)))
    source = data.source("test")
    images = {source.sample_id(index): source.load(index).image for index in range(len(source))}
    pairs = data.pairs_of("test")
    assert len(pairs) == 4 * 3 + 3 * 2
    assert {pair.group for pair in pairs} == {"subset 00", "subset 13"}
    for pair in pairs:
        assert images[pair.source].shape == (256, 256, 3)
        assert pair.source_size == pair.target_size == (256, 256)
        for name, points in ((pair.source, pair.source_points), (pair.target, pair.target_points)):
            for number, (x, y) in zip(pair.keypoint_ids, points.tolist(), strict=True):
                colour = images[name][round(y), round(x)].astype(int)
                assert np.abs(colour - PART_COLOURS[int(number) - 1]).max() < 40, (name, number, colour)
    # part n of bird n is hidden
    first = next(pair for pair in pairs if pair.source.endswith("0001.jpg") and pair.target.endswith("0002.jpg"))
    assert set(first.keypoint_ids) == {str(number) for number in range(3, 16)}
    assert "2 of the 14 lists are there" in str(data.check())
    assert {name for batch in data.test_dataloader() for name in batch.conditions.categories} == {"bird"}


def test_pairs_of_one_class_have_whole_images_and_boxes(tmp_path: Path) -> None:
    root = str(write_cub(tmp_path))
    data = CUBDataModule(root, "same_class", pairs=4, size=16)
    pairs = data.pairs_of("test")
    assert len(pairs) == 4
    source = data.source("test")
    images = {source.sample_id(index): source.load(index).image for index in range(len(source))}
    for pair in pairs:
        assert pair.source.split("/")[1] == pair.target.split("/")[1]
        assert images[pair.source].shape[:2] == pair.source_size
        left, top, right, bottom = pair.target_box
        for number, (x, y) in zip(pair.keypoint_ids, pair.target_points.tolist(), strict=True):
            assert np.abs(images[pair.target][int(y), int(x)].astype(int) - PART_COLOURS[int(number) - 1]).max() < 12
            assert left <= x <= right
            assert top <= y <= bottom
    again = CUBDataModule(root, "same_class", pairs=4, size=16).pairs_of("test")
    assert [pair.target for pair in again] == [pair.target for pair in pairs]
    with pytest.raises(DataError, match="6 pairs of test images of one class; ask for fewer"):
        CUBDataModule(root, "same_class", pairs=7).pairs_of("test")


def test_partners_are_left_and_right() -> None:
    for one, other in CUBDataModule.partners["bird"].items():
        names = {PARTS[int(one) - 1], PARTS[int(other) - 1]}
        assert {name.split()[0] for name in names} == {"left", "right"}
        assert len({name.split()[1] for name in names}) == 1


def test_broken_files_are_named(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    faults = {
        "cub_metadata/acsm_val_cub_cleaned.mat": [("x", "no MATLAB file")],
        "cub_metadata/cub_subset_0_original_paths.txt": [
            ("CUB_200_2011/images/x.jpg", "'CUB_200_2011/images/x.jpg' is not in images.txt")
        ],
        "images.txt": [("1 2 3", "line 1: 3 columns; expected 2")],
        "parts/part_locs.txt": [
            ("1 1 a 2 1", "could not convert"),
            ("1 2 3 4 1", "part 2 of image 1"),
            ("1 1 3 4 1", "image 1 has 1 parts; expected 15"),
        ],
    }
    for name, each in faults.items():
        path = root / name
        whole = path.read_bytes()
        for text, message in each:
            path.write_text(text)
            with pytest.raises(DataError, match=message):
                CUBDataModule(str(root)).pairs_of("test")
        path.write_bytes(whole)
    with pytest.raises(DataError, match="no train pairs here, only test"):
        CUBDataModule(str(root)).setup("fit")
    with pytest.raises(DataError, match=r"give dataset\.metadata"):
        CUBDataModule(str(root), metadata=str(tmp_path)).pairs_of("test")
    with pytest.raises(ConfigError, match=r"dataset\.protocol"):
        CUBDataModule(str(root), "all")
    path = next((root / "images/001.Bird").iterdir())
    path.unlink()
    with pytest.raises(DataError, match=r"1 of 6 images are missing"):
        CUBDataModule(str(root)).pairs_of("test")
