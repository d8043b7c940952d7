"""Captions of images in files, and the control that hands every image somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.seeding import data_generator

__all__ = ["derangement", "read_captions"]


def derangement(length: int, *key: object) -> np.ndarray:
    """A permutation that moves every element, int64 (length,), decided by ``key``.

    It is one cycle through all elements (Sattolo's algorithm).

    Raises:
        ConfigError: fewer than two elements, which cannot change places.
    """
    if length < 2:
        raise ConfigError(f"captions=shuffled needs at least 2 images in the split, there is {length}")
    rng = data_generator("derangement", *key)
    order = np.arange(length)
    for last in range(length - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def read_captions(root: Path, split: str, names: Sequence[str], kind: str = "captions") -> list[str] | None:
    """Captions of a split, from ``captions/<split>/<name>.txt`` or from ``captions.txt``.

    ``captions.txt`` has one image a line: its path below ``images/`` with or without suffix, a tab, the caption.
    The text is taken as it is, without surrounding blanks.

    Args:
        root: data set folder.
        split: ``train``, ``val``, ``test``.
        names: images of the split relative to ``images/<split>``, without suffix.
        kind: name of the folder or file, for data sets with several captions.

    Returns:
        One caption per name, or None if there are no captions for this split.

    Raises:
        DataError: captions for some images only, or a line without tab. The first one is named.
    """
    folder, table = root / kind / split, root / f"{kind}.txt"
    if folder.is_dir() and table.is_file():
        raise DataError(f"there are captions in {folder} and in {table}; keep one of them")
    if folder.is_dir():
        found = {
            path.relative_to(folder).with_suffix("").as_posix(): path.read_text(encoding="utf-8-sig").strip()
            for path in sorted(folder.rglob("*.txt"))
        }
        source: object = folder
    elif table.is_file():
        found = _read_table(table, f"{split}/" if split else "")
        source = table
    else:
        return None
    if not found:
        return None
    missing = [name for name in names if name not in found]
    if missing:
        where = f" of {split}" if split else ""
        raise DataError(
            f"{source} has no caption for {missing[0]!r}{where} ({len(missing)} of {len(names)} are missing); "
            "every image needs one, an empty one counts"
        )
    return [found[name] for name in names]


def _read_table(path: Path, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab:
            raise DataError(f"{path}, line {number}: {line.strip()!r}; expected `path<TAB>caption`")
        if name.startswith(prefix):
            name = name.removeprefix(prefix).strip()
            found[name] = text.strip()
            found.setdefault(Path(name).with_suffix("").as_posix(), text.strip())
    return found
