"""The job of ``eval.py``: evaluate a run, label images with it, or run a tool.

Tools that read no run need no Lightning, which takes seconds to import: what does is imported where it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.command.launch import check_here
from gate_lightning.engine.command.used_keys import check_overrides, keys_of_run, keys_of_tool, recorded
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.references import follow
from gate_lightning.engine.folder.run_lock import holder_of
from gate_lightning.engine.jobs.tools import run_tool
from gate_lightning.errors import ConfigError
from gate_lightning.ops.exact import exact_gradients
from gate_lightning.utils.commands import override
from gate_lightning.utils.files import write_csv
from gate_lightning.utils.units import few, measured

if TYPE_CHECKING:
    from gate_lightning.data.core.prediction import PredictionDataModule
    from gate_lightning.engine.jobs.trained_run import TrainedRun

__all__ = ["evaluate", "measures_untrained"]

log = logging.getLogger(__name__)

SPLITS = ("val", "test")


def evaluate(config: DictConfig, overrides: Sequence[str], output: Path) -> dict[str, float]:
    """Run a tool, evaluate a run or a task that trains nothing, or label images, as ``config`` says.

    Args:
        config: composed configuration of ``eval.yaml``.
        overrides: command-line overrides.
        output: Hydra's output folder, used where neither ``output`` nor a run says where to write.

    Returns:
        Metrics of an evaluation, else an empty mapping.
    """
    if config.get("control_images") and config.run is None:
        raise ConfigError("control_images belongs to run=<run folder>; without one, set technique.controlnet.folder")
    if config.tool is not None and "_target_" in config.tool:
        check_overrides(overrides, keys_of_tool(config), str(config.tool._target_).rsplit(".", 1)[-1])
        run_tool(config, output, partial(_loaded, config, overrides), overrides)
        return {}
    if config.get("resume") is not None:
        from gate_lightning.engine.jobs.untrained import go_on_untrained

        return go_on_untrained(config, overrides)
    measuring = not config.submission and config.input is None
    if measures_untrained(config):
        from gate_lightning.engine.jobs.untrained import measure_untrained

        return measure_untrained(config, overrides, Path(config.output) if config.output else output)
    if measuring and config.run is not None and runs.repeats_in(runs.read_config(Path(config.run))) > 1:
        return _measure_splits(config, overrides, Path(config.run))
    run = _loaded(config, overrides, by_trainer=config.input is None)
    folder = run.folder
    if config.submission:
        if config.input is not None:
            raise ConfigError("submission=true predicts the images of split; leave out input")
        split = _split_of(run, config.split)
        _submit(run, split, Path(config.output) if config.output else folder / f"submission_{split}")
        return {}
    if config.input is not None:
        target = Path(config.output) if config.output else folder / "predictions" / Path(config.input).stem
        _label(run, Path(config.input), target)
        return {}
    return _measure(run, _split_of(run, config.split), _results_of(folder, config.output, output))


def measures_untrained(config: DictConfig) -> bool:
    """True if a composed configuration asks for a task that trains nothing to be measured, into a run folder."""
    tool = config.tool is not None and "_target_" in config.tool
    if tool or config.submission or config.input is not None or config.run is not None:
        return False
    from gate_lightning.engine.jobs.untrained import is_training_free

    return is_training_free(config)


def _results_of(folder: Path, chosen: str | None, output: Path) -> Path:
    """Folder for tables and metrics: the run's, unless training writes its own of the same names there."""
    if chosen:
        return Path(chosen)
    if holder_of(folder) is None:
        return folder
    log.info("%s is being trained: tables and metrics of this evaluation go to %s", folder, output)
    return output


def _loaded(config: DictConfig, overrides: Sequence[str], by_trainer: bool = False) -> TrainedRun:
    """The run of ``run``, with what the command line changes about it.

    Args:
        config: composed configuration of ``eval.yaml``.
        overrides: command-line overrides.
        by_trainer: whether Lightning's trainer evaluates it, which wants the devices of its training to be here.
    """
    import lightning

    from gate_lightning.engine.folder.resplit_tables import split_folders
    from gate_lightning.engine.jobs.trained_run import TrainedRun

    resolved = runs.resolve(config)
    if config.run is None:
        raise ConfigError(
            "nothing to evaluate: give run=<run folder>, tool=<name> (see conf/tool/), or a task that trains nothing "
            "(task=correspondence)"
        )
    folder = Path(config.run)
    trust = bool(config.get("trust"))
    saved = runs.load_config(folder, trust)
    if runs.repeats_in(saved) > 1:
        inside = ", ".join(override("run", path) for path in split_folders(folder)) or "none yet"
        raise ConfigError(f"{folder} holds several re-splits, each with a model of its own; name one: {inside}")
    read = keys_of_run(saved, config)
    check_overrides(overrides, read, f"the run in {folder}")
    own = [item for item in overrides if not item.startswith("tool")]
    patched = recorded(follow(saved, runs.patch(saved, resolved, own), own, folder), read)
    runs.check_patched(patched, folder, resolved, trust=trust)
    if by_trainer:
        check_here(patched.get("trainer"))
    for change in runs.changed_keys(saved, patched):
        log.warning("evaluated with a change: %s", change)
    lightning.seed_everything(patched.seed, workers=True, verbose=False)
    folders = config.get("control_images") or {}
    if not isinstance(folders, DictConfig | dict):
        raise ConfigError(f"control_images={folders}: expected folders by name, for example {{depth: my_depth/}}")
    controls = {str(name): str(place) for name, place in folders.items()}
    run = TrainedRun(folder, patched, config.checkpoint, bool(config.get("allow_changes")), controls)
    if run.checkpoint is not None:
        log.info("checkpoint: %s", run.checkpoint)
    return run


def _split_of(run: TrainedRun, split: str | None) -> str:
    """The split to look at; None is the first one that the task is measured on, the last one if nothing was trained.

    Raises:
        ConfigError: the task is not measured on ``split``.
    """
    measured = run.task.final_splits or SPLITS
    if split is None:
        return str(measured[-1 if run.checkpoint is None else 0])
    if split not in measured:
        name = type(run.task).__name__
        raise ConfigError(f"split={split}: {name} is measured on {' and '.join(measured)}; choose that")
    return split


def _submit(run: TrainedRun, split: str, output: Path) -> None:
    """PNGs for the server of the run's benchmark."""
    from gate_lightning.callbacks.reports.submission import SubmissionWriter
    from gate_lightning.engine.parts.trainers import trainer_of

    datamodule = run.components.datamodule
    images = datamodule.images_of(split)
    writer = SubmissionWriter(output, run.components.labels.submission, images.paths)
    loader = datamodule.prediction(images, datamodule.eval_batch_size)
    trainer_of(run.config, str(run.folder), [writer]).predict(run.task, loader, return_predictions=False)


def _measure_splits(config: DictConfig, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Every re-split of a protocol, and what they give together."""
    from gate_lightning.engine.folder.resplit_tables import split_folders, summarize

    if config.output is not None:
        raise ConfigError(f"{folder} holds several re-splits; their results stay there, leave out output")
    if holder_of(folder) is not None:
        raise ConfigError(
            f"{folder} is being trained, and holds several re-splits; evaluate one that is done: "
            f"{override('run', folder / 'split0')}, or wait"
        )
    for inside in split_folders(folder):
        log.info("%s", inside)
        one = OmegaConf.merge(config, {"run": str(inside)})
        assert isinstance(one, DictConfig)
        run = _loaded(one, overrides, by_trainer=True)
        _measure(run, _split_of(run, config.split), inside)
    metrics = summarize(folder, "metrics_test.json")
    _refresh_report(folder)
    return metrics


def _measure(run: TrainedRun, split: str, output: Path) -> dict[str, float]:
    from gate_lightning.engine.parts.trainers import trainer_of

    # tables and images go where the metrics go; loggers would begin at step 0, and drop the training's rows behind it
    datamodule, trainer = run.components.datamodule, trainer_of(run.config, str(output), logged=False)
    steps = {"val": trainer.validate, "test": trainer.test}
    with exact_gradients():  # the same kernels as in training
        results = steps[split](run.task, datamodule, verbose=False)
    metrics = {name: float(value) for result in results for name, value in result.items()}
    runs.write_json(output / f"metrics_{split}.json", metrics)
    shown = few(metrics, f"{split}/{str(run.config.get('monitor')).partition('/')[2]}")
    log.info("%s", ", ".join(f"{name} {measured(name, metrics[name])}" for name in shown))
    all_of = f"all {len(metrics)} metrics, " if len(shown) < len(metrics) else ""
    log.info("%sas fractions: %s", all_of, output / f"metrics_{split}.json")
    _refresh_report(output)
    return metrics


def _refresh_report(folder: Path) -> None:
    """Make the report of a run folder again, if it has one: its tables and images are new."""
    from gate_lightning.callbacks.report import REPORT, try_report

    if (folder / REPORT).is_file():
        try_report(folder)


def _label(run: TrainedRun, images: Path, output: Path) -> None:
    """Masks and overlays of unlabelled images, skipping those that are already there; of a run that classifies whole
    images, a table."""
    from gate_lightning.data.files.images import read_image
    from gate_lightning.visualization.overlay import write_prediction

    class_labels = run.components.labels
    source = run.components.datamodule.prediction(images)
    if run.task.classifies_images:
        _classify(run, source, output)
        return
    names, total = source.images.names, len(source)
    for number, (name, batch) in enumerate(zip(names, source.predict_dataloader(), strict=True), start=1):
        # the mask is written last, atomically: where it is, the overlay is there too
        if (output / "masks" / f"{name}.png").is_file():
            log.info("%d/%d %s: there already", number, total, name)
            continue
        labels = run.label(batch.images, batch.conditions, batch.sizes[0])
        image = read_image(Path(batch.paths[0]))
        write_prediction(output, name, image, labels, palette=class_labels.palette, classes=class_labels.classes)
        log.info("%d/%d %s", number, total, name)
    log.info("masks and overlays of %d images: %s", total, output)


def _classify(run: TrainedRun, source: PredictionDataModule, output: Path) -> None:
    """``predictions.csv``: the class of every image, its share, and the shares of all classes."""
    run.task.remember(run.components.connected_datamodule)
    classes, rows = run.classes, []
    for name, batch in zip(source.images.names, source.predict_dataloader(), strict=True):
        shares = run.shares(batch.images, batch.conditions).tolist()
        best = max(range(len(classes)), key=shares.__getitem__)
        rows.append([name, classes[best], shares[best], *shares])
        log.info("%d/%d %s: %s %.1f %%", len(rows), len(source), name, classes[best], 100 * shares[best])
    write_csv(output / "predictions.csv", ["image", "class", "share", *classes], rows)
    log.info("classes of %d images: %s", len(rows), output / "predictions.csv")
