"""AP-10K as pairs: animals of one species, of two species of a family, of two families.

root/JPEGImages/<family>/<species>/<name>.jpg
root/ImageAnnotation/<family>/<species>/<name>.json                 width, height, bbox (left, top, width, height),
                                                                    keypoints: 17 times x, y, visibility
root/PairAnnotation/{trn,val,test}[_cross_species,_cross_family]/*.json       src_json_path, trg_json_path

Facts: the data set as GeoAware-SC prepares and reads it; names of keypoints from AP-10K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated, Box, box_of, field_of, numbers_of
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.images import PairImage
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.text import read_json

__all__ = ["KEYPOINTS", "SUBSETS", "AP10KDataModule"]

# fmt: off
KEYPOINTS = (
    "left eye", "right eye", "nose", "neck", "root of tail", "left shoulder", "left elbow", "left front paw",
    "right shoulder", "right elbow", "right front paw", "left hip", "left knee", "left back paw", "right hip",
    "right knee", "right back paw",
)
# fmt: on
_PARTNERS = {
    name: ("right" if name.startswith("left") else "left") + name[name.index(" ") :]
    for name in KEYPOINTS
    if name.startswith(("left", "right"))
}
#: as in the geometry-aware subset of GeoAware-SC
_ALIKE = tuple(
    frozenset(name for name in KEYPOINTS if name.endswith(ends))
    for ends in ("shoulder", ("elbow", "knee"), "paw", "hip")
)
#: subset → ending of its folder
SUBSETS = {"intra-species": "", "cross-species": "_cross_species", "cross-family": "_cross_family"}
_FOLDERS = {"train": "trn", "val": "val", "test": "test"}


class AP10KDataModule(PairDataModule):
    """AP-10K's pairs. Training pairs show one species; validation and test pairs are in groups by subset.

    Args:
        root: the data set's folder, ``ap-10k``.
        subsets: which validation and test pairs, of ``intra-species``, ``cross-species`` and ``cross-family``.
        others: `PairDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = "JPEGImages, ImageAnnotation, PairAnnotation/{trn,val,test}[_cross_species,_cross_family]"
    card = DatasetCard(
        "AP-10K pairs",
        prompt_simple="a photo of a {category}",
        prompt_fine="a photo of an animal, high quality, best quality, highly realistic, masterpiece, high resolution",
        branches=correspondence_branches(),
        citation="Yu et al., AP-10K, NeurIPS 2021; pairs: Zhang et al., Telling Left from Right, CVPR 2024",
        licence="CC BY 4.0 (annotations); images of their sources",
    )

    def __init__(self, root: str, subsets: str | Sequence[str] = tuple(SUBSETS), **others: Any) -> None:
        self.root = require_root(root, self.layout, "JPEGImages")
        species = [folder.name for folder in (self.root / "ImageAnnotation").glob("*/*")]
        self.partners = dict.fromkeys(species, _PARTNERS)
        self.keypoint_groups = dict.fromkeys(species, _ALIKE)
        super().__init__(**others)
        self.subsets = (subsets,) if isinstance(subsets, str) else tuple(subsets)
        for subset in self.subsets:
            check_choice(subset, "dataset.subsets", SUBSETS)
        if not self.subsets or len(set(self.subsets)) < len(self.subsets):
            raise ConfigError(f"dataset.subsets={list(self.subsets)}: expected some of {', '.join(SUBSETS)}, each once")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits of which a folder of pairs is there."""
        return tuple(split for split in _FOLDERS if any(folder.is_dir() for folder in self._folders(split).values()))

    @property
    def has_test(self) -> bool:
        """True if there are test pairs."""
        return "test" in self.splits

    def _folders(self, split: str) -> dict[str, Path]:
        """Group → folder of its pairs."""
        place = self.root / "PairAnnotation"
        if split == "train":
            return {"": place / _FOLDERS[split]}
        return {subset: place / f"{_FOLDERS[split]}{SUBSETS[subset]}" for subset in self.subsets}

    def read(self, split: str) -> Annotated[Pair]:
        """The pairs of a split, in the order of their files' names.

        Raises:
            DataError: a folder is missing, or a file is missing or broken.
        """
        images: dict[str, PairImage] = {}
        known: dict[str, _Animal] = {}
        pairs = []
        for group, folder in self._folders(split).items():
            files = sorted(folder.glob("*.json")) if folder.is_dir() else []
            if not files:
                raise DataError(
                    f"{folder} {'holds no pairs (*.json)' if folder.is_dir() else 'does not exist'}; looked "
                    f"for {self.layout}; dataset.subsets=[intra-species] leaves subsets out"
                )
            for file in files:
                entry = read_json(file)
                both = [self._animal(entry, f"{side}_json_path", str(file), known) for side in ("src", "trg")]
                for animal in both:
                    images[animal.name] = PairImage(self.root / animal.name, animal.species, animal.size)
                pairs.append(_pair(both[0], both[1], group))
        return Annotated(tuple(pairs), images, slack=10.0)

    def _animal(self, entry: Mapping[str, Any], key: str, where: str, known: dict[str, _Animal]) -> _Animal:
        """The annotated image that a pair names, wherever the data set lay when the pair was made."""
        path = inner_path(field_of(entry, key, str, where).replace("\\", "/").rpartition("ImageAnnotation/")[2], where)
        if path not in known:
            known[path] = _Animal(path, self.root / "ImageAnnotation" / path)
        return known[path]


class _Animal:
    """An annotated image."""

    def __init__(self, path: str, file: Path) -> None:
        entry, where = read_json(file), str(file)
        inner = PurePosixPath(path)
        self.species, self.name = inner.parent.name, f"JPEGImages/{inner.with_suffix('.jpg').as_posix()}"
        self.size = field_of(entry, "height", int, where), field_of(entry, "width", int, where)
        left, top, width, height = box_of(entry.get("bbox"), "bbox", where)
        self.box: Box = (left, top, left + width, top + height)
        values = numbers_of(entry.get("keypoints"), "keypoints", where, 3 * len(KEYPOINTS))
        self.keypoints: Tensor = torch.tensor(values, dtype=torch.float32).reshape(-1, 3)


def _pair(source: _Animal, target: _Animal, group: str) -> Pair:
    visible = target.keypoints[:, 2] > 0
    seen = (source.keypoints[:, 2] > 0) & visible
    return Pair(
        source.name,
        target.name,
        source.keypoints[seen, :2],
        target.keypoints[seen, :2],
        source.size,
        target.size,
        source.box,
        target.box,
        source.species,
        "" if source.species == target.species else target.species,
        tuple(name for name, both in zip(KEYPOINTS, seen.tolist(), strict=True) if both),
        group,
        target_visible=frozenset(name for name, one in zip(KEYPOINTS, visible.tolist(), strict=True) if one),
    )
