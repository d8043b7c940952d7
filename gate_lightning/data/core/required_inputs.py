"""Inputs that techniques require besides a data set: control images from folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gate_lightning.data.files.images import IMAGE_SUFFIXES, Header, image_header, read_image
from gate_lightning.data.files.listing import list_files
from gate_lightning.data.files.path_table import PathTable
from gate_lightning.data.samples import Sample, SampleSource, Subset
from gate_lightning.errors import DataError
from gate_lightning.ops.edges import CannySettings

__all__ = [
    "ControlledSource",
    "RequiredInputs",
    "check_control_size",
    "control_table",
    "turn_is_unclear",
    "unclear_turns",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequiredInputs:
    """Inputs that the techniques of a run require besides the images of a data set.

    Attributes:
        control_folders: control image (see ``Conditions.control_images``) → folder with an image for every image.
        checks: functions of the sample ids of a split that raise DataError for a missing input.
        random_views: whether training images are another view in every epoch although they are not augmented.
        view_cycle: how many augmented views a training image has, taken in turn by epoch; None for a new one in every
            epoch.
        edges: edge maps of the images, as the network sees them, that loader workers make ahead.
    """

    control_folders: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Callable[[Sequence[str]], None], ...] = ()
    random_views: bool = False
    view_cycle: int | None = None
    edges: tuple[CannySettings, ...] = ()

    def attach(self, source: SampleSource) -> SampleSource:
        """The images with their control images.

        Raises:
            DataError: an image lacks something; names it, and how many lack the same.
        """
        sample_ids = [source.sample_id(index) for index in range(len(source))]
        for check in self.checks:
            check(sample_ids)
        return ControlledSource(source, self.control_folders) if self.control_folders else source


class ControlledSource(Subset):
    """A split whose images get control images from folders, at the same path as in the data set.

    Args:
        source: the split.
        folders: control image → folder.

    Raises:
        DataError: a folder or a file in it is missing, or a control image has another size than its image.
    """

    def __init__(self, source: SampleSource, folders: Mapping[str, str]) -> None:
        super().__init__([(source, index) for index in range(len(source))])
        self._tables = {name: control_table(name, folder) for name, folder in folders.items()}
        sample_ids = [source.sample_id(index) for index in range(len(source))]
        turns = _orientations(source)
        for name, table in self._tables.items():
            table.check(sample_ids)
            unclear = []
            for index, sample_id in enumerate(sample_ids):
                path, size = self._path(name, index), source.sizes(index)[0]
                header, turn = image_header(path), turns.get(sample_id, 1)
                check_control_size(name, path, header.size, sample_id, size)
                if turn_is_unclear(turn, size, header):
                    unclear.append(sample_id)
            if unclear:
                log.warning("%s", unclear_turns(name, unclear))

    def load(self, index: int) -> Sample:
        """The image with its control images, uint8 (H, W, 3) RGB as `read_image` reads them."""
        sample: Sample = super().load(index)
        read = {name: read_image(self._path(name, index)) for name in self._tables}
        for name, image in read.items():
            path = self._path(name, index)
            check_control_size(name, path, image.shape[:2], sample.sample_id, sample.image.shape[:2])
        return replace(sample, controls={**sample.controls, **read})

    def _path(self, name: str, index: int) -> Path:
        path = self._tables[name].get(self.sample_id(index))
        assert path is not None  # checked when the split was opened
        return path


def control_table(name: str, folder: str | Path) -> PathTable[Path]:
    """The control images of a folder, by path below it; ``name`` is that of the ControlNet.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"the folder of {name} control images {root} (= {root.resolve()}) does not exist")
    listing = list_files(root)
    listing.say()
    entries = {path.relative_to(root).as_posix(): path for path in listing.files}
    advice = (
        f"every image needs one at its own path below that folder ({', '.join(IMAGE_SUFFIXES)}); a trained run "
        f"finds those of other images where control_images={{{name}: <folder>}} says"
    )
    return PathTable(entries, str(root), f"{name} control image", advice)


def _orientations(source: SampleSource) -> Mapping[str, int]:
    """EXIF orientation of the images of files that have one, by sample id."""
    if not isinstance(source, Subset):
        found: Mapping[str, int] = getattr(source, "orientations", {})
        return found
    parts = {id(part): part for part, _ in source.places}
    return {name: turn for part in parts.values() for name, turn in _orientations(part).items()}


def turn_is_unclear(turn: int, size: Sequence[int], control: Header) -> bool:
    """True if an image of that EXIF orientation and (height, width) may have been turned after its control image."""
    return turn != 1 and control.turn == 1 and (turn <= 4 or size[0] == size[1])


def unclear_turns(name: str, sample_ids: Sequence[str]) -> str:
    """Sentence about control images of which `turn_is_unclear`."""
    return (
        f"{len(sample_ids)} images are turned or mirrored by their EXIF orientation (first {sample_ids[0]!r}), and "
        f"nothing tells whether their {name} control images were made from them as they are shown or as their pixels "
        "are stored; taken as shown. Give those made from stored pixels the same orientation"
    )


def check_control_size(
    name: str, place: str | Path, found: Sequence[int], sample_id: str, expected: Sequence[int]
) -> None:
    """Raise DataError unless a control image has the (height, width) of its image; ``place`` is its file."""
    if tuple(found) != tuple(expected):
        raise DataError(
            f"the {name} control image {place} has {found[1]}×{found[0]} pixels (width×height) and its image "
            f"{sample_id!r} has {expected[1]}×{expected[0]}; make them the same size, they are resized and cropped "
            f"together"
        )
