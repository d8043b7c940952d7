"""One's own pairs: tables and lists, with points and without, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gate_lightning.data.correspondence.own_pairs import OwnPairsDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.pair_layouts import drawing, save

HEADER = "source_path,target_path,category,source_points,target_points,source_bounding_box,target_bounding_box\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    drawn = drawing(3)
    for name, image in zip(("a.png", "birds/b c.png"), drawn.images, strict=True):
        save(tmp_path / name, image)
    return tmp_path


def opened(root: Path, text: str, name: str = "pairs.csv", **settings: object) -> OwnPairsDataModule:
    (root / name).write_text(text)
    return OwnPairsDataModule(str(root), test=name, size=16, **settings)


def test_a_table_and_the_same_as_json_are_one(root: Path) -> None:
    table = opened(root, HEADER + 'a.png,birds/b c.png,bird,10 20; 30.5 4,"11,21;31 5",1 2 40 30,2 3 50 44\n')
    entry = {
        "source_path": "a.png",
        "target_path": "birds/b c.png",
        "category": "bird",
        "source_points": [[10, 20], [30.5, 4]],
        "target_points": [[11, 21], [31, 5]],
        "source_bounding_box": [1, 2, 40, 30],
        "target_bounding_box": [2, 3, 50, 44],
    }
    (one,), (other,) = table.pairs_of("test"), opened(root, json.dumps([entry]), "x.json").pairs_of("test")
    assert one.source_points.tolist() == [[10, 20], [30.5, 4]]
    assert repr(one) == repr(other)
    assert (one.source_size, one.target_size) == ((48, 64), (64, 72))
    assert table.splits == ("test",)
    (batch,) = table.test_dataloader()
    assert batch.conditions.sample_ids == ("a.png", "birds/b c.png")
    assert batch.conditions.categories == ("bird", "bird")


def test_pairs_without_points_are_for_looking(root: Path) -> None:
    data = opened(root, "source_path,target_path\na.png,birds/b c.png\n")
    (pair,) = data.pairs_of("test")
    assert len(pair) == 0
    assert pair.source_box is None
    report = data.check()
    assert not report.errors
    assert "none of the pairs has keypoints" in str(report)
    (batch,) = data.test_dataloader()
    assert batch.conditions.categories is None


def test_a_list_without_points_trains_nothing(root: Path) -> None:
    (root / "train.csv").write_text("source_path,target_path\na.png,birds/b c.png\n")
    data = OwnPairsDataModule(str(root), train="train.csv", test=None, size=16)
    with pytest.raises(DataError, match="none of the training pairs has keypoints"):
        data.train_dataloader()


BROKEN = {
    "some without points": (
        HEADER + "a.png,birds/b c.png,,1 2,3 4,,\nbirds/b c.png,a.png,,,,,\n",
        "no keypoints in common",
    ),
    "points that differ": (HEADER + "a.png,birds/b c.png,,1 2;3 4,3 4,,\n", "2 source_points and 1 target_points"),
    "no numbers": (HEADER + "a.png,birds/b c.png,,1 x,3 4,,\n", r"row 1: source_points has '1 x'; expected x y; x y"),
    "three numbers": (HEADER + "a.png,birds/b c.png,,1 2 3,3 4 5,,\n", r"source_points\[0\] is .*; expected 2 numbers"),
    "box of three": (HEADER + "a.png,birds/b c.png,,1 2,3 4,1 2 3,\n", "source_bounding_box is .*; expected 4 numbers"),
    "box without area": (HEADER + "a.png,birds/b c.png,,1 2,3 4,5 2 5 9,\n", "has no area"),
    "outside": (HEADER + "a.png,birds/b c.png,,99 2,3 4,,\n", r"keypoint \(99, 2\) is outside"),
    "infinite": (HEADER + "a.png,birds/b c.png,,inf 2,3 4,,\n", "expected 2 numbers"),
    "missing image": (HEADER + "a.png,gone.png,,1 2,3 4,,\n", r"1 of 2 images are missing, the first is .*gone.png"),
    "missing image of a category": (HEADER + "a.png,gone.png,cat,1 2,3 4,,\n", r"the first is [^ ]*(?<!cat)/gone.png"),
    "twice": (HEADER + "a.png,birds/b c.png,,1 2,3 4,,\n" * 2, "is there 2 times"),
    "leaves the folder": (HEADER + "../a.png,birds/b c.png,,1 2,3 4,,\n", "leaves its folder"),
    "unknown column": ("source_path,target_path,points\na.png,birds/b c.png,1\n", "column 'points'; expected of"),
    "no column": ("source,target\na,b\n", "has no column source_path, target_path"),
    "two categories": (
        HEADER + "a.png,birds/b c.png,x,1 2,3 4,,\nbirds/b c.png,a.png,y,1 2,3 4,,\n",
        "shows 'y' in one pair and 'x' in another",
    ),
    "empty": (HEADER, "no pairs"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_tables_are_named(root: Path, fault: str) -> None:
    text, message = BROKEN[fault]
    with pytest.raises(DataError, match=message):
        opened(root, text).pairs_of("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list"),
        ("[3]", "entry 0 is 3; expected an object"),
        ('[{"source_path": "a.png"}]', "has no 'target_path'"),
        ('[{"source_path": 1, "target_path": "a.png"}]', "source_path is 1; expected str"),
        (
            '[{"source_path": "a.png", "target_path": "a.png", "source_points": 3}]',
            r"source_points is 3; expected \[\[x, y\]",
        ),
        ("[", "is no JSON"),
        ("[]", "has no pairs"),
    ],
)
def test_broken_lists_are_named(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(root, text, "pairs.json").pairs_of("test")


def test_a_damaged_image_is_named(root: Path) -> None:
    (root / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png is no image"):
        opened(root, HEADER + "a.png,birds/b c.png,,1 2,3 4,,\n").pairs_of("test")


def test_a_prompt_by_category_needs_categories(root: Path) -> None:
    text = HEADER + "a.png,birds/b c.png,,1 2,3 4,,\n"
    with pytest.raises(DataError, match=r"a\.png: no category"):
        opened(root, text, prompt_simple="a photo of a {category}").pairs_of("test")
    with pytest.raises(ConfigError, match="no list of pairs"):
        OwnPairsDataModule(str(root), test=None)
    with pytest.raises(DataError, match=r"expected a list of pairs, .csv or .json"):
        opened(root, text, "pairs.xlsx").pairs_of("test")
    with pytest.raises(DataError, match="cannot be read"):
        OwnPairsDataModule(str(root), test="gone.csv").pairs_of("test")
