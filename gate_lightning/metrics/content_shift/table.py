"""The ranking table: figures with their intervals, differences to plain, ranks, and controls of equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gate_lightning.metrics.content_shift.statistic import Bootstrap, Statistic, ranks

__all__ = ["ALL", "Compared", "Figure", "Row", "figures", "overall"]

#: stands for all timesteps, or layers, whose figures are averaged
ALL = "all"


@dataclass(frozen=True)
class Figure:
    """A number with the limits of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A candidate's row of the table.

    Attributes:
        plain: the candidate that it is compared with.
        ranked: whether it takes part in the ranking; controls do not.
        controls: what is kept equal (``passes``, ``seconds``) → plain row of as much of it.
    """

    plain: str
    ranked: bool = True
    controls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """A line of the table.

    Attributes:
        measure, candidate: names.
        timestep, layer: of the features; None where there is one figure for all, `ALL` for the mean over those that
            every candidate of the measure has.
        figure: with its interval over images.
        difference: to plain, paired by image, with its interval; None of plain itself.
        rank: among the candidates, 1 the least shift; None of controls and of what is undefined.
        higher_is_better: whether a larger figure means less shift.
        anchor: what the figure is measured against.
        controlled: what is kept equal → the plain row of as much of it, and the difference to that.
    """

    measure: str
    candidate: str
    timestep: int | str | None
    layer: str | None
    figure: Figure
    difference: Figure | None
    rank: int | None
    higher_is_better: bool
    anchor: str = ""
    controlled: Mapping[str, tuple[str, Figure]] = field(default_factory=dict)


def overall(lines: Sequence[Compared]) -> list[Compared]:
    """Lines of all timesteps and layers together: the mean, or the only one of a measure that has one figure."""
    averaged = {one.measure for one in lines if one.timestep == ALL}
    return [one for one in lines if one.timestep == ALL or one.measure not in averaged]


_Cell = tuple[int | str | None, str | None]


def figures(
    statistics: Mapping[str, Mapping[tuple[str, int | None, str | None], Statistic]],
    rows: Mapping[str, Row],
    bootstrap: Bootstrap,
) -> Iterator[Compared]:
    """Lines of every measure: of each timestep and layer, then of their means.

    Args:
        statistics: measure → candidate, timestep, layer → statistic.
        rows: candidate → what it is compared with.
        bootstrap: makes intervals.
    """
    for measure, found in statistics.items():
        names = [name for name in rows if any(key[0] == name for key in found)]
        cells: dict[_Cell, dict[str, _Drawn]] = {}
        for name in names:
            for (candidate, timestep, layer), statistic in found.items():
                if candidate == name:
                    cells.setdefault((timestep, layer), {})[name] = _Drawn.of(statistic, bootstrap)
        ordered = sorted(cells, key=lambda cell: (cell[0] is not None, cell[0] or 0))
        for cell in ordered:
            yield from _lines(measure, cell, cells[cell], rows, bootstrap)
        if len(cells) > 1:
            yield from _lines(measure, (ALL, ALL), _means([cells[cell] for cell in ordered]), rows, bootstrap)


@dataclass(frozen=True)
class _Drawn:
    """A figure, and what it is in every draw of the images."""

    value: float
    draws: Tensor
    higher_is_better: bool
    anchor: str

    @classmethod
    def of(cls, statistic: Statistic, bootstrap: Bootstrap) -> _Drawn:
        return cls(statistic.value, bootstrap.draws(statistic), statistic.higher_is_better, statistic.anchor)


def _means(cells: Sequence[Mapping[str, _Drawn]]) -> dict[str, _Drawn]:
    """Mean over the cells that most candidates have, of the candidates that are in all of these."""
    most = max(len(cell) for cell in cells)
    whole = [cell for cell in cells if len(cell) == most]
    names = [name for name in whole[0] if all(name in cell for cell in whole)]
    found = {}
    for name in names:
        drawn = [cell[name] for cell in whole]
        value = float(torch.tensor([one.value for one in drawn], dtype=torch.float64).mean())
        draws = torch.stack([one.draws for one in drawn]).mean(dim=0)
        anchors = list(dict.fromkeys(one.anchor for one in drawn))
        found[name] = _Drawn(value, draws, drawn[0].higher_is_better, anchors[0] if len(anchors) == 1 else "")
    return found


def _lines(
    measure: str, cell: _Cell, drawn: Mapping[str, _Drawn], rows: Mapping[str, Row], bootstrap: Bootstrap
) -> Iterator[Compared]:
    first = next(iter(drawn.values()))
    ranked = ranks({name: one.value for name, one in drawn.items() if rows[name].ranked}, first.higher_is_better)
    for name, one in drawn.items():
        plain = rows[name].plain
        difference = None if plain == name or plain not in drawn else _difference(one, drawn[plain], bootstrap)
        controlled = {
            kept: (control, _difference(one, drawn[control], bootstrap))
            for kept, control in rows[name].controls.items()
            if control in drawn and control != name
        }
        figure = Figure(one.value, *bootstrap.interval(one.draws))
        rank, better = ranked.get(name), one.higher_is_better
        yield Compared(measure, name, *cell, figure, difference, rank, better, one.anchor, controlled)


def _difference(one: _Drawn, other: _Drawn, bootstrap: Bootstrap) -> Figure:
    return Figure(one.value - other.value, *bootstrap.interval(one.draws - other.draws))
