"""What every data set of views and of videos promises, which are measured and not trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gate_lightning.data.geometric.base import ViewDataModule
from gate_lightning.data.geometric.hpatches import HPatchesDataModule
from gate_lightning.data.geometric.keypoints import KeypointRule
from gate_lightning.data.geometric.scene_views import SceneViewsDataModule
from gate_lightning.data.video.base import VideoDataModule
from gate_lightning.data.video.davis import DAVIS2017DataModule
from gate_lightning.data.video.scene_videos import SceneVideosDataModule
from gate_lightning.errors import ConfigError
from gate_lightning.structures import ImageBatch, ViewBatch
from tests.support.named_images import named_equally
from tests.support.videos import write_davis
from tests.support.view_layouts import write_hpatches

GRID = KeypointRule("grid", spacing=16)
VIEWS: dict[str, Callable[[Path], ViewDataModule]] = {
    "hpatches": lambda root: HPatchesDataModule(
        str(write_hpatches(root / "hpatches", size=(48, 64))), keypoints=GRID, size=24
    ),
    "scene_homographies": lambda root: SceneViewsDataModule(scenes=1, views=2, pixels=48, size=24, keypoints=GRID),
}


@pytest.fixture(params=VIEWS)
def views(request: pytest.FixtureRequest, tmp_path: Path) -> ViewDataModule:
    pytest.importorskip("cv2")
    return VIEWS[request.param](tmp_path)


def test_every_view_of_a_pair_is_given_once_with_keypoints_inside_it(views: ViewDataModule) -> None:
    pairs = views.pairs_of("test")
    sizes = {
        name: size for one in pairs for name, size in ((one.source, one.source_size), (one.target, one.target_size))
    }
    batches = list(views.test_dataloader())
    assert sorted(name for batch in batches for name in batch.conditions.sample_ids) == sorted(sizes)
    for batch in batches:
        assert isinstance(batch, ViewBatch)
        assert batch.images.shape[1:] == (3, 24, 24)
        assert {*batch.conditions.views} == {""}
        for name, points in zip(batch.conditions.sample_ids, batch.keypoints, strict=True):
            height, width = sizes[name]
            assert len(points)
            assert ((points >= 0) & (points <= torch.tensor([width - 1, height - 1]))).all()


def test_pairs_of_views_differ_and_pass_the_check(views: ViewDataModule) -> None:
    assert views.splits == ("test",)
    assert all(pair.source != pair.target for pair in views.pairs_of("test"))
    loader = views.test_dataloader()
    assert named_equally(lambda epoch: loader)
    assert not views.check("full").errors
    assert views.card.citation


VIDEOS: dict[str, Callable[[Path], VideoDataModule]] = {
    "davis2017": lambda root: DAVIS2017DataModule(
        str(write_davis(root / "davis")), test="test-dev", short_side=32, eval_batch_size=2
    ),
    "scene_videos": lambda root: SceneVideosDataModule(size=32, frames=3, val=2, test=1, eval_batch_size=2),
    "scene_videos-points": lambda root: SceneVideosDataModule("points", size=32, frames=3, val=2, test=1),
}


@pytest.fixture(params=VIDEOS)
def videos(request: pytest.FixtureRequest, tmp_path: Path) -> VideoDataModule:
    return VIDEOS[request.param](tmp_path)


def test_every_frame_is_given_once_and_in_order_by_batches_of_one_video(videos: VideoDataModule) -> None:
    for split in videos.splits:
        loader = getattr(videos, f"{split}_dataloader")()
        seen: dict[str, list[str]] = {}
        of_frame = {frame: one.name for one in videos.videos_of(split) for frame in one.frames}
        for batch in loader:
            assert type(batch) is ImageBatch
            (name,) = {of_frame[frame] for frame in batch.conditions.sample_ids}
            seen.setdefault(name, []).extend(batch.conditions.sample_ids)
        assert seen == {one.name: list(one.frames) for one in videos.videos_of(split)}
        assert named_equally(lambda epoch, loader=loader: loader)  # type: ignore[misc]


def test_first_frames_are_annotated_and_nothing_is_trained(videos: VideoDataModule) -> None:
    for split in videos.splits:
        source = videos.source(split)
        assert len(source) == sum(map(len, videos.videos_of(split)))
        for index in range(len(source)):
            assert (source.load(index).image.shape[:2],) == source.sizes(index)
        for video in videos.videos_of(split):
            if video.mask is None:
                assert video.points is not None and not np.isnan(video.points[0]).all()
            else:
                first = video.mask(0)
                assert first is not None and first.shape == video.size
                assert {*np.unique(first)} - {255} == {*range(video.objects + 1)}
    with pytest.raises(ConfigError, match="nothing is trained on them"):
        videos.train_dataloader()
    assert not videos.check("full").errors
    assert videos.card.citation
