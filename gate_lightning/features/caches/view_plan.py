"""Which views of the training images are stored, and which are still to be computed, in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gate_lightning.data.core.samplers import BatchLoader
from gate_lightning.data.samples import BatchDataset, SampleRequest
from gate_lightning.features.caches.augmented_views import AugmentedFeatureCache, padded_batch, stored_bytes, view_name
from gate_lightning.features.caches.disk import image_key

__all__ = ["ViewPlan"]


class ViewPlan:
    """All views in batches, and which of them are missing.

    Batches are cut from the list of images, view by view, whatever is there: with which others an image is computed
    does not depend on who computes it.

    Args:
        training: the views.
        names: sample ids of the images.
        count: views of each.
        batch_size: images per batch.
        views: where they are kept.

    Attributes:
        total, todo: number of views, and of those that were not stored when the plan was made.
        size: (height, width) of the images.
        bytes_each: of the features of one view.
    """

    def __init__(
        self,
        training: BatchDataset,
        names: Sequence[str],
        count: int,
        batch_size: int,
        views: AugmentedFeatureCache,
    ) -> None:
        self.training, self.names, self.count, self.views = training, names, count, views
        self.multiple = views.backbone.size_multiple
        everything = [SampleRequest(index) for index in range(len(names))]
        cut = [everything[start : start + batch_size] for start in range(0, len(names), batch_size)]
        self.batches = [[SampleRequest(draw.index, view) for draw in batch] for view in range(count) for batch in cut]
        self.total = count * len(names)
        folder = views.store.folder
        self._found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
        self.todo = sum(not self.there(draw) for draw in self.draws())
        first = training[[SampleRequest(0)]]
        self.size = (first.images.shape[-2], first.images.shape[-1])
        height, width = padded_batch(first, self.multiple)[0].shape[-2:]
        self.bytes_each = stored_bytes(views.feature_info, height, width, views.dtype)

    def draws(self) -> Iterator[SampleRequest]:
        """Every view of every image."""
        return (draw for batch in self.batches for draw in batch)

    def name(self, draw: SampleRequest) -> str:
        """Of the view's file."""
        return view_name(self.names[draw.index], self.training.view(draw.epoch))

    def there(self, draw: SampleRequest) -> bool:
        """Whether the view was stored when the plan was made."""
        return f"{self.name(draw)}.safetensors" in self._found

    def fits(self, draw: SampleRequest) -> bool:
        """Whether a stored view is of the image as it is now."""
        images, conditions = padded_batch(self.training[[draw]], self.multiple)
        return self.views.store.holds(self.name(draw), image_key(images[0], conditions, 0))

    def stored(self) -> int:
        """Views that are stored now."""
        return sum(self.views.store.path(self.name(draw)).exists() for draw in self.draws())

    def loader(self, num_workers: int) -> BatchLoader:
        """Batches that lack a view, in an order of this process's own; those completed meanwhile are left out."""
        missing = [batch for batch in self.batches if not all(map(self.there, batch))]
        order = np.random.default_rng().permutation(len(missing))  # differs by process; no file depends on it
        return BatchLoader(self.training, sampler=_Missing(self, [missing[i] for i in order]), num_workers=num_workers)


class _Missing:
    """Batches that are still missing when they are asked for."""

    def __init__(self, plan: ViewPlan, batches: Sequence[list[SampleRequest]]) -> None:
        self.plan, self.batches = plan, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        store = self.plan.views.store
        for batch in self.batches:
            if not all(store.path(self.plan.name(draw)).exists() for draw in batch):
                yield batch
