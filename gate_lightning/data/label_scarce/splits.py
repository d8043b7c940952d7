"""Random splits of a pool of images, and the files that record them.

The published means and deviations of label-scarce segmentation are over five random splits of the shipped training
and test images (as an author of ddpm-segmentation wrote in an issue); the splits were never published.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gate_lightning.data.files.names import same_name
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import write_atomically
from gate_lightning.utils.seeding import data_generator
from gate_lightning.utils.text import read_json

__all__ = ["Split", "random_split", "read_split", "shipped_split", "write_split"]


@dataclass(frozen=True)
class Split:
    """Positions in a pool.

    Attributes:
        train: images whose labels are used.
        test: images that are measured.
        unused: images of the training part beyond the number that was asked for.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    unused: tuple[int, ...] = ()

    def labelled(self, count: int | None) -> Split:
        """Split with the first ``count`` training images; the test images stay, so that results compare.

        Raises:
            ConfigError: there are fewer.
        """
        if count is None:
            return self
        whole_number(count, "task.data.labelled", 1, optional="all images")
        if count > len(self.train):
            raise ConfigError(
                f"task.data.labelled={count}, but the training part has {len(self.train)} images; ask for that many "
                "or fewer, or give the data set more training images"
            )
        return Split(self.train[:count], self.test, self.train[count:] + self.unused)


def shipped_split(train: int, total: int) -> Split:
    """The first ``train`` images for training, the rest for testing."""
    return Split(tuple(range(train)), tuple(range(train, total)))


def random_split(train: int, total: int, seed: int) -> Split:
    """Random split with ``train`` training images, a function of the three numbers.

    Raises:
        ConfigError: a negative or broken seed.
    """
    whole_number(seed, "task.data.split_seed", optional="the published split")
    order = [int(place) for place in data_generator("label-scarce split", seed).permutation(total)]
    return Split(tuple(order[:train]), tuple(order[train:]))


def write_split(path: Path, split: Split, names: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write sample ids by part, atomically.

    Args:
        path: ``….json``.
        split: what to write.
        names: sample ids of the pool.
        about: further entries (the seed, …).
    """
    parts = {part: [names[place] for place in getattr(split, part)] for part in ("train", "test", "unused")}
    write_atomically(path, (json.dumps({**about, **parts}, indent=1) + "\n").encode())


def read_split(path: str | Path, names: Sequence[str]) -> Split:
    """A split as `write_split` writes it: ``{"train": [sample id, …], "test": […]}``.

    Args:
        path: the file.
        names: sample ids of the pool.

    Raises:
        DataError: missing, of another form, of images that are not there, or with an image twice.
    """
    file = Path(path).expanduser()
    content = read_json(file)
    parts = {part: content.get(part, []) for part in ("train", "test", "unused")}
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in parts.values()):
        raise DataError(f'split_file {file}: expected {{"train": [sample id, …], "test": [sample id, …]}}')
    if not parts["train"] or not parts["test"]:
        raise DataError(f"split_file {file} names no {'test' if parts['train'] else 'train'} images")
    parts = {part: [same_name(name) for name in given] for part, given in parts.items()}
    places = {same_name(name): place for place, name in enumerate(names)}
    unknown = [name for part in parts.values() for name in part if name not in places]
    if unknown:
        raise DataError(
            f"split_file {file} names {len(unknown)} images that the data set does not have, first {unknown[0]!r}; "
            f"its images are called like {names[0]!r}"
        )
    counts = Counter(name for part in parts.values() for name in part)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"split_file {file} names {twice[0]!r} more than once; training and test must not share images")
    train, test, unused = (tuple(places[name] for name in part) for part in parts.values())
    return Split(train, test, unused)
