"""Keypoints of SPair-71k that change places in a mirror image, by category (numbers of ``kps_ids``).

Which keypoint is the left and which the right one of a pair is a fact about the annotation; those not named here lie
on the plane of symmetry, or have no partner.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SPAIR_PARTNERS", "partners_of"]


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
