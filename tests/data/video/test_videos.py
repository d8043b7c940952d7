"""Data sets of videos: what their files say, order and division of frames, and every kind of bad file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.data.video.annotated import read_labels
from gate_lightning.data.video.base import FrameResize, VideoDataModule
from gate_lightning.data.video.davis import DAVIS2017DataModule
from gate_lightning.data.video.jhmdb import JOINTS, JHMDBDataModule
from gate_lightning.data.video.own_video import OwnVideoDataModule
from gate_lightning.data.video.scene_videos import SceneVideosDataModule
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.ops.propagation import nearest
from tests.support.folders import make_image
from tests.support.paths import REPOSITORY
from tests.support.videos import write_davis, write_frames, write_video_file

REAL = REPOSITORY.parent / "shared/data/DAVIS"
FRAMES = [make_image(24, 40, seed) for seed in range(4)]


def mask_of(*numbers: int) -> np.ndarray:
    """Bands of numbers, (24, 40)."""
    return np.array(numbers, dtype=np.uint8).repeat(-(-40 // len(numbers)))[None, :40].repeat(24, axis=0)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def names_of(data: VideoDataModule, split: str = "test") -> list[list[str]]:
    """Sample ids of the batches of a split."""
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    return [list(batch.conditions.sample_ids) for batch in loader]


def test_sizes_are_those_of_the_published_protocol() -> None:
    assert FrameResize(480).size(480, 854) == (480, 832)
    assert FrameResize(480).size(480, 910) == (480, 896)
    assert FrameResize(480).size(1080, 1920) == (480, 832)
    assert FrameResize(480).size(854, 480) == (832, 480)
    assert FrameResize(480).size(480, 480) == (480, 480)
    assert FrameResize(320, None).size(240, 320) == (320, 320)
    assert FrameResize(0).size(31, 7) == (31, 7)


@pytest.mark.parametrize(
    ("height", "width", "cells"),
    [(480, 854, (60, 104)), (480, 854, (480, 832)), (240, 320, (40, 40)), (33, 71, (5, 7))],
)
def test_masks_are_resized_as_by_pillow(height: int, width: int, cells: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 200, (height, width)).astype(np.uint8)
    small = Image.fromarray(mask).resize(cells[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(nearest(torch.from_numpy(mask), cells).numpy(), np.asarray(small))
    large = small.resize((width, height), Image.Resampling.NEAREST)
    assert np.array_equal(nearest(torch.from_numpy(np.array(small)), (height, width)).numpy(), np.asarray(large))


def test_davis_is_read_in_its_official_layout(tmp_path: Path) -> None:
    root = write_davis(tmp_path, videos=2, frames=4)
    data = DAVIS2017DataModule(str(root), test="test-dev", short_side=32, eval_batch_size=3)
    first, second = data.videos_of("val")
    assert len(first) == 4 and first.size == (32, 32) and first.objects >= 2
    assert first.frames[1] == f"JPEGImages/480p/{first.name}/00001.jpg".removesuffix(".jpg")
    assert first.mask is not None
    mask = first.mask(2)
    assert mask is not None and mask.max() <= first.objects
    assert names_of(data, "val") == [
        list(names) for one in (first, second) for names in (one.frames[:3], one.frames[3:])
    ]
    (dev,) = data.videos_of("test")
    assert dev.mask is not None and dev.mask(0) is not None and dev.mask(1) is None
    assert "val: 2 videos of 8 frames" in str(data.check("full"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no DAVIS beside the repository")
def test_real_davis() -> None:
    data = DAVIS2017DataModule(str(REAL))
    report = data.check("quick")
    assert not report.errors and not report.warnings
    assert {video.name: video.objects for video in data.videos_of("val")} == {"blackswan": 1, "dog": 1}
    assert data.val_dataloader().dataset[
        [type("R", (), {"index": 0, "epoch": 0, "padding": False})()]
    ].images.shape == (*(1, 3, 480, 832),)


def test_processes_divide_the_videos(tmp_path: Path) -> None:
    data = SceneVideosDataModule(size=16, frames=3, test=5, val=1)
    every = {video.name for video in data.videos_of("test")}
    shares = data._shares("test", 2)
    assert sorted(map(len, shares)) == [2, 3]
    assert {video.name for share in shares for video in share} == every
    whole = {name for batch in names_of(data) for name in batch}
    data.leave_out([sorted(every)[0]])
    left = {name for batch in names_of(data) for name in batch}
    assert len(whole) - len(left) == 3
    assert {video.name for share in data._shares("test", 3) for video in share} == every - {sorted(every)[0]}


def test_scenes_are_the_same_every_time_and_objects_come_back() -> None:
    made = [SceneVideosDataModule(size=48, frames=9, test=3, val=1).read("test") for _ in range(2)]
    gone = back = 0
    for one, other in zip(*made, strict=True):
        assert all((a == b).all() for a, b in zip(one.frames, other.frames, strict=True))
        assert one.video.mask is not None
        masks = np.stack([one.video.mask(index) for index in range(9)])  # type: ignore[arg-type]
        sizes = np.stack([(masks == number).sum(axis=(1, 2)) for number in range(1, one.video.objects + 1)])
        assert (sizes[:, 0] > 0).all()
        gone += int((sizes == 0).any())
        back += int(((sizes[:, 1:-1] == 0).any(axis=1) & (sizes[:, -1] > 0)).any())
    assert gone and back


def test_points_of_scenes_are_hidden_with_their_objects() -> None:
    (one,) = SceneVideosDataModule("points", size=64, frames=9, test=1, val=1).read("test")
    points = one.video.points
    assert points is not None and points.shape == (9, len(one.video.point_names), 2)
    assert np.isfinite(points[0]).all() and np.isnan(points).any()


def write_jhmdb(root: Path, frames: int = 3, **changes: Any) -> np.ndarray:
    """Positions (2, 15, T), counted from 1, of the only video."""
    scipy_io = pytest.importorskip("scipy.io", reason="JHMDB's positions are MATLAB files, which scipy reads")
    write_frames(root / "Rename_Images/walk/a", FRAMES[:frames], "{:05d}.png")
    positions = np.random.default_rng(0).uniform(1, 24, (2, 15, frames))
    path = root / "joint_positions/walk/a/joint_positions.mat"
    path.parent.mkdir(parents=True)
    scipy_io.savemat(path, {"pos_img": positions, **changes})
    return positions


def test_jhmdb(tmp_path: Path) -> None:
    positions = write_jhmdb(tmp_path)
    (tmp_path / "list.txt").write_text(
        "/home/they/JHMDB/Rename_Images/walk/a /home/they/joint_positions/walk/a/x.mat\n"
    )
    for named in (None, "list.txt"):
        data = JHMDBDataModule(str(tmp_path), named, size=16)
        (video,) = data.videos_of("test")
        assert video.name == "walk/a" and video.point_names == JOINTS and video.points is not None
        np.testing.assert_allclose(video.points[2, 5], positions[:, 5, 2] - 1, rtol=1e-6)
        assert next(iter(data.test_dataloader())).images.shape == (1, 3, 16, 16)
    (tmp_path / "list.txt").write_text("walk\n")
    with pytest.raises(DataError, match="line 1: 'walk' is no path of a video"):
        JHMDBDataModule(str(tmp_path), "list.txt").videos_of("test")


def test_positions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_jhmdb(tmp_path, pos_img=np.zeros((2, 14, 3)))
    with pytest.raises(DataError, match=r"pos_img is float64 \(2, 14, 3\); expected finite numbers \(2, 15, 3\)"):
        JHMDBDataModule(str(tmp_path)).videos_of("test")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_video_of_ones_own(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        path = write_frames(tmp_path / "clip", FRAMES, "img{}.png")
        named = "img{}.png"
    else:
        path, named = write_video_file(tmp_path / "clip.avi", FRAMES), "{:05d}.png"
    first = save(tmp_path / "first.png", mask_of(0, 1, 2))
    (video,) = OwnVideoDataModule(str(path), masks=str(first), short_side=0).videos_of("test")
    assert (len(video), video.objects, video.size, video.name) == (4, 2, (24, 40), "clip")
    assert video.mask is not None and video.mask(1) is None
    for index in range(4):
        save(tmp_path / "masks" / named.format(index), mask_of(0, 1, 2))
    (video,) = OwnVideoDataModule(str(path), masks=str(tmp_path / "masks"), short_side=0).videos_of("test")
    assert video.mask is not None and video.mask(3) is not None
    (tmp_path / "masks" / named.format(2)).unlink()
    data = OwnVideoDataModule(str(path), masks=str(tmp_path / "masks"), short_side=0)
    (video,) = data.videos_of("test")
    assert video.mask is not None and video.mask(3) is None
    assert "1 of 4 frames have no mask, so J and F are not measured" in str(data.check())


def test_points_of_ones_own(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "clip", FRAMES)
    table = tmp_path / "points.csv"
    table.write_text("name,x,y\nnose,3,4.5\ntail,30,20\n")
    (video,) = OwnVideoDataModule(str(path), points=str(table)).videos_of("test")
    assert video.point_names == ("nose", "tail") and video.points is not None
    assert video.points[0].tolist() == [[3, 4.5], [30, 20]] and np.isnan(video.points[1:]).all()
    table.write_text("frame,name,x,y\n0,nose,3,4\n2,nose,5,6\n")
    (video,) = OwnVideoDataModule(str(path), points=str(table)).videos_of("test")
    assert video.points is not None and video.points[2].tolist() == [[5, 6]]
    for text, message in {
        "name,x,y\nnose,a,4\n": "row 1: .*expected a frame's number",
        "name,x,y\nnose,1,nan\n": "expected finite numbers",
        "frame,name,x,y\n9,nose,1,2\n": "a frame below 4",
        "frame,name,x,y\n1,nose,1,2\n": "no point is annotated in the first frame",
        "name,x,y\nnose,1,2\nnose,3,4\n": "'nose' is there twice in frame 0",
        "name,x,y\nnose,1,2\ntail,300,4\n": r"row 2: \(300.0, 4.0\) is outside of the first frame",
        "name,x,y\n": "no points",
        "x,y\n1,2\n": "name",
    }.items():
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            OwnVideoDataModule(str(path), points=str(table)).videos_of("test")


def empty(root: Path) -> None:
    save(root / "masks/00000.png", mask_of(0))


def white(root: Path) -> None:
    save(root / "masks/00000.png", mask_of(0, 255))


def missing(root: Path) -> None:
    (root / "masks/00000.png").unlink()


def coloured(root: Path) -> None:
    save(root / "masks/00000.png", FRAMES[0])


def small(root: Path) -> None:
    save(root / "masks/00000.png", mask_of(0, 1)[:20])


def small_later(root: Path) -> None:
    save(root / "masks/00002.png", mask_of(0, 1)[:20])


def other_size(root: Path) -> None:
    save(root / "clip/00002.png", make_image(24, 44))


def no_image(root: Path) -> None:
    (root / "clip/00002.png").write_bytes(b"nothing")


def alone(root: Path) -> None:
    for index in (1, 2, 3):
        (root / f"clip/{index:05d}.png").unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (empty, "00000.png: the first mask is empty, there is no object to follow in it$"),
        (white, r"but unlabelled pixels \(255\); where these are the object, save it as 1"),
        (missing, "00000.png is missing; the first frame"),
        (coloured, "is an RGB image; expected the numbers of objects"),
        (small, r"00000.png has 40×20 pixels \(width × height\), the frames 40×24"),
        (small_later, r"00002.png has 40×20 pixels \(width × height\), the frames 40×24"),
        (other_size, r"00002.png has 44×24 pixels .*00000.png 40×24"),
        (no_image, r"00002\.png"),
        (alone, "a video of one frame; there is no other to carry the annotation to"),
    ],
)
def test_bad_videos_are_refused(tmp_path: Path, break_it: Callable[[Path], None], message: str) -> None:
    write_frames(tmp_path / "clip", FRAMES)
    for index in range(4):
        save(tmp_path / f"masks/{index:05d}.png", mask_of(0, 1))
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        OwnVideoDataModule(str(tmp_path / "clip"), masks=str(tmp_path / "masks")).videos_of("test")


def test_objects_that_come_later_are_told_of(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", FRAMES)
    for index in range(4):
        save(tmp_path / f"masks/{index:05d}.png", mask_of(0, 1, 2 if index > 1 else 255))
    data = OwnVideoDataModule(str(tmp_path / "clip"), masks=str(tmp_path / "masks"))
    assert data.videos_of("test")[0].objects == 1
    assert "00002.png: object 2 is not in the first mask, which declares 1" in str(data.check("full"))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    root = write_davis(tmp_path, frames=3)
    name = (root / "ImageSets/2017/val.txt").read_text().split()[0]
    mask = root / f"Annotations/480p/{name}/00001.png"
    mask.unlink()
    with pytest.raises(DataError, match=rf"{name}/00001.png is missing \(1 of the 3 masks of {name}\)"):
        DAVIS2017DataModule(str(root)).videos_of("val")
    with pytest.raises(DataError, match="has no test videos here, only val"):
        DAVIS2017DataModule(str(root)).videos_of("test")
    with pytest.raises(DataError, match=r"train\.txt"):
        DAVIS2017DataModule(str(root), val="train").videos_of("val")
    with pytest.raises(DataError, match=r"dataset.root does not exist"):
        DAVIS2017DataModule(str(root / "DAVIS"))
    with pytest.raises(ConfigError, match="both null"):
        DAVIS2017DataModule(str(root), val=None)
    with pytest.raises(ConfigError, match="one of them"):
        OwnVideoDataModule(str(root / f"JPEGImages/480p/{name}"))
    with pytest.raises(DataError, match="does not exist"):
        OwnVideoDataModule(str(root / "nothing.mp4"), masks="a.png")


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", mask_of(0, 1).astype(np.uint16) * 300)
    with pytest.raises(DataError, match="holds 300; expected numbers of objects up to 254"):
        read_labels(path, (24, 40))
