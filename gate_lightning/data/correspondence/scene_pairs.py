"""``dataset=scene_pairs``: pairs of generated scenes whose correspondences are known exactly.

Every scene makes one pair of scenes for each kind of change, and every object in it one pair of the data set (its
category is the object's kind, its group the change):

| change | the other scene |
|---|---|
| elsewhere | the same objects (kinds and colours) at other places, sizes and sides, before another background |
| domain | the same as elsewhere, in the other domain: dim, striped and grainy, or bright |
| view | the same scene seen through a homography |

Keypoints are points of the objects' outlines (`data.scenes.shapes`), visible where neither the image's border nor
another object hides them. Seeds are those of ``scenes`` (validation and test do not depend on ``split_seed``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated, Box
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.batches import Partners
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.images import PairImage
from gate_lightning.data.files.captions import derangement
from gate_lightning.data.scenes.captions import LEVELS, caption
from gate_lightning.data.scenes.dataset import split_seeds
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.rendering import Rendering
from gate_lightning.data.scenes.world import DOMAINS, KINDS, LEAK_FREE_KINDS, SceneSpec
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Pair
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["CHANGES", "ScenePairsDataModule", "changed_scene", "other_view"]

CHANGES = ("elsewhere", "domain", "view")
_SIDES = (("crown_left", "crown_right"), ("wall_left", "wall_right"))


def other_view(seed: int) -> np.ndarray:
    """Homography (3, 3) of the view of a scene, between normalised coordinates: turned, scaled, moved and slanted."""
    rng = data_generator("view of a scene", seed)
    angle, scale = rng.uniform(-0.5, 0.5), rng.uniform(0.75, 1.15)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    moved = 0.5 + rng.uniform(-0.1, 0.1, 2)
    slant = rng.uniform(-0.25, 0.25, 2)
    to_middle = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    turned = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [*slant, 1.0]])
    back = np.array([[1.0, 0.0, moved[0]], [0.0, 1.0, moved[1]], [0.0, 0.0, 1.0]])
    return back @ turned @ to_middle


class ScenePairsDataModule(PairDataModule):
    """Pairs of generated scenes (see the head of this module).

    Args:
        changes: kinds of pairs, of ``elsewhere``, ``domain`` and ``view``.
        domain: of the first scene of a pair: ``target`` or ``source``.
        kinds: None for one to four random objects, ``leak_free`` for one tree, house, horse and car in every scene, or
            a list of kinds.
        size: side in pixels; the backbone's native size.
        train, val, test: scenes of each split that pairs are made from.
        split_seed: chooses the training scenes, 0 to 99.
        captions: ``fine``, ``kinds``, ``coarse``, ``noisy``, ``empty``, or ``shuffled``: the fine caption of another
            image of the split.
        others: `PairDataModule`'s arguments.

    Raises:
        ConfigError: an unknown name or a number out of range.
    """

    partners: Partners = MappingProxyType(
        {kind: {one: other for sides in _SIDES for one, other in (sides, sides[::-1])} for kind in KINDS}
    )

    def __init__(
        self,
        changes: Sequence[str] = CHANGES,
        domain: str = "target",
        kinds: str | Sequence[str] | None = None,
        size: int = 64,
        train: int = 64,
        val: int = 32,
        test: int = 64,
        split_seed: int = 0,
        captions: str = "fine",
        **others: Any,
    ) -> None:
        super().__init__(size, **others)
        self.changes = (changes,) if isinstance(changes, str) else tuple(changes)
        for change in self.changes:
            check_choice(change, "dataset.changes", CHANGES)
        if not self.changes or len(set(self.changes)) < len(self.changes):
            raise ConfigError(f"dataset.changes={list(self.changes)}: expected some of {', '.join(CHANGES)}, each once")
        check_choice(domain, "domain", DOMAINS)
        check_choice(captions, "captions", (*LEVELS, "shuffled"))
        self.domain, self.size, self.captions = domain, whole_number(size, "dataset.size", 8), captions
        self.kinds = LEAK_FREE_KINDS if kinds == "leak_free" else kinds
        lengths = {"train": train, "val": val, "test": test}
        for split, length in lengths.items():
            whole_number(length, f"dataset.{split}", 1, 5000)
        self.seeds = {split: split_seeds(split, 2 * length, split_seed) for split, length in lengths.items()}
        render(sample_scene(0, domain, self.kinds), self.size)  # refuses bad values now
        named = "a photo of " + " and ".join(f"a {kind}" for kind in KINDS)
        self.card = DatasetCard(
            "scene-pairs",
            prompt_simple="a photo",
            prompt_fine=named,
            # maps of one attention channel per word are comparable where all images have the same words
            branches=correspondence_branches(attention=named, other=None),
            citation="generated by gate_lightning.data.scenes",
            licence="Apache-2.0",
        )

    def read(self, split: str) -> Annotated[Pair]:
        """Render the scenes of a split and pair their objects (some hundred images a second)."""
        pairs: list[Pair] = []
        drawn: dict[str, tuple[SceneSpec, Rendering]] = {}
        hidden = 0
        for seed, second in zip(self.seeds[split][::2], self.seeds[split][1::2], strict=True):
            first = sample_scene(seed, self.domain, self.kinds)
            drawn[_name(first)] = first, render(first, self.size)
            for change in self.changes:
                spec, view = changed_scene(first, change, second)
                name = _name(spec) + ("/view" if view is not None else "")
                drawn[name] = spec, render(spec, self.size, view)
                made = _pairs((_name(first), *drawn[_name(first)]), (name, *drawn[name]), change)
                pairs += [pair for pair in made if len(pair)]
                hidden += sum(not len(pair) for pair in made)
        notes = (
            (f"{split}: {hidden} objects left out, none of their keypoints is visible in both images",)
            if hidden
            else ()
        )
        return Annotated(tuple(pairs), self._images(split, drawn), notes=notes)

    def _images(self, split: str, drawn: dict[str, tuple[SceneSpec, Rendering]]) -> dict[str, PairImage]:
        level = "fine" if self.captions == "shuffled" else self.captions
        texts = [caption(spec, level) for spec, _ in drawn.values()]
        if self.captions == "shuffled":
            texts = [texts[index] for index in derangement(len(texts), self.seed, split)]
        return {
            name: PairImage(Path(name), size=(self.size, self.size), caption=text, drawn=rendering.image)
            for (name, (_, rendering)), text in zip(drawn.items(), texts, strict=True)
        }


def _name(spec: SceneSpec) -> str:
    """Sample id."""
    return f"scene_pairs/{spec.domain}/{spec.seed}"


def changed_scene(first: SceneSpec, change: str, second: int) -> tuple[SceneSpec, np.ndarray | None]:
    """The other scene of a pair, and the homography it is seen through.

    Args:
        first: the first scene.
        change: of `CHANGES`.
        second: seed of the places of the objects and of the background.
    """
    if change == "view":
        return first, other_view(first.seed)
    domain = first.domain if change == "elsewhere" else next(name for name in DOMAINS if name != first.domain)
    placed = sample_scene(second, domain, [obj.kind for obj in first.objects])
    colours = {obj.kind: obj.color for obj in first.objects}
    return replace(placed, objects=tuple(replace(obj, color=colours[obj.kind]) for obj in placed.objects)), None


def _pairs(
    first: tuple[str, SceneSpec, Rendering], second: tuple[str, SceneSpec, Rendering], change: str
) -> list[Pair]:
    """A pair of every object of the first scene, also of those without a common visible keypoint."""
    made = []
    size = first[2].image.shape[:2]
    places = {obj.kind: index for index, obj in enumerate(second[1].objects)}
    for index, obj in enumerate(first[1].objects):
        other = places[obj.kind]
        one, two = first[2].keypoints[index], second[2].keypoints[other]
        seen = one.visible & two.visible
        pair = Pair(
            first[0],
            second[0],
            torch.from_numpy(one.xy[seen]),
            torch.from_numpy(two.xy[seen]),
            size,
            size,
            _box(first[2], index),
            _box(second[2], other),
            obj.kind,
            keypoint_ids=tuple(name for name, both in zip(one.names, seen, strict=True) if both),
            group=change,
            attributes={
                "hidden": int((~seen).sum()),
                "mirrored": int(obj.flip != second[1].objects[other].flip),
            },
            target_visible=frozenset(name for name, there in zip(two.names, two.visible, strict=True) if there),
        )
        made.append(pair)
    return made


def _box(rendering: Rendering, index: int) -> Box | None:
    """Outer edges of the pixels that show an object, or None where none does."""
    rows, columns = np.nonzero(rendering.instances == index + 1)
    if not len(rows):
        return None
    edges = (columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5)
    left, top, right, bottom = map(float, edges)
    return left, top, right, bottom
