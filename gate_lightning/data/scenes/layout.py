"""Sampling of scenes: kinds, places and visible shares of objects."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from gate_lightning.data.scenes.shapes import HALF_WIDTH, outline_points
from gate_lightning.data.scenes.world import COLORS, DOMAINS, GROUNDS, KINDS, SCALES, SKIES, ObjectSpec, SceneSpec
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice, whole_number

MIN_VISIBLE = 0.55
"""Smallest visible share of an object's area; a little above one half, because the check is done on a coarse grid."""

SINGLE_SHARE = 0.3
"""Share of scenes that are meant to hold one object, when ``count`` allows one and more."""

_GRID = 48  # pixels across the image in the visibility check
_MARGIN = 12  # pixels around it, so that what hangs out of the image is counted as hidden
_PLACE_TRIES = 10
_SCENE_TRIES = 12
_SHIFT = 3


def _silhouette(obj: ObjectSpec) -> np.ndarray:
    """Whole object, bool (72, 72), on the coarse grid with its margin."""
    canvas = np.zeros((_GRID + 2 * _MARGIN,) * 2, dtype=np.uint8)
    points, splits = outline_points(obj)
    pixels = np.rint(((points * _GRID) + (_MARGIN - 0.5)) * (1 << _SHIFT)).astype(np.int32)
    for polygon in np.split(pixels, splits):
        cv2.fillPoly(canvas, [polygon], 1, shift=_SHIFT)
    return canvas.astype(bool)


def _fractions(objects: Sequence[ObjectSpec], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Visible share per object, given silhouettes; front objects are those with the larger foot y."""
    result = np.zeros(len(objects))
    covered = np.ones((_GRID + 2 * _MARGIN,) * 2, dtype=bool)
    covered[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = False
    order = sorted(range(len(objects)), key=lambda i: objects[i].y)
    for i in reversed(order):
        whole = int(np.count_nonzero(masks[i]))
        result[i] = int(np.count_nonzero(masks[i] & ~covered)) / max(whole, 1)
        covered |= masks[i]
    return result


def visible_fractions(spec: SceneSpec) -> np.ndarray:
    """Share of each object's area that is inside the image and not behind another object, float64 (n,) in [0, 1]."""
    return _fractions(spec.objects, [_silhouette(obj) for obj in spec.objects])


def _size_fraction(rng: np.random.Generator, n: int) -> float:
    """Position in the range of heights, in [0, 1]: large for single objects, smaller for several."""
    if n == 1:
        return float(np.sqrt(rng.random()))
    return float(rng.random() * (1.0 if n == 2 else 0.8))


def _propose(rng: np.random.Generator, kind: str, color: str, horizon: float, n: int, shrink: float) -> ObjectSpec:
    low, high = SCALES[kind]
    scale = (low + (high - low) * _size_fraction(rng, n)) * shrink
    stretch = rng.uniform(0.9, 1.12)
    half = min(0.9 * HALF_WIDTH[kind] * scale * stretch, 0.5)
    return ObjectSpec(
        kind=kind,
        color=color,
        x=rng.uniform(half, 1.0 - half),
        y=rng.uniform(max(horizon + 0.05, scale + 0.02), 0.96),
        scale=scale,
        flip=bool(rng.random() < 0.5),
        tilt=rng.uniform(-0.06, 0.06),
        stretch=stretch,
    )


def _scatter(
    rng: np.random.Generator, kinds: Sequence[str], colors: Sequence[str], horizon: float, shrink: float
) -> list[ObjectSpec]:
    """Place objects one by one; one that would hide too much (or be hidden) after all tries is left out."""
    objects: list[ObjectSpec] = []
    masks: list[np.ndarray] = []
    for kind, color in zip(kinds, colors, strict=True):
        for _ in range(_PLACE_TRIES):
            candidate = _propose(rng, kind, color, horizon, len(kinds), shrink)
            mask = _silhouette(candidate)
            if _fractions([*objects, candidate], [*masks, mask]).min() >= MIN_VISIBLE:
                objects.append(candidate)
                masks.append(mask)
                break
    return objects


def _in_a_row(
    rng: np.random.Generator, kinds: Sequence[str], colors: Sequence[str], horizon: float
) -> list[ObjectSpec]:
    """Objects side by side without overlap, shrunk until they fit."""
    widths = np.array([2 * HALF_WIDTH[kind] * SCALES[kind][0] for kind in kinds])
    shrink = min(1.0, 0.98 / widths.sum())
    centres = (np.cumsum(widths) - widths / 2) / widths.sum()
    foot = max(horizon + 0.05, 0.8)
    return [
        ObjectSpec(kind, color, float(x), min(foot + 0.1 * rng.random(), 0.97), SCALES[kind][0] * shrink)
        for kind, color, x in zip(kinds, colors, centres, strict=True)
    ]


def _place_all(
    rng: np.random.Generator, kinds: Sequence[str], colors: Sequence[str], horizon: float, least: int
) -> list[ObjectSpec]:
    """At least ``least`` objects inside the image, each visible by `MIN_VISIBLE` or more."""
    for attempt in range(_SCENE_TRIES):
        # Crowds that do not fit are tried again a little smaller each time.
        objects = _scatter(rng, kinds, colors, horizon, shrink=max(0.75, 1.0 - 0.04 * attempt))
        if len(objects) >= least:
            return objects
    return _in_a_row(rng, kinds[:least], colors[:least], horizon)


def _check_arguments(seed: int, domain: str, kinds: Sequence[str] | None, count: tuple[int, int]) -> None:
    check_choice(domain, "domain", DOMAINS)
    whole_number(seed, "seed")
    valid = ", ".join(KINDS)
    if isinstance(kinds, str):
        raise ConfigError(f"kinds must be None or a tuple of names, got the string {kinds!r}; valid names: {valid}")
    if kinds is not None and not 1 <= len(kinds) <= len(KINDS):
        raise ConfigError(f"kinds must name 1 to {len(KINDS)} objects, got {len(kinds)}; valid names: {valid}")
    for kind in kinds or ():
        check_choice(kind, "kind", KINDS)
    if len(count) != 2 or not 0 <= count[0] <= count[1] <= len(KINDS):
        raise ConfigError(f"count must be (min, max) with 0 <= min <= max <= {len(KINDS)}, got {count!r}")


def _choose_count(rng: np.random.Generator, count: tuple[int, int]) -> int:
    low, high = count
    single = rng.random() < SINGLE_SHARE
    if low <= 1 < high:
        # The share of single objects is set on purpose: prompts about one object are tested.
        others = [n for n in range(low, high + 1) if n != 1]
        return 1 if single else int(rng.choice(others))
    return int(rng.integers(low, high + 1))


def sample_scene(
    seed: int,
    domain: str = "source",
    kinds: Sequence[str] | None = None,
    count: tuple[int, int] = (1, 4),
) -> SceneSpec:
    """A random scene, decided by ``seed`` alone; ``domain`` is only noted in the result.

    Args:
        seed: non-negative integer.
        domain: "source" or "target".
        kinds: None to draw kinds without repetition; a tuple to get exactly these, one object each.
        count: smallest and largest number of objects, used when ``kinds`` is None. About 30 % of the scenes hold one
            object when the range allows one and more. Objects that find no place are left out, never below the minimum.

    Returns:
        SceneSpec whose objects are sorted back to front and are at least about half visible.

    Raises:
        ConfigError: a bad seed, domain, kind or count; the text lists the valid names.
    """
    _check_arguments(seed, domain, kinds, count)
    rng = np.random.default_rng([int(seed), 0x5CE7E])
    sky = str(rng.choice(list(SKIES)))
    ground = str(rng.choice(list(GROUNDS)))
    horizon = float(rng.uniform(0.42, 0.66))
    texture_seed = int(rng.integers(2**31))
    if kinds is None:
        names = [KINDS[i] for i in rng.permutation(len(KINDS))[: _choose_count(rng, count)]]
        least = min(len(names), max(count[0], 1))
    else:
        names = [str(kind) for kind in rng.permutation(list(kinds))]
        least = len(names)
    colors = [list(COLORS)[i] for i in rng.integers(len(COLORS), size=len(names))]
    objects = _place_all(rng, names, colors, horizon, least)
    objects.sort(key=lambda obj: obj.y)
    return SceneSpec(int(seed), domain, sky, ground, horizon, tuple(objects), texture_seed)
