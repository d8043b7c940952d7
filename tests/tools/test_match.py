"""``tool=match``: on images whose matches are known to the pixel, and what it writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.visualization.heat import heat_overlay
from tests.support.composition import composed

COLOURS = ("backbone=pixels", "backbone.strides=[1]", "backbone.position=false", "tool.resize=none", "tool.device=cpu")
POINTS = [[2, 3], [9, 17], [25, 11], [30, 5]]
HEIGHT, WIDTH = 20, 32
#: of the shifted image, its pixel (x, y) is the source's (x - 5, y - 2), around the border
SHIFT = np.array([5, 2])


def run(*overrides: str) -> None:
    evaluate(composed("tool=match", *COLOURS, *overrides, name="eval"), list(overrides), Path("unused"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "matches.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def columns(folder: Path, *names: str) -> NDArray[np.float64]:
    return np.array([[float(row[name]) for name in names] for row in rows(folder)])


def matches(folder: Path) -> NDArray[np.float64]:
    return columns(folder, "target_x", "target_y")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random colours, their mirror image, the same moved, and twice as large."""
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    made = {
        "source": pixels,
        "mirrored": pixels[:, ::-1],
        "shifted": np.roll(pixels, tuple(SHIFT[::-1]), (0, 1)),
        "large": pixels.repeat(2, 0).repeat(2, 1),
    }
    folder = tmp_path_factory.mktemp("images")
    for name, image in made.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in made}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("changed", ["source", "mirrored", "shifted"])
@pytest.mark.slow
def test_points_and_dense_matches_of_an_image_that_moved(images: dict[str, Path], changed: str, tmp_path: Path) -> None:
    run(f"source={images['source']}", f"target={images[changed]}", f"points={POINTS}", f"output={tmp_path}")
    given = np.array(POINTS, dtype=float)
    truth = {
        "source": given,
        "mirrored": np.array([WIDTH - 1, 0]) + given * [-1, 1],
        "shifted": (given + SHIFT) % [WIDTH, HEIGHT],
    }
    np.testing.assert_array_equal(columns(tmp_path, "source_x", "source_y"), given)
    np.testing.assert_array_equal(matches(tmp_path), truth[changed])
    np.testing.assert_allclose(columns(tmp_path, "similarity"), 1, atol=1e-4)
    # every pixel of the target finds its own colour in the source: the warp is the target
    np.testing.assert_array_equal(pixels_of(tmp_path / "warp.png"), pixels_of(images[changed]))
    for name in ("matches.png", "heat_maps.png"):
        assert len(np.unique(pixels_of(tmp_path / name).reshape(-1, 3), axis=0)) > 100


@pytest.mark.thorough
def test_files_of_different_sizes_are_matched_in_their_own_pixels(images: dict[str, Path], tmp_path: Path) -> None:
    # seen with a shorter side of 20 pixels both are the same
    seen = ("tool.resize=short", "tool.size=20", "tool.read_out.resolution=patch", "tool.read_out.query=patch")
    small, large = images["source"], images["large"]
    run(f"source={small}", f"target={large}", *seen, "points=[[31,19],[4,7]]", f"output={tmp_path / 'up'}")
    np.testing.assert_allclose(matches(tmp_path / "up"), [[62.5, 38.5], [8.5, 14.5]])
    assert pixels_of(tmp_path / "up/warp.png").shape == (2 * HEIGHT, 2 * WIDTH, 3)
    run(f"source={large}", f"target={small}", *seen, "points=[[63,39],[8,15]]", f"output={tmp_path / 'down'}")
    np.testing.assert_allclose(matches(tmp_path / "down"), [[31, 19], [4, 7]])
    # between the centres of the large one's blocks of four equal pixels
    np.testing.assert_array_equal(pixels_of(tmp_path / "down/warp.png"), pixels_of(small))


@pytest.mark.thorough
def test_points_that_are_not_given(images: dict[str, Path], tmp_path: Path) -> None:
    both = (f"source={images['source']}", f"target={images['shifted']}", "tool.grid=2")
    run(*both, f"output={tmp_path / 'spread'}", "tool.read_out.query=floor")
    centres = [[7.5, 4.5], [23.5, 4.5], [7.5, 14.5], [23.5, 14.5]]
    np.testing.assert_array_equal(columns(tmp_path / "spread", "source_x", "source_y"), centres)
    run(*both, f"output={tmp_path / 'buddies'}", "points=buddies")
    found = columns(tmp_path / "buddies", "source_x", "source_y")
    cells = [(y // (HEIGHT / 2), x // (WIDTH / 2)) for x, y in found]
    assert cells == [(0, 0), (0, 1), (1, 0), (1, 1)]
    np.testing.assert_array_equal(matches(tmp_path / "buddies"), (found + SHIFT) % [WIDTH, HEIGHT])


def test_a_point_without_match_has_empty_cells(images: dict[str, Path], tmp_path: Path) -> None:
    # of a target of one colour the first pixel is the match of all points, and has one match itself
    flat = tmp_path / "flat.png"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), (200, 90, 30), np.uint8)).save(flat)
    run(f"source={images['source']}", f"target={flat}", f"points={POINTS}", "tool.read_out.name=mutual",
        f"output={tmp_path}")  # fmt: skip
    assert [row["target_x"] + row["target_y"] + row["similarity"] for row in rows(tmp_path)] == [""] * len(POINTS)
    assert (pixels_of(tmp_path / "warp.png").shape) == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=nowhere.png"], r"source=nowhere.png does not exist"),
        (["target=."], r"target=. is a folder .*; give an image"),
        (["points=[[1,2],[32,5]]"], r"points\[1\] = \[32, 5\] is outside the source of 32 × 20 pixels"),
        (["points=[[1,2,3]]"], r"points\[0\] is \[1, 2, 3\]; expected 2 numbers"),
        (["points=[1,2]"], r"points\[0\] is 1; expected 2 numbers"),
        (["points=[]"], "points is empty"),
        (["points=everywhere"], "points='everywhere': expected one of spread, buddies"),
        (["tool.grid=0"], r"tool\.grid"),
        (["tool.read_out.name=nearby"], "did you mean nearest"),
        (["head=linear"], "match reads no head"),
    ],
)
def test_what_cannot_be_matched(images: dict[str, Path], overrides: list[str], message: str, tmp_path: Path) -> None:
    given = {"source": images["source"], "target": images["mirrored"], "output": tmp_path / "out"}
    both = [f"{key}={value}" for key, value in given.items() if f"{key}=" not in overrides[0]]
    with pytest.raises((ConfigError, DataError), match=message):
        run(*both, *overrides)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("wrong", "message"), [("source=nowhere.png", "nowhere"), ("points=[[99,1]]", "outside")])
def test_files_and_points_are_looked_at_before_a_backbone_is_loaded(
    images: dict[str, Path], wrong: str, message: str
) -> None:
    given = [f"source={images['source']}", f"target={images['source']}", wrong]
    absent = composed("tool=match", "backbone=sd15", "backbone.weights=/no/such/folder", *given, name="eval")
    with pytest.raises(DataError, match=message):
        evaluate(absent, [], Path("unused"))


def test_weights_that_nobody_has_trained(images: dict[str, Path], tmp_path: Path) -> None:
    both: list[Any] = [f"source={images['source']}", f"target={images['source']}", f"output={tmp_path}"]
    with pytest.raises(ConfigError, match="weights that nobody has trained; use amalgamation=concat"):
        run(*both, "amalgamation=weighted_joined", "techniques=[{name: a, timestep: 1}, {name: b, timestep: 2}]")


def test_read_outs_are_those_of_the_task() -> None:
    rules = [composed(*words, name="eval") for words in (["tool=match"], ["dataset=pairs", "dataset.root=x"])]
    assert rules[0].tool.read_out == rules[1].task.read_out


def test_heat_over_an_image_is_brightest_at_the_largest_value() -> None:
    image = np.full((3, 4, 3), 100, np.uint8)
    values = np.full((3, 4), -0.5)
    values[1, 2] = -0.25
    light = heat_overlay(image, values).astype(int).sum(axis=2)
    assert np.unravel_index(light.argmax(), light.shape) == (1, 2) and (light == light.min()).sum() == 11
    np.testing.assert_array_equal(heat_overlay(image, np.zeros((3, 4))), np.broadcast_to([50, 50, 52], (3, 4, 3)))
    with pytest.raises(ConfigError, match="differ in size"):
        heat_overlay(image, np.zeros((4, 3)))
