"""Extraction of features to disk, resumable and in several processes, with bit-equal results."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.samples import BatchDataset
from gate_lightning.errors import DataError
from gate_lightning.features.caches.disk import full_description
from gate_lightning.features.caches.folder import FeatureFolder
from gate_lightning.features.caches.keys import image_key, row
from gate_lightning.features.wrappers.base import check_extractor
from gate_lightning.ops.padding import padded_size
from gate_lightning.structures import Conditions, Extractor, FeatureInfo, Features, ImageBatch
from gate_lightning.tools.devices import device_of, place
from gate_lightning.tools.extraction.feature_arrays import ArrayFolder
from gate_lightning.tools.extraction.sizing import Sizing
from gate_lightning.utils.checks import a_path, whole_number
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.progress import Progress
from gate_lightning.utils.units import human_size

__all__ = ["extract"]

log = logging.getLogger(__name__)


def extract(
    extractor: Extractor,
    input: str | Path,
    output: str | Path,
    resize: Literal["none", "short", "square"] = "none",
    size: int | None = None,
    batch_size: int = 4,
    dtype: str = "float16",
    layout: str = "safetensors",
    num_workers: int = 0,
    device: str = "auto",
    required_inputs: RequiredInputs | None = None,
) -> str:
    """Write the features of every image that has none yet.

    Batches depend on the images' sizes and the batch size alone, and a batch with a missing image is computed whole,
    so a resumed or distributed extraction is bit-equal to an uninterrupted one. Processes are those of the environment
    (RANK, WORLD_SIZE, LOCAL_RANK as torchrun sets them); each takes its share of the batches.

    Args:
        extractor: images and conditions → features.
        input: an image, a folder (searched with its subfolders) or a pattern.
        output: folder; an image ``a/b.jpg`` becomes ``a/b.safetensors`` in it (or see ``layout``).
        resize, size: see `Sizing`; ``size=None`` is the backbone's native size.
        batch_size: images of equal size read together.
        dtype: of the files: "float16", "bfloat16", "float32".
        layout: "safetensors" (see `FeatureFolder`; `read_features` reads a file), or "npy_by_layer", "npy_by_image",
            "npy_joined" (see `ArrayFolder`).
        num_workers: loader processes.
        device: "auto" (a GPU where there is one) or a torch device.
        required_inputs: control images that techniques need.

    Returns:
        Summary: images written, images that were there, folder.

    Raises:
        CacheError: ``output`` holds features of another description, or cannot be written.
        DataError: images that are missing, broken, or of a size that the backbone does not accept.
        ConfigError: settings that do not work together.
    """
    check_extractor(extractor)
    rank, world = place()
    sizing = Sizing(resize, extractor.backbone.native_size if size is None else size)
    whole_number(batch_size, "batch_size (tool.batch_size)", 1)
    whole_number(num_workers, "num_workers (tool.num_workers)")
    source, output = ImageSource(input), a_path(output, "output")
    files = [source.sizes(index)[0] for index in range(len(source))]
    for index, one in enumerate(files):
        sizing.check(*one, source.sample_id(index))
    sizes = [sizing.size(*one) for one in files]
    description = full_description(extractor.description, sizing.description)
    arrays = layout != "safetensors"
    store = ArrayFolder(output, description, dtype, layout) if arrays else FeatureFolder(output, description, dtype)
    if rank == 0:
        _announce(extractor, sizes, dtype, layout == "npy_joined", store.folder)
    sampler = EvaluationBatches(group_by_size(sizes, batch_size, together=1), rank, world, pad=False)
    needed = required_inputs or RequiredInputs()
    views = BatchDataset(needed.attach(source), sizing, edges=needed.edges)
    names = {source.sample_id(index): name for index, name in enumerate(source.names)}
    total = sum(len(draws) for draws in sampler)
    progress = Progress(total, rank, world, "features")
    with _moved(extractor, device_of(device)):
        for batch in BatchLoader(views, sampler=sampler, num_workers=num_workers):
            written = _write_missing(extractor, batch, names, store)
            progress.bytes += sum(written)
            progress.step(len(written), len(batch) - len(written))
    return f"{progress.summary()}: {store.folder}"


@contextmanager
def _moved(extractor: Extractor, device: torch.device) -> Iterator[None]:
    """Context in which an extractor is on ``device``; afterwards it is where its owner had it."""
    before = extractor.backbone.device
    if isinstance(extractor, nn.Module):
        extractor.to(device)
    try:
        yield
    finally:
        if isinstance(extractor, nn.Module):
            extractor.to(before)


def _write_missing(
    extractor: Extractor,
    batch: ImageBatch,
    names: Mapping[str, str],
    store: FeatureFolder | ArrayFolder,
) -> list[int]:
    """Write the missing features of a batch, which is computed whole if any are missing; their sizes in bytes."""
    ids = batch.conditions.sample_ids
    keys = [image_key(batch.images[index], batch.conditions, index) for index in range(len(ids))]
    missing = [index for index, one in enumerate(ids) if not store.holds(names[one], keys[index])]
    features = _features(extractor, batch.images, batch.conditions) if missing else {}
    return [store.write(names[ids[index]], keys[index], row(features, index)) for index in missing]


@torch.no_grad()
def _features(extractor: Extractor, images: Tensor, conditions: Conditions) -> Features:
    """Features of images of any size, without the positions that lie in the padding."""
    backbone = extractor.backbone
    height, width = images.shape[-2:]
    padded = padded_size(height, width, backbone.size_multiple) != (height, width)
    if padded and any(not (info.stride and info.channels) for info in _infos(extractor)):
        raise DataError(
            f"{', '.join(conditions.sample_ids)}: {height} × {width} pixels (height × width) must be padded to "
            f"multiples of {backbone.size_multiple}, and attention weights cannot be cut back to the image; use "
            "resize=square (tool.resize=square)"
        )
    try:
        features = extractor(images.to(backbone.device), conditions.to(backbone.device))
    except DataError as error:
        raise DataError(f"{', '.join(conditions.sample_ids)}: {error}") from error
    return {
        branch: {
            layer: _cut(value, extractor.feature_info[branch][layer], height, width) for layer, value in layers.items()
        }
        for branch, layers in features.items()
    }


def _cut(value: Tensor, info: FeatureInfo, height: int, width: int) -> Tensor:
    if not info.stride:
        return value
    return value[..., : -(-height // info.stride), : -(-width // info.stride)]


def _infos(extractor: Extractor) -> list[FeatureInfo]:
    return [info for layers in extractor.feature_info.values() for info in layers.values()]


def _announce(extractor: Extractor, sizes: Sequence[tuple[int, int]], dtype: str, joined: bool, folder: Path) -> None:
    """Log the size of the features to be written and the free disk space."""
    total, unknown = 0, 0
    for layers in extractor.feature_info.values():
        maps = [info for info in layers.values() if info.stride and info.channels]
        unknown += len(layers) - len(maps)
        finest = min((info.stride for info in maps), default=1)
        for info in maps:
            stride = finest if joined else info.stride
            total += info.channels * sum(-(-height // stride) * -(-width // stride) for height, width in sizes)
    total *= DTYPES[dtype].itemsize
    free = shutil.disk_usage(folder).free
    log.info(
        "%d images, %d branches, %d layers: %s in %s%s; %s are free in %s",
        len(sizes),
        len(extractor.feature_info),
        len(_infos(extractor)),
        human_size(total),
        dtype,
        f", and {unknown} layers of attention weights" if unknown else "",
        human_size(free),
        folder,
    )
    if total > free:
        log.warning("the disk will be full before the end, unless most features are there already")
