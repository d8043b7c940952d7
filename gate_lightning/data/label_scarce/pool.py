"""Pool of several splits of a data set, and parts of it chosen by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gate_lightning.data.samples import SampleSource, Subset
from gate_lightning.errors import DataError

__all__ = ["Pool", "not_square"]


class Pool(Subset):
    """Concatenation of splits of a data set.

    Args:
        name: of the data set, for messages.
        splits: name → images, in this order.

    Raises:
        DataError: two images with one sample id: their noise and their cached features would be one.
    """

    def __init__(self, name: str, splits: Mapping[str, SampleSource]) -> None:
        super().__init__([(source, index) for source in splits.values() for index in range(len(source))])
        self.name = name
        #: images of each split
        self.lengths = tuple(len(source) for source in splits.values())
        #: sample ids
        self.names = tuple(self.sample_id(index) for index in range(len(self)))
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"{name}: {twice!r} is an image of {' and of '.join(splits)}; every image must be in one")

    def require_squares(self) -> None:
        """Check the sizes of all images.

        Raises:
            DataError: names the first image that is no square, and says what to do.
        """
        sizes = [self.sizes(index)[0] for index in range(len(self))]
        bad = [place for place, (height, width) in enumerate(sizes) if height != width]
        if bad:
            more = f" ({len(bad)} of {len(sizes)} images are not)" if len(bad) > 1 else ""
            raise DataError(not_square(self.names[bad[0]], sizes[bad[0]], self.name, more))

    def part(self, places: Sequence[int]) -> Subset:
        """The images at some positions, in that order."""
        return Subset([self.places[place] for place in places])


def not_square(image: str, size: tuple[int, ...], name: str, more: str = "") -> str:
    """Error message about an image of (height, width) ``size`` in the data set ``name``."""
    return (
        f"{image} has {size[1]}×{size[0]} pixels (width × height), {name} wants squares{more}; cut squares out of "
        "images and masks, or use task.data.square=stretch"
    )
