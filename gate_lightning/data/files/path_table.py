"""Lookup of per-image entries (captions, control images) by path."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from gate_lightning.data.files.images import IMAGE_SUFFIXES
from gate_lightning.data.files.names import same_name
from gate_lightning.errors import DataError

__all__ = ["PathTable", "without_suffix"]

Entry = TypeVar("Entry")


class PathTable(Generic[Entry]):
    """Table of entries by relative path, looked up by sample id.

    An image ``images/train/a/b.jpg`` has the entry ``images/train/a/b``, ``train/a/b``, ``a/b`` or ``b``, with or
    without an image's suffix: the longest that is there.

    Args:
        entries: path (forward slashes) → entry.
        source: where they come from, for errors.
        what: what an entry is, for errors ("caption").
        advice: what to do about an image without entry, for errors.

    Raises:
        DataError: no entries, or two of one name.
    """

    def __init__(self, entries: Mapping[str, Entry], source: str, what: str, advice: str) -> None:
        if not entries:
            raise DataError(f"{source} holds no {what}; {advice}")
        self.source, self.what, self.advice = source, what, advice
        self._entries = {same_name(key): entry for key, entry in entries.items()}
        if len(self._entries) < len(entries):
            twice = next(key for key, count in Counter(map(same_name, entries)).items() if count > 1)
            raise DataError(f"{source} has {twice!r} twice, with accents in two encodings; keep one of them")
        self._keys: dict[str, list[str]] = {}
        for key in self._entries:
            self._keys.setdefault(without_suffix(key), []).append(key)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, sample_id: str) -> Entry | None:
        """The entry of an image, or None.

        Raises:
            DataError: several entries differ from its name by the suffix alone.
        """
        key = self._key(sample_id)
        return None if key is None else self._entries[key]

    def check(self, sample_ids: Sequence[str]) -> None:
        """Raise DataError unless each of these images has an entry, and one of its own."""
        missing = [sample_id for sample_id in sample_ids if self._key(sample_id) is None]
        if missing:
            raise self.missing(missing, len(sample_ids))
        users: dict[str, str] = {}
        for sample_id in sample_ids:
            other = users.setdefault(str(self._key(sample_id)), sample_id)
            if other != sample_id:
                raise DataError(
                    f"{self.source} has one {self.what} {self._key(sample_id)!r} for both {other!r} and {sample_id!r}; "
                    f"name them by longer paths"
                )

    def missing(self, sample_ids: Sequence[str], total: int) -> DataError:
        """Error about images without an entry: name of the first, number, and the most similar entry."""
        wanted, known = without_suffix(same_name(sample_ids[0])), [*self._keys][:20_000]
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
        near = near or difflib.get_close_matches(PurePosixPath(wanted).name, known, n=1, cutoff=0.5)
        hint = f"the nearest is {self._keys[near[0]][0]!r}" if near else f"it has e.g. {next(iter(self._entries))!r}"
        return DataError(
            f"{self.source} has no {self.what} for {sample_ids[0]!r} ({len(sample_ids)} of {total} images have none; "
            f"{hint}); {self.advice}"
        )

    def _key(self, sample_id: str) -> str | None:
        for tail in _tails(same_name(sample_id)):
            if tail in self._entries:
                return tail
            keys = self._keys.get(without_suffix(tail), [])
            if len(keys) > 1:
                raise DataError(f"{self.source} has {' and '.join(map(repr, keys))}, and {sample_id!r} may be either")
            if keys:
                return keys[0]
        return None


def without_suffix(path: str) -> str:
    """The path without an image's suffix; other dots belong to the name."""
    pure = PurePosixPath(path)
    return pure.with_suffix("").as_posix() if pure.suffix.lower() in IMAGE_SUFFIXES else pure.as_posix()


def _tails(path: str) -> Iterator[str]:
    parts = PurePosixPath(path).parts
    for start in range(len(parts)):
        yield "/".join(parts[start:])
