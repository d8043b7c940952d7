"""Labels carried through videos: perfect with perfect features, resumable, divided, and refused where files are bad."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch import Tensor

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.data.video.base import VideoDataModule
from gate_lightning.data.video.davis import DAVIS2017DataModule
from gate_lightning.data.video.scene_videos import SceneVideosDataModule
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, DataError, ResumeError
from gate_lightning.metrics.video_segmentation import frame_scores
from gate_lightning.ops.propagation import Propagation
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.tasks.correspondence.temporal import TemporalCorrespondence
from tests.support.composition import composed
from tests.support.videos import write_davis

REAL = Path(__file__).resolve().parents[3].parent / "shared/data/DAVIS"


class TruthExtractor(torch.nn.Module):
    """Features that tell the truth: which object a pixel shows, one channel each, stride 1."""

    concatenated = ()
    description = MappingProxyType({"network": "truth"})

    def __init__(self, data: VideoDataModule, splits: Sequence[str] = ("val", "test"), position: bool = False) -> None:
        super().__init__()
        self.truth: dict[str, Tensor] = {}
        self.seen: list[str] = []
        for video in (video for split in splits for video in data.videos_of(split)):
            for index, name in enumerate(video.frames):
                assert video.mask is not None
                mask = video.mask(0 if position else index)
                assert mask is not None
                self.truth[name] = torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 8).permute(2, 0, 1)
        self.feature_info = {"plain": {"truth": FeatureInfo(8, 1)}}

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        self.seen += conditions.sample_ids
        return {"plain": {"truth": torch.stack([self.truth[name] for name in conditions.sample_ids]).float()}}


def measured(extractor: Any, data: VideoDataModule, folder: Path, rule: Propagation) -> dict[str, float]:
    task = TemporalCorrespondence(extractor, ConcatAmalgamation(extractor.feature_info), rule)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    (found,) = trainer.test(task, data, verbose=False)
    return dict(found)


@pytest.mark.thorough
def test_perfect_features_give_perfect_masks(tmp_path: Path) -> None:
    # objects hide each other, leave the image and come back, before a camera that moves
    data = SceneVideosDataModule(size=32, frames=9, test=3, val=1, eval_batch_size=4)
    extractor = TruthExtractor(data)
    found = measured(extractor, data, tmp_path, Propagation(2, 0, 3, 0.01))
    assert found["test/J&F-Mean"] == found["test/J-Mean"] == found["test/F-Recall"] == 1.0
    assert found["test/J-Decay"] == 0.0
    assert extractor.seen == [name for video in data.videos_of("test") for name in video.frames]
    for video in data.videos_of("test"):
        for index in range(9):
            path = tmp_path / f"masks/test/{video.name}/{index:05d}.png"
            with Image.open(path) as mask:
                assert mask.mode == "P" and mask.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
                assert video.mask is not None
                assert np.array_equal(np.asarray(mask), video.mask(index))


def test_features_that_stay_in_place_copy_the_first_mask(tmp_path: Path) -> None:
    data = SceneVideosDataModule(size=32, frames=6, test=2, val=1)
    found = measured(TruthExtractor(data, position=True), data, tmp_path, Propagation(2, 0, 3, 0.01))
    scores = []
    for video in data.videos_of("test"):
        assert video.mask is not None
        frames = [frame_scores(video.mask(0), video.mask(index), video.objects) for index in range(1, 5)]  # type: ignore[arg-type]
        scores += np.stack([region for region, _ in frames]).mean(axis=0).tolist()
    assert found["test/J-Mean"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert found["test/J-Mean"] < 0.9


@pytest.mark.thorough
def test_perfect_features_follow_points(tmp_path: Path) -> None:
    data = SceneVideosDataModule(annotation="points", size=48, frames=6, test=2, val=1, moving_camera=False)

    class Nearest(TruthExtractor):
        """A channel per point: how near a pixel is to it."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.seen, self.truth = [], {}
            y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
            for video in data.videos_of("test"):
                assert video.points is not None
                for name, points in zip(video.frames, torch.from_numpy(video.points), strict=True):
                    gaps = [(x - u) ** 2 + (y - v) ** 2 for u, v in points.nan_to_num(1e3)]
                    near = torch.exp(-torch.stack(gaps) / 2)
                    rest = torch.zeros(40 - len(near), 48, 48)
                    self.truth[name] = torch.cat([near, rest, torch.full((1, 48, 48), 0.05)])
            self.feature_info = {"plain": {"truth": FeatureInfo(41, 1)}}

    found = measured(Nearest(), data, tmp_path, Propagation(3, 0, 2, 0.01, "disc", False, False, True))
    assert found["test/PCK_0.10_box"] > 0.97
    plain = json.loads((tmp_path / f"videos/test/{data.videos_of('test')[0].name}.json").read_text())
    assert len(plain["points"]) == 6


SETTINGS = (
    *("dataset=davis2017", "dataset.short_side=32", "dataset.multiple=16", "dataset.num_workers=0", "logger=none"),
    *("backbone.weights=random", "trainer.accelerator=cpu", "task.propagation.last=2", "callbacks.report=null"),
)


def config_of(*more: str) -> Any:
    return composed(*SETTINGS, *more, name="eval")


def files_of(folder: Path) -> dict[str, bytes]:
    """What a run has found, by path."""
    parts = ("masks", "videos", "images", "overlays")
    paths = [path for part in parts for path in sorted((folder / part).rglob("*.*"))]
    paths += [folder / "metrics.json", *sorted(folder.glob("*_results-val.csv"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.thorough
def test_a_run_that_was_stopped_goes_on_to_the_same_files(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "DAVIS", videos=3, frames=4)
    given = [*SETTINGS, f"dataset.root={root}"]
    wanted = evaluate(config_of(f"dataset.root={root}"), given, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    assert {"val/J&F-Mean", "val/F-Decay"} <= {*wanted}
    names = (root / "ImageSets/2017/val.txt").read_text().split()
    assert {f"overlays/val/{names[0]}.gif", f"images/video_{names[2]}_val.png"} <= {*whole}
    lines = (tmp_path / "whole/global_results-val.csv").read_text().split()
    assert lines[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert lines[1].split(",")[0] == f"{wanted['val/J&F-Mean']:.3f}"
    objects = (tmp_path / "whole/per-sequence_results-val.csv").read_text().split()
    assert objects[0] == "Sequence,J-Mean,F-Mean" and objects[1].startswith(f"{names[0]}_1,0.")

    broken = root / f"JPEGImages/480p/{names[1]}/00002.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[:-60])
    stopped = tmp_path / "stopped"
    with pytest.raises(DataError, match=f"{names[1]}/00002.jpg"):
        evaluate(config_of(f"dataset.root={root}"), given, stopped)
    assert json.loads((stopped / "status.json").read_text())["status"] == "failed"
    done = {path.stem for path in (stopped / "videos/val").iterdir()}
    assert done == {names[0]}
    broken.write_bytes(good)
    before = (stopped / f"masks/val/{names[0]}/00003.png").stat().st_mtime_ns
    found = evaluate(composed(f"resume={stopped}", name="eval"), [f"resume={stopped}"], stopped)
    assert found == wanted
    assert files_of(stopped) == whole
    assert (stopped / f"masks/val/{names[0]}/00003.png").stat().st_mtime_ns == before  # not made again

    # finished: nothing is done; other settings are refused
    assert evaluate(composed(f"resume={stopped}", name="eval"), [f"resume={stopped}"], stopped) == wanted
    changed = [f"resume={stopped}", "task.propagation.top_k=3"]
    with pytest.raises(ResumeError, match=r"task.propagation.top_k: 5 → 3"):
        evaluate(composed(*changed, "task=video", "dataset=scene_videos", name="eval"), changed, stopped)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "DAVIS", frames=3)
    data = DAVIS2017DataModule(str(root), short_side=32)
    extractor = TruthExtractor(data, ("val",))
    task = TemporalCorrespondence(extractor, ConcatAmalgamation(extractor.feature_info), Propagation())  # type: ignore[arg-type]
    path = tmp_path / f"run/videos/val/{data.videos_of('val')[0].name}.json"
    path.parent.mkdir(parents=True)
    for text in ('{"frames": 3}', '{"frames": 9}', "no json"):
        path.write_text(text)
        if text.startswith('{"frames": 3'):
            task.go_on(tmp_path / "run", "val", data)  # a video that was not measured
            continue
        with pytest.raises(ResumeError, match=r"json"):
            task.go_on(tmp_path / "run", "val", data)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "DAVIS", videos=3, frames=4)
    given = [*SETTINGS, f"dataset.root={root}"]
    wanted = evaluate(config_of(f"dataset.root={root}"), given, tmp_path / "one")
    several = [*given, "trainer.devices=2", "+trainer.strategy=ddp_fork"]
    code = (
        "from pathlib import Path; from tests.support.composition import composed; "
        "from gate_lightning.engine.jobs.evaluation import evaluate; "
        f"given = {several!r}; evaluate(composed(*given, name='eval'), given, Path({str(tmp_path / 'two')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert json.loads((tmp_path / "two/metrics.json").read_text()) == wanted
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


@pytest.mark.thorough
def test_test_dev_is_exported_and_not_measured(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "DAVIS")
    more = (f"dataset.root={root}", "dataset.test=test-dev", "split=test")
    found = evaluate(config_of(*more), [*SETTINGS, *more], tmp_path / "run")
    assert found == {}
    (name,) = (root / "ImageSets/2017/test-dev.txt").read_text().split()
    masks = sorted((tmp_path / f"run/masks/test/{name}").iterdir())
    assert [path.name for path in masks] == [f"{index:05d}.png" for index in range(5)]
    with Image.open(masks[0]) as first, Image.open(root / f"Annotations/480p/{name}/00000.png") as given:
        assert np.array_equal(np.asarray(first), np.asarray(given))
    assert not list((tmp_path / "run").glob("*_results-*.csv"))


@pytest.mark.thorough
def test_other_tasks_have_nothing_to_go_on_with(tmp_path: Path) -> None:
    given = ["dataset=scene_pairs", "dataset.test=1", "dataset.size=32", "logger=none", "techniques=none"]
    given += ["backbone.weights=random", "trainer.accelerator=cpu", "amalgamation=concat", "callbacks=quiet"]
    evaluate(composed(*given, name="eval"), given, tmp_path / "run")
    with pytest.raises(ResumeError, match="measures all at once"):
        evaluate(composed(f"resume={tmp_path / 'run'}", name="eval"), [f"resume={tmp_path / 'run'}"], tmp_path / "run")


def test_nothing_is_trained_on_videos(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing is trained on them: python eval.py"):
        SceneVideosDataModule(size=32).train_dataloader()
