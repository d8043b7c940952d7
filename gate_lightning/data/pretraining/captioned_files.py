"""Files of images with captions in several styles: kohya's folder layout, or that of a data set."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gate_lightning.data.files.captions import read_captions
from gate_lightning.data.files.images import IMAGE_SUFFIXES
from gate_lightning.data.files.listing import Listing, describe_left_out, list_files
from gate_lightning.data.files.names import same_name
from gate_lightning.errors import DataError
from gate_lightning.utils.text import read_text

__all__ = ["CaptionedImage", "found_captioned", "list_captioned"]

log = logging.getLogger(__name__)

_REPEATS = re.compile(r"^(\d+)_.+$")
_CAPTIONS = re.compile(r"^captions(_\w+)?(\.txt)?$")


@dataclass(frozen=True)
class CaptionedImage:
    """One entry: an image file, its text and how often it counts in a pass."""

    path: Path
    caption: str
    repeats: int


def list_captioned(root: str | Path | None, styles: Sequence[str] | None = None) -> list[CaptionedImage]:
    """Images of a folder with their captions, sorted; an image is there once for each caption it has.

    * Sub-folders ``<repeats>_<style>`` (``10_tags``), and images directly in ``root`` (one repeat): the caption of
      ``a.jpg`` is in ``a.txt`` beside it; without that file it is empty.
    * A data set in the layout of ``dataset=folder``: images in ``images/train`` (or ``images``), with captions of
      several styles in ``captions/train/<name>.txt``, ``captions_tags/train/<name>.txt``, … or in ``captions.txt``,
      ``captions_tags.txt``, … (see `read_captions`). Without any, captions are in ``a.txt`` beside ``a.jpg``, or
      empty.

    Args:
        root: the folder.
        styles: of the second layout, which captions: ``empty`` (none), ``captions``, or the ``tags`` of
            ``captions_tags``. None: ``empty`` and all there are.

    Raises:
        DataError: the folder is missing or holds no image, or a style is not there for every image.
    """
    entries, left_out = found_captioned(root, styles)
    for text in left_out:
        log.warning("%s", text)
    return entries


def found_captioned(root: str | Path | None, styles: Sequence[str] | None) -> tuple[list[CaptionedImage], list[str]]:
    """See `list_captioned`; besides, sentences on files that are left out."""
    folder = Path(root).expanduser() if root is not None else None
    if folder is None or not folder.is_dir():
        raise DataError(f"{root} is not a folder. Give a folder of images, e.g. dataset.root=data/my_images.")
    if (folder / "images").is_dir():
        entries, left_out = _in_styles(folder, styles)
    elif styles is not None:
        raise DataError(f"styles={list(styles)} needs images in {folder / 'images'}; found {_inside(folder)}.")
    else:
        entries, left_out = _beside(folder)
    if not any(entry.repeats for entry in entries):
        raise DataError(
            f"No image in {folder}. Expected {', '.join(IMAGE_SUFFIXES)} files there, in images/train, or "
            f"in sub-folders named <repeats>_<style>, e.g. 10_empty, 10_tags, 10_sentences, each with captions in .txt "
            f"files beside them; {' '.join(left_out) or f'found {_inside(folder)}'}."
        )
    return entries, left_out


def _beside(folder: Path) -> tuple[list[CaptionedImage], list[str]]:
    listing = list_files(folder)
    repeats = {path: _repeats(path.relative_to(folder).parts) for path in listing.files}
    mine = [path for path in listing.files if repeats[path] is not None]
    chosen = sorted(mine, key=lambda path: (len(path.relative_to(folder).parts), path))
    elsewhere = [path for path in listing.files if repeats[path] is None]
    texts = _texts(listing)
    entries = [CaptionedImage(path, _caption(path, texts) or "", repeats[path] or 0) for path in chosen]
    left_out = _left_out(listing, {_stem(path) for path in chosen})
    if elsewhere:
        left_out.append(
            f"{folder}: {len(elsewhere)} images left out that are in sub-folders not named <repeats>_<style> "
            f"({elsewhere[0].relative_to(folder)}{', …' if len(elsewhere) > 1 else ''})"
        )
    return entries, left_out


def _repeats(parts: Sequence[str]) -> int | None:
    """Repeats of an image at this path below the root; None if it is none of the set."""
    if len(parts) == 1:
        return 1
    match = _REPEATS.match(parts[0])
    return int(match.group(1)) if match and len(parts) == 2 else None


def _in_styles(root: Path, styles: Sequence[str] | None) -> tuple[list[CaptionedImage], list[str]]:
    split = "train" if (root / "images" / "train").is_dir() else ""
    listing = list_files(root / "images" / split)
    paths = listing.files
    names = [path.relative_to(listing.root).with_suffix("").as_posix() for path in paths]
    found = {path.stem.removeprefix("captions_") for path in root.iterdir() if _CAPTIONS.match(path.name)}
    captions: list[list[str]] = []
    for style in styles if styles is not None else ("empty", *sorted(found)):
        kind = style if style == "captions" else f"captions_{style}"
        read = [""] * len(paths) if style == "empty" else read_captions(root, split, names, kind)
        if read is None:
            raise DataError(
                f"style {style!r}: {root} has neither {kind}/{split} nor {kind}.txt; expected empty"
                f"{''.join(f', {name}' for name in sorted(found))}"
            )
        captions.append(read)
    texts = _texts(listing) if styles is None and not found else {}
    if texts:
        captions = [[_caption(path, texts) or "" for path in paths]]
    entries = [CaptionedImage(path, text, 1) for read in captions for path, text in zip(paths, read, strict=True)]
    return entries, _left_out(listing, {_stem(path) for path in paths} if texts else set())


def _stem(path: Path) -> str:
    return same_name(path.with_suffix("").as_posix())


def _texts(listing: Listing) -> dict[str, Path]:
    """The .txt files beside images, by path without suffix."""
    return {_stem(path): path for path in listing.left_out if path.suffix == ".txt"}


def _caption(image: Path, texts: Mapping[str, Path]) -> str | None:
    """Caption of ``a.jpg`` from ``a.txt`` in its folder, or None without that file."""
    path = texts.get(_stem(image))
    return None if path is None else read_text(path).strip()


def _left_out(listing: Listing, captioned: Collection[str]) -> list[str]:
    """Sentence on the files that are neither images nor captions of those."""
    unused = [path for path in listing.left_out if path.suffix != ".txt" or _stem(path) not in captioned]
    text = describe_left_out(listing.root, unused)
    return [text] if text else []


def _inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:8]
