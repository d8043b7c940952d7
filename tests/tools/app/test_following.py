"""The video tab without its widgets: masks are those of ``task=video``, results on disk, errors."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.app.following import BRUSHES, VideoBench
from tests.support.composition import composed
from tests.support.videos import write_video_file


def painted(shape: tuple[int, ...], *boxes: tuple[slice, slice]) -> np.ndarray:
    """A layer with a box in the colour of each brush."""
    layer = np.zeros((*shape[:2], 4), np.uint8)
    for colour, box in zip(BRUSHES, boxes, strict=False):
        layer[box] = (*colour, 255)
    return layer


def test_what_is_painted_becomes_the_mask(videos: VideoBench) -> None:
    clip = videos.first
    frame = videos.start(clip)
    assert frame.shape == (512, 512, 3)
    layer = painted(frame.shape, np.s_[40:80, 40:120], np.s_[200:240, 300:400])
    layer[200:210, 300:310, 3] = 60  # the soft edge of a brush
    mask = np.asarray(Image.open(videos.drawn(clip, [layer])))
    expected = np.zeros((128, 128), np.uint8)
    expected[10:20, 10:30] = 1
    expected[50:60, 75:100] = 2
    assert (mask != expected).sum() <= 9 and set(np.unique(mask)) == {0, 1, 2}
    with pytest.raises(DataError, match="nothing is drawn on the first frame; paint an object"):
        videos.drawn(clip, [np.zeros_like(layer)])
    with pytest.raises(DataError, match="nothing is drawn"):
        videos.drawn(clip, [])


@pytest.mark.thorough
def test_the_command_follows_as_the_page_does(videos: VideoBench, tmp_path: Path) -> None:
    frames = videos.first.frames()
    short = write_video_file(tmp_path / "short.mkv", [frames.read(index) for index in range(5)])
    clip, settings = videos.clips.keep([short]), replace(videos.workbench.initial, layers=("up-level2-upsampler-out",))
    mask = videos.drawn(clip, [painted((512, 512), np.s_[150:350, 100:260], np.s_[200:400, 300:420])])
    seen = list(videos.followed(clip, mask, settings))
    assert [one.index for one in seen] == list(range(5)) and seen[0].count == 5
    words = shlex.split(videos.command(clip, mask, settings))
    assert words[:2] == ["python", "eval.py"]
    line = [*words[2:], f"output={tmp_path / 'run'}", "dataset.num_workers=0", "trainer.accelerator=cpu", "logger=none"]
    evaluate(composed(*line, name="eval"), line, tmp_path / "run")
    own = sorted((videos.folder_of(mask, settings) / "masks").glob("*.png"))
    others = sorted((tmp_path / "run" / "masks" / "test" / clip.path.stem).glob("*.png"))
    assert [path.name for path in own] == [path.name for path in others] and len(own) == 5
    for one, other in zip(own, others, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
    last = np.asarray(Image.open(own[-1]))
    assert (last != np.asarray(Image.open(mask))).any()  # it moved
    video = videos.video(clip, mask, settings)
    other = replace(settings, timestep=100)  # another tab's results are not mixed with these
    assert videos.folder_of(mask, other) != videos.folder_of(mask, settings)
    again = videos.clips.keep([video])
    assert len(again.frames()) == 5


def test_videos_that_cannot_be_followed_are_told_of(videos: VideoBench, tmp_path: Path) -> None:
    sizes = {"a.png": (20, 30), "b.png": (20, 30), "c.png": (20, 31)}
    for name, size in sizes.items():
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / name)
    clip = videos.clips.keep([tmp_path / "b.png", tmp_path / "a.png"])
    assert [clip.frames().name(index) for index in range(2)] == ["a", "b"]
    assert videos.clips.keep([tmp_path / "b.png", tmp_path / "a.png"]) == clip
    with pytest.raises(DataError, match=r"frames/c\.png has 31×20 pixels .*, frames/a\.png 30×20"):
        videos.clips.keep([tmp_path / "a.png", tmp_path / "c.png"])
    with pytest.raises(DataError, match="a video of one frame"):
        videos.clips.keep([tmp_path / "a.png"])
    (tmp_path / "broken.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(DataError, match=r"^broken\.mp4 does not decode"):
        videos.clips.keep([tmp_path / "broken.mp4"])
    with pytest.raises(DataError, match="one video file, or the frames of one video"):
        videos.clips.keep([tmp_path / "broken.mp4", tmp_path / "a.png"])
    with pytest.raises(DataError, match="does not exist"):
        videos.clips.given(tmp_path / "nowhere")
    mask = videos.drawn(clip, [painted((341, 512), np.s_[0:100, 0:100])])
    with pytest.raises(ConfigError, match="timestep"):
        next(videos.followed(clip, mask, replace(videos.workbench.initial, timestep=5000)))
