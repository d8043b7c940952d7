"""Lists of pairs in the JSON format of Diffusion Hyperfeatures (and generic-diffusion-feature), read as they are.

A list of objects: ``source_path``, ``target_path`` (relative to a folder of images, "cat/2009_000001.jpg"; in their
test-6 list the file name alone, then the folder is the category), ``source_points``, ``target_points`` [[x, y], …]
(mutually visible, in one order), ``category``, ``source_bounding_box``, ``target_bounding_box`` [left, top, right,
bottom]. All but the paths may be missing here; ``target_category`` and ``group`` may be there. Whole numbers under
further names (``viewpoint_variation``, ``mirror``) are attributes of the pair.

Facts: annotations of the released code of Hyperfeatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gate_lightning.data.correspondence.annotations import Annotated, box_of, field_of, points_of
from gate_lightning.data.correspondence.images import ImageTable
from gate_lightning.data.files.names import inner_path
from gate_lightning.errors import DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.text import read_json

__all__ = ["read_list", "read_rows"]

_NOTHING = torch.zeros(0, 2)


def read_list(path: Path, root: Path, folder: str = "") -> Annotated[Pair]:
    """Pairs and images of a JSON list of Hyperfeatures.

    Args:
        path: the file.
        root: folder that sample ids are relative to.
        folder: below it, folder that the paths in the list are relative to.

    Raises:
        DataError: the file is missing or broken; names the entry.
    """
    entries = read_json(path, kind=list)
    rows = [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries)]
    for where, entry in rows:
        if not isinstance(entry, Mapping):
            raise DataError(f"{where} is {entry!r:.60}; expected an object with source_path, target_path …")
    return read_rows(rows, root, folder)


def read_rows(rows: Sequence[tuple[str, Mapping[str, Any]]], root: Path, folder: str = "") -> Annotated[Pair]:
    """Pairs of the entries of a list, each with the place that messages name.

    Raises:
        DataError: an entry that does not read so.
    """
    table, pairs = ImageTable(root), []
    for where, entry in rows:
        category = _text(entry, "category", where)
        named = {"source": category, "target": _text(entry, "target_category", where) or category}
        ids = {
            side: _image(_required(entry, f"{side}_path", where), shown, root, folder, where)
            for side, shown in named.items()
        }
        try:
            sizes = [table.size(ids[side], named[side]) for side in ids]
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if sizes[0] is not None and sizes[1] is not None:
            pairs.append(_pair(entry, ids, named, (sizes[0], sizes[1]), where))
    without = bool(pairs) and not any(map(len, pairs))
    notes = ("none of the pairs has keypoints: they can be looked at, and nothing can be measured",) if without else ()
    return Annotated(tuple(pairs), table.images, table.errors, notes, without)


def _pair(
    entry: Mapping[str, Any],
    ids: Mapping[str, str],
    named: Mapping[str, str],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    where: str,
) -> Pair:
    points = {side: _optional(entry, f"{side}_points", points_of, where) for side in ids}
    source, target = (_NOTHING if points[side] is None else points[side] for side in ("source", "target"))
    assert source is not None
    assert target is not None
    if len(source) != len(target):
        raise DataError(f"{where}: {len(source)} source_points and {len(target)} target_points; give as many of both")
    return Pair(
        ids["source"],
        ids["target"],
        source,
        target,
        *sizes,
        _optional(entry, "source_bounding_box", box_of, where),
        _optional(entry, "target_bounding_box", box_of, where),
        named["source"],
        "" if named["target"] == named["source"] else named["target"],
        group=_text(entry, "group", where),
        attributes={name: value for name, value in entry.items() if type(value) is int},
    )


def _image(path: str, category: str, root: Path, folder: str, where: str) -> str:
    """Sample id of the image of an entry."""
    inner = inner_path(path, where)
    prefix = f"{folder}/" if folder else ""
    if "/" not in inner and category and not (root / prefix / inner).is_file():
        below = f"{inner_path(category, where)}/{inner}"
        if (root / prefix / below).is_file():  # else a message names the path as it is written
            inner = below
    return f"{prefix}{inner}"


def _required(entry: Mapping[str, Any], name: str, where: str) -> str:
    text: str = field_of(entry, name, str, where)
    return text


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    return "" if entry.get(name) is None else _required(entry, name, where)


def _optional(entry: Mapping[str, Any], name: str, reader: Callable[[Any, str, str], Any], where: str) -> Any:
    return None if entry.get(name) is None else reader(entry[name], name, where)
