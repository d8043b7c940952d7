"""AP-10K: pairs within a species, across species and families, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.correspondence.ap10k import KEYPOINTS, AP10KDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.pair_layouts import drawing, write_ap10k


def test_pairs_are_grouped_by_subset(tmp_path: Path) -> None:
    data = AP10KDataModule(str(write_ap10k(tmp_path)), size=16)
    pairs = {pair.group: pair for pair in data.pairs_of("test")}
    assert list(pairs) == ["cross-family", "cross-species", "intra-species"]
    assert [(pair.category, pair.target_category) for pair in pairs.values()] == [
        ("cat", "cow"),
        ("cat", "king cheetah"),
        ("cat", ""),
    ]
    pair, drawn = pairs["intra-species"], drawing(4, 17, (64, 96))
    seen = [index for index in range(17) if index not in (3, 4)]  # each hidden in one of the images
    np.testing.assert_array_equal(pair.source_points.numpy(), drawn.points[0][seen])
    np.testing.assert_array_equal(pair.target_points.numpy(), drawn.points[1][seen])
    assert pair.keypoint_ids == tuple(KEYPOINTS[index] for index in seen)
    assert pair.target_visible == {*pair.keypoint_ids, KEYPOINTS[3]}  # hidden in the source alone
    assert (list(pair.source_box), list(pair.target_box)) == drawn.boxes
    assert pair.source_size == (64, 96)
    assert {pair.group for pair in data.pairs_of("train")} == {""}
    shown = {
        name: category
        for batch in data.test_dataloader()
        for name, category in zip(batch.conditions.sample_ids, batch.conditions.categories, strict=True)
    }
    assert {name.split("/")[2]: category for name, category in shown.items()} == {
        "cat": "cat",
        "cow": "cow",
        "king cheetah": "king cheetah",
    }
    assert not data.check().errors


def test_one_subset_alone(tmp_path: Path) -> None:
    root = str(write_ap10k(tmp_path, ("",)))
    data = AP10KDataModule(root, "intra-species", size=16)
    assert [pair.group for pair in data.pairs_of("test")] == ["intra-species"]
    with pytest.raises(DataError, match=r"test_cross_species does not exist; .* leaves subsets out"):
        AP10KDataModule(root, size=16).pairs_of("test")
    with pytest.raises(ConfigError, match=r"dataset\.subsets"):
        AP10KDataModule(root, "cross-country")


def test_partners_are_left_and_right(tmp_path: Path) -> None:
    data = AP10KDataModule(str(write_ap10k(tmp_path)), size=16)
    assert set(data.partners) == {"cat", "cow", "king cheetah"}
    partners = data.partners["cat"]
    assert len(partners) == 14
    assert partners["left back paw"] == "right back paw"
    assert all(partners[other] == one for one, other in partners.items())
    assert sorted(map(len, data.keypoint_groups["cow"])) == [2, 2, 4, 4]
    assert all({partners[name] for name in group} == group for group in data.keypoint_groups["cow"])


def test_broken_files_are_named(tmp_path: Path) -> None:
    root = write_ap10k(tmp_path, ("",))
    pair = next((root / "PairAnnotation/test").iterdir())
    image = root / json.loads(pair.read_text())["src_json_path"].removeprefix("data/ap-10k/")
    whole = {path: path.read_text() for path in (pair, image)}
    faults = {
        "keypoints is .*; expected 51 numbers": (image, {"keypoints": [1, 2, 3]}),
        "bbox is None; expected 4 numbers": (image, {"bbox": None}),
        "has no area": (image, {"bbox": [3, 3, 0, 9]}),
        "height is '9'; expected int": (image, {"height": "9"}),
        "its annotation says": (image, {"height": 65}),
        "src_json_path is 4; expected str": (pair, {"src_json_path": 4}),
        "cannot be read": (pair, {"src_json_path": "ImageAnnotation/Felidae/cat/gone.json"}),
        "leaves its folder": (pair, {"src_json_path": "ImageAnnotation/../../x.json"}),
    }
    for message, (path, changes) in faults.items():
        path.write_text(json.dumps({**json.loads(whole[path]), **changes}))
        with pytest.raises(DataError, match=message):
            AP10KDataModule(str(root), "intra-species", size=16).pairs_of("test")
        path.write_text(whole[path])
    assert AP10KDataModule(str(root), "intra-species", size=16).pairs_of("test")
