"""Image files as a batch for a feature extractor, without data set and loader."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gate_lightning.data.core.required_inputs import check_control_size, turn_is_unclear, unclear_turns
from gate_lightning.data.files.images import image_header, read_image
from gate_lightning.data.samples import Sample, collate_images
from gate_lightning.data.transforms.basic import resize_bicubic, resize_image
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from gate_lightning.utils.checks import a_path, check_choice, check_type, shown, whole_number

__all__ = ["read_images"]

log = logging.getLogger(__name__)


def read_images(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    size: int | tuple[int, int] | None = None,
    captions: Sequence[str] | None = None,
    control_images: Mapping[str, str | PathLike[str] | Sequence[str | PathLike[str]]] | None = None,
    interpolation: Literal["area", "bicubic"] = "area",
) -> tuple[torch.Tensor, Conditions]:
    """Image files as a batch for a feature extractor.

    Args:
        paths: B files, or one.
        size: (height, width) in pixels to resize to, aspect not kept; a number for a square; None keeps the files'
            size, which must then be the same for all.
        captions: one per image, for the prompt technique.
        control_images: name → B files, each of its image's size, for ControlNets; they are resized with the images.
        interpolation: "area" averages where an image shrinks and is bilinear where it grows, as in training; "bicubic"
            is PIL's default filter, with which the released code of GATE and DIFT reads images as squares.

    Returns:
        images (B, 3, H, W) float32 in [-1, 1], and their Conditions: sample ids are the file names.

    Raises:
        ConfigError: an argument of another type than these.
        DataError: a file is missing or broken, images of different sizes, or not one caption or control image each.
    """
    check_choice(interpolation, "interpolation", ("area", "bicubic"))
    if isinstance(captions, str | Mapping | Set) or not isinstance(captions, Collection | None):
        raise ConfigError(f"captions={shown(captions)}: expected a list of texts, one per image")
    check_type(control_images, "control_images", Mapping | None, "names and files, such as {'depth': ['a_depth.png']}")
    files, sides = _files(paths, "paths"), _sides(size)
    if not files or (captions is not None and len(captions) != len(files)):
        raise DataError(f"{len(files)} images and captions={captions!r}; give images, and captions for all or none")
    texts = [None] * len(files) if captions is None else list(captions)
    samples = [Sample(path.name, read_image(path), text) for path, text in zip(files, texts, strict=True)]
    for name, places in (control_images or {}).items():
        samples = _with_controls(samples, files, name, places)
    if sides is not None:
        height, width = sides
        resized = resize_bicubic if interpolation == "bicubic" else resize_image
        samples = [sample.map_images(lambda image: resized(image, height, width)) for sample in samples]
    shape = samples[0].image.shape
    for path, sample in zip(files, samples, strict=True):
        if sample.image.shape != shape:
            shapes = f"{files[0]} has {shape[:2]} pixels (height, width), {path} {sample.image.shape[:2]}"
            raise DataError(f"{shapes}; give read_images a size, or read them one by one")
    batch = collate_images(samples)
    return batch.images, batch.conditions


def _files(given: Any, name: str) -> list[Path]:
    """Paths of one or several files."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    return [a_path(one, name) for one in (given if several else [given])]


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) in pixels of what the caller gives as a size."""
    if size is None:
        return None
    sides = list(size) if isinstance(size, tuple | list | np.ndarray) else [size, size]
    if len(sides) != 2:
        raise ConfigError(f"size={shown(size)}: expected (height, width), or a number for a square")
    return whole_number(sides[0], "size", 1), whole_number(sides[1], "size", 1)


def _with_controls(
    samples: Sequence[Sample],
    images: Sequence[Path],
    name: str,
    files: str | PathLike[str] | Sequence[str | PathLike[str]],
) -> list[Sample]:
    """The images, each with its control image of that name."""
    given = _files(files, f"control_images {name!r}")
    if len(given) != len(samples):
        raise DataError(f"control_images {name!r}: {len(given)} files for {len(samples)} images; give one for each")
    made, unclear = [], []
    for sample, path, file in zip(samples, images, given, strict=True):
        image = image_header(path)
        if turn_is_unclear(image.turn, image.size, image_header(file)):
            unclear.append(sample.sample_id)
        control = read_image(file)
        check_control_size(name, file, control.shape[:2], sample.sample_id, sample.image.shape[:2])
        made.append(replace(sample, controls={**sample.controls, name: control}))
    if unclear:
        log.warning("%s", unclear_turns(name, unclear))
    return made
