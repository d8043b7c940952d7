"""Before the first training step: the features of every view of every training image go to disk."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.resume import batches_per_epoch
from gate_lightning.errors import CacheError, Interrupted
from gate_lightning.features.caches.augmented_views import AugmentedFeatureCache, padded_batch, stored_bytes
from gate_lightning.features.caches.view_plan import ViewPlan
from gate_lightning.ops.sliding_window import window_origins
from gate_lightning.utils.files import write_atomically
from gate_lightning.utils.units import duration, human_size

__all__ = ["FillViews"]

log = logging.getLogger(__name__)

#: batches after which the time of all is told; the first one, in which kernels are chosen, is not counted
MEASURED = 3
#: stored views whose images are looked at before the folder is believed
CHECKED = 5
_EVERY = 20.0  # seconds between two lines


class FillViews(Callback):
    """Computes the views that are not stored yet, and says before what they take on disk and in time.

    Works whatever was there: what a killed process wrote is kept, several processes (of one distributed run or of
    several runs) share what is left. Batches are cut from the list of images, view by view, so that a file does not
    depend on who wrote it; every process takes them in an order of its own and leaves out what has appeared meanwhile.

    Writes ``cached_views.json`` into the run folder: views, images, bytes, seconds.

    Args:
        views: the cache.
        datamodule: its training images, of ``count`` views each.
        count: K; views that no epoch of the run reaches are left out.
        run_folder: of the run.

    Raises:
        CacheError: when training starts, if the disk has not enough room, or the folder holds views of other images.
        Interrupted: Ctrl-C while filling.
    """

    def __init__(
        self, views: AugmentedFeatureCache, datamodule: ImageDataModule, count: int, run_folder: str | Path
    ) -> None:
        self.views, self.datamodule, self.count = views, datamodule, count
        self.path = Path(run_folder) / "cached_views.json"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill, in every process; random numbers of training are not touched."""
        with isolate_rng(), trainer.precision_plugin.forward_context():
            report = self._fill(trainer, pl_module)
        trainer.strategy.barrier("cached views")
        if trainer.is_global_zero:
            write_atomically(self.path, json.dumps(report, indent=2).encode() + b"\n")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test images are seen once: they are not worth their room."""
        self.views.keeps_images = False

    def _fill(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        training = self.datamodule.training_views()
        names = [training.source.sample_id(index) for index in range(len(training))]
        count = min(self.count, _epochs(trainer, len(names), self.datamodule.batch_size))
        plan = ViewPlan(training, names, count, self.datamodule.batch_size, self.views)
        self._check_images(plan)
        if trainer.is_global_zero:
            self._announce(trainer, pl_module, plan)
        if plan.todo:
            self._refuse_full_disk(plan)
        progress = _Progress(plan, trainer.is_global_zero)
        try:
            for batch in plan.loader(self.datamodule.num_workers):
                images, conditions = padded_batch(batch, plan.multiple)
                self.views.fill(images.to(pl_module.device), conditions.to(pl_module.device))
                progress.step(len(batch))
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped while views were being computed; the {plan.stored()} of {plan.total} that are in "
                f"{self.views.store.folder} are whole, and the same command goes on from there"
            ) from error
        return {
            "views": count,
            "images": len(names),
            "stored_before": plan.total - plan.todo,
            "computed_here": progress.done,
            "bytes_per_view": plan.bytes_each,
            "seconds": round(progress.seconds, 3),
            "folder": str(self.views.folder),
        }

    def _announce(self, trainer: Trainer, pl_module: LightningModule, plan: ViewPlan) -> None:
        if plan.count < self.count:
            log.info("cached views: %d, not %d; the run has no more epochs", plan.count, self.count)
        height, width = plan.size
        free = shutil.disk_usage(self.views.store.folder).free
        evaluated = _evaluation_bytes(pl_module, self.datamodule, self.views)
        log.info(
            "cached views: %d of each of %d images, %d × %d pixels, %s each in %s: %s, %s of it there; %s more "
            "for the images of validation, as they come; %s are free in %s. Less of it by %s",
            *(plan.count, len(plan.names), height, width, human_size(plan.bytes_each)),
            *(str(self.views.dtype).removeprefix("torch."), human_size(plan.total * plan.bytes_each)),
            *(human_size((plan.total - plan.todo) * plan.bytes_each), human_size(evaluated), human_size(free)),
            *(self.views.folder, _advice(self.views)),
        )
        if plan.todo * plan.bytes_each + evaluated > free:
            log.warning("the disk will be full before the first validation ends, unless its features are there already")

    def _refuse_full_disk(self, plan: ViewPlan) -> None:
        folder = self.views.store.folder
        free, needed = shutil.disk_usage(folder).free, plan.todo * plan.bytes_each
        if needed > free:
            raise CacheError(
                f"{plan.todo} views of {human_size(plan.bytes_each)} need {human_size(needed)}, and {human_size(free)} "
                f"are free in {folder}; nothing was computed. Another disk: cache.folder=<folder>. Less of it by "
                f"{_advice(self.views)}"
            )

    def _check_images(self, plan: ViewPlan) -> None:
        """Refuse a folder whose views are of other images under the same names."""
        there = [draw for draw in plan.draws() if plan.there(draw)]
        chosen = there[:: max(len(there) // CHECKED, 1)][:CHECKED]
        others = [plan.name(draw) for draw in chosen if not plan.fits(draw)]
        if len(others) > len(chosen) / 2:
            raise CacheError(
                f"{self.views.store.folder} holds views of other images than these: {len(others)} of {len(chosen)} "
                f"looked at differ in pixels, caption or control images, for example {others[0]}. Was the data set "
                "changed, or is it another one with the same file names? Give the run a folder of its own "
                "(cache.folder), or delete this one"
            )


class _Progress:
    """Says what all will take after the first batches, and from time to time how far it is."""

    def __init__(self, plan: ViewPlan, speaks: bool) -> None:
        self.plan, self.speaks = plan, speaks
        self.done = self._batches = self._counted = 0
        self._start = self._said = self._warm = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    def step(self, images: int) -> None:
        """Count a batch of this process."""
        now = time.monotonic()
        self.done, self._batches = self.done + images, self._batches + 1
        if self._batches == 1:
            self._warm = now
            return
        self._counted += images
        first = self._batches == MEASURED
        if not self.speaks or not (first or now - self._said > _EVERY):
            return
        self._said = now
        # other processes write too: what is left is counted, not guessed
        left = self.plan.total - self.plan.stored()
        pace = self._counted / (now - self._warm)
        share = self.done / max(self.plan.todo - left, 1)  # of what was written since the beginning
        log.info(
            "cached views: %d left of %d, %.3g a second%s: %s",
            *(left, self.plan.total, pace / share, "" if share > 0.99 else " by all processes"),
            f"about {duration(left * share / pace)}",
        )


def _epochs(trainer: Trainer, images: int, batch_size: int) -> int:
    """Epochs that the run begins at most."""
    batches = batches_per_epoch(trainer, images // (batch_size * trainer.world_size))
    steps = -(-batches // trainer.accumulate_grad_batches)
    limits = [-(-trainer.max_steps // max(steps, 1))] if trainer.max_steps >= 0 else []
    limits += [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs >= 0 else []
    return max(min(limits), 1) if limits else 2**31


def _evaluation_bytes(module: Any, datamodule: ImageDataModule, views: AugmentedFeatureCache) -> int:
    """What a `DiskCache` of the validation images takes."""
    source, resize = datamodule.source("val"), datamodule.eval_resize
    sizes = Counter(resize.size(*source.sizes(index)[0]) for index in range(len(source)))
    multiple, total = views.backbone.size_multiple, 0
    for (height, width), number in sizes.items():
        windows = 1
        if module.inference.mode == "slide":
            crop, stride = module.inference.window(views.backbone.native_size)
            windows = len(window_origins(height, crop[0], stride[0])) * len(window_origins(width, crop[1], stride[1]))
            height, width = crop
        height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        total += number * windows * stored_bytes(views.feature_info, height, width, views.dtype)
    return total


def _advice(views: AugmentedFeatureCache) -> str:
    """What makes views smaller."""
    pooling = 2 * int(views.description.get("pooling", 1))
    ways = [f"features.pooling={pooling} (a quarter)", "fewer layers (layers=)", "fewer branches (techniques=)"]
    half = ["cache.dtype=float16 (half)"] if views.dtype == torch.float32 else []
    return ", ".join([*half, *ways, "fewer views (cache.augmented_views=)"])
