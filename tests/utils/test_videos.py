"""Video files are what was written, whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.files.frames import open_frames
from gate_lightning.errors import ConfigError
from gate_lightning.utils.videos import VIDEO_SUFFIXES, write_video

FRAMES = [np.full((31, 45, 3), (20 + 15 * index, 200 - 15 * index, 90), dtype=np.uint8) for index in range(9)]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_frames_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"new/a{suffix}"
    write_video(path, iter(FRAMES), 10.0)
    found = open_frames(path)
    assert len(found) == 9
    assert found.rate == pytest.approx(10.0, abs=0.1)
    assert found.size == ((31, 45) if suffix == ".gif" else (32, 46))
    for read, frame in zip(found, FRAMES, strict=True):
        assert np.abs(read[:31, :45].astype(int) - frame).mean() < 6
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_video_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from FRAMES[:2]
        raise RuntimeError("stopped")

    for suffix in (".gif", ".avi"):
        with pytest.raises(RuntimeError, match="stopped"):
            write_video(tmp_path / f"a{suffix}", broken())
    assert not list(tmp_path.iterdir())


def test_no_frame_and_another_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without a frame"):
        write_video(tmp_path / "a.gif", [])
    with pytest.raises(ConfigError, match=r"expected one of .gif"):
        write_video(tmp_path / "a.mpeg", FRAMES)
