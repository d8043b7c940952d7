"""A workspace on Weights & Biases made from code: sections and panels for what runs log."""

from __future__ import annotations

import importlib.util
from typing import Any

from gate_lightning.errors import ConfigError, first_line
from gate_lightning.utils.checks import check_choice

__all__ = ["workspace", "workspace_of"]

#: settings by which runs are compared
SETTINGS = ("timestep", "layers", "techniques", "backbone", "dataset", "head", "task", "seed")
#: section → metrics drawn by step
LINES = {
    "Training": ("train/loss", "train/lr", "train/gradient_norm"),
    "Validation": ("val/mIoU", "val/mAcc", "val/aAcc", "val/loss"),
    "Correspondence": (
        "val/PCK_0.10_bbox_per-image_le",
        "val/PCK_0.05_bbox_per-image_le",
        "val/PCK_0.10_img_per-image_le",
        "val/PCK_0.10_bbox_per-point_le",
    ),
    "Cost": ("train/images_per_second", "cost/memory_gib"),
}
#: section → images
MEDIA = {
    "Predictions": ("predictions/val", "predictions/worst_val", "predictions/test", "predictions/worst_test"),
    "Features and errors": ("images/feature_pca", "images/confusion_val", "images/confusion_test"),
    "Correspondence": (
        "images/matches_first_val",
        "images/matches_worst_val",
        "images/matches_first_test",
        "images/matches_worst_test",
    ),
    "Sweep": ("images/comparison", "images/comparison_grid"),
}
#: section → tables
TABLES = {
    "Tables": ("tables/classes_val", "tables/classes_test", "tables/images_val", "tables/images_test"),
    "Correspondence": ("tables/categories_val", "tables/categories_test"),
    "Sweep": ("tables/comparison_summary", "tables/comparison"),
}
#: mean weight of every branch at every level, by step
BRANCHES = "weights/.*"


def workspace(
    entity: str | None = None, project: str = "gate-lightning", metric: str = "val/mIoU", mode: str = "max"
) -> str:
    """Save the workspace of a project.

    Args:
        entity: user or team; None for the one that the key belongs to.
        project: of the runs.
        metric: the one that runs are compared by.
        mode: ``max`` or ``min``: which values of it are better.

    Returns:
        A sentence that says where it is.

    Raises:
        ConfigError: wandb-workspaces is not installed, there is no key, or the server does not answer.
    """
    check_choice(mode, "mode", ("max", "min"))
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("tool=workspace needs wandb-workspaces, which is not installed: pip install wandb-workspaces")
    import wandb

    try:
        made = workspace_of(entity or wandb.Api(timeout=10).default_entity, project, metric, mode)
        made.save()
    except Exception as error:  # of any kind: what the server and its client say is all that is known
        raise ConfigError(
            f"the workspace of {project} was not saved: {first_line(error)}. It needs a key (wandb login), and network"
        ) from error
    return f"workspace of {project}: {made.url}"


def workspace_of(entity: str, project: str, metric: str = "val/mIoU", mode: str = "max") -> Any:
    """The workspace as an object of wandb-workspaces; see `workspace`."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    best = reports.SummaryMetric(f"{metric}.{mode}")
    columns = [reports.ParallelCoordinatesPlotColumn(reports.Config(name)) for name in SETTINGS]
    panels: dict[str, list[Any]] = {
        "Runs": [
            reports.ParallelCoordinatesPlot(columns=[*columns, reports.ParallelCoordinatesPlotColumn(best)]),
            reports.BarPlot(title=f"best {metric}", metrics=[best], max_bars_to_show=50),
            reports.RunComparer(diff_only="split"),
        ],
        **{name: [_line(reports, key) for key in keys] for name, keys in LINES.items()},
    }
    panels["Branches"] = [reports.LinePlot(title="weight of every branch", metric_regex=BRANCHES)]
    for name, keys in MEDIA.items():
        panels.setdefault(name, []).extend(reports.MediaBrowser(title=key, media_keys=[key]) for key in keys)
    for name, keys in TABLES.items():
        panels.setdefault(name, []).extend(reports.WeavePanelSummaryTable(table_name=key) for key in keys)
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="gate_lightning",
        sections=[workspaces.Section(name=name, panels=made, is_open=True) for name, made in panels.items()],
        runset_settings=workspaces.RunsetSettings(
            order=[workspaces.Ordering(workspaces.Summary(f"{metric}.{mode}"), ascending=mode == "min")],
            pinned_columns=[f"summary:{metric}.{mode}", *(f"config:{name}" for name in SETTINGS)],
        ),
    )


def _line(reports: Any, key: str) -> Any:
    return reports.LinePlot(title=key, x="Step", y=[key])
