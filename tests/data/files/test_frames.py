"""Frames of folders and of video files: order, sizes, what does not decode."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.data.files.frames import natural_order, open_frames
from gate_lightning.errors import DataError
from tests.support.folders import make_image
from tests.support.videos import write_frames, write_video_file

GREYS = [np.full((48, 64, 3), 20 + 8 * index, dtype=np.uint8) for index in range(12)]


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    frames = [make_image(8, 12, seed) for seed in range(12)]
    found = open_frames(write_frames(tmp_path / "video", frames, "frame{}.png"))
    assert (len(found), found.size, found.rate) == (12, (8, 12), None)
    assert found.name(10) == "frame10"
    assert all((one == other).all() for one, other in zip(found, frames, strict=True))
    assert sorted(map(Path, ("b2", "a10", "a2", "02", "2")), key=natural_order) == [
        Path(name) for name in ("02", "2", "a2", "a10", "b2")
    ]


def test_frames_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "video", GREYS)
    (folder / "00005.png").write_bytes(b"no image")
    found = open_frames(folder)
    assert found.read(4)[0, 0, 0] == GREYS[4][0, 0, 0]
    with pytest.raises(DataError, match=r"00005\.png"):
        found.read(5)
    assert found.read(6)[0, 0, 0] == GREYS[6][0, 0, 0]


def test_a_frame_of_another_size_is_refused_with_both(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "video", GREYS[:3])
    Image.fromarray(make_image(40, 64)).save(folder / "00002.png")
    with pytest.raises(DataError, match=r"00002.png has 64×40 .*00000.png 64×48"):
        list(open_frames(folder))


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_video_file_gives_its_frames(tmp_path: Path, suffix: str) -> None:
    code = "mp4v" if suffix == ".mp4" else "FFV1"
    found = open_frames(write_video_file(tmp_path / f"a{suffix}", GREYS, 12.5, code))
    assert (len(found), found.size, found.name(3), found.rate) == (12, (48, 64), "00003", 12.5)
    for read in (list(found), [found.read(index) for index in range(12)]):
        assert np.abs(np.stack(read).astype(int) - np.stack(GREYS)).max() < 8
    # not in order, and in another process
    assert np.abs(found.read(7).astype(int) - GREYS[7]).max() < 8
    assert np.abs(pickle.loads(pickle.dumps(found)).read(2).astype(int) - GREYS[2]).max() < 8
    with pytest.raises(DataError, match="frame 12 of"):
        found.read(12)


def test_colours_of_a_video_are_not_swapped(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), dtype=np.uint8)
    red[..., 0] = 200
    found = open_frames(write_video_file(tmp_path / "red.avi", [red] * 3)).read(0)
    assert np.abs(found.astype(int) - red).max() <= 3


def test_a_video_that_is_cut_off_names_its_frame(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    path = write_video_file(tmp_path / "a.avi", list(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = open_frames(path)
    with pytest.raises(DataError, match=r"frame \d of .*a.avi does not decode \(the file declares 12\)"):
        len(found)
    with pytest.raises(DataError, match=r"frame \d of .*a.avi does not decode"):
        list(found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no video" * 50), "does not decode: OpenCV reads no frame"),
        (lambda path: path.write_bytes(b""), "does not decode"),
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "has no images"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "a.mp4"
    make(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        open_frames(path)


def test_one_image_and_one_name_twice_are_refused(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "video", GREYS[:2])
    with pytest.raises(DataError, match="is one image"):
        open_frames(folder / "00000.png")
    Image.fromarray(GREYS[0]).save(folder / "00001.jpg")
    with pytest.raises(DataError, match="one frame twice"):
        open_frames(folder)
