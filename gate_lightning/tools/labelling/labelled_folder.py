"""Images with labels that an ensemble gave them, and how sure it was: the folder between pseudo-labels and student.

<folder>/images/train/**, masks/train/**.png, classes.txt    what ``dataset=folder`` reads; or, in the layout ``npy``,
<folder>/train/**                                            images with ``.npy`` beside them (ddpm-segmentation's)
<folder>/overlays/**.png, uncertainty/**.png                 for people
<folder>/uncertainty.csv                                     all images, the most uncertain first
<folder>/.records/**.json                                    which images are done, written last
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.files.images import read_image
from gate_lightning.data.files.names import inner_path, path_inside
from gate_lightning.errors import DataError, first_line
from gate_lightning.utils.files import write_atomically, writing
from gate_lightning.utils.text import read_csv, read_json
from gate_lightning.visualization.heat import heat_map
from gate_lightning.visualization.overlay import overlay, write_mask
from gate_lightning.visualization.palette import IGNORED_COLOUR

__all__ = ["LAYOUTS", "TABLE", "Entry", "LabelledFolder", "link_or_copy", "write_class_files", "write_png"]

#: the table of all images
TABLE = "uncertainty.csv"
LAYOUTS = ("folder", "npy")


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        uncertainty: mean Jensen-Shannon divergence of the most uncertain tenth of the pixels, in nats.
        mean_divergence: of all pixels.
        image: path of the image below its folder.
        name: the same without suffix, which masks are called by.
        classes: what is in it, the largest share first.
    """

    uncertainty: float
    mean_divergence: float
    image: str
    name: str
    classes: str


class LabelledFolder:
    """Writes and reads such a folder.

    Args:
        folder: where it is, or will be.
        layout: ``folder`` or ``npy``.
        values: what mask files hold for each class; None for the numbers of the classes.
    """

    def __init__(self, folder: str | Path, layout: str = "folder", values: Sequence[int] | None = None) -> None:
        self.folder, self.layout = Path(folder).expanduser(), layout
        self.values = None if values is None else np.array(values, dtype=np.uint8)

    @property
    def used(self) -> bool:
        """True if an image has been labelled."""
        return (self.folder / ".records").is_dir()

    def holds(self, name: str) -> bool:
        """True if all files of an image have been written."""
        return self._record(name).is_file()

    def entry(self, name: str) -> Entry:
        """Entry of an image that is there.

        Raises:
            DataError: its record is damaged.
        """
        path = self._record(name)
        return _entry(read_json(path), f"{path}")

    def write(
        self,
        entry: Entry,
        path: Path,
        labels: NDArray[np.uint8],
        divergence: NDArray[np.floating],
        class_labels: ClassLabels,
    ) -> int:
        """Store one image with its labels; the bytes of what is written besides the image.

        Args:
            entry: its row.
            path: of the image.
            labels: (H, W) class indices.
            divergence: (H, W), in nats.
            class_labels: classes and colours.

        Raises:
            CacheError: a file cannot be written.
        """
        tinted = overlay(read_image(path), labels, class_labels.palette)
        size = write_png(self.folder / f"overlays/{entry.name}.png", tinted)
        size += write_png(self.folder / f"uncertainty/{entry.name}.png", heat_map(divergence, math.log(2)))
        palette = list(class_labels.palette)
        if self.values is not None:
            labels = self.values[labels]
            named = dict(zip(self.values.tolist(), palette, strict=True))
            palette = [named.get(value, IGNORED_COLOUR) for value in range(256)]
        if self.layout == "npy":
            buffer = io.BytesIO()
            np.save(buffer, labels)
            link_or_copy(path, self.folder / "train" / entry.image)
            mask = self.folder / f"train/{entry.name}.npy"
            write_atomically(mask, buffer.getvalue())
        else:
            link_or_copy(path, self.folder / "images/train" / entry.image)
            mask = self.folder / f"masks/train/{entry.name}.png"
            partial = mask.with_name(f".{mask.name}.part.png")
            write_mask(partial, labels, palette)
            partial.replace(mask)
        write_atomically(self._record(entry.name), json.dumps(asdict(entry)).encode())
        return size + mask.stat().st_size

    def write_table(self, entries: Sequence[Entry]) -> Path:
        """Write ``uncertainty.csv``; its path."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [field.name for field in fields(Entry)], lineterminator="\n")
        writer.writeheader()
        # equal ones by name, so that the table is a function of the images
        for entry in sorted(entries, key=lambda entry: (-entry.uncertainty, entry.name)):
            writer.writerow(asdict(entry))
        write_atomically(self.folder / TABLE, text.getvalue().encode())
        return self.folder / TABLE

    def read_table(self) -> list[Entry]:
        """All images, the most uncertain first.

        Raises:
            DataError: there is no table: no labels, or not all images are labelled yet; or it is damaged, or names
                files outside the folder.
        """
        path = self.folder / TABLE
        if not path.is_file():
            raise DataError(f"{path} does not exist; eval.py tool=pseudo_label writes it once all images are labelled")
        columns = [field.name for field in fields(Entry)]
        return [_entry(row, f"{path}, row {row['name']!r}") for row in read_csv(path, columns)]

    def files_of(self, entry: Entry) -> tuple[Path, Path]:
        """Image and mask of a row, in the layout ``folder``.

        Raises:
            DataError: one is missing, or lies outside the folder.
        """
        places = (("images/train", entry.image), ("masks/train", f"{entry.name}.png"))
        image, mask = (path_inside(self.folder / place, name, f"{self.folder / TABLE}") for place, name in places)
        for path in (image, mask):
            if not path.is_file():
                raise DataError(f"{path} does not exist, but {TABLE} tells of it; label that image again")
        return image, mask

    def _record(self, name: str) -> Path:
        return self.folder / ".records" / f"{name}.json"


def _entry(row: Mapping[str, Any], where: str) -> Entry:
    """A row of the table, or an image's record."""
    try:
        uncertainty, divergence = float(row["uncertainty"]), float(row["mean_divergence"])
        image, name, classes = (row[key] for key in ("image", "name", "classes"))
    except (KeyError, ValueError, TypeError) as error:
        reason = first_line(error)
        raise DataError(f"{where} is damaged ({reason}); label the images again in another folder") from error
    texts = all(isinstance(text, str) for text in (image, name, classes))
    if not texts or not math.isfinite(uncertainty + divergence):
        raise DataError(f"{where} is damaged: {dict(row)}; label the images again in another folder")
    for text in (image, name):
        inner_path(text, where)
    return Entry(uncertainty, divergence, image, name, classes)


def write_class_files(folder: Path, class_labels: ClassLabels) -> None:
    """``classes.txt``, and ``palette.txt`` where no two classes share a colour."""
    write_atomically(folder / "classes.txt", ("\n".join(class_labels.classes) + "\n").encode())
    if len(set(class_labels.palette)) == len(class_labels.palette):
        lines = (
            f"{r} {g} {b} {name}\n" for (r, g, b), name in zip(class_labels.palette, class_labels.classes, strict=True)
        )
        write_atomically(folder / "palette.txt", "".join(lines).encode())


def write_png(path: Path, image: NDArray[np.uint8]) -> int:
    """Write (H, W, 3) uint8 RGB; the file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
    return buffer.tell()


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name where the disk allows it, else a copy. What is there is left alone."""
    if target.exists():
        return
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        write_atomically(target, source.read_bytes())
