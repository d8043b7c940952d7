"""Pairing of images and masks by equal names in two folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gate_lightning.data.card import check_classes
from gate_lightning.data.files.images import IMAGE_SUFFIXES
from gate_lightning.data.files.listing import describe_left_out, list_files
from gate_lightning.data.files.mask_values import MASK_SUFFIXES
from gate_lightning.data.files.names import same_name
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["LAYOUT", "Pair", "SplitFiles", "pair_files", "pairing_faults", "read_classes", "require_root", "scan_split"]

LAYOUT = "images/{train,val[,test]}, masks/{train,val[,test]}, classes.txt"


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        name: path below the folder of the split's images without suffix, with forward slashes, as `same_name` has it.
        image: file.
        mask: file.
        sample_id: path of the image relative to the root, with forward slashes.
    """

    name: str
    image: Path
    mask: Path
    sample_id: str


@dataclass(frozen=True)
class SplitFiles:
    """Files in the folders of a split.

    Attributes:
        split: train, val, test.
        pairs: sorted by name.
        without_mask, without_image: files without partner.
        images, masks: folders.
        other, other_masks: files of other kinds in them.
        doubles: groups of files with one name and several suffixes, of which none is in ``pairs``.
        image_place, mask_place: where an image or mask without partner was expected, for messages.
    """

    split: str
    pairs: tuple[Pair, ...]
    images: Path
    masks: Path
    without_mask: tuple[Path, ...] = ()
    without_image: tuple[Path, ...] = ()
    other: tuple[Path, ...] = ()
    other_masks: tuple[Path, ...] = ()
    doubles: tuple[tuple[Path, ...], ...] = field(default_factory=tuple)
    image_place: str = ""
    mask_place: str = ""


def require_root(root: str | Path, layout: str = LAYOUT, inside: str = "images") -> Path:
    """Path of an existing data set folder.

    Args:
        root: path of the folder.
        layout: what it should hold, for the message.
        inside: a folder that it must have.

    Raises:
        DataError: says what was looked for and what there is instead.
    """
    folder = Path(root).expanduser()
    looked = f"looked for {layout} in {folder} (= {folder.resolve()})"
    if not folder.is_dir():
        if folder.exists():
            raise DataError(f"dataset.root is a file: {looked}; unpack it where it is an archive, and name the folder")
        parent = folder.parent
        beside = sorted(path.name for path in parent.iterdir() if path.is_dir())[:8] if parent.is_dir() else None
        there = f"{parent} holds the folders {beside}" if beside is not None else f"{parent} does not exist either"
        raise DataError(f"dataset.root does not exist: {looked}; {there}")
    if not (folder / inside).is_dir():
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise DataError(f"dataset.root has no {inside}/: {looked}; found {found}")
    return folder


def read_classes(path: Path) -> tuple[str, ...]:
    """``classes.txt``: one name a line, the first one is value 0; blank lines at the end do not count.

    Raises:
        DataError: missing, or a name is empty or there twice.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; write one class name a line, the first line names value 0")
    try:
        return check_classes(lines_of(read_text(path).rstrip()), path)
    except ConfigError as error:
        raise DataError(str(error)) from error


def scan_split(root: Path, split: str) -> SplitFiles:
    """Pair the images of a split with their masks by name.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    return pair_files(root, split, f"images/{split}", f"masks/{split}", LAYOUT)


def pair_files(
    root: Path,
    split: str,
    image_folder: str,
    mask_folder: str,
    layout: str,
    endings: tuple[str, str] = ("", ""),
    mask_suffixes: Sequence[str] = MASK_SUFFIXES,
) -> SplitFiles:
    """Pair the images of a folder with the masks of another one by their paths below it.

    Args:
        root: data set folder.
        split: train, val, test.
        image_folder, mask_folder: relative to the root.
        layout: what was expected, for messages.
        endings: of the names of images and of masks, before the suffix, by which the two differ
            (``_leftImg8bit``, ``_gtFine_labelIds``). Files with other endings belong to something else.
        mask_suffixes: of masks. Images and masks may be in one folder if they share no suffix.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    for folder, what in ((image_folder, "images"), (mask_folder, "masks")):
        if not (root / folder).is_dir():
            raise DataError(
                f"{root / folder} does not exist; expected the {what} of the {split} split there ({layout})"
            )
    images, other_images = _by_name(root / image_folder, IMAGE_SUFFIXES, endings[0])
    masks, other_masks = _by_name(root / mask_folder, mask_suffixes, endings[1])
    if image_folder == mask_folder:
        other_images, other_masks = [file for file in other_images if file in other_masks], []
    if not images:
        kind = f"*{endings[0]}" if endings[0] else "files"
        left_out = describe_left_out(root / image_folder, other_images)
        expected = f"expected {kind} with {', '.join(IMAGE_SUFFIXES)}"
        raise DataError(f"{root / image_folder} holds no images; {left_out or expected}")
    doubles = [tuple(files) for group in (images, masks) for files in group.values() if len(files) > 1]
    pairs = [
        Pair(name, files[0], masks[name][0], files[0].relative_to(root).as_posix())
        for name, files in images.items()
        if len(files) == 1 and len(masks.get(name, ())) == 1
    ]
    return SplitFiles(
        split=split,
        pairs=tuple(sorted(pairs, key=lambda pair: pair.name)),
        images=root / image_folder,
        masks=root / mask_folder,
        without_mask=_alone(images, masks),
        without_image=_alone(masks, images),
        other=tuple(other_images),
        other_masks=tuple(other_masks),
        doubles=tuple(doubles),
        image_place=f"{image_folder}/…{endings[0]}",
        mask_place=f"{mask_folder}/…{endings[1]}",
    )


def _by_name(folder: Path, suffixes: Sequence[str], ending: str = "") -> tuple[dict[str, list[Path]], list[Path]]:
    listing = list_files(folder, suffixes=suffixes)
    groups: dict[str, list[Path]] = {}
    for path in listing.files:
        if path.stem.endswith(ending):
            name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
            groups.setdefault(same_name(name), []).append(path)
    return groups, [path for path in listing.left_out if path.stem.endswith(ending)]


def _alone(files: dict[str, list[Path]], partners: Iterable[str]) -> tuple[Path, ...]:
    known = set(partners)
    return tuple(group[0] for name, group in sorted(files.items()) if name not in known)


def pairing_faults(files: SplitFiles) -> tuple[list[str], list[str]]:
    """Errors and warnings about files that are no pair of an image and its mask."""
    errors = [
        f"{group[0]}: {len(group)} files of one name ({', '.join(path.name for path in group)}); keep one"
        for group in files.doubles
    ]
    lossy = [path for path in files.other_masks if path.suffix.lower() in set(IMAGE_SUFFIXES) - {".gif"}]
    errors += [
        f"{path}: a mask saved with loss has wrong labels at every edge; save masks as PNG" for path in lossy[:1]
    ]
    if not lossy:
        errors += _fault(files.without_mask, "image", "mask", files.split, files.mask_place)
    errors += _fault(files.without_image, "mask", "image", files.split, files.image_place)
    rest = [path for path in files.other_masks if path not in lossy]
    told = (
        describe_left_out(files.images, files.other, IMAGE_SUFFIXES),
        describe_left_out(files.masks, rest, MASK_SUFFIXES),
    )
    return errors, [text for text in told if text]


def _fault(paths: Sequence[Path], what: str, partner: str, split: str, place: str) -> list[str]:
    if not paths:
        return []
    total = f" ({len(paths)} such files in {split})" if len(paths) > 1 else ""
    return [f"{paths[0]}: {what} without {partner}{total}; expected {place} of the same path and name"]
