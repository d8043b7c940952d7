"""SPair-71k: a fixture in the official layout, the real files where they are, and every kind of bad file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.data.correspondence.spair import CATEGORIES, SPairDataModule, SPairUDataModule
from gate_lightning.data.correspondence.spair_keypoints import SPAIR_GROUPS, SPAIR_PARTNERS
from gate_lightning.errors import ConfigError, DataError
from tests.support.pair_layouts import HOMOGRAPHY, write_spair
from tests.support.paths import REPOSITORY

REAL = REPOSITORY.parent / "shared/data/SPair-71k"


def first_file(root: Path, split: str = "test") -> Path:
    return sorted((root / "PairAnnotation" / split).iterdir())[0]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_pairs_are_those_of_the_files(tmp_path: Path) -> None:
    data = SPairDataModule(str(write_spair(tmp_path)), size=32)
    assert data.splits == ("train", "val", "test")
    pairs = data.pairs_of("test")
    assert [pair.category for pair in pairs] == ["cat", "cat", "dog", "dog"]  # the list begins with dogs
    for pair in pairs:
        assert pair.source_points.dtype == torch.float32
        forward = pair.source.endswith("_a.jpg")
        first, second = (
            (pair.source_points, pair.target_points) if forward else (pair.target_points, pair.source_points)
        )
        mapped = np.hstack([first.numpy(), np.ones((len(pair), 1))]) @ HOMOGRAPHY.T
        assert np.abs(mapped[:, :2] / mapped[:, 2:] - second.numpy()).max() <= 0.5
        assert pair.source_size == ((48, 64) if forward else (64, 72))
        assert pair.attributes["viewpoint_variation"] == int(not forward)
        assert pair.keypoint_ids == ("0", "1", "2", "3", "4")
    backwards = next(pair for pair in pairs if pair.source == pairs[0].target)
    assert torch.equal(backwards.source_points, pairs[0].target_points)
    assert backwards.target_box == pairs[0].source_box


def test_every_image_is_evaluated_once_as_the_released_code_resizes_it(tmp_path: Path) -> None:
    data = SPairDataModule(str(write_spair(tmp_path)), size=32, eval_batch_size=3)
    data.setup("test")
    batches = list(data.test_dataloader())
    names = [name for batch in batches for name in batch.conditions.sample_ids]
    shown = [name for batch in batches for name in batch.conditions.categories]
    assert len(names) == len(set(names)) == 4
    assert shown == ["cat", "cat", "dog", "dog"]
    assert names[0].startswith("JPEGImages/cat/")
    with Image.open(tmp_path / names[0]) as image:
        expected = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
    got = batches[0].images[0].permute(1, 2, 0)
    torch.testing.assert_close(got, torch.from_numpy(expected / 127.5 - 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_divide_the_pairs_and_read_the_images_of_their_own(
    tmp_path: Path, world_size: int, monkeypatch
) -> None:
    root, seen, lengths = write_spair(tmp_path), [], set()
    for rank in range(world_size):
        data = SPairDataModule(str(root), size=16, eval_batch_size=1)
        monkeypatch.setattr(SPairDataModule, "_processes", (rank, world_size))
        own = data.share_of("test")
        batches = list(data.test_dataloader())
        lengths.add(len(batches))
        assert {name for pair in own for name in (pair.source, pair.target)} <= {
            name for batch in batches for name in batch.conditions.sample_ids
        }
        seen += [(pair.source, pair.target) for pair in own]
    assert len(lengths) == 1
    assert seen == [(pair.source, pair.target) for pair in SPairDataModule(str(root), size=16).pairs_of("test")]


@pytest.mark.parametrize("sign", ["_", "%3A", "\uf03a"])
def test_names_whose_colon_a_file_system_took_away_are_found(tmp_path: Path, sign: str) -> None:
    root = write_spair(tmp_path)
    expected = [pair.source for pair in SPairDataModule(str(root), size=16).pairs_of("test")]
    for path in list((root / "PairAnnotation/test").iterdir()):
        path.rename(path.with_name(path.name.replace(":", sign)))
    assert [pair.source for pair in SPairDataModule(str(root), size=16).pairs_of("test")] == expected


def test_without_a_list_the_folder_counts(tmp_path: Path) -> None:
    root = write_spair(tmp_path, {"test": ("cat",)})
    (root / "Layout/large/test.txt").unlink()
    data = SPairDataModule(str(root), size=16)
    assert len(data.pairs_of("test")) == 2
    assert data.splits == ("test",)
    with pytest.raises(DataError, match="no train pairs here, only test"):
        data.setup("fit")


def test_lists_of_hyperfeatures_replace_a_split(tmp_path: Path) -> None:
    root = write_spair(tmp_path)
    pair = SPairDataModule(str(root), size=16).pairs_of("val")[0]
    entry = {
        "source_path": pair.source.removeprefix("JPEGImages/"),
        "target_path": pair.target.rsplit("/", 1)[1],  # as in their list of six
        "source_points": pair.source_points.int().tolist(),
        "target_points": pair.target_points.int().tolist(),
        "source_bounding_box": list(map(int, pair.source_box)),
        "target_bounding_box": list(map(int, pair.target_box)),
        "category": "cat",
        "viewpoint_variation": 2,
    }
    (root / "spair_71k_val-360.json").write_text(json.dumps([entry]))
    (read,) = SPairDataModule(str(root), size=16, lists={"val": "spair_71k_val-360.json"}).pairs_of("val")
    assert (read.source, read.target, read.category) == (pair.source, pair.target, "cat")
    assert torch.equal(read.target_points, pair.target_points)
    assert (read.source_box, read.target_size) == (pair.source_box, pair.target_size)
    assert read.attributes == {"viewpoint_variation": 2}


BROKEN = {
    "keypoint outside": ({"src_kps": [[500, 3]] + [[5, 5]] * 4}, r"keypoint \(500, 3\) is outside the image of 64×48"),
    "no keypoints": ({"src_kps": [], "trg_kps": [], "kps_ids": []}, "no keypoints in common"),
    "box without area": ({"trg_bndbox": [9, 3, 9, 20]}, "has no area"),
    "other size": ({"src_imsize": [65, 48, 3]}, r"(has 64×48 pixels.*says 65×48|another pair says)"),
    "numbers of points": ({"src_kps": [[5, 5]]}, "1 src_kps and 5 trg_kps"),
    "numbers of names": ({"kps_ids": ["1"]}, "1 kps_ids for 5 keypoints"),
    "no number": ({"src_kps": [["a", 5]] * 5}, r"src_kps\[0\] is \['a', 5\]; expected 2 numbers"),
    "no box": ({"src_bndbox": None}, "src_bndbox is None; expected 4 numbers"),
    "no category": ({"category": 3}, "category is 3; expected str"),
    "outside its folder": ({"src_imname": "../../x.jpg"}, "leaves its folder"),
    "missing image": ({"src_imname": "gone.jpg"}, r"1 of 5 images are missing, the first is .*cat/gone.jpg"),
    "no size": ({"src_imsize": [64]}, r"src_imsize is \[64\]; expected"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_annotations_are_named(tmp_path: Path, fault: str) -> None:
    root = write_spair(tmp_path, {"test": ("cat", "dog")})
    changes, message = BROKEN[fault]
    edit(first_file(root), **changes)
    with pytest.raises(DataError, match=message):
        SPairDataModule(str(root), size=16).pairs_of("test")


def test_missing_pairs_are_counted_and_lists_checked(tmp_path: Path) -> None:
    root = write_spair(tmp_path)
    table = root / "Layout/large/test.txt"
    table.write_text(table.read_text() + "gone-a-b:cat\nlost-a-b:cat\n")
    with pytest.raises(
        DataError, match=r"2 of the 6 pairs .* are missing .* the first is gone-a-b:cat.json \(the colon"
    ):
        SPairDataModule(str(root), size=16).pairs_of("test")
    table.write_text(table.read_text().splitlines()[0] * 1 + "\n" + table.read_text().splitlines()[0])
    with pytest.raises(DataError, match="twice"):
        SPairDataModule(str(root), size=16).pairs_of("test")
    first_file(root, "val").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        SPairDataModule(str(root), size=16).pairs_of("val")
    with pytest.raises(DataError, match="has no JPEGImages/"):
        SPairDataModule(str(tmp_path / "PairAnnotation"))


def test_a_point_a_pixel_outside_is_told_of_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_spair(tmp_path, {"test": ("cat",)})
    points = json.loads(first_file(root).read_text())["src_kps"]
    edit(first_file(root), src_kps=[[64, 3], *points[1:]])  # counted from 1
    pair = next(pair for pair in SPairDataModule(str(root), size=16).pairs_of("test") if pair.source.endswith("_a.jpg"))
    assert pair.source_points[0].tolist() == [64, 3]
    assert "1 keypoints lie up to 1 pixels outside" in caplog.text


def test_the_check_counts_pairs_by_category(tmp_path: Path) -> None:
    report = SPairDataModule(str(write_spair(tmp_path)), size=16).check()
    assert not report.errors
    assert "test: 4 pairs with 20 keypoints, of 4 images" in str(report)
    assert [split.count for split in report.splits] == [4, 2, 4]


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    root = str(write_spair(tmp_path, {"test": ("cat",)}))
    for wrong in ({"layout": "medium"}, {"lists": {"vla": "x"}}, {"subset": 0}, {"flip": 2.0}, {"size": -1}):
        with pytest.raises(ConfigError):
            SPairDataModule(root, **wrong)
    with pytest.raises(ConfigError, match="not known which keypoints"):
        SPairUDataModule(root, flip_one=0.5)
    assert SPairUDataModule(root).card.name == "SPair-U"


def test_a_subset_is_evenly_spread(tmp_path: Path) -> None:
    root = str(write_spair(tmp_path))
    assert [pair.category for pair in SPairDataModule(root, size=16, subset=2).pairs_of("test")] == ["cat", "dog"]


def test_partners_are_mutual() -> None:
    assert set(SPAIR_PARTNERS) == set(CATEGORIES)
    for partners in SPAIR_PARTNERS.values():
        assert all(partners[other] == one != other for one, other in partners.items())


def test_groups_are_disjoint_and_hold_partners_together() -> None:
    assert set(SPAIR_GROUPS) == set(CATEGORIES)
    for category, groups in SPAIR_GROUPS.items():
        names = [name for group in groups for name in group]
        assert len(set(names)) == len(names)
        for group in groups:
            assert {SPAIR_PARTNERS[category].get(name, name) for name in group} == group


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/SPair-71k")
def test_real_pairs() -> None:
    data = SPairDataModule(str(REAL), size=64)
    assert not data.check().errors
    pairs = data.pairs_of("test")
    assert Counter(pair.category for pair in pairs) == {
        **dict.fromkeys(("cat", "cow", "dog", "horse", "sheep"), 20),
        **dict.fromkeys(("person", "pottedplant"), 1),
    }
    one = next(pair for pair in pairs if pair.source.endswith("2009_001225.jpg") and "2011_002398" in pair.target)
    assert one.source_points[0].tolist() == [182, 125]
    assert one.target_size == (332, 500)
    assert one.target_box == (162, 51, 406, 269)
    assert data.splits == ("val", "test")


def test_what_is_visible_in_the_target_is_known_where_images_are_annotated(tmp_path: Path) -> None:
    root = str(write_spair(tmp_path))
    pairs = SPairDataModule(root, size=16).pairs_of("test")
    assert all(pair.target_visible == {*pair.keypoint_ids, "28"} for pair in pairs)  # 28 is not in the pair, 29 nowhere
    path = next(tmp_path.glob("ImageAnnotation/cat/test_*.json"))
    path.unlink()
    found = SPairDataModule(root, size=16).pairs_of("test")
    assert [pair.target_visible is None for pair in found] == [Path(pair.target).stem == path.stem for pair in found]
    path.write_text('{"kps": [1, 2]}')
    with pytest.raises(DataError, match="kps is"):
        SPairDataModule(root, size=16).pairs_of("test")
