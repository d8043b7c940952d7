"""Pairs of scenes: their truth, held against masks and pixels of the rendered images."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from gate_lightning.data.correspondence.scene_pairs import CHANGES, ScenePairsDataModule, other_view
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import PARTS
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Pair

SIZE = 96


@pytest.fixture(scope="module")
def data() -> ScenePairsDataModule:
    return ScenePairsDataModule(size=SIZE, train=3, val=2, test=24)


def parts_near(parts: np.ndarray, x: float, y: float) -> set[str]:
    """Names of the parts of the 3 × 3 pixels around a point."""
    column, row = round(x), round(y)
    return {
        PARTS[value] for value in parts[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].ravel().tolist()
    }


def part_masks(data: ScenePairsDataModule, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Part masks of both images, from the seeds in their names."""
    _, domain, seed = pair.source.split("/")
    first = sample_scene(int(seed), domain, data.kinds)
    _, domain, seed, *view = pair.target.split("/")
    if view:
        return render(first, SIZE).parts, render(first, SIZE, other_view(int(seed))).parts
    second = sample_scene(int(seed), domain, [obj.kind for obj in first.objects])
    return render(first, SIZE).parts, render(second, SIZE).parts


@pytest.mark.slow
def test_both_points_lie_on_one_part_of_one_object(data: ScenePairsDataModule) -> None:
    points = Counter()
    for pair in data.pairs_of("test"):
        masks = part_masks(data, pair)
        for one, two in zip(pair.source_points.tolist(), pair.target_points.tolist(), strict=True):
            common = parts_near(masks[0], *one) & parts_near(masks[1], *two)
            assert any(part.startswith(pair.category) for part in common), (pair, one, two)
            points[pair.group] += 1
    assert set(points) == set(CHANGES)
    assert min(points.values()) > 100


def test_homographies_map_points_and_pixels_of_views() -> None:
    data = ScenePairsDataModule("view", domain="source", size=SIZE, train=1, val=1, test=12)
    images = {
        data.source("test").sample_id(i): data.source("test").load(i).image for i in range(len(data.source("test")))
    }
    centres = np.array([[SIZE, 0, -0.5], [0, SIZE, -0.5], [0, 0, 1.0]])
    for pair in data.pairs_of("test"):
        pixels = centres @ other_view(int(pair.source.split("/")[2])) @ np.linalg.inv(centres)
        mapped = np.hstack([pair.source_points.numpy(), np.ones((len(pair), 1))]) @ pixels.T
        np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], pair.target_points.numpy(), atol=1e-3)
        warped = cv2.warpPerspective(images[pair.source], pixels, (SIZE, SIZE), flags=cv2.INTER_AREA)
        covered = cv2.warpPerspective(np.ones((SIZE, SIZE), np.float32), pixels, (SIZE, SIZE)) > 0.99
        difference = np.abs(warped.astype(int) - images[pair.target].astype(int)).mean(axis=2)[covered]
        assert difference.mean() < 8
        assert np.median(difference) < 5


@pytest.mark.thorough
def test_what_is_visible_in_the_target_is_known(data: ScenePairsDataModule) -> None:
    further = [(pair.target_visible or set()) - set(pair.keypoint_ids) for pair in data.pairs_of("test")]
    assert all(set(pair.keypoint_ids) <= (pair.target_visible or set()) for pair in data.pairs_of("test"))
    assert any(further) and not all(further)


def test_hidden_points_are_left_out(data: ScenePairsDataModule) -> None:
    pairs = data.pairs_of("test")
    assert all(len(pair) for pair in pairs)
    assert {pair.attributes["hidden"] > 0 for pair in pairs} == {True, False}
    for pair in pairs:
        for points in (pair.source_points, pair.target_points):
            assert ((points >= -0.5) & (points <= SIZE - 0.5)).all()
        assert len(pair.keypoint_ids) == len(pair)


@pytest.mark.thorough
def test_boxes_enclose_the_visible_object(data: ScenePairsDataModule) -> None:
    for pair in data.pairs_of("test"):
        for mask, box in zip(part_masks(data, pair), (pair.source_box, pair.target_box), strict=True):
            own = np.isin(mask, [index for index, part in enumerate(PARTS) if part.startswith(pair.category)])
            rows, columns = np.nonzero(own)
            assert box == (columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5)


def test_changes_change_what_they_say(data: ScenePairsDataModule) -> None:
    for pair in data.pairs_of("test"):
        assert pair.source.startswith("scene_pairs/target/")
        assert pair.target.startswith("scene_pairs/source/" if pair.group == "domain" else "scene_pairs/target/")
        assert pair.target.endswith("/view") == (pair.group == "view")
    # a position says nothing about where an object went
    moved = [
        (pair.source_points - pair.target_points).norm(dim=1).mean().item()
        for pair in data.pairs_of("test")
        if pair.group == "elsewhere"
    ]
    assert np.median(moved) > 0.15 * SIZE
    assert {pair.attributes["mirrored"] for pair in data.pairs_of("test") if pair.group != "view"} == {0, 1}


@pytest.mark.thorough
def test_splits_share_no_scene_and_only_training_follows_the_seed(data: ScenePairsDataModule) -> None:
    def names(module: ScenePairsDataModule, split: str) -> set[str]:
        return {name for pair in module.pairs_of(split) for name in (pair.source, pair.target)}

    other = ScenePairsDataModule(size=SIZE, train=3, val=2, test=24, split_seed=1)
    assert names(other, "test") == names(data, "test")
    assert not names(other, "train") & names(data, "train")
    assert not names(data, "train") & (names(data, "val") | names(data, "test"))


def test_images_have_captions_and_shuffled_ones_are_anothers() -> None:
    def captions(kind: str) -> list[str]:
        module = ScenePairsDataModule("elsewhere", size=16, train=1, val=6, test=1, captions=kind)
        return [text for batch in module.val_dataloader() for text in batch.conditions.captions]

    fine, shuffled = captions("fine"), captions("shuffled")
    assert sorted(fine) == sorted(shuffled)
    assert fine != shuffled


def test_training_batches_and_check(data: ScenePairsDataModule) -> None:
    batch = next(iter(ScenePairsDataModule(size=32, train=3, val=1, test=1, batch_size=4).train_dataloader()))
    assert batch.source.images.shape == (4, 3, 32, 32)
    assert (~torch.isnan(batch.source_points)).any(dim=2).any(dim=1).all()
    text = str(data.check())
    assert "0 errors" in text
    assert "elsewhere horse" in text


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"changes": "colour"},
        {"changes": []},
        {"size": 0},
        {"test": 0},
        {"domain": "moon"},
        {"kinds": ["cow"]},
    ):
        with pytest.raises(ConfigError):
            ScenePairsDataModule(**wrong)


@pytest.mark.thorough
def test_keypoints_at_the_border_lie_within_the_outermost_pixels(caplog: pytest.LogCaptureFixture) -> None:
    pairs = ScenePairsDataModule(size=64, train=1, val=1, test=64).pairs_of("test")
    points = torch.cat([both for pair in pairs for both in (pair.source_points, pair.target_points)])
    assert points.min() < 0 or points.max() > 63  # beyond the outermost centres
    assert points.min() >= -0.5 and points.max() <= 63.5
    assert "outside" not in caplog.text
