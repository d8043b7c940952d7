"""Formats of image pairs for `fuzz_formats.py`: makers of small valid data sets, and their readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gate_lightning.data.correspondence.ap10k import AP10KDataModule
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.own_pairs import OwnPairsDataModule
from gate_lightning.data.correspondence.pf_pascal import PFPascalDataModule
from gate_lightning.data.correspondence.pf_willow import PFWillowDataModule
from gate_lightning.data.correspondence.spair import SPairDataModule

__all__ = ["formats_of_pairs"]

_POINTS = [[3, 4], [20, 9], [11, 30]]
_BOX = [2, 3, 40, 35]


def formats_of_pairs() -> Iterator[tuple[str, Callable[[Path], None], Callable[[Path], None]]]:
    """(name, maker, reader) of every format."""
    yield "pairs-of-spair", _spair, lambda f: _read(SPairDataModule(str(f), size=16))
    yield "pairs-csv", _table, lambda f: _read(OwnPairsDataModule(str(f), size=16))
    yield "pairs-json", _list, lambda f: _read(OwnPairsDataModule(str(f), test="pairs.json", size=16))
    yield "pairs-of-pf-willow", _willow, lambda f: _read(PFWillowDataModule(str(f), size=16))
    yield "pairs-of-pf-pascal", _pascal, lambda f: _read(PFPascalDataModule(str(f), size=16))
    yield "pairs-of-ap10k", _ap10k, lambda f: _read(AP10KDataModule(str(f), "intra-species", size=16))


def _read(data: PairDataModule) -> None:
    data.check()
    data.pairs_of("test")
    for _ in data.test_dataloader():
        pass


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _images(folder: Path, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in "ab":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)).save(
            folder / f"{name}{suffix}"
        )


def _spair(folder: Path) -> None:
    _images(folder / "JPEGImages/cat")
    entry: dict[str, Any] = {"category": "cat", "kps_ids": ["0", "1", "2"], "mirror": 0}
    for side, name in (("src", "a.jpg"), ("trg", "b.jpg")):
        entry |= {f"{side}_imname": name, f"{side}_imsize": [48, 40, 3], f"{side}_kps": _POINTS, f"{side}_bndbox": _BOX}
    _text(folder / "PairAnnotation/test/000000-a-b:cat.json", json.dumps(entry))
    _text(folder / "Layout/large/test.txt", "000000-a-b:cat\n")


def _table(folder: Path) -> None:
    _images(folder)
    header = "source_path,target_path,category,source_points,target_points,source_bounding_box\n"
    _text(folder / "pairs.csv", f"{header}a.jpg,b.jpg,cat,3 4;20 9,4 5;21 8,2 3 40 35\n")


def _list(folder: Path) -> None:
    _images(folder)
    entry = {"source_path": "a.jpg", "target_path": "b.jpg", "source_points": _POINTS, "target_points": _POINTS}
    _text(folder / "pairs.json", json.dumps([{**entry, "category": "cat", "target_bounding_box": _BOX}]))


def _willow(folder: Path) -> None:
    _images(folder / "car(G)", ".png")
    header = ",".join(
        ["imageA", "imageB", *(f"{axis}{number}" for axis in ("XA", "YA", "XB", "YB") for number in range(10))]
    )
    row = ",".join(["PF-dataset/car(G)/a.png", "PF-dataset/car(G)/b.png", *(f"{value % 36}.5" for value in range(40))])
    _text(folder / "test_pairs_pf.csv", f"{header}\n{row}\n")


def _pascal(folder: Path) -> None:
    from scipy.io import savemat

    _images(folder / "JPEGImages")
    (folder / "Annotations/cat").mkdir(parents=True)
    for name in "ab":
        savemat(
            folder / f"Annotations/cat/{name}.mat", {"kps": np.array(_POINTS, float), "bbox": np.array([_BOX], float)}
        )
    row = "PF-dataset-PASCAL/JPEGImages/a.jpg,PF-dataset-PASCAL/JPEGImages/b.jpg,8,3;20,4;9,3;20,4;9"
    _text(folder / "test_pairs_pf_pascal.csv", f"source_image,target_image,class,XA,YA,XB,YB\n{row}\n")


def _ap10k(folder: Path) -> None:
    _images(folder / "JPEGImages/Felidae/cat")
    entry = {"width": 48, "height": 40, "bbox": [2, 3, 38, 32], "keypoints": [5, 6, 2] * 17}
    for name in "ab":
        _text(folder / f"ImageAnnotation/Felidae/cat/{name}.json", json.dumps(entry))
    paths = {
        f"{side}_json_path": f"data/ap-10k/ImageAnnotation/Felidae/cat/{name}.json"
        for side, name in (("src", "a"), ("trg", "b"))
    }
    _text(folder / "PairAnnotation/test/0-a-b:cat.json", json.dumps(paths))
