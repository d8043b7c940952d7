"""Keypoints of SPair-71k that are alike, by category (numbers of ``kps_ids``).

Which keypoint is the left and which the right one of a pair is a fact about the annotation; those without a partner
lie on the plane of symmetry. Groups of keypoints that look alike but for their place (left and right wing tips, four
paws) are those of the geometry-aware subset of GeoAware-SC: eyes and nostrils, which lie close together, are not among
them.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SPAIR_GROUPS", "SPAIR_PARTNERS", "partners_of"]


def partners_of(*couples: tuple[int, int]) -> Mapping[str, str]:
    """Keypoint → its partner, both ways."""
    return {str(one): str(other) for couple in couples for one, other in (couple, couple[::-1])}


def _runs(*firsts: int) -> tuple[tuple[int, int], ...]:
    """Couples of neighbours (first, first + 1)."""
    return tuple((first, first + 1) for first in firsts)


#: wheels, fenders and windows of cars and buses: those of one side are ten numbers behind those of the other
_SIDES = ((10, 20), (11, 21), (12, 22), (13, 23), (14, 24), (15, 25))

SPAIR_PARTNERS: Mapping[str, Mapping[str, str]] = {
    "aeroplane": partners_of(*_runs(4, 6, 8, 10, 12, 14, 16, 18, 20)),
    "bicycle": partners_of(*_runs(2, 6, 9)),
    "bird": partners_of(*_runs(1, 4, 7, 10, 12, 14)),
    "boat": partners_of(*_runs(1, 3, 5, 7, 9, 11)),
    "bottle": partners_of(*_runs(0, 2, 4, 6, 8)),
    "bus": partners_of(*_runs(0, 2, 5, 16, 18, 26, 28), *_SIDES),
    "car": partners_of(*_runs(0, 2, 6, 16, 18, 26, 28), *_SIDES),
    "cat": partners_of(*_runs(0, 2, 4, 6, 9, 11)),
    "chair": partners_of(*_runs(0, 2, 4, 6, 8, 10, 12)),
    "cow": partners_of(*_runs(0, 2, 4, 6, 9, 11, 15, 17, 19)),
    "dog": partners_of(*_runs(0, 2, 4, 9, 11)),
    "horse": partners_of(*_runs(0, 2, 4, 6, 10, 12, 16, 18)),
    "motorbike": partners_of(*_runs(0, 2)),
    "person": partners_of(*_runs(0, 2, 8, 10, 12, 14, 16, 18)),
    "pottedplant": partners_of((0, 2), (4, 5), (6, 8)),
    "sheep": partners_of(*_runs(0, 2, 4, 6, 9, 11, 15, 17, 19)),
    "train": partners_of(*_runs(0, 2, 4, 6, 8, 10, 12, 14, 16)),
    "tvmonitor": partners_of((0, 2), (4, 6), (3, 7), (8, 10), (12, 14), (11, 15)),
}


def _groups(*members: tuple[int, ...]) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(map(str, numbers)) for numbers in members)


#: ends of fenders, wheels and windows of cars and buses: two a side
_FOURS = ((10, 13, 20, 23), (11, 14, 21, 24), (12, 15, 22, 25))
_QUADRUPED = ((2, 3), (9, 10, 11, 12))
_HOOFED = (*_QUADRUPED, (15, 16, 17, 18), (19, 20))

SPAIR_GROUPS: Mapping[str, tuple[frozenset[str], ...]] = {
    "aeroplane": _groups(*_runs(4, 6, 8, 10, 12, 14, 16, 18, 20)),
    "bicycle": _groups(*_runs(2, 6, 9)),
    "bird": _groups(*_runs(1, 10, 12, 14)),
    "boat": _groups(*_runs(1, 3, 5, 7, 9, 11)),
    "bottle": _groups(*_runs(0, 2, 4, 6, 8)),
    "bus": _groups((0, 1), (2, 3, 5, 6), (4, 7), *_FOURS, (16, 17, 26, 27), (18, 19, 28, 29)),
    "car": _groups((0, 1), (2, 3, 6, 7), (4, 8), (5, 9), *_FOURS, (16, 17, 26, 27), (18, 19, 28, 29)),
    "cat": _groups(*_QUADRUPED),
    "chair": _groups((0, 1), (2, 3), (4, 5, 6, 7), (8, 9), (10, 11), (12, 13)),
    "cow": _groups(*_HOOFED),
    "dog": _groups(*_QUADRUPED),
    "horse": _groups((2, 3), (10, 11, 12, 13), (16, 17, 18, 19)),
    "motorbike": _groups((0, 1), (2, 3)),
    "person": _groups(*_runs(8, 10, 12, 14, 16, 18)),
    "pottedplant": _groups((0, 1, 2, 3), (4, 5), (6, 8)),
    "sheep": _groups(*_HOOFED),
    "train": _groups(*_runs(0, 2, 4, 6, 8, 10, 12, 14, 16)),
    "tvmonitor": _groups((0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)),
}
