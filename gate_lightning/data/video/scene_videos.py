"""``dataset=scene_videos``: videos of generated scenes whose masks and points are known exactly.

Objects of a scene move in front of each other before a camera that moves, too. In turn they

| movement | what the object does |
|---|---|
| crosses | goes from its place to the mirrored one, past (behind or in front of) the others |
| leaves | goes out of the image to the nearer side, and comes back |
| sways | swings about its place, tilts and changes its size |

Seeds are those of ``scenes``; what is annotated is what the first frame shows. Points are those of the objects'
outlines (`data.scenes.shapes`), annotated where neither the image's border nor another object hides them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.files.frames import Frames
from gate_lightning.data.scenes.dataset import split_seeds
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.rendering import Rendering
from gate_lightning.data.scenes.world import DOMAINS, ObjectSpec, SceneSpec
from gate_lightning.data.video.annotated import AnnotatedVideo
from gate_lightning.data.video.base import FrameResize, VideoDataModule
from gate_lightning.structures import Video
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["ANNOTATIONS", "SceneVideosDataModule", "camera", "moved"]

ANNOTATIONS = ("masks", "points")
_MOVEMENTS = ("crosses", "leaves", "sways")


def moved(scene: SceneSpec, time: float) -> SceneSpec:
    """The scene at a time from 0 (as it was sampled) to 1."""
    objects = tuple(_moved(one, _MOVEMENTS[(scene.seed + index) % 3], time) for index, one in enumerate(scene.objects))
    return replace(scene, objects=objects)


def _moved(one: ObjectSpec, movement: str, time: float) -> ObjectSpec:
    swing = float(np.sin(2 * np.pi * time))
    if movement == "crosses":
        there = 1.0 - one.x if abs(one.x - 0.5) > 0.15 else one.x + 0.6 * (1 if one.x < 0.5 else -1)
        return replace(one, x=one.x + (there - one.x) * time, flip=one.flip)
    if movement == "leaves":
        side = 1.0 if one.x > 0.5 else -1.0
        return replace(one, x=one.x + side * 1.1 * float(np.sin(np.pi * time)) ** 2)
    return replace(one, x=one.x + 0.12 * swing, scale=one.scale * (1 + 0.15 * swing), tilt=one.tilt + 0.15 * swing)


def camera(seed: int, time: float) -> np.ndarray | None:
    """Homography (3, 3) of the camera at a time from 0 (None: as the scene was sampled) to 1: turned, closer, aside."""
    if time == 0:
        return None
    size = data_generator("camera of a video", seed).uniform(0.5, 1.0, 4) * data_generator(
        "direction of a video", seed
    ).choice((-1.0, 1.0), 4)
    swing, rise = np.sin(np.pi * time), np.sin(2 * np.pi * time)
    angle, scale = 0.06 * size[0] * rise, 1 + 0.12 * abs(size[1]) * swing
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    to_middle = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    turned = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    back = np.array(
        [[1.0, 0.0, 0.5 + 0.08 * size[2] * swing], [0.0, 1.0, 0.5 + 0.04 * size[3] * rise], [0.0, 0.0, 1.0]]
    )
    return back @ turned @ to_middle


class _Drawn(Frames):
    """Frames that are drawn already."""

    def __init__(self, name: str, drawn: tuple[Rendering, ...]) -> None:
        super().__init__(Path(name))
        self.drawn = drawn

    def __len__(self) -> int:
        return len(self.drawn)

    @property
    def size(self) -> tuple[int, int]:  # type: ignore[override]
        height, width = self.drawn[0].image.shape[:2]
        return height, width

    @property
    def _count(self) -> int:  # type: ignore[override]
        return len(self.drawn)

    def name(self, index: int) -> str:
        return f"{index:05d}"

    def place(self, index: int) -> str:
        return f"{self.path}/{self.name(index)}"

    def read(self, index: int) -> np.ndarray:
        return self.drawn[index].image


class _Masks:
    """Masks of the objects that the first frame shows, numbered from 1."""

    def __init__(self, drawn: tuple[Rendering, ...]) -> None:
        self.drawn = drawn
        self.shown = np.unique(drawn[0].instances)[1:] if 0 in drawn[0].instances else np.unique(drawn[0].instances)

    def __call__(self, index: int) -> NDArray[np.uint8]:
        table = np.zeros(256, dtype=np.uint8)
        table[self.shown] = np.arange(1, len(self.shown) + 1)
        mask: NDArray[np.uint8] = table[self.drawn[index].instances]
        return mask


class SceneVideosDataModule(VideoDataModule):
    """Videos of generated scenes (see the head of this module).

    Args:
        annotation: ``masks`` or ``points``.
        domain: ``target`` or ``source``.
        size: side in pixels.
        frames: of each video.
        moving_camera: whether the camera moves.
        val, test: videos of each split.
        others: `VideoDataModule`'s arguments.

    Raises:
        ConfigError: an unknown name or a number out of range.
    """

    splits = ("val", "test")

    def __init__(
        self,
        annotation: str = "masks",
        domain: str = "source",
        size: int = 128,
        frames: int = 16,
        moving_camera: bool = True,
        val: int = 4,
        test: int = 6,
        **others: Any,
    ) -> None:
        super().__init__(FrameResize(0), **others)
        check_choice(annotation, "dataset.annotation", ANNOTATIONS)
        check_choice(domain, "dataset.domain", DOMAINS)
        self.annotation, self.domain, self.moving_camera = annotation, domain, moving_camera
        self.size = whole_number(size, "dataset.size", 8)
        self.count = whole_number(frames, "dataset.frames", 2, 1000)
        lengths = {"val": val, "test": test}
        for split, length in lengths.items():
            whole_number(length, f"dataset.{split}", 1, 1000)
        self.seeds = {split: split_seeds(split, length) for split, length in lengths.items()}
        self.card = DatasetCard(
            f"scene-videos-{annotation}",
            prompt_simple="a photo",
            citation="generated by gate_lightning.data.scenes",
            licence="Apache-2.0",
        )

    def read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        """Render the videos of a split."""
        return tuple(self._video(seed) for seed in self.seeds[split])

    def _video(self, seed: int) -> AnnotatedVideo:
        scene = sample_scene(seed, self.domain, count=(2, 4))
        times = [index / max(self.count - 1, 1) for index in range(self.count)]
        views = [camera(seed, time) if self.moving_camera else None for time in times]
        drawn = tuple(render(moved(scene, time), self.size, view) for time, view in zip(times, views, strict=True))
        name = f"scene{seed}"
        frames = _Drawn(name, drawn)
        ids = tuple(f"scene_videos/{self.domain}/{seed}/{frames.name(index)}" for index in range(self.count))
        if self.annotation == "masks":
            masks = _Masks(drawn)
            return AnnotatedVideo(Video(name, ids, frames.size, len(masks.shown), masks), frames)
        names, points = _points(drawn)
        return AnnotatedVideo(Video(name, ids, frames.size, point_names=names, points=points), frames)


def _points(drawn: tuple[Rendering, ...]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and places (T, K, 2) of the points that the first frame shows; NaN where one is hidden."""
    names = tuple(
        f"{number} {one.kind} {name}" for number, one in enumerate(drawn[0].keypoints, start=1) for name in one.names
    )
    places = np.stack(
        [np.concatenate([np.where(one.visible[:, None], one.xy, np.nan) for one in frame.keypoints]) for frame in drawn]
    ).astype(np.float32)
    shown = np.isfinite(places[0]).all(axis=1)
    return tuple(name for name, there in zip(names, shown, strict=True) if there), places[:, shown]
