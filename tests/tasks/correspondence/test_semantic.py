"""Matching of keypoints by frozen features: one pass per image, features dropped after their last pair."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.data.correspondence.batches import SquareBicubic
from gate_lightning.data.samples import Sample
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.descriptors import descriptor_grids
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.structures import Conditions, FeatureInfo, Features, Pair
from gate_lightning.tasks.correspondence.open_pairs import OpenPairs
from gate_lightning.tasks.correspondence.semantic import SemanticCorrespondence
from gate_lightning.tools.comparison.compare import compare
from tests.examples.pairs_data import PairsDataModule, ShiftedImages
from tests.support.composition import composed
from tests.support.correspondence import KEY, SETTINGS, ColourExtractor, configured


class SidedExtractor(ColourExtractor):
    """Colours, and on which side of the image a pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = {"plain": {"colour": FeatureInfo(4, 1)}}

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        side = torch.linspace(-2, 2, images.shape[-1]).expand_as(images[:, :1])
        return {"plain": {"colour": torch.cat([super().forward(images, conditions)["plain"]["colour"], side], dim=1)}}


class Listed(PairsDataModule):
    """Given images and pairs."""

    def __init__(self, images: dict[str, np.ndarray], pairs: Sequence[Pair], **loading: Any) -> None:
        super().__init__(**loading)
        self.images, self.pairs = images, tuple(pairs)

    def make_source(self, split: str) -> Any:
        names, images = list(self.images), self.images

        class Source:
            __len__ = lambda self: len(names)  # noqa: E731
            sample_id = lambda self, index: names[index]  # noqa: E731
            load = lambda self, index: Sample(names[index], images[names[index]])  # noqa: E731
            sizes = lambda self, index: (images[names[index]].shape[:2],)  # noqa: E731

        return Source()

    def pairs_of(self, split: str) -> tuple[Pair, ...]:
        return self.pairs

    share_of = pairs_of


def task_of(network: type[ColourExtractor] = ColourExtractor, **settings: Any) -> SemanticCorrespondence:
    extractor = network()
    own = {"read_out": ReadOut(), **settings}
    return SemanticCorrespondence(extractor, ConcatAmalgamation(extractor.feature_info), **own)


def measured(task: SemanticCorrespondence, data: Any, **trainer: Any) -> dict[str, float]:
    quiet = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **trainer)
    (found,) = quiet.test(task, data, verbose=False)
    return found


def photo(seed: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def pair_of(names: tuple[str, str], points: Sequence[Sequence[float]], moved: float = 0.0, **more: Any) -> Pair:
    place = torch.tensor(points)
    return Pair(*names, place, place + torch.tensor([moved, 0.0]), (12, 16), (12, 16), **more)


def test_identical_images_give_all_keypoints_and_a_shift_of_exactly_the_threshold_parts_the_comparisons() -> None:
    images = {"a": photo(0), "b": photo(0)}
    box = {"source_box": (0, 0, 10, 5), "target_box": (0, 0, 10, 5)}
    same = measured(task_of(), Listed(images, [pair_of(("a", "b"), [[2.0, 3.0], [9.0, 8.0]], **box)]))
    assert len(same) == 4 * 2 * 3 * 2 and set(same.values()) == {1.0}
    # 1 pixel is 0.1 of the box, and less than that of the image
    moved = measured(task_of(), Listed(images, [pair_of(("a", "b"), [[2.0, 3.0], [9.0, 8.0]], 1.0, **box)]))
    scores = {key.removeprefix("test/"): value for key, value in moved.items()}
    assert scores["PCK_0.10_bbox_per-image_le"] == 1 and scores["PCK_0.10_bbox_per-image_lt"] == 0
    assert scores["PCK_0.10_img_per-image_lt"] == 1 and scores["PCK_0.05_img_per-image_le"] == 0


def test_every_image_passes_once_and_is_kept_until_its_last_pair() -> None:
    images = {name: photo(number) for number, name in enumerate("abcdef")}
    couples = ["ab", "ba", "ac", "cb", "ef", "aa"]  # of d there is no pair
    pairs = [pair_of((couple[0], couple[1]), [[1.0, 1.0]]) for couple in couples]
    task = task_of()
    kept: list[int] = []
    step = task.test_step

    def watched(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        found = step(batch, batch_idx)
        kept.append(task._open.kept)
        return found

    task.test_step = watched  # type: ignore[method-assign]
    measured(task, Listed(images, pairs, batch_size=1))
    assert [name for name, _ in task.extractor.seen] == ["a", "b", "c", "e", "f"]
    assert kept == [1, 2, 0, 0, 1, 0]  # after a, b, c, d, e, f
    assert [one.number for one in task.measured["test"]] == list(range(6))
    assert [one.pair for one in task.measured["test"]] == pairs


def test_pairs_that_repeat_an_image_in_one_batch_are_measured_once() -> None:
    pair = pair_of(("a", "b"), [[1.0, 1.0]])
    open_pairs: OpenPairs[str] = OpenPairs([(3, pair)])
    assert len(open_pairs) == 1 and open_pairs.wants("a") and not open_pairs.wants("x")
    assert not list(open_pairs.arrive("a", "first"))
    assert not open_pairs.wants("a")
    assert list(open_pairs.arrive("b", "second")) == [(3, pair, "first", "second")]
    assert (open_pairs.kept, len(open_pairs)) == (0, 0)
    other = replace(pair_of(("b", "c"), [[1.0, 1.0]]), source_size=(9, 9))
    with pytest.raises(DataError, match=r"b has \(12, 16\) .* and \(9, 9\) in another"):
        OpenPairs([(0, pair), (1, other)])


def mirrored_pairs() -> tuple[dict[str, np.ndarray], list[Pair]]:
    """An image, and its mirror image; "left" and "right" are names of sides, so they change places."""
    image = np.full((12, 16, 3), 128, dtype=np.uint8)
    image[2:5, 2:5] = (250, 10, 10)
    image[7:10, 11:14] = (10, 250, 10)
    source = torch.tensor([[3.0, 3.0], [12.0, 8.0]])
    there = torch.stack([15 - source[:, 0], source[:, 1]], dim=1)
    box = (0.0, 0.0, 15.0, 11.0)
    pair = Pair("a", "b", source, there, (12, 16), (12, 16), box, box, "toy", keypoint_ids=("red", "green"))
    named = replace(pair, target_points=there.flip(0), keypoint_ids=("left", "right"))
    return {"a": image, "b": image[:, ::-1].copy()}, [pair, named]


@pytest.mark.parametrize("flip", ["mutual", "instance"])
def test_the_mirror_image_is_matched_where_it_is_nearer(flip: str) -> None:
    images, (pair, named) = mirrored_pairs()
    upright = replace(pair, target="a", target_points=pair.source_points)
    task = task_of(SidedExtractor, flip=flip)
    measured(task, Listed(images, [pair, upright]))
    assert sorted(task.extractor.seen) == [("a", ""), ("a", "mirrored"), ("b", "")]
    for one in task.measured["test"]:
        np.testing.assert_allclose(one.matches, one.pair.target_points, atol=1.0)
    # the partner's place is looked up where the keypoint has one
    data = Listed(images, [named])
    data.partners = {"toy": {"left": "right", "right": "left"}}
    task = task_of(SidedExtractor, flip=flip)
    measured(task, data)
    np.testing.assert_allclose(task.measured["test"][0].matches, named.target_points, atol=1.0)
    bare = replace(pair, source_box=None)
    if flip == "instance":
        task = task_of(SidedExtractor, flip=flip)
        with pytest.raises(ConfigError, match=r"flip=instance .* 1 of 1 pairs lack one, the first a → b"):
            measured(task, Listed(images, [bare]))


def test_levels_of_other_strides_are_resized_and_places_are_those_of_the_file() -> None:
    class TwoLevels(ColourExtractor):
        def __init__(self) -> None:
            super().__init__()
            self.feature_info = {"plain": {"fine": FeatureInfo(3, 4), "coarse": FeatureInfo(3, 8)}}

        def forward(self, images: Tensor, conditions: Conditions) -> Features:
            padded = torch.nn.functional.pad(images, (0, 24 - images.shape[-1], 0, 16 - images.shape[-2]))
            pooled = {name: torch.nn.functional.avg_pool2d(padded, size) for name, size in (("fine", 4), ("coarse", 8))}
            return {"plain": pooled}

    extractor = TwoLevels()
    task = SemanticCorrespondence(extractor, ConcatAmalgamation(extractor.feature_info), ReadOut(resolution="patch"))
    images = torch.rand(1, 3, 12, 20)
    (grid,) = descriptor_grids(extractor, task.amalgamation, task.head, images, Conditions(("a",)), [(24, 40)])
    assert grid.features.shape == (6, 4, 6) and grid.scales == (1 / 8, 1 / 8)
    # the image is shown at half the file's size, and padded to 16 × 24: three rows and five columns of it are the image
    data = Listed({"a": photo(0, (12, 20)), "b": photo(0, (12, 20))}, [])
    points = torch.tensor([[3.5, 3.5], [35.5, 19.5]])  # centres of the first and the last position
    data.pairs = (Pair("a", "b", points, points, (24, 40), (24, 40)),)
    measured(task, data)
    np.testing.assert_allclose(task.measured["test"][0].matches, points, atol=1e-6)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.flip='sometimes'"):
        task_of(flip="sometimes")
    with pytest.raises(ConfigError, match="averages='mean'"):
        task_of(averages=("mean",))
    data = Listed({"a": photo(0), "b": photo(0)}, [pair_of(("a", "b"), [[1.0, 1.0]])], batch_size=1)
    with pytest.raises(DataError, match="no pair of test was complete"):
        measured(task_of(), data, limit_test_batches=1)


# the command ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_an_evaluation_without_training_makes_a_run_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = tmp_path / "run"
    found = evaluate(configured(), [*SETTINGS, "seed=0"], run)
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names >= {"config.yaml", "environment.json", "frozen.json", "metrics.json", "overrides.json", "status.json"}
    assert names >= {"categories_test.csv", "pairs_test.csv", "images/matches_first_test.png"}
    assert json.loads((run / "metrics.json").read_text()) == pytest.approx(found)
    assert f"test/{KEY}" in found
    rows = list(csv.DictReader((run / "pairs_test.csv").open()))
    assert [row["source"] for row in rows] == ["test/0", "test/1", "test/2"]
    assert np.mean([float(row[KEY]) for row in rows]) == pytest.approx(found[f"test/{KEY}"])
    for row, pair in zip(rows, PairsDataModule().pairs_of("test"), strict=True):
        matches = np.array([list(map(float, match.split())) for match in row["matches"].split("; ")])
        distances = np.linalg.norm(matches - pair.target_points.numpy(), axis=1)
        np.testing.assert_allclose(list(map(float, row["distances"].split())), distances, atol=0.02)
    categories = {row["category"]: row for row in csv.DictReader((run / "categories_test.csv").open())}
    assert set(categories) == {"noise", "all"} and float(categories["all"][KEY]) == pytest.approx(found[f"test/{KEY}"])
    assert "PCK@0.10 img per-image ≤" in caplog.text
    assert Image.open(run / "images/matches_worst_test.png").width > 300
    again = evaluate(configured(f"run={run}", "trust=true"), [f"run={run}", "trust=true"], tmp_path / "again")
    assert again == pytest.approx(found)
    assert KEY in compare(str(run), str(tmp_path), f"test/{KEY}")
    with pytest.raises(ConfigError, match="holds a run already"):
        evaluate(configured(), SETTINGS, run)


@pytest.mark.thorough
def test_other_splits_and_what_is_wrong(tmp_path: Path) -> None:
    found = evaluate(configured("split=val", "callbacks=quiet"), SETTINGS, tmp_path / "val")  # as by an experiment
    assert f"val/{KEY}" in found
    assert json.loads((tmp_path / "val/overrides.json").read_text()) == [*SETTINGS, "split=val"]
    with pytest.raises(ConfigError, match="split=train: shifted pairs has val and test to be measured on"):
        evaluate(configured("split=train"), SETTINGS, tmp_path / "train")
    with pytest.raises(ConfigError, match=r"optimizer=sgd: SemanticCorrespondence, measured .* reads no optimizer"):
        evaluate(configured("optimizer=sgd"), [*SETTINGS, "optimizer=sgd"], tmp_path / "unread")
    with pytest.raises(ConfigError, match="pairs have no box of the target"):
        evaluate(configured("task.thresholds=[bbox]"), SETTINGS, tmp_path / "boxes")
    status = json.loads((tmp_path / "boxes/status.json").read_text())
    assert status["status"] == "failed" and "ConfigError: PCK@0.05 bbox" in status["message"]
    # nothing was measured there: the corrected command may take the same folder, and one that has results may not
    assert f"test/{KEY}" in evaluate(configured("callbacks=quiet"), SETTINGS, tmp_path / "boxes")
    with pytest.raises(ConfigError, match="holds a run already"):
        evaluate(configured("callbacks=quiet"), SETTINGS, tmp_path / "boxes")


def test_toy_images_are_the_pairs_own() -> None:
    images = ShiftedImages("test", 2)
    pair = images.pair(1)
    (x, y), (u, v) = pair.source_points[0].int().tolist(), pair.target_points[0].int().tolist()
    assert (images.load(2).image[y, x] == images.load(3).image[v, u]).all()


@pytest.mark.slow
def test_steered_features_of_scenes_are_matched(tmp_path: Path) -> None:
    given = (
        *("dataset=scene_pairs", "dataset.test=2", "dataset.size=32", "techniques=all", "logger=none"),
        *("backbone.weights=random", "trainer.accelerator=cpu", "amalgamation=concat", "amalgamation.normalize=true"),
    )
    found = evaluate(composed(*given, name="eval"), given, tmp_path)
    assert 0 < found["test/PCK_0.15_img_per-point_le"] < 1


class Larger(PairsDataModule):
    """Images of 64 pixels for the backbone."""

    eval_resize = SquareBicubic(64)


EXPERIMENTS = (
    *("dift/spair71k", "dift/spair71k_adm", "dift/spair71k_dinov2", "dift/pf_willow", "dift/cub"),
    *("cleandift/spair71k", "sd_dino/spair71k"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_match_at_real_widths(name: str, tmp_path: Path) -> None:
    own = ("backbone.weights=random", "ensemble=1", "logger=none", "trainer.accelerator=cpu")
    second = ("backbones.dino.weights=random",) if name.startswith("sd_dino") else ()
    config = composed(f"experiment={name}", *own, *second, name="eval")
    OmegaConf.set_struct(config, False)
    config.dataset = {"_target_": f"{__name__}.Larger", "batch_size": 1}
    config.task.thresholds, config.task.averages = ["img"], ["image"]
    assert evaluate(config, own, tmp_path)
