"""``tool=propagate``: on images that moved by whole pixels, where every pixel of the result is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.data.files.frames import open_frames
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.ops.correspondence.warps import MODELS, Warp
from gate_lightning.tools.propagate import _Carried, _smoothed
from tests.support.composition import composed
from tests.support.videos import write_video_file

COLOURS = ("backbone=pixels", "backbone.strides=[1]", "backbone.position=false", "tool.resize=none", "tool.device=cpu")
HEIGHT, WIDTH = 24, 36
#: right and down of the images of the folder
SHIFTS = ((0, 0), (3, 1), (6, 2), (9, 3))


def run(*overrides: str) -> None:
    evaluate(composed("tool=propagate", *COLOURS, *overrides, name="eval"), list(overrides), Path("unused"))


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def layer() -> np.ndarray:
    """A half transparent red box with an opaque blue one in it."""
    made = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    made[4:14, 5:19] = (255, 0, 0, 128)
    made[6:10, 8:12] = (0, 0, 255, 255)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, layer: np.ndarray) -> Path:
    place = tmp_path_factory.mktemp("edit")
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "source.png")
    Image.fromarray(layer).save(place / "edit.png")
    (place / "frames").mkdir()
    for number, (right, down) in enumerate(SHIFTS, start=9):  # frame9 comes before frame10
        Image.fromarray(np.roll(pixels, (down, right), (0, 1))).save(place / "frames" / f"frame{number}.png")
    return place


def given(folder: Path, output: Path, **changed: str) -> list[str]:
    named = {"source": folder / "source.png", "edit": folder / "edit.png", "input": folder / "frames", "output": output}
    return [f"{key}={value}" for key, value in (named | changed).items()]


def expected(image: np.ndarray, layer: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    there = np.roll(layer, shift[::-1], (0, 1)).astype(float)
    alpha = there[..., 3:] / 255
    return np.rint(alpha * there[..., :3] + (1 - alpha) * image)


@pytest.mark.parametrize("model", MODELS)
def test_an_edit_follows_to_the_pixel(folder: Path, layer: np.ndarray, model: str, tmp_path: Path) -> None:
    run(*given(folder, tmp_path), f"tool.model={model}")
    rows = list(csv.DictReader((tmp_path / "inliers.csv").open()))
    assert [row["image"] for row in rows] == ["frame9", "frame10", "frame11", "frame12"]
    assert {(row["matches"], row["inliers"], row["untouched_because"]) for row in rows} == {("140", "140", "")}
    for number, shift in enumerate(SHIFTS, start=9):
        image = pixels_of(folder / "frames" / f"frame{number}.png")
        found = pixels_of(tmp_path / "frames" / f"frame{number}.png").astype(float)
        wanted = expected(image, layer, shift)
        assert np.abs(found - wanted).max() <= (2 if model == "homography" else 3)
        assert pixels_of(tmp_path / "overlays" / f"frame{number}.png").shape == image.shape
    assert Image.open(tmp_path / "strip.png").width > 5 * 200


def test_a_single_image_and_a_video(folder: Path, layer: np.ndarray, tmp_path: Path) -> None:
    run(*given(folder, tmp_path / "one", input=str(folder / "frames" / "frame11.png")))
    assert [path.name for path in (tmp_path / "one" / "frames").iterdir()] == ["frame11.png"]
    frames = [pixels_of(folder / "frames" / f"frame{number}.png") for number in (9, 10)]
    video = write_video_file(tmp_path / "film.mkv", frames, rate=7.0)
    run(*given(folder, tmp_path / "film", input=str(video)))
    for number in range(2):
        found = pixels_of(tmp_path / "film" / "frames" / f"{number:05d}.png").astype(float)
        assert np.abs(found - expected(frames[number], layer, SHIFTS[number])).mean() < 4
    written = open_frames(tmp_path / "film" / "edited.mkv")
    assert (written.rate, len(written)) == (7.0, 2)
    for number in range(2):
        frame = pixels_of(tmp_path / "film" / "frames" / f"{number:05d}.png").astype(float)
        assert np.abs(written.read(number).astype(float) - frame).mean() < 4


def test_an_image_without_support_is_left_as_it_is(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    Image.fromarray(other).save(tmp_path / "grey.png")
    run(*given(folder, tmp_path / "out", input=str(tmp_path / "grey.png")))
    np.testing.assert_array_equal(pixels_of(tmp_path / "out" / "frames" / "grey.png"), other)
    (row,) = csv.DictReader((tmp_path / "out" / "inliers.csv").open())
    assert row["untouched_because"] and "grey is left as it is: " in caplog.text
    noise = np.random.default_rng(8).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    run(*given(folder, tmp_path / "out", input=str(tmp_path / "noise.png")), "tool.threshold=1")
    np.testing.assert_array_equal(pixels_of(tmp_path / "out" / "frames" / "noise.png"), noise)


def test_an_unreadable_image_in_the_middle_leaves_those_before_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (9, 10, 11):
        (tmp_path / "in" / f"frame{number}.png").write_bytes((folder / "frames" / f"frame{number}.png").read_bytes())
    broken = tmp_path / "in" / "frame11.png"
    broken.write_bytes(broken.read_bytes()[:400])
    for smooth in (0, 1):
        output = tmp_path / f"out{smooth}"
        with pytest.raises(DataError, match=r"frame11\.png does not decode"):
            run(*given(folder, output, input=str(tmp_path / "in")), f"tool.smooth={smooth}")
        assert sorted(path.name for path in (output / "frames").iterdir()) == ["frame10.png", "frame9.png"]
        assert len(list(csv.DictReader((output / "inliers.csv").open()))) == 2


def test_edits_that_do_not_fit_are_refused(folder: Path, layer: np.ndarray, tmp_path: Path) -> None:
    edit = tmp_path / "edit.png"
    for made, told in (
        (layer[..., :3], r"has no alpha channel \(colour mode RGB\)"),
        (layer[:20], r"has 36×20 pixels \(width × height\) and the source .* 36×24"),
        (layer * np.array([1, 1, 1, 0], np.uint8), "transparent everywhere"),
    ):
        Image.fromarray(made).save(edit)
        with pytest.raises(DataError, match=told):
            run(*given(folder, tmp_path, edit=str(edit)))
    with pytest.raises(DataError, match="does not exist"):
        run(*given(folder, tmp_path, input=str(tmp_path / "none.png")))
    for key, value in (("points", "3"), ("smooth", "-1"), ("least_inliers", "2"), ("stiffness", "-1"), ("model", "x")):
        with pytest.raises(ConfigError, match=rf"tool\.{key}"):
            run(*given(folder, tmp_path), f"tool.{key}={value}")


def test_smoothing_averages_neighbours_that_are_known() -> None:
    box = np.array([[0.0, 0], [9, 0], [9, 9], [0, 9]])

    def carried(number: int, shift: float | None) -> _Carried:
        warp = None if shift is None else Warp("affine", box, box + shift, np.ones(4, bool))
        return _Carried(str(number), np.zeros((1, 1, 3), np.uint8), np.zeros((4, 2)), warp, "" if warp else "lost")

    shifts = [0.0, 6.0, None, 0.0, 9.0, 3.0, 1.0]
    for reach in (1, 2):
        found = list(_smoothed((carried(*one) for one in enumerate(shifts)), reach))
        assert [one.name for one in found] == [str(number) for number in range(7)]
        assert found[2].warp is None and found[2].reason == "lost"
        for index, one in enumerate(found):
            near = [(k, v) for k, v in enumerate(shifts) if abs(k - index) <= reach and v is not None]
            weights = [np.exp(-0.5 * ((k - index) / (reach / 2)) ** 2) for k, _ in near]
            if one.warp is not None:
                mean = np.average([value for _, value in near], weights=weights)
                np.testing.assert_allclose(one.warp.places, box + mean)
