"""Features of the labelled images: memory and disk space they take, and the store that training samples from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule
from gate_lightning.data.label_scarce.pixel_batches import LabelledPixels
from gate_lightning.errors import ConfigError
from gate_lightning.ops.padding import padded_size
from gate_lightning.pixel_classifiers.store import PixelStore, map_shapes
from gate_lightning.structures import Extractor
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.console import taking
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.progress import Progress
from gate_lightning.utils.resources import check_disk, check_memory, free_on
from gate_lightning.utils.units import human_size

__all__ = ["StoreSettings", "check_room", "labelled_features"]

log = logging.getLogger(__name__)

#: of a GPU's free memory, what the labelled images' features and training may take; the rest is for the backbone
_SHARE = 0.8

_LOWER = "Lower task.data.labelled (images) or the number of branches or timesteps, or take smaller layers"
_SMALLER = f"{_LOWER} or, with task.data.size, smaller masks"


@dataclass(frozen=True)
class StoreSettings:
    """Storage of the labelled images' features.

    Attributes:
        dtype: "float16", "bfloat16" or "float32".
        folder: folder of the file that holds them; None for memory: the GPU's where they fit, else the host's.
        memory_gib: most memory of the process in GiB; None for all that is free.

    Raises:
        ConfigError: an unknown dtype, or no memory at all.
    """

    dtype: str = "float16"
    folder: str | None = None
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        check_choice(self.dtype, "store_dtype", DTYPES)
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ConfigError(f"memory_gib is {self.memory_gib}; expected GiB above 0, or null for what is free")


def check_room(
    extractor: Extractor,
    datamodule: LabelScarceDataModule,
    settings: StoreSettings,
    trained_bytes: int,
    device: torch.device | None = None,
) -> torch.device:
    """Device for the features of the labelled images; a run that would exhaust memory or disk is refused.

    Counted are features, gradients, the two moments of Adam, sampled pixels, and the maps of one image in evaluation;
    the backbone's activations are not.

    Args:
        extractor: its ``feature_info`` gives the maps.
        datamodule: labelled and test images.
        settings: storage of the features.
        trained_bytes: bytes of all trained weights.
        device: that trains; None for the CPU.

    Returns:
        The device where they fit there beside the rest, else the CPU.

    Raises:
        ConfigError: it does not fit; the message lists the bytes needed and the settings to lower.
    """
    labelled, measured = (len(datamodule.images(split).dataset) for split in ("train", "test"))  # type: ignore[arg-type]
    size = (datamodule.image_size, datamodule.image_size)
    _refuse_padding(size, extractor.backbone.size_multiple)
    values = sum(shape.values for shape in map_shapes(extractor.feature_info, size))
    one = values * DTYPES[settings.dtype].itemsize
    channels = sum(info.channels for layers in extractor.feature_info.values() for info in layers.values())
    sampled = datamodule.members * datamodule.pixels_per_batch * 4.0 * channels
    # float32 maps beside stored ones, twice while they are copied; sampled values, their sums and gradients
    parts = {"one image": 6.0 * one, "training": 3.0 * trained_bytes + 4.0 * sampled}
    place = _place(labelled * one + sum(parts.values()), settings, device)
    parts["the orders of pixels"] = float(LabelledPixels.bytes_for(labelled * datamodule.size**2, datamodule.members))
    features = f"the features of {labelled} labelled images"
    if place.type != "cpu":
        advice = f"{_SMALLER}."
    elif settings.folder is None:
        parts[features] = float(labelled * one)
        advice = f"{_SMALLER}; or keep the features on disk: task.store_folder=<folder>."
    else:
        advice = f"{_SMALLER}."
        check_disk(labelled * one, Path(settings.folder), features, f"{_LOWER}.")
    check_memory(parts, settings.memory_gib, advice)
    extractor.check_room(labelled + measured, values)
    log.info("memory to come: %s", ", ".join(f"{human_size(count)} for {name}" for name, count in parts.items()))
    return place


def _refuse_padding(size: tuple[int, int], multiple: int) -> None:
    if padded_size(*size, multiple) != size:
        raise ConfigError(
            f"task.data.image_size={size[0]}: the backbone reads multiples of {multiple} pixels, and padded features "
            f"would not fit the masks; expected {size[0] // multiple * multiple} or {padded_size(*size, multiple)[0]}"
        )


def _place(needed: float, settings: StoreSettings, device: torch.device | None) -> torch.device:
    """The GPU where ``needed`` bytes fit into its share, and no folder is asked for."""
    if device is None or device.type != "cuda" or settings.folder is not None:
        return torch.device("cpu")
    free = free_on(device)
    if needed <= _SHARE * free:
        return device
    log.info(
        "the features of the labelled images stay on the host: they and training need %s, and %s are free on %s",
        *(human_size(needed), human_size(free), device),
    )
    return torch.device("cpu")


@torch.no_grad()
def labelled_features(
    extractor: Extractor,
    datamodule: LabelScarceDataModule,
    backbone_groups: Mapping[str, Sequence[str]],
    settings: StoreSettings,
    device: torch.device,
    place: torch.device | None = None,
) -> PixelStore:
    """Features of the training images in a store, in the order of the training split.

    Args:
        extractor: images and conditions → features.
        datamodule: labelled images.
        backbone_groups: group → branches.
        settings: storage of the features.
        device: device of the extractor.
        place: of the store, see `check_room`; None for the host.
    """
    loader = datamodule.images("train")
    count = len(loader.dataset)  # type: ignore[arg-type]
    side, seen = datamodule.size, datamodule.image_size
    folder = None if settings.folder is None else Path(settings.folder)
    info, kept = extractor.feature_info, settings.dtype
    store = PixelStore(info, backbone_groups, (side, side), count, kept, folder, (seen, seen), place)
    progress = Progress(count, 0, 1, "features")
    with taking(f"computing the features of {count} labelled images"):
        for batch in loader:
            features = extractor(batch.images.to(device), batch.conditions.to(device))
            for row in range(len(batch)):
                store.put(progress.computed + row, features, row)
            progress.step(len(batch), 0)
    where = "on the host" if store.device.type == "cpu" else f"on {store.device}"
    log.info("features of %d labelled images: %s %s", count, human_size(store.nbytes), where)
    return store
