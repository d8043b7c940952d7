"""Data sets of views: HPatches, lists of one's own, relative poses, generated scenes, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gate_lightning.data.geometric.homography_lists import HomographyListDataModule
from gate_lightning.data.geometric.hpatches import LEFT_OUT, HPatchesDataModule
from gate_lightning.data.geometric.keypoints import KeypointRule, read_keypoints
from gate_lightning.data.geometric.relative_poses import RelativePoseDataModule
from gate_lightning.data.geometric.scene_views import SceneViewsDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.paths import REPOSITORY
from tests.support.view_layouts import HOMOGRAPHIES, moved, plane, write_hpatches

GRID = KeypointRule("grid", spacing=16)


def errors_of(data: Any) -> str:
    return "\n".join(data.check().errors)


def test_hpatches_is_read_in_its_layout_every_image_once(tmp_path: Path) -> None:
    write_hpatches(tmp_path, ("v_wall", "i_room", LEFT_OUT[0]))
    data = HPatchesDataModule(str(tmp_path), keypoints=GRID, size=32, eval_batch_size=4)
    pairs = data.pairs_of("test")
    assert [(pair.source, pair.target, pair.group) for pair in pairs] == [
        (f"{name}/1.ppm", f"{name}/{view}.ppm", group)
        for name, group in (("i_room", "illumination"), ("v_wall", "viewpoint"))
        for view in range(2, 7)
    ]
    for pair, matrix in zip(pairs[5:], HOMOGRAPHIES, strict=True):
        np.testing.assert_allclose(pair.homography, matrix)
        assert pair.source_size == pair.target_size == (96, 128)
    names = [name for batch in data.test_dataloader() for name in batch.conditions.sample_ids]
    assert len(names) == len(set(names)) == 12
    batch = next(iter(data.test_dataloader()))
    assert batch.images.shape == (4, 3, 32, 32) and batch.keypoints[0].max() > 32  # pixels of the file
    assert batch.to("cpu").keypoints[0].dtype == torch.float64
    assert len(HPatchesDataModule(str(tmp_path), "all", keypoints=GRID).pairs_of("test")) == 15
    assert len(HPatchesDataModule(str(tmp_path), ["v_wall"], keypoints=GRID, subset=2).pairs_of("test")) == 2
    assert "5 pairs" in str(data.check()) and "viewpoint" in str(data.check())
    with pytest.raises(DataError, match="no sequence v_walls"):
        HPatchesDataModule(str(tmp_path), ["v_walls"]).pairs_of("test")
    with pytest.raises(DataError, match="no train pairs here, only test"):
        data.pairs_of("train")


def test_what_is_wrong_with_sequences_is_told_with_its_file(tmp_path: Path) -> None:
    write_hpatches(tmp_path, ("v_a", "v_b", "v_c", "v_d"))
    for view in range(2, 7):
        (tmp_path / "v_a" / f"{view}.ppm").unlink()
    (tmp_path / "v_b" / "H_1_3").unlink()
    (tmp_path / "v_b" / "H_1_4").write_text("1 2 3")
    np.savetxt(tmp_path / "v_b" / "H_1_5", np.ones((3, 3)))
    np.savetxt(tmp_path / "v_b" / "H_1_6", np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]]))
    (tmp_path / "v_c" / "5.ppm").unlink()
    (tmp_path / "v_d" / "4.ppm").write_bytes(b"P6\n128 96\n255\n" + bytes(50))
    told = errors_of(HPatchesDataModule(str(tmp_path)))
    for text in (
        "v_a has fewer than two images",
        "v_b/H_1_3 ",
        "v_b/H_1_4 holds '1 2 3' …; expected 3 × 3 numbers",
        "v_b/H_1_5: the homography maps the image to a line or a point",
        "v_b/H_1_6: the homography sends a part of the image to infinity",
        "1 of 18 images are missing, the first is",
        "v_c/5.ppm",
        "v_d/4.ppm",
    ):
        assert text in told, told
    with pytest.raises(DataError, match="has no sequences"):
        HPatchesDataModule(str(tmp_path / "v_a")).pairs_of("test")


def test_keypoints_come_from_files_sift_or_a_grid(tmp_path: Path) -> None:
    write_hpatches(tmp_path / "set", ("v_wall",), tmp_path / "points")
    rule = KeypointRule("files", folder=str(tmp_path / "points"))
    data = HPatchesDataModule(str(tmp_path / "set"), keypoints=rule, size=0)
    (batch,) = data.test_dataloader()
    first, last = batch.keypoints[0].numpy(), batch.keypoints[5].numpy()
    np.testing.assert_allclose(moved(first, HOMOGRAPHIES[4]), last, atol=1e-9)
    assert batch.descriptors == (None,) * 6
    image = plane(0)
    points, descriptors = KeypointRule("sift", count=30)(image, "")
    again, _ = KeypointRule("sift", count=30)(image, "")
    assert descriptors is not None and descriptors.shape == (len(points), 128) and 25 <= len(points) <= 33
    np.testing.assert_array_equal(points, again)
    grid, nothing = KeypointRule("grid", spacing=10)(image[:21, :35], "")
    assert nothing is None and grid[:2].tolist() == [[2, 0], [12, 0]] and grid[-1].tolist() == [32, 20]
    flat, none = KeypointRule()(np.zeros((40, 40, 3), np.uint8), "")
    assert flat.shape == (0, 2) and none is not None and none.shape == (0, 128)
    with pytest.raises(ConfigError, match=r"needs dataset\.keypoints\.folder"):
        KeypointRule("files")
    with pytest.raises(ConfigError, match=r"is read by dataset\.keypoints\.name=files only"):
        KeypointRule("grid", folder=".")


def test_a_keypoint_file_of_another_image_is_refused(tmp_path: Path) -> None:
    write_hpatches(tmp_path / "set", ("v_wall",), tmp_path / "points")
    file = tmp_path / "points" / "v_wall-3.kp"
    np.savetxt(file, [[10, 10], [300, 20], [5, 200]])
    data = HPatchesDataModule(str(tmp_path / "set"), keypoints=KeypointRule("files", folder=str(tmp_path / "points")))
    told = errors_of(data)
    assert (
        "v_wall-3.kp: 2 of 3 keypoints lie outside the image of 128×96 pixels (width × height), the first at " in told
    )
    assert "(300, 20); it is the file of another image" in told
    with pytest.raises(DataError, match=r"v_wall-3\.kp: 2 of 3"):
        data.pairs_of("test")
    file.write_text("1 2\n3 4 5\n")
    assert "v_wall-3.kp, line 2: '3 4 5'; expected two numbers" in errors_of(data)
    file.unlink()
    assert "v_wall-3.kp" in errors_of(data)
    file.write_text("# nothing\n")
    assert not errors_of(data) and "v_wall-3.kp has no keypoints" in "\n".join(data.check().warnings)
    assert read_keypoints(file, (5, 5)).shape == (0, 2)


def test_own_pairs_with_homographies(tmp_path: Path) -> None:
    write_hpatches(tmp_path, ("v_wall",))
    numbers = " ".join(str(value) for value in HOMOGRAPHIES[1].ravel())
    rows = ["source_path,target_path,homography,group", "v_wall/1.ppm,v_wall/2.ppm,v_wall/H_1_2,near"]
    table = "\n".join([*rows, f"v_wall/1.ppm,v_wall/3.ppm,{numbers},far\n"])
    (tmp_path / "pairs.csv").write_text(table)
    first, second = HomographyListDataModule(str(tmp_path)).pairs_of("test")
    np.testing.assert_allclose(first.homography if first.group == "near" else second.homography, HOMOGRAPHIES[0])
    entry = {"source_path": "v_wall/1.ppm", "target_path": "v_wall/3.ppm", "homography": HOMOGRAPHIES[1].tolist()}
    (tmp_path / "pairs.json").write_text(json.dumps([entry]))
    (only,) = HomographyListDataModule(str(tmp_path), "pairs.json").pairs_of("test")
    np.testing.assert_allclose(only.homography, HOMOGRAPHIES[1])
    for change, told in (
        ({"homography": "1 0 0"}, r"entry 1: homography is '1 0 0'; expected nine numbers"),
        ({"homography": [[0, 0, 0]] * 3}, r"entry 1: the homography sends a part of the image to infinity"),
        ({"target_path": "../x.ppm"}, r"entry 1"),
        ({"points": []}, r"entry 1 has 'points'; expected of source_path"),
        ({"target_path": "v_wall/9.ppm"}, r"1 of 2 images are missing"),
    ):
        (tmp_path / "pairs.json").write_text(json.dumps([entry | change]))
        with pytest.raises(DataError, match=told):
            HomographyListDataModule(str(tmp_path), "pairs.json").pairs_of("test")
    (tmp_path / "pairs.json").write_text(json.dumps([entry, entry]))
    with pytest.raises(DataError, match=r"is there 2 times \(test\); keep one of each"):
        HomographyListDataModule(str(tmp_path), "pairs.json").pairs_of("test")


def test_relative_poses_in_the_format_of_superglue(tmp_path: Path) -> None:
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), plane(0))
    rotation = cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0]
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation, [1, 2, 3]
    camera = [100, 0, 64, 0, 110, 48, 0, 0, 1]

    def line(turn: str = "0 0", where: np.ndarray = motion, lens: list[int] = camera) -> str:
        return f"a.png b.png {turn} {' '.join(map(str, lens + camera))} {' '.join(map(str, where.ravel()))}\n"

    (tmp_path / "pairs.txt").write_text(line() + "\n")
    (pair,) = RelativePoseDataModule(str(tmp_path)).pairs_of("test")
    assert pair.pose is not None and pair.homography is None
    np.testing.assert_allclose(pair.pose.rotation, rotation)
    assert pair.pose.translation.tolist() == [1, 2, 3] and pair.pose.source_camera[1].tolist() == [0, 110, 48]
    for text, told in (
        (line("0 1"), "line 1: its images are turned by 0 and 1 quarter turns"),
        (line()[:-5] + " 1 1\n", "line 1 has .* columns; expected 38"),
        (line(where=np.eye(4)), "expected a rotation and a translation that is not 0"),
        (line(where=2 * motion), "expected a rotation"),
        (line(lens=[0] * 9), "the source's camera is"),
        ("", "has no pairs"),
    ):
        (tmp_path / "pairs.txt").write_text(text)
        with pytest.raises(DataError, match=told):
            RelativePoseDataModule(str(tmp_path)).pairs_of("test")


def test_views_of_scenes_are_where_their_homographies_say() -> None:
    data = SceneViewsDataModule(scenes=2, views=3, pixels=96, keypoints=GRID)
    images = {name: image.drawn for name, image in data.annotated("test").images.items()}
    pairs = data.pairs_of("test")
    assert [pair.group for pair in pairs] == ["illumination"] * 6 + ["viewpoint"] * 6 and len(images) == 16
    for pair in pairs:
        source, target = (images[name].astype(float) for name in (pair.source, pair.target))
        matrix = pair.homography.numpy()
        if pair.group == "illumination":
            np.testing.assert_array_equal(matrix, np.eye(3))
            assert np.corrcoef(source.ravel(), target.ravel())[0, 1] > 0.8 and np.abs(source - target).mean() > 1
            continue
        there = cv2.warpPerspective(source, matrix, (96, 96))
        seen = cv2.warpPerspective(np.ones((96, 96)), matrix, (96, 96)) == 1
        assert seen.mean() > 0.3
        shifted = cv2.warpPerspective(source, np.array([[1, 0, 2], [0, 1, 0], [0, 0, 1]]) @ matrix, (96, 96))
        exact, beside = (np.abs(image - target)[seen].mean() for image in (there, shifted))
        assert exact < 5 and exact < 0.7 * beside
    with pytest.raises(ConfigError, match=r"dataset\.groups='light'"):
        SceneViewsDataModule(groups=["light"])


REAL = REPOSITORY.parent / "shared" / "data" / "hpatches"


@pytest.mark.skipif(not REAL.is_dir(), reason="shared real data are not there")
def test_the_real_sequence_is_read() -> None:
    data = HPatchesDataModule(str(REAL), keypoints=KeypointRule("grid", spacing=64))
    assert len(data.pairs_of("test")) == 5 and not data.check("quick").errors
