"""SPair-71k and data sets in its layout (SPair-U).

root/JPEGImages/<category>/<name>.jpg
root/PairAnnotation/{trn,val,test}/<number>-<source>-<target>:<category>.json      one pair each
root/Layout/{large,small}/{trn,val,test}.txt                                       names of those, one a line
root/ImageAnnotation/<category>/<name>.json                                        visible keypoints (optional)

Facts: the devkit of SPair-71k; prompts of DIFT and GATE; the counts of pairs are those of the data set's paper.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated, box_of, field_of, points_of, size_of
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.batches import Groups, Partners
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.hyperfeatures import read_list
from gate_lightning.data.correspondence.images import PairImage
from gate_lightning.data.correspondence.spair_keypoints import SPAIR_GROUPS, SPAIR_PARTNERS
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.checks import check_choice, check_known
from gate_lightning.utils.text import lines_of, read_json, read_text

__all__ = ["CATEGORIES", "SPairDataModule", "SPairUDataModule"]

LAYOUT = "JPEGImages/<category>/*.jpg, PairAnnotation/{trn,val,test}/*.json, Layout/large/{trn,val,test}.txt"
FOLDERS = {"train": "trn", "val": "val", "test": "test"}
# fmt: off
CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "train", "tvmonitor",
)
# fmt: on
_NAMED = "a photo of " + ", ".join(CATEGORIES).replace("pottedplant", "potted plant").replace("tvmonitor", "tv monitor")
_QUALITY = "high quality, best quality, highly realistic, masterpiece, high resolution"
#: stand-ins for the colon of the pairs' names where a file system has none
_COLONS = (":", "_", "%3A", "\uf03a", "-")
_ATTRIBUTES = ("pair_id", "mirror", "viewpoint_variation", "scale_variation", "truncation", "occlusion")


class SPairDataModule(PairDataModule):
    """SPair-71k: 53,340 training, 5,384 validation and 12,234 test pairs of 18 categories.

    Args:
        root: the data set's folder.
        layout: which of its two sets of lists: ``large`` (the published one) or ``small``.
        lists: split → JSON list of Hyperfeatures that replaces it, relative to the root.
        others: `PairDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    card = DatasetCard(
        "SPair-71k",
        prompt_simple="a photo of a {category}",
        prompt_fine=f"{_NAMED}, {_QUALITY}",
        branches=correspondence_branches(_NAMED),
        citation="Min et al., SPair-71k: A Large-scale Benchmark for Semantic Correspondence, 2019",
        licence="images: PASCAL VOC 2012 (Flickr terms of use); research use",
    )
    partners: Partners = SPAIR_PARTNERS
    keypoint_groups: Groups = SPAIR_GROUPS
    layout = LAYOUT

    def __init__(self, root: str, layout: str = "large", lists: Mapping[str, str] | None = None, **others: Any) -> None:
        super().__init__(**others)
        check_choice(layout, "dataset.layout", ("large", "small"))
        check_known(lists or {}, FOLDERS, "dataset.lists")
        self.root, self.list_size = require_root(root, LAYOUT, "JPEGImages"), layout
        self.lists = {split: self.root / Path(path).expanduser() for split, path in (lists or {}).items()}
        if not all(isinstance(path, str) for path in (lists or {}).values()):
            raise ConfigError(f"dataset.lists={dict(lists or {})}: expected files by split, {{val: list.json}}")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits whose lists, or folders of pairs, are there."""
        return tuple(
            split
            for split in FOLDERS
            if split in self.lists or self._list(split).is_file() or self._folder(split).is_dir()
        )

    @property
    def has_test(self) -> bool:
        """True if there are test pairs."""
        return "test" in self.splits

    def _list(self, split: str) -> Path:
        return self.root / "Layout" / self.list_size / f"{FOLDERS[split]}.txt"

    def _folder(self, split: str) -> Path:
        return self.root / "PairAnnotation" / FOLDERS[split]

    def read(self, split: str) -> Annotated[Pair]:
        """The pairs of a split.

        Raises:
            DataError: a pair's file is missing or broken; names the first, and how many are missing.
        """
        if split in self.lists:
            return read_list(self.lists[split], self.root, "JPEGImages")
        images: dict[str, PairImage] = {}
        visible = _visible_in(self.root / "ImageAnnotation")
        pairs = [_pair(path, self.root, images, visible) for path in self._files(split)]
        return Annotated(tuple(pairs), images)

    def _files(self, split: str) -> list[Path]:
        """Files of the pairs in the order of the list, or of their names where there is no list."""
        folder, table = self._folder(split), self._list(split)
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist; looked for {LAYOUT}")
        there = {name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json")}  # noqa: PTH208 - 53,340 of them
        if not table.is_file():
            if not there:
                raise DataError(f"{folder} holds no pairs (*.json), and there is no list {table}")
            return [folder / f"{name}.json" for name in sorted(there)]
        names = [line.strip() for line in lines_of(read_text(table)) if line.strip()]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice or not names:
            raise DataError(f"{table} names {f'{twice[0]!r} twice' if twice else 'no pairs'}; use the published list")
        found = {name: _stored(inner_path(name, str(table)), there) for name in names}
        missing = [name for name, stored in found.items() if stored is None]
        if missing:
            colon = " (the colon in such names is lost on some file systems: unpack the archive again)" if there else ""
            raise DataError(
                f"{len(missing)} of the {len(names)} pairs that {table} names are missing in {folder}, the first is "
                f"{missing[0]}.json{colon}"
            )
        return [folder / f"{stored}.json" for stored in found.values()]


def _stored(name: str, there: set[str]) -> str | None:
    """Name under which a pair is stored, the colon replaced where it had to be."""
    return next((stored for stored in (name.replace(":", sign) for sign in _COLONS) if stored in there), None)


def _visible_in(folder: Path) -> Callable[[str, str], frozenset[str] | None]:
    """Category and name of an image → its visible keypoints; None where its annotation is not there."""

    @cache
    def visible(category: str, name: str) -> frozenset[str] | None:
        path = folder / category / f"{Path(name).stem}.json"
        if not path.is_file():
            return None
        points = field_of(read_json(path), "kps", dict, str(path))
        return frozenset(str(number) for number, point in points.items() if point is not None)

    return visible


def _pair(
    path: Path, root: Path, images: dict[str, PairImage], visible: Callable[[str, str], frozenset[str] | None]
) -> Pair:
    """The pair of a file, whose images are added to ``images``."""
    entry, where = read_json(path), str(path)
    category: str = field_of(entry, "category", str, where)
    ids, sizes = [], []
    for side in ("src", "trg"):
        size = size_of(entry, f"{side}_imsize", where)
        file = field_of(entry, f"{side}_imname", str, where)
        name = f"JPEGImages/{category}/{file}"
        if name not in images:
            name = f"JPEGImages/{inner_path(category, where)}/{inner_path(file, where)}"
        known = images.get(name)
        if known is None:
            images[name] = PairImage(root / name, category, size)
        elif known.size != size:
            raise DataError(f"{where}: {side}_imsize is {size[1]}×{size[0]}, another pair says {known.size} for {name}")
        ids.append(name)
        sizes.append(size)
    points = [points_of(entry.get(f"{side}_kps"), f"{side}_kps", where) for side in ("src", "trg")]
    if len(points[0]) != len(points[1]):
        raise DataError(f"{where}: {len(points[0])} src_kps and {len(points[1])} trg_kps; expected as many of both")
    names = tuple(map(str, entry.get("kps_ids") or ()))
    if names and len(names) != len(points[0]):
        raise DataError(f"{where}: {len(names)} kps_ids for {len(points[0])} keypoints")
    return Pair(
        ids[0],
        ids[1],
        points[0],
        points[1],
        sizes[0],
        sizes[1],
        box_of(entry.get("src_bndbox"), "src_bndbox", where),
        box_of(entry.get("trg_bndbox"), "trg_bndbox", where),
        category,
        keypoint_ids=names,
        attributes={name: entry[name] for name in _ATTRIBUTES if type(entry.get(name)) is int},
        target_visible=visible(category, entry["trg_imname"]),
    )


class SPairUDataModule(SPairDataModule):
    """SPair-U: test pairs of four further keypoints a category, on the images of SPair-71k and in its layout."""

    card = replace(
        SPairDataModule.card,
        name="SPair-U",
        citation="Mariotti et al., Jamais Vu, NeurIPS 2025",
        licence="see its authors",
    )
    partners: Partners = MappingProxyType({})
    keypoint_groups: Groups = MappingProxyType({})
