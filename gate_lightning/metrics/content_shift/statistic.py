"""Statistics of images, and what they are worth: intervals by resampling the images, differences paired by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.utils.seeding import keyed_generator

__all__ = ["Bootstrap", "Reduce", "Statistic", "mean_iou", "ranks", "ratio", "share_kept", "single"]

#: means (..., K) of the images' statistics → numbers (...)
Reduce = Callable[[Tensor], Tensor]


def single(means: Tensor) -> Tensor:
    """The only statistic there is: a plain mean."""
    return means[..., 0]


def share_kept(means: Tensor) -> Tensor:
    """1 - a / b of the statistics a and b: 1 where nothing of b is left, 0 where all is."""
    return 1.0 - means[..., 0] / means[..., 1]


def ratio(means: Tensor) -> Tensor:
    """a / b of the statistics a and b."""
    return means[..., 0] / means[..., 1]


def mean_iou(means: Tensor) -> Tensor:
    """Mean over classes of I_k / U_k of the statistics I_1 … I_K, U_1 … U_K; classes without U_k do not count."""
    intersections, unions = means.chunk(2, dim=-1)
    return (intersections / unions).nanmean(dim=-1)


@dataclass(frozen=True)
class Statistic:
    """A figure that is a function of a mean over images.

    Attributes:
        values: (N, K) float64, K statistics of every image.
        higher_is_better: whether a larger figure means less shift.
        reduce: from means (..., K) over images to figures (...); of one image's row, its own figure.
        anchor: what the figure is measured against, in words; "" for nothing.

    Raises:
        ConfigError: not (N, K), or values that are not finite.
    """

    values: Tensor
    higher_is_better: bool
    reduce: Reduce = single
    anchor: str = ""

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values).detach().cpu().double()
        if values.dim() != 2 or not values.shape[1]:
            raise ConfigError(f"statistics of images are {tuple(values.shape)}; expected (images, statistics)")
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values).all(dim=1)).nonzero()[0, 0])
            raise ConfigError(f"statistics of image {bad} (from 0) are not finite: {values[bad].tolist()}")
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.values)

    @property
    def value(self) -> float:
        """The figure of all images; NaN where it is not defined."""
        return float(self.reduce(self.values.mean(dim=0)))

    @property
    def of_images(self) -> Tensor:
        """(N,) figure of every image on its own; NaN where it is not defined."""
        return self.reduce(self.values)


class Bootstrap:
    """Intervals of figures by drawing the images anew, with replacement.

    Percentile intervals. All figures see the same draws, so that a difference of two is paired by image.

    Args:
        images: number N of images, at least 2.
        resamples: number R of draws.
        level: share of draws inside an interval, in (0, 1).
        seed: of the draws.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(self, images: int, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> None:
        if images < 2:
            raise ConfigError(f"{images} image: an interval over images needs at least 2; take more (task.data.images)")
        whole_number(resamples, "resamples", 1)
        if not 0 < number(level, "level") < 1:
            raise ConfigError(f"level={level}: expected a share between 0 and 1, such as 0.95")
        self.images, self.level = images, level
        chosen = keyed_generator("bootstrap", seed, images).integers(images, size=(resamples, images))
        counts = np.apply_along_axis(np.bincount, 1, chosen, minlength=images)
        #: (R, N) share of every image in a draw
        self.shares = torch.from_numpy(counts).double() / images

    def draws(self, statistic: Statistic) -> Tensor:
        """(R,) figure of every draw.

        Raises:
            ConfigError: another number of images.
        """
        if len(statistic) != self.images:
            raise ConfigError(f"a statistic of {len(statistic)} images among others of {self.images}")
        return statistic.reduce(self.shares @ statistic.values)

    def interval(self, draws: Tensor) -> tuple[float, float]:
        """Limits of the middle ``level`` of draws (R,); undefined ones do not count, NaN where all are."""
        tail = (1 - self.level) / 2
        low, high = torch.nanquantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype))
        return float(low), float(high)


def ranks(values: Mapping[str, float], higher_is_better: bool) -> dict[str, int | None]:
    """Rank of every figure, 1 the best, equal ones alike; None of what is undefined.

    >>> ranks({"a": 0.1, "b": 0.5, "c": 0.1, "d": float("nan")}, True)
    {'a': 2, 'b': 1, 'c': 2, 'd': None}
    """
    sign = 1.0 if higher_is_better else -1.0
    found = {name: sign * value for name, value in values.items() if value == value}
    return {
        name: 1 + sum(other > found[name] for other in found.values()) if name in found else None for name in values
    }
