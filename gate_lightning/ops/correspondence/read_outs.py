"""Read-outs: from a point of one image to a point of another, by the features of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.rows import on_device
from gate_lightning.utils.checks import check_choice, number, whole_number

__all__ = ["METRICS", "QUERIES", "READ_OUTS", "RESOLUTIONS", "ReadOut"]

METRICS = ("cosine", "l2")
RESOLUTIONS = ("full", "patch")
QUERIES = ("bilinear", "round", "floor", "patch")


@dataclass(frozen=True)
class ReadOut:
    """Rule by which the match of a point is read off the similarities to a feature map.

    * ``nearest``: the most similar place, the first of equal ones, row by row (DIFT).
    * ``mutual``: the same where the place's own match lies in the position of the query, else NaN: no match.
    * ``four_corner``: the four positions around the query are matched, and the matches averaged by bilinear weights
      (SD4Match).
    * ``soft_argmax``: mean of all places by softmax(similarity / temperature).
    * ``window_soft_argmax``: the same over the window of 2 ``window`` + 1 places around the most similar one
      (GeoAware-SC).
    * ``kernel_soft_argmax``: the same over all places, similarities weighted by a Gaussian of ``sigma`` places around
      the most similar one (SFNet, SD4Match).
    * ``position``: the same place relative to the size of the image, whatever the features: a control.

    Args:
        name: see above.
        metric: ``cosine``, or ``l2``: the negative distance.
        resolution: places are the pixels of the target's file (``full``: its map is resized bilinearly), or the
            positions of its map, at whose centres they lie (``patch``).
        query: where the query's descriptor is read: ``bilinear`` on the map at the point; ``round`` and ``floor`` at a
            whole pixel (``floor``: DIFT's int()); ``patch``: of the position that the point lies in. Without effect
            on ``four_corner``.
        temperature: of the softmax.
        window: see ``window_soft_argmax``; places on each side.
        sigma: see ``kernel_soft_argmax``.
        square: match on both images as squares of so many pixels, aspect not kept, instead of on the files: points and
            matches are scaled by the ratio of the sides (x · square / width, without half pixels), as in the released
            code of Hyperfeatures and GATE. None for the files.

    Raises:
        ConfigError: an unknown name, a number out of range, or ``kernel_soft_argmax`` by distances.
    """

    name: str = "nearest"
    metric: str = "cosine"
    resolution: str = "full"
    query: str = "bilinear"
    temperature: float = 0.04
    window: int = 5
    sigma: float = 7.0
    square: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "read_out.name", READ_OUTS)
        check_choice(self.metric, "read_out.metric", METRICS)
        check_choice(self.resolution, "read_out.resolution", RESOLUTIONS)
        check_choice(self.query, "read_out.query", QUERIES)
        number(self.temperature, "read_out.temperature", 1e-6)
        whole_number(self.window, "read_out.window")
        number(self.sigma, "read_out.sigma", 1e-6)
        if self.square is not None:
            whole_number(self.square, "read_out.square", 1, optional="the files' pixels")
        if self.name == "kernel_soft_argmax" and self.metric != "cosine":
            raise ConfigError(
                f"read_out.metric={self.metric}: kernel_soft_argmax weighs similarities, and distances are negative; "
                "use cosine"
            )

    @property
    def description(self) -> dict[str, Any]:
        """Settings of the read-out, JSON-able."""
        return asdict(self)

    @torch.no_grad()
    def __call__(self, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> Tensor:
        """Matches of points.

        Args:
            source, target: feature maps of both images.
            points: (N, 2) x, y in pixels of the source's file.

        Returns:
            (N, 2) float64 x, y in pixels of the target's file.
        """
        points, read = points.to(source.features.device), READ_OUTS[self.name]
        if self.square is None:
            return read(self, source, target, points)
        squares = _squared(source, self.square), _squared(target, self.square)
        here, there = (
            self.square / on_device(grid.size[::-1], points.device, torch.float64) for grid in (source, target)
        )
        return read(self, *squares, points.double() * here) / there

    def descriptors(self, source: FeatureGrid, points: Tensor) -> Tensor:
        """Descriptors (N, C) of points, as ``query`` says."""
        if self.query == "bilinear":
            return source.sample(points)
        if self.query == "patch":
            rows, columns = source.inside
            x, y = source.to_positions(points).add(0.5).floor().long().unbind(dim=1)
            return source.features[:, y.clamp(0, rows - 1), x.clamp(0, columns - 1)].T
        last = on_device([source.size[1] - 1, source.size[0] - 1], points.device, points.dtype)
        whole = points.floor() if self.query == "floor" else (points + 0.5).floor()
        return source.sample(whole.clamp(min=0).minimum(last))

    def similarities(self, descriptors: Tensor, target: FeatureGrid) -> Tensor:
        """Similarities of descriptors (N, C) to every place: (N, H, W) of pixels, or (N, rows, columns) of positions
        in the image."""
        products = (descriptors @ target.features.flatten(1)).view(-1, *target.features.shape[1:])
        if self.resolution == "full":
            products, norms = target.resize(products), target.pixel_norms
        else:
            rows, columns = target.inside
            products, norms = products[:, :rows, :columns], target.position_norms[:rows, :columns]
        lengths = descriptors.norm(dim=1)[:, None, None]
        if self.metric == "l2":
            return (lengths.square() - 2 * products + norms.square()).clamp_(min=0).sqrt_().neg_()
        return products / (lengths * norms).clamp_(min=1e-12)

    def to_pixels(self, places: Tensor, target: FeatureGrid) -> Tensor:
        """x, y in pixels of the file, from x, y (N, 2) of places."""
        return places.double() if self.resolution == "full" else target.to_pixels(places)


def _squared(grid: FeatureGrid, side: int) -> FeatureGrid:
    """The same map in the pixels of a square to which the image is resized."""
    height, width = (scale * size / side for scale, size in zip(grid.scales, grid.size, strict=True))
    return FeatureGrid(grid.features, (side, side), (height, width))


def _best(similarities: Tensor) -> Tensor:
    """x, y (N, 2) int64 of the largest value of maps (N, h, w), the first of equal ones."""
    index = similarities.flatten(1).argmax(dim=1)
    width = similarities.shape[2]
    return torch.stack([index % width, index // width], dim=1)


def _matched(rule: ReadOut, descriptors: Tensor, target: FeatureGrid) -> Tensor:
    """Pixels (N, 2) of the most similar places."""
    return rule.to_pixels(_best(rule.similarities(descriptors, target)), target)


def _nearest(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> Tensor:
    return _matched(rule, rule.descriptors(source, points), target)


def _mutual(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> Tensor:
    found = _nearest(rule, source, target, points)
    back = _matched(rule, rule.descriptors(target, found), source)
    here, there = (source.to_positions(place).add(0.5).floor() for place in (points, back))
    return torch.where((here == there).all(dim=1, keepdim=True), found, torch.nan)


def _four_corner(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> Tensor:
    rows, columns = source.inside
    places = source.to_positions(points)
    last = on_device([columns - 1, rows - 1], places.device, places.dtype)
    places = places.clamp(min=0).minimum(last)
    low = places.floor()
    share = places - low
    total = torch.zeros_like(places)
    for right in (0, 1):
        for down in (0, 1):
            corner = (low + on_device([right, down], low.device, low.dtype)).minimum(last).long()
            matches = _matched(rule, source.features[:, corner[:, 1], corner[:, 0]].T, target)
            weight = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if down else 1 - share[:, 1])
            total += weight[:, None] * matches
    return total


def _position(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> Tensor:
    sides = [on_device(grid.size[::-1], points.device, torch.float64) for grid in (source, target)]
    return (points.double() + 0.5) / sides[0] * sides[1] - 0.5


def _soft(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> Tensor:
    similarities = rule.similarities(rule.descriptors(source, points), target)
    _, height, width = similarities.shape
    x, y = (torch.arange(length, device=similarities.device) for length in (width, height))
    best = _best(similarities)
    across, down = x - best[:, :1], y - best[:, 1:]  # (N, w), (N, h): places from the most similar one
    if rule.name == "kernel_soft_argmax":
        kernels = [torch.exp(-offset.square() / (2 * rule.sigma**2)) for offset in (down, across)]
        similarities = similarities * kernels[0][:, :, None] * kernels[1][:, None, :]
    if rule.name == "window_soft_argmax":
        outside = (down.abs() > rule.window)[:, :, None] | (across.abs() > rule.window)[:, None, :]
        similarities = similarities.masked_fill(outside, -torch.inf)
    chances = (similarities.double() / rule.temperature).flatten(1).softmax(dim=1).view_as(similarities)
    mean = torch.stack([chances.sum(dim=1) @ x.double(), chances.sum(dim=2) @ y.double()], dim=1)
    return rule.to_pixels(mean, target)


#: name → rule
READ_OUTS: dict[str, Callable[[ReadOut, FeatureGrid, FeatureGrid, Tensor], Tensor]] = {
    "nearest": _nearest,
    "mutual": _mutual,
    "four_corner": _four_corner,
    "soft_argmax": _soft,
    "window_soft_argmax": _soft,
    "kernel_soft_argmax": _soft,
    "position": _position,
}
