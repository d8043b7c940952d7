"""PF-WILLOW and PF-PASCAL: fixtures in the official layouts, and what is wrong with broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.correspondence.batches import MIRRORED
from gate_lightning.data.correspondence.pf_pascal import PFPascalDataModule
from gate_lightning.data.correspondence.pf_willow import PFWillowDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.pair_layouts import drawing, write_pascal, write_willow


def test_willow_is_as_its_table_says(tmp_path: Path) -> None:
    data = PFWillowDataModule(str(write_willow(tmp_path)), size=16)
    pairs = data.pairs_of("test")
    assert [pair.category for pair in pairs] == ["car(G)", "duck(S)", "winebottle(wC)"]
    for number, pair in enumerate(pairs):
        drawn = drawing(number, 10)
        np.testing.assert_array_equal(pair.source_points.numpy(), drawn.points[0])
        np.testing.assert_array_equal(pair.target_points.numpy(), drawn.points[1])
        assert (pair.source_size, pair.target_size) == ((48, 64), (64, 72))
        assert pair.source_box is None
        assert pair.source == f"{pair.category}/60_{number:04d}_a.png"
    shown = [name for batch in data.test_dataloader() for name in batch.conditions.categories]
    assert shown == ["car", "car", "duck", "duck", "wine bottle", "wine bottle"]
    assert data.splits == ("test",)
    assert not data.check().errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",60_", ",61_", 1).replace("60_0000_a", "60_9999_a"), "images are missing"),
        (lambda text: text.replace("PF-dataset/duck", "/PF-dataset/duck", 1), "leaves its folder"),
        (lambda text: text[: text.rindex(",")], "41 cells"),
        (lambda text: text[: text.rindex(",")] + ",x\n", "could not convert|row 3"),
        (lambda text: text[: text.rindex(",")] + ",nan\n", "not finite"),
        (lambda text: text[: text.rindex(",")] + ",500\n", "outside the image"),
        (lambda text: "", "is empty"),
    ],
)
def test_broken_tables_of_willow_are_named(tmp_path: Path, change, message: str) -> None:
    root = write_willow(tmp_path)
    table = root / "test_pairs_pf.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(DataError, match=message):
        PFWillowDataModule(str(root), size=16).pairs_of("test")


def test_willow_has_no_training_pairs(tmp_path: Path) -> None:
    data = PFWillowDataModule(str(write_willow(tmp_path)), size=16)
    with pytest.raises(DataError, match=r"PF-WILLOW has no train pairs here, only test"):
        data.setup("fit")
    (tmp_path / "test_pairs_pf.csv").unlink()
    with pytest.raises(DataError, match=r"no test pairs here; looked for test_pairs_pf.csv"):
        PFWillowDataModule(str(tmp_path)).check()


def test_pascal_reads_points_and_boxes_of_the_annotations(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    data = PFPascalDataModule(str(write_pascal(tmp_path)), size=16)
    (pair,), drawn = data.pairs_of("test"), drawing(2)
    assert pair.category == "cat"
    assert pair.keypoint_ids == ("1", "2", "3")  # 0 is absent in the first image, 4 in the second
    np.testing.assert_array_equal(pair.source_points.numpy(), drawn.points[0][1:4])
    np.testing.assert_array_equal(pair.target_points.numpy(), drawn.points[1][1:4])
    assert (list(pair.source_box), list(pair.target_box)) == drawn.boxes
    assert data.splits == ("train", "val", "test")
    assert not data.check().errors
    (listed,) = PFPascalDataModule(str(tmp_path), points="csv", size=16).pairs_of("test")
    assert listed.target_points.tolist() == pair.target_points.tolist()
    assert listed.target_box is None


def test_pascals_mirrored_training_pairs_are_mirrored(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    data = PFPascalDataModule(str(write_pascal(tmp_path)), size=0, batch_size=1)
    by_view = {batch.source.conditions.views[0]: batch for batch in data.train_dataloader()}
    plain, mirrored = by_view[""], by_view[MIRRORED]
    assert mirrored.source.images.flip(3).equal(plain.source.images)
    width = plain.source.images.shape[3]
    np.testing.assert_array_equal(width - 1 - mirrored.source_points[..., 0], plain.source_points[..., 0])
    np.testing.assert_array_equal(mirrored.source_points[..., 1], plain.source_points[..., 1])


def test_broken_pascal_is_named(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    root = write_pascal(tmp_path)
    annotation = root / "Annotations/cat/2008_0020.mat"
    whole = annotation.read_bytes()
    faults = {
        "no MATLAB file": lambda: annotation.write_bytes(b"no mat"),
        "does not exist": annotation.unlink,
        "has no bbox": lambda: scipy_io.savemat(annotation, {"kps": np.ones((5, 2))}),
        "expected \\(N, 2\\) and 4 numbers": lambda: scipy_io.savemat(
            annotation, {"kps": np.ones((5, 3)), "bbox": [1.0]}
        ),
        "no keypoints in common": lambda: scipy_io.savemat(
            annotation, {"kps": np.full((5, 2), np.nan), "bbox": [[1.0, 2.0, 3.0, 4.0]]}
        ),
        "has no area": lambda: scipy_io.savemat(annotation, {"kps": np.ones((5, 2)), "bbox": [[3.0, 2.0, 3.0, 4.0]]}),
    }
    for message, break_it in faults.items():
        break_it()
        with pytest.raises(DataError, match=message):
            PFPascalDataModule(str(root), size=16).pairs_of("test")
        annotation.write_bytes(whole)
    table = root / "test_pairs_pf_pascal.csv"
    table.write_text(table.read_text().replace(",8,", ",21,"))
    with pytest.raises(DataError, match="class '21'; expected 1 to 20"):
        PFPascalDataModule(str(root), size=16).pairs_of("test")
    with pytest.raises(DataError, match="has no column XA"):
        PFPascalDataModule(str(root), points="csv", size=16).pairs_of("val")
    with pytest.raises(ConfigError, match=r"dataset\.points"):
        PFPascalDataModule(str(root), points="json")


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    root = write_pascal(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"which scipy reads: pip install 'gate-lightning\[mat\]'"):
        PFPascalDataModule(str(root), size=16).pairs_of("test")
    assert PFPascalDataModule(str(root), points="csv", size=16).pairs_of("test")
