"""Propagation of labels through a video by the similarity of features, in memory that does not grow with its length.

A cell of the new frame takes the mean label of the cells that are most like it, among those of the first frame and of
the last few. Cells are looked for in a window round its own place only, so a strip of columns is compared, row by row,
with the rows and columns that its windows reach: no matrix of all cells by all cells is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from gate_lightning.errors import ConfigError
from gate_lightning.ops.top_labels import TopLabels
from gate_lightning.utils.checks import check_choice, number, whole_number

__all__ = ["WINDOWS", "Propagation", "Propagator", "labels_of", "nearest", "one_hot"]

WINDOWS = ("square", "disc")
_COLUMNS = 8  # columns of cells that are looked at together
_FRAMES = 8  # frames of the context that are compared at once


@dataclass(frozen=True)
class Propagation:
    """Rule by which labels are propagated. The defaults are those of DINO's evaluation on DAVIS-2017.

    Args:
        last: frames before the new one that labels are taken from, besides the first frame.
        radius: cells on each side of a cell's own place that are looked at; 0 for all.
        top_k: number of most similar cells, of all frames together, whose labels are averaged.
        temperature: weights are exp(cosine / temperature).
        window: ``square`` (rows and columns at most ``radius`` away) or ``disc`` (less than ``radius`` away).
        window_in_first: whether the window holds in the first frame, too.
        ties: keep all cells that are as similar as the last of the ``top_k``; else any of them.
        repeat_first: fill the last frames up with copies of the first one while there are too few.

    Raises:
        ConfigError: a setting out of range.
    """

    last: int = 7
    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1
    window: str = "square"
    window_in_first: bool = True
    ties: bool = True
    repeat_first: bool = False

    def __post_init__(self) -> None:
        whole_number(self.last, "last", 0)
        whole_number(self.radius, "radius")
        whole_number(self.top_k, "top_k", 1)
        number(self.temperature, "temperature", 1e-6)
        check_choice(self.window, "window", WINDOWS)


class Propagator:
    """Labels of a video, frame by frame.

    Features and labels of the first frame and of the last ``rule.last`` frames are kept, and nothing else.

    Args:
        rule: how.
        features: (C, h, w) of the first frame.
        labels: (K, h, w) of the first frame, numbers from 0.
    """

    def __init__(self, rule: Propagation, features: Tensor, labels: Tensor) -> None:
        if features.shape[-2:] != labels.shape[-2:]:
            raise ConfigError(f"features are {tuple(features.shape)}, labels {tuple(labels.shape)}: other cells")
        self.rule = rule
        first = _Frame(_cells(features), labels.permute(1, 2, 0).to(features).contiguous())
        self._first = first
        self._last: deque[_Frame] = deque([first] * rule.last if rule.repeat_first else [], maxlen=rule.last)

    @property
    def kept(self) -> int:
        """Number of frames that are kept now."""
        return 1 + len({id(frame) for frame in self._last} - {id(self._first)})

    def know(self, features: Tensor, labels: Tensor) -> None:
        """Take a next frame whose labels (K, h, w) are known."""
        self._last.append(_Frame(_cells(features), labels.permute(1, 2, 0).to(features).contiguous()))

    def __call__(self, features: Tensor) -> Tensor:
        """Labels (K, h, w) of the next frame, from its features (C, h, w); labels of a cell are a mean of others'."""
        cells = _cells(features)
        if cells.shape != self._first.cells.shape:
            raise ConfigError(
                f"features of a frame are {tuple(features.shape)}, those of the first one have "
                f"{tuple(self._first.cells.permute(2, 0, 1).shape)}"
            )
        labels = _propagated(self.rule, cells, self._first, list(self._last))
        self._last.append(_Frame(cells, labels))
        return labels.permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class _Frame:
    """A frame whose labels are known: unit vectors (h, w, C), labels (h, w, K)."""

    cells: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class _Block:
    """Columns of some frames.

    Attributes:
        cells: (h, columns, C) unit vectors of each of the F frames.
        labels: (h, F, columns, K).
        left: number of the first column.
        windowed: whether only the cells of a window count.
    """

    cells: tuple[Tensor, ...]
    labels: Tensor
    left: int
    windowed: bool


def one_hot(mask: Tensor, channels: int) -> Tensor:
    """Labels (K, h, w) of a mask (h, w) of whole numbers below K."""
    return torch.nn.functional.one_hot(mask.long(), channels).permute(2, 0, 1).float()


def nearest(mask: Tensor, size: tuple[int, int], reach: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Mask (H, W) resized to (h, w): the pixels at the new ones' centres, as Pillow's filter of that name.

    Args:
        mask: any type.
        size: (h, w).
        reach: factors of the height and the width that the new pixels cover; beyond 1 the border is repeated.
    """
    places = [
        _places(new, old * beyond / new).clamp_(max=old - 1)
        for new, old, beyond in zip(size, mask.shape, reach, strict=True)
    ]
    rows, columns = (place.to(mask.device) for place in places)
    return mask[rows[:, None], columns[None, :]]


def _places(count: int, step: float) -> Tensor:
    """Numbers of the pixels at the centres of new ones; summed up, as Pillow does, which decides where halves meet."""
    steps = torch.full((count,), step, dtype=torch.float64)
    steps[0] = 0.5 * step
    return steps.cumsum(0).long()


def labels_of(soft: Tensor, size: tuple[int, int], cut: tuple[int, int] | None = None) -> Tensor:
    """The label of every pixel, (H, W): maps (K, h, w) resized bilinearly, each stretched to [0, 1], the highest.

    A map that is the same everywhere and not 0 counts as 1.

    Args:
        soft: maps.
        size: (H, W) that they are resized to.
        cut: rows and columns that are kept of these; None for all.
    """
    height, width = cut or size
    resized = interpolate(soft[None], size, mode="bilinear", align_corners=False)[0]
    maps = resized[:, :height, :width].flatten(1)
    low, high = maps.amin(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)
    flat = high == low
    stretched = torch.where(flat, torch.ones_like(maps), (maps - low) / torch.where(flat, 1, high - low))
    return torch.where(high > 0, stretched, maps).argmax(dim=0).view(height, width)


def _cells(features: Tensor) -> Tensor:
    """Unit vectors (h, w, C) of a feature map (C, h, w)."""
    return normalize(features.float(), dim=0).permute(1, 2, 0).contiguous()


def _propagated(rule: Propagation, query: Tensor, first: _Frame, last: Sequence[_Frame]) -> Tensor:
    """Labels (h, w, K) of the cells of a frame, unit vectors (h, w, C)."""
    width = query.shape[1]
    found = first.labels.new_empty(first.labels.shape)
    columns = _COLUMNS if rule.radius else width
    for left in range(0, width, columns):
        strip = query[:, left : left + columns].contiguous()
        best = [TopLabels(rule.top_k, rule.temperature, len(row), found) for row in strip]
        for block in _blocks(rule, first, last, left, strip.shape[1]):
            for one, (similarity, labels) in zip(best, _compared(rule, strip, left, block), strict=True):
                one.add(similarity, labels)
        if rule.ties and any(one.tied for one in best):
            # the same similarities once more, now that it is known how far down they count
            for block in _blocks(rule, first, last, left, strip.shape[1]):
                for one, (similarity, labels) in zip(best, _compared(rule, strip, left, block), strict=True):
                    if one.tied:
                        one.add_tied(similarity, labels)
        found[:, left : left + columns] = torch.stack([one.labels() for one in best])
    return found


def _blocks(rule: Propagation, first: _Frame, last: Sequence[_Frame], left: int, columns: int) -> Iterator[_Block]:
    """The context of a strip of columns, a few frames at a time."""
    width = first.cells.shape[1]
    free = rule.radius > 0 and not rule.window_in_first
    if free:
        yield _Block((first.cells,), first.labels[:, None], 0, False)
    frames = [*([] if free else [first]), *last]
    window = slice(max(left - rule.radius, 0), left + columns + rule.radius) if rule.radius else slice(0, width)
    for start in range(0, len(frames), _FRAMES):
        some = frames[start : start + _FRAMES]
        cells = tuple(frame.cells[:, window] for frame in some)
        labels = torch.stack([frame.labels[:, window] for frame in some], dim=1)
        yield _Block(cells, labels, window.start, rule.radius > 0)


def _compared(rule: Propagation, strip: Tensor, left: int, block: _Block) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every row of a strip (h, q, C): similarities (q, n) to the cells near it, -inf outside of windows, and the
    labels (n, K) of these cells."""
    if not block.windowed:
        cells, labels = torch.stack(block.cells, dim=1).flatten(0, 2), block.labels.flatten(0, 2)
        yield from ((row @ cells.T, labels) for row in strip)
        return
    height, columns = strip.shape[:2]
    frames, width = block.labels.shape[1:3]
    reach = min(rule.radius, height - 1)  # rows on each side
    found = strip.new_full((height, columns, 2 * reach + 1, frames * width), -torch.inf)
    by_row, by_column, by_offset, _ = found.stride()
    for y in range(height):
        cells = torch.cat([one[y] for one in block.cells])  # while they are used: they stay in the processor's cache
        top, bottom = max(y - reach, 0), min(y + reach + 1, height)
        similarity = strip[top:bottom].flatten(0, 1) @ cells.T
        # the row y of cells is one row nearer to each next row of the strip
        place = found.as_strided(
            (bottom - top, columns, frames * width),
            (by_row - by_offset, by_column, 1),
            top * by_row + (y - top + reach) * by_offset,
        )
        place.copy_(similarity.view(bottom - top, columns, -1))
    _leave_windows(rule, found.view(height, columns, -1, frames, width), left - block.left)
    labels = pad(block.labels, (0, 0, 0, 0, 0, 0, reach, reach))
    for row, similarity in enumerate(found.flatten(2)):
        yield similarity, labels[row : row + 2 * reach + 1].flatten(0, 2)


def _leave_windows(rule: Propagation, found: Tensor, left: int) -> None:
    """Set similarities (h, columns of the strip, rows on each side, F, columns of the block) outside of windows to
    -inf, in place; the strip begins at the column ``left`` of the block."""
    columns, rows, width = found.shape[1], found.shape[2], found.shape[4]
    if rule.window == "square":  # what is outside is two slices, a small part of all
        for column in range(columns):
            found[:, column, :, :, : max(left + column - rule.radius, 0)] = -torch.inf
            found[:, column, :, :, left + column + rule.radius + 1 :] = -torch.inf
        return
    down = torch.arange(rows, device=found.device)[None, :, None] - rows // 2
    places = torch.arange(width, device=found.device)
    across = torch.arange(left, left + columns, device=found.device)[:, None, None] - places
    found.masked_fill_((down**2 + across**2 >= rule.radius**2)[:, :, None, :], -torch.inf)
