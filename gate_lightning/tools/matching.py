"""Parts that `match`, `propagate` and the page of `app` share: features on request, descriptors, heat maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.samples import Sample, collate_images
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.descriptors import descriptor_grids
from gate_lightning.heads.descriptors import PlainDescriptors
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.structures import Extractor
from gate_lightning.tools.devices import device_of
from gate_lightning.tools.extraction.sizing import Sizing
from gate_lightning.utils.seeding import data_generator
from gate_lightning.visualization.heat import heat_overlay

__all__ = ["DescribedImage", "Describer", "FeatureParts", "PartsOf", "cosines", "heat_of", "image_file", "matched"]


class FeatureParts(NamedTuple):
    """Components that make descriptors of images, and the prompt of branches that have none of their own."""

    extractor: Extractor
    amalgamation: Any
    required_inputs: RequiredInputs = RequiredInputs()
    prompt: str = ""


class PartsOf(Protocol):
    """Makes the parts that a command line describes, when they are asked for: loading a backbone takes time."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The words of the command line."""

    def __call__(self, overrides: Sequence[str] | None = None) -> FeatureParts:
        """Parts of the command line, or of another one; a backbone that both have is loaded once."""

    def value(self, key: str) -> Any:
        """Value of a key of the first level, as plain data."""

    def choice(self, group: str) -> str:
        """The option of a group that the command line chooses."""

    def choices(self, group: str) -> list[tuple[str, str]]:
        """Choices of a group, with a sentence on each."""


@dataclass(frozen=True, eq=False)
class DescribedImage:
    """An image and its descriptors.

    Attributes:
        image: uint8 (H, W, 3) RGB, as in the file.
        grid: its feature map.
    """

    image: NDArray[np.uint8]
    grid: FeatureGrid


class Describer:
    """Reads image files and describes them: frozen features → amalgamation → joined levels.

    Args:
        parts: makes what reads and fuses features, after the other settings have been looked at.
        resize, size: how the backbone sees images, see `Sizing`; None for its native size.
        device: "auto" (a GPU where there is one) or a torch device.

    Raises:
        ConfigError: settings out of range, or an amalgamation with weights, which nobody has trained.
    """

    def __init__(self, parts: Callable[[], FeatureParts], resize: str, size: int | None, device: str) -> None:
        Sizing(resize, 1 if size is None else size)
        place = device_of(device)
        self.extractor, amalgamation, self.required_inputs, self.prompt = parts()
        if not isinstance(amalgamation, Amalgamation):
            raise ConfigError(f"amalgamation is a {type(amalgamation).__name__}, and makes no feature maps; use concat")
        if any(parameter.requires_grad for parameter in amalgamation.parameters()):
            raise ConfigError("the amalgamation has weights that nobody has trained; use amalgamation=concat")
        self.amalgamation, self.head = amalgamation, PlainDescriptors(amalgamation.out_channels)
        self.sizing = Sizing(resize, self.extractor.backbone.native_size if size is None else size)
        if isinstance(self.extractor, nn.Module):
            self.extractor.to(place)

    @torch.no_grad()
    def __call__(self, file: ImageSource) -> DescribedImage:
        """Image and descriptors of a file.

        Raises:
            DataError: it is broken, or lacks what techniques need.
        """
        sample: Sample = self.required_inputs.attach(file).load(0)
        return DescribedImage(sample.image, self.grid_of(sample))

    @torch.no_grad()
    def grid_of(self, sample: Sample) -> FeatureGrid:
        """Descriptors of an image that was read already."""
        batch = collate_images([self.sizing(sample, data_generator())])  # resizing draws nothing
        place, size = self.extractor.backbone.device, sample.image.shape[:2]
        images, conditions = batch.images.to(place), batch.conditions.to(place)
        (grid,) = descriptor_grids(self.extractor, self.amalgamation, self.head, images, conditions, [size])
        return grid

    @torch.no_grad()
    def features_of(self, sample: Sample) -> Tensor:
        """Descriptors (C, h, w) of an image at the size that it has, at the resolution of the finest level."""
        batch = collate_images([sample]).to(self.extractor.backbone.device)
        found: Tensor = self.head(self.amalgamation(self.extractor(batch.images, batch.conditions)).levels)[0]
        return found.float()


def image_file(path: str | Path, name: str) -> ImageSource:
    """An image file; ``name`` says in messages what it is for.

    Raises:
        DataError: it is missing, a folder, or no image.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"{name}={path} {found} (= {file.resolve()}); give an image")
    source = ImageSource(file)
    source.sizes(0)  # reads its header
    return source


@torch.no_grad()
def matched(read_out: ReadOut, source: FeatureGrid, target: FeatureGrid, points: Tensor) -> tuple[Tensor, Tensor]:
    """Matches (N, 2) of points, and their `cosines`. One by one: similarities to a large image fill memory."""
    found = torch.cat([read_out(source, target, point).cpu() for point in points.split(1)])
    return found, cosines(source, target, points, found)


def cosines(source: FeatureGrid, target: FeatureGrid, points: Tensor, matches: Tensor) -> Tensor:
    """Cosines (N,) of the descriptors of points and their matches; NaN where there is no match."""
    found = cosine_similarity(source.sample(points), target.sample(matches.nan_to_num())).cpu()
    return found.where(matches.isfinite().all(dim=1), torch.nan)


def heat_of(
    read_out: ReadOut, source: FeatureGrid, point: Tensor, target: FeatureGrid, image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """An image under the similarities of a point to it, from the smallest (black) to the largest one (brightest).

    Args:
        read_out: whose metric and query count; similarities are those of pixels, whatever the rule.
        source: feature map that the point is in.
        point: (1, 2) x, y in pixels of the source's file.
        target: feature map of the image, of whose size its ``size`` is.
        image: (H, W, 3).
    """
    whole = ReadOut(metric=read_out.metric, query=read_out.query)
    described = whole.descriptors(source, point.to(source.features.device))
    return heat_overlay(image, whole.similarities(described, target)[0].cpu().numpy())
