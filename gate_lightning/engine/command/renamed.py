"""Renamed keys, values and names: one table, which refuses them on the command line and is docs/migration.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from gate_lightning.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = ["RENAMED", "Renamed", "migration_page", "refuse_old_names"]


@dataclass(frozen=True)
class Renamed:
    """One name that changed.

    Attributes:
        kind: ``key`` (a dotted key or group of the configuration), ``value`` (``key=value``), ``python`` (a public
            name), ``file`` (of a run folder or checkout), ``metric``, or ``meaning`` (same name, other effect).
        old: the name before; of a ``key`` everything below it too. ``*`` stands for any text in keys and values.
        new: the name now; empty where there is nothing in its place.
        note: what to mind, for example how values translate.
    """

    kind: str
    old: str
    new: str
    note: str = ""

    def __str__(self) -> str:
        now = f"{self.old} is now {self.new}" if self.new else f"{self.old} is gone"
        return f"{now} ({self.note})" if self.note else now


def _rows(kind: str, table: str) -> Iterator[Renamed]:
    """Rows of a table with columns separated by ``|``."""
    for line in table.strip().splitlines():
        old, new, note = (cell.strip() for cell in f"{line} | |".split("|")[:3])
        yield Renamed(kind, old, new, note)


#: since version 0.1
RENAMED = (
    *_rows(
        "key",
        """
        feature_cache          | cache.memory_gib
        feature_cache_dir      | cache.folder
        feature_cache_dtype    | cache.dtype
        features.cached_views  | cache.augmented_views
        edges                  | edge_channels             | true for input, false for none
        picture_scale          | backbone_scale
        noise_draws            | separate_noises
        control                | ablation                  | the rows of the controls study
        recipe                 | experiment/_base          | bases of experiments
        task.data.picture_size | task.data.image_size
        callbacks.picture_table | callbacks.image_table
        callbacks.uncertainty_pictures | callbacks.uncertainty_images
        pictures               | task.data                 | of experiment=lora
        tool.folder            | backbone.weights          | of tool=agreement
        backbones.*.scale      | backbone_scale            | {main: 1.0, <name>: 0.5}
        backbones.*.size       | backbone_scale            | {<name>: size / native size of `backbone`}
        tool.pooling           | features.pooling          | rounds up where a side does not divide evenly
        task.lr                | optimizer.lr
        task.betas             | optimizer.betas
        task.weight_decay      | optimizer.weight_decay
        task.warmup            | scheduler.warmup_steps    | scheduler=trapezoid or constant, as the task chooses
        task.decay_share       | scheduler.decay_share
        task.model             | backbone.weights          | a task trains on backbone=
        task.revision          | backbone.revision
        task.folder            | backbone.weights
        task.start_from        | backbone.weights          | backbone=tiny; random weights: backbone=tiny_untrained
        dataset.val_batch_size | dataset.eval_batch_size
        """,
    ),
    *_rows(
        "value",
        """
        tool.layout=npy_by_picture | tool.layout=npy_by_image
        dataset=scene_pictures     | dataset=scene_images
        technique=default          |                           | all techniques' settings are always there
        experiment=*_as_released   | experiment=*_released_config
        experiment=*_as_released_gate | experiment=*_released_class
        experiment=ddpm/*          | experiment=ddpm_segmentation/*
        experiment=sweep/single_layer_ddpm | experiment=sweep/single_layer_ddpm_segmentation
        layers=ddpm                | layers=ddpm_segmentation
        tool=sample                | tool=generate             | tool.adapter= steers it with a LoRA file
        """,
    ),
    *_rows(
        "meaning",
        """
        trainer.val_check_interval | trainer.val_check_interval | counts batches, as in Lightning, not optimiser steps
        """,
    ),
    *_rows(
        "metric",
        """
        train/eps_mse, val/eps_mse* | train/error, val/error* | the target is not always the noise
        cost/{seconds_per_known_step,new_steps,validation_seconds} | | the cost report no longer forecasts
        """,
    ),
    *_rows(
        "file",
        """
        pictures/ of a run folder | images/
        pictures_<split>.csv      | images_<split>.csv
        cached_views.json         |                        | views are computed when they are first met
        <cache.folder>/views/draw<k> | <cache.folder>/draw<k>
        conf/technique/default.yaml | conf/technique/{prompt,controlnet,lora,inversion,denoise}.yaml
        """,
    ),
    *_rows(
        "python",
        """
        read_pictures           | read_images
        FusedExtractor          | MultiBackboneExtractor
        Branch(draw=)           | Branch(noise_index=)
        build_branches(knobs=)  | build_branches(technique_settings=)
        build_branches(protocol=, backbone=) | build_branches(card=, backbones=)
        DatasetProtocol         | DatasetCard, ClassLabels | datamodule.card and datamodule.labels
        ScarceProtocol          | PublishedSet
        SegmentationTask(protocol=) | SegmentationTask(labels=) | LabelScarceTask too
        task.labels(images, conditions, size) | task.label_maps(images, conditions, size)
        ControlNet(control=)    | ControlNet(name=)
        LoRA(adapter=)          | LoRA(role=)
        technique.name          | technique.kind           | a class attribute
        Prompt.length           | Prompt.prompt_length
        gate_lightning.heads.mmseg_kinds | gate_lightning.heads.mmseg | REFUSED, WORKING_TYPES
        tasks.label_scarce.nearest_neighbours.NearestPixelsTask | LabelScarceTask | the head says how it trains
        amalgamation.refiner    | amalgamation.weighted
        pixel_classifiers.reused_gradient |                | measured: no gain
        OptimisedModule         | BaseTask, DenoisingTask
        EndlessDataModule, EndlessBatches | PretrainingDataModule, TrainingBatches
        data of agreement.SingleObjectData | data.pretraining.datamodule.SingleObjectImages
        tasks.pretraining.sampling.sample, load_parts | techniques.sampling.sample_images
        tools.labelling.generate.Sampling, sample_images | techniques.sampling
        ControlledSceneLatents  | SceneLatents(make_control=)
        PromptEncoders          | Backbone.encode_text
        MemoryCache(gigabytes=) | MemoryCache(memory_gib=)
        extract(pooling=)       | PooledExtractor(extractor, pooling)
        AugmentedFeatureCache, StoredViews, FillViews, ViewPlan | DiskCache(views=)
        features.caches.disk.image_key | features.caches.keys.image_key
        SegmentationBatch.features |
        callbacks.reports.uncertainty.UncertaintyImages | callbacks.reports.predictions.UncertaintyImages
        callbacks.reports.uncertainty.UncertaintyTable | callbacks.reports.image_table.UncertaintyTable
        callbacks.gather_rows.of_all_processes | utils.processes.gathered | list of the processes' values
        Backbone.add_noise      | Backbone.schedule.add_noise | DiffusionSchedule, FlowSchedule, CleanSchedule
        Backbone.schedule (mapping) | Backbone.schedule.config | schedule is a NoiseSchedule
        Backbone.num_train_timesteps | Backbone.schedule.length | likewise .prediction_type and .reads_clean
        denoise (overridden by a subclass of Backbone) | forward | denoise stays what is called
        ControlNet residuals (skips, middle) | mapping from module path to tensor
        LayerSpec.grid (module path) | LayerSpec.grid(height, width) | a method
        techniques.schedule.NoiseSchedule | backbones.noise_schedule.NoiseSchedule
        UNetBackbone(schedule=mapping), ADMBackbone(schedule=mapping) | schedule=DiffusionSchedule(mapping)
        SegmentationDataset     | BatchDataset(source, transform, collate) | data.samples
        Sample(sample_id, image, mask, caption) | SegmentationSample(sample_id, image, caption, mask=)
        collate                 | collate_images, collate_masks | data.samples
        SegmentationBatch(images, masks, conditions) | SegmentationBatch(images, conditions, masks) | an ImageBatch
        data.core.datamodule.SegmentationDataModule | data.segmentation.base.SegmentationDataModule
        data.segmentation.base.FileDataModule | data.segmentation.image_files.FileDataModule
        PartOfPool              | Subset                   | data.samples
        TrainedRun.find_controls(folders) | TrainedRun(control_folders=)
        check_data(dataset)     | check_data(datamodule)
        """,
    ),
)

_TITLES = {
    "key": "Keys and groups",
    "value": "Values",
    "meaning": "Same name, other meaning",
    "metric": "Metrics",
    "file": "Files",
    "python": "Python names",
}


def refuse_old_names(overrides: Sequence[str]) -> None:
    """Refuse a command line that uses an old name, before anything is composed.

    Args:
        overrides: Hydra's overrides as typed, with ``+``, ``++`` and ``~``; flags (``-m``) are passed over.

    Raises:
        ConfigError: names every old name and the one in its place.
    """
    # here: the library reads the table too, and needs no Hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found = []
    for text in overrides:
        if text.startswith("-"):
            continue
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue  # Hydra says what is wrong with it
        settings = list(_settings(override))
        found += [f"{text}: {row}" for row in RENAMED if any(_uses(row, *setting) for setting in settings)]
    if found:
        raise ConfigError("\n".join([*found, "All renamed keys: docs/migration.md"]))


def migration_page() -> str:
    """The text of docs/migration.md."""
    parts = [
        "# Renamed since version 0.1\n\n"
        "Old keys, groups and values are refused on the command line with the new name. Run folders of 0.1 are not\n"
        "read: evaluate them with the version that wrote them, or train anew; equal settings and seeds give equal\n"
        "results. This page is the table in `gate_lightning/engine/command/renamed.py`, written by\n"
        "`python -m gate_lightning.engine.command.renamed`.\n"
    ]
    for kind, title in _TITLES.items():
        rows = [row for row in RENAMED if row.kind == kind]
        if rows:
            lines = [f"| `{row.old}` | {f'`{row.new}`' if row.new else '–'} | {row.note} |" for row in rows]
            parts.append("\n".join([f"## {title}\n", "| before | now | |", "|---|---|---|", *lines, ""]))
    return "\n".join(parts)


def _settings(override: Override) -> Iterator[tuple[str, str]]:
    """Every (dotted key, value) that an override sets, also those inside its lists and mappings."""
    for key in (override.key_or_group, override.package):
        if key:
            yield from _leaves(key.replace("/", "."), override.value())


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    value = getattr(value, "list", value)  # of a sweep over choices
    yield key, str(getattr(value, "text", value))  # of a quoted string inside a sweep
    inner = (
        value.items() if isinstance(value, dict) else [("", item) for item in value] if isinstance(value, list) else ()
    )
    for name, item in inner:
        yield from _leaves(f"{key}.{name}".rstrip("."), item)


def _uses(row: Renamed, key: str, value: str) -> bool:
    if row.kind == "key":
        return fnmatchcase(f"{key}.", f"{row.old.replace('/', '.')}.*")
    old_key, _, old_value = row.old.partition("=")
    named = f".{key}".endswith(f".{old_key.replace('/', '.')}")
    return row.kind == "value" and named and fnmatchcase(value, old_value)


if __name__ == "__main__":
    from pathlib import Path

    Path("docs/migration.md").write_text(migration_page())
