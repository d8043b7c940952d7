"""The page without its widgets: matches, colours, commands, memory, errors."""

from __future__ import annotations

import base64
import csv
import io
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import DataError, GateError
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.tools.app.features import ImageFeatures
from gate_lightning.tools.app.kept_images import KeptImages
from gate_lightning.tools.app.settings import AS_GIVEN
from gate_lightning.tools.app.views import SIDE, match_of, shown, to_file, with_mark
from gate_lightning.tools.app.workbench import Screen, Session, Workbench
from tests.support.composition import composed

CAPTION = re.compile(r"<b>([^<]+)</b> \(([\d.]+), ([\d.]+)\), similarity (-?[\d.]+)<")


def figures_of(screen: Screen) -> list[np.ndarray]:
    found = re.findall(r"base64,([^\"]+)", screen.figures)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


@pytest.mark.thorough
def test_the_commands_match_as_the_page_does(workbench: Workbench, tmp_path: Path) -> None:
    session = workbench.clicked(workbench.first, 300.4, 77.6)
    settings = replace(session.settings, timestep=51, techniques=("prompt",), prompt="a horse", ensemble=2)
    session = workbench.with_settings(session, lambda: settings)
    screen = workbench.screen(session)
    told = CAPTION.findall(screen.figures)
    assert [name for name, *_ in told] == ["elsewhere.png", "domain.png", "view.png"]
    lines = screen.command.splitlines()
    targets = [image.path.as_posix() for image in session.targets]
    assert [line.replace(target, "") for line, target in zip(lines, targets, strict=True)] == [
        lines[0].replace(targets[0], "")
    ] * 3
    overrides = shlex.split(lines[2])[2:]
    evaluate(composed(*overrides, f"output={tmp_path}", name="eval"), overrides, tmp_path)
    with (tmp_path / "matches.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [float(row["source_x"]), float(row["source_y"])] == list(session.point)
    found = [f"{float(row[key]):.{digits}f}" for key, digits in (("target_x", 1), ("target_y", 1), ("similarity", 3))]
    assert ("view.png", *found) == told[2]
    assert {"timestep=51", "techniques=prompt", "technique.prompt.text='a horse'", "ensemble=2"} <= {*overrides}


def test_the_example_s_point_is_found_in_its_images(workbench: Workbench) -> None:
    """The horse's head: by the embedded model, at its place in the other scenes, which were looked at."""
    truth = {"elsewhere.png": (119, 68), "domain.png": (119, 68), "view.png": (217, 70)}
    for name, x, y, _ in CAPTION.findall(workbench.screen(workbench.first).figures):
        assert np.hypot(float(x) - truth[name][0], float(y) - truth[name][1]) < 12


def test_a_click_is_a_pixel_of_the_file_and_is_marked_there() -> None:
    for size in ((100, 200), (300, 70), (1024, 2048)):
        height, width = shown(np.zeros((*size, 3), np.uint8)).shape[:2]
        assert max(height, width) == SIDE
        assert to_file(-3, -3, size) == (0.0, 0.0)
        assert to_file(width, height, size) == (size[1] - 1, size[0] - 1)
        for x, y in ((17, 31), (width / 2, height / 3)):
            point = to_file(x, y, size)
            there = [(value + 0.5) * side / full - 0.5 for value, side, full in zip(point, (width, height), size[::-1],
                                                                                  strict=True)]  # fmt: skip
            np.testing.assert_allclose(there, (x, y), atol=0.01 * SIDE / max(size) + 1e-9)
    marked = with_mark(np.zeros((256, 512, 3), np.uint8), (150, 20), (100, 200))
    rows, columns = np.nonzero(marked.any(axis=2))
    np.testing.assert_allclose([columns.mean(), rows.mean()], [385.3, 52], atol=0.6)


def test_the_heat_map_is_brightest_at_the_match(workbench: Workbench) -> None:
    line = workbench.words(workbench.initial)
    source, target = (workbench.features(line, one) for one in (workbench.first.source, workbench.first.targets[2]))
    point = workbench.first.point
    plain = match_of(ReadOut(name="position"), source, target, point, heat=False)
    np.testing.assert_array_equal(plain.point, point)  # of equal sizes the same place
    found = match_of(ReadOut(), source, replace(target, image=np.zeros_like(target.image)), point, heat=True)
    assert found.point is not None
    light = found.image.astype(int).sum(axis=2)
    x, y = (round((value + 0.5) * 2 - 0.5) for value in found.point)
    light[y - 16 : y + 17, x - 16 : x + 17] = 0  # the mark
    rows, columns = np.unravel_index(np.argsort(light.ravel())[-50:], light.shape)
    assert np.hypot(columns - x, rows - y).max() < 40


def test_colours_are_components_of_one_basis(workbench: Workbench) -> None:
    session = replace(workbench.first, targets=(workbench.first.source, workbench.first.targets[1]))
    session = workbench.with_view(session, "colours")
    first, again, other = figures_of(workbench.screen(session))
    np.testing.assert_array_equal(first, again)
    line = workbench.words(workbench.initial)
    grids = [workbench.features(line, one).grid.features for one in (session.source, *session.targets)]
    vectors = np.concatenate([one.flatten(1).T.numpy() for one in grids]).astype(float)
    centred = vectors - vectors.mean(axis=0)
    components = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    drawn = np.concatenate([one.reshape(-1, 3) for one in (first, again, other)]).astype(float)
    inner = ((drawn > 0) & (drawn < 255)).all(axis=1)  # the outermost values are clipped
    assert inner.sum() > 400
    for number in range(3):
        assert abs(np.corrcoef(drawn[inner, number], components[inner, number])[0, 1]) > 0.9999


def test_images_are_read_once_for_each_setting_within_the_memory(workbench: Workbench) -> None:
    read: list[tuple[tuple[str, ...], Path]] = []
    images = [workbench.first.source, *workbench.first.targets]
    line = workbench.words(workbench.initial)
    described = {one.path: workbench.features(line, one) for one in images}

    def describer(words: tuple[str, ...]) -> Any:
        return lambda file: read.append((words, file.paths[0])) or described[file.paths[0]]

    features = ImageFeatures(describer, 10**9)
    for words in (("a",), ("b",), ("a",)):
        for one in images:
            assert features(words, one) is described[one.path]
    assert read == [(words, one.path) for words in (("a",), ("b",)) for one in images]
    small = ImageFeatures(describer, features.bytes_used // 4)  # of eight two
    read.clear()
    for one in (*images, images[-1], images[-2], images[0]):
        small(("a",), one)
        assert small.bytes_used <= small.limit
    assert [path for _, path in read] == [one.path for one in (*images, images[0])]


def test_a_backbone_is_loaded_once(workbench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gate_lightning")
    for timestep in (7, 8):
        settings = replace(workbench.initial, timestep=timestep)
        workbench.screen(replace(workbench.first, settings=settings, targets=()))
    assert not [one for one in caplog.records if "Loaded" in one.getMessage()]


def test_sessions_keep_to_themselves(workbench: Workbench, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(tmp_path / "own.png")
    first = workbench.screen(workbench.first)
    mine = workbench.with_targets(workbench.with_source(workbench.first, tmp_path / "own.png"), [tmp_path / "own.png"])
    assert (mine.source.size, mine.point, len(mine.targets)) == ((40, 30), (14.5, 19.5), 1)
    mine = workbench.with_targets(mine, [tmp_path / "own.png", workbench.first.source.path])
    assert [one.path.name for one in mine.targets] == ["own.png", "scene.png"]
    turned = workbench.turned(replace(mine, targets=mine.targets[1:]))
    assert [one.path.name for one in (turned.source, *turned.targets)] == ["scene.png", "own.png"]
    workbench.screen(mine)
    again = workbench.screen(workbench.first)
    assert (again.figures, again.command) == (first.figures, first.command)


def test_images_are_kept_for_commands(tmp_path: Path) -> None:
    folder, pixels = KeptImages(tmp_path / "kept"), np.zeros((4, 6, 3), np.uint8)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        Image.fromarray(pixels).save(tmp_path / place / "a b.png")
        pixels = pixels + 50
    one, two = (folder.keep(tmp_path / place / "a b.png") for place in ("one", "two"))
    assert one.path != two.path and one.path.name == two.path.name == "a b.png"
    assert folder.keep(tmp_path / "one/a b.png") == one
    (tmp_path / "one/a b.png").unlink()
    assert one.path.is_file() and one.size == (4, 6)


def settings(**changes: Any) -> Callable[[Workbench], Session]:
    return lambda bench: bench.with_settings(bench.first, lambda: replace(bench.initial, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (settings(layers=("up-level9-out",)), "tiny has no layer or preset 'up-level9-out'"),
        (settings(timestep=1000), "timestep"),
        (settings(techniques=("lora",)), r"technique\.lora\.weights"),
        (settings(techniques=("all",)), r"technique\.lora\.weights"),
        (settings(backbone="sd15"), "stable-diffusion-v1-5"),
        (settings(techniques=("magic",)), "techniques='magic'"),
        (lambda bench: bench.with_source(bench.first, "nowhere.png"), r"image=nowhere\.png does not exist"),
        (lambda bench: bench.turned(bench.without_targets(bench.first)), "no other image"),
    ],
)
def test_errors_have_a_message_and_leave_the_rest_alone(
    workbench: Workbench, change: Callable[[Workbench], Session], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GateError, match=message):
        workbench.screen(change(workbench))
    assert len(CAPTION.findall(workbench.screen(workbench.first).figures)) == 3


def test_broken_images_are_told_of(workbench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(workbench.first.source.path.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    for name, message in (("broken", "does not decode"), ("text", "is no image that can be read")):
        with pytest.raises(DataError, match=rf"{name}\.png {message}"):
            workbench.with_targets(workbench.first, [tmp_path / f"{name}.png"])


def test_images_and_branches_of_the_command_line(make_workbench: Callable[..., Workbench], tmp_path: Path) -> None:
    for name in "ab":
        pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    branches = "techniques=[{name: one, timestep: 20}, {name: two, timestep: 300}]"
    pair = tmp_path / "a.png", tmp_path / "b.png"
    bench = make_workbench(branches, "amalgamation.normalize=true", given=pair)
    assert (bench.first.source.path.name, bench.first.targets[0].path.name) == ("a.png", "b.png")
    assert bench.initial.techniques == (AS_GIVEN,)
    (line,) = bench.screen(bench.first).command.splitlines()
    assert {branches, "amalgamation.normalize=true"} <= {*shlex.split(line)}


def test_one_s_own_targets_replace_the_examples(workbench: Workbench) -> None:
    added = workbench.with_targets(workbench.first, [workbench.first.source.path])
    assert [one.path.name for one in added.targets] == ["scene.png"]
    assert "No images to search in" in workbench.screen(workbench.without_targets(added)).figures
