"""Parts that a run folder may name: those of this package and a few of torch and lightning. Others could be anything.

``_target_: subprocess.Popen`` in the ``config.yaml`` of a folder that somebody sent would run a program on evaluation.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gate_lightning.engine.checks.saved_config import nodes_of
from gate_lightning.errors import ConfigError

__all__ = ["check_parts"]

#: packages whose classes are parts …
_PACKAGES = (
    *("amalgamation", "backbones", "callbacks", "data", "heads", "losses", "pixel_classifiers", "tasks"),
    "techniques",
)
#: … if one of these is among their bases
_BASES = frozenset(
    {
        "torch.nn.modules.module.Module",
        "lightning.pytorch.callbacks.callback.Callback",
        "lightning.pytorch.core.datamodule.LightningDataModule",
        "lightning.pytorch.loggers.logger.Logger",
        "gate_lightning.tasks.content_shift.measure.Measure",
        "gate_lightning.techniques.base.Technique",
    }
)
#: functions that make a part, and classes without such a base
_NAMED = frozenset(
    {
        "gate_lightning.backbones.adm.loading.load_adm_backbone",
        "gate_lightning.backbones.stable_diffusion.cleandift.load_cleandift_backbone",
        "gate_lightning.backbones.stable_diffusion.loading.load_unet_backbone",
        "gate_lightning.backbones.vision.loading.load_vision_backbone",
        "gate_lightning.callbacks.loggers.tensorboard_logger",
        "gate_lightning.callbacks.loggers.wandb_logger",
        "gate_lightning.callbacks.pace.display.progress_bar",
        "gate_lightning.data.geometric.keypoints.KeypointRule",
        "gate_lightning.ops.correspondence.estimators.Estimator",
        "gate_lightning.ops.correspondence.read_outs.ReadOut",
        "gate_lightning.ops.edges.canny",
        "gate_lightning.ops.propagation.Propagation",
        "gate_lightning.tasks.inference.Inference",
        "gate_lightning.tasks.pretraining.tiny_parts.FolderEncoder",
        "gate_lightning.tasks.pretraining.tiny_parts.untrained_backbone",
        *(
            f"gate_lightning.tasks.schedules.{name}"
            for name in ("constant", "cosine", "one_cycle", "poly", "trapezoid")
        ),
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.trainer.Trainer",
    }
)
#: optimisers and schedules
_TORCH = re.compile(r"torch\.optim\.(?:lr_scheduler\.)?[A-Z]\w*")
_DOTTED = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)+")


def check_parts(plain: Any, path: Path) -> None:
    """Refuse a saved configuration that names other parts, before anything of it is imported or built.

    Args:
        plain: the whole configuration as plain data.
        path: of its file, for messages.

    Raises:
        ConfigError: names the first key and target; or one with arguments without names.
    """
    for key, target in _targets(plain):
        if not _is_part(target):
            raise ConfigError(
                f"{path}: {key} is {target!r}, which is no part of gate_lightning. A run folder that others made could "
                "run any program by such a name. If the part is yours, or you trust who made the folder, add "
                "trust=true; in Python, load_run(…, trust=True)"
            )
    unnamed = next(
        (f"{key}._args_" for key, node in nodes_of(plain) if isinstance(node, dict) and "_args_" in node), None
    )
    if unnamed is not None:
        raise ConfigError(
            f"{path}: {unnamed} gives arguments without names, of which nothing tells whether they are places to write "
            "to. If the part is yours, or you trust who made the folder, add trust=true; in Python, "
            "load_run(…, trust=True)"
        )


def _targets(plain: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of whatever names code: targets, and the types that mmsegmentation looks up by name."""
    for key, node in nodes_of(plain):
        for name in node if isinstance(node, dict) else ():
            if name == "_target_" or (name in ("type", "init_cfg") and not _is_plain_type(name, node[name])):
                yield f"{key}.{name}", node[name]


def _is_plain_type(name: str, value: Any) -> bool:
    """True if a registry looks the type up among its own, and reads no file for it."""
    return name == "type" and isinstance(value, str) and value.isidentifier() and value != "Pretrained"


def _is_part(target: Any) -> bool:
    if not isinstance(target, str) or not _DOTTED.fullmatch(target):
        return False
    if target in _NAMED:
        return True
    if _TORCH.fullmatch(target):
        return _is_of_torch(target)
    return target.split(".")[0] == "gate_lightning" and _is_own_part(target)


def _is_of_torch(target: str) -> bool:
    import torch

    module, name = target.rsplit(".", 1)
    found = getattr(importlib.import_module(module), name, None)
    bases = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    return isinstance(found, type) and issubclass(found, bases)


def _is_own_part(target: str) -> bool:
    """True if it is the name under which a class of this package was defined, one that makes a part."""
    module, name = target.rsplit(".", 1)
    if module.split(".")[1:2] == [] or module.split(".")[1] not in _PACKAGES:
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    if not isinstance(found, type) or f"{found.__module__}.{found.__qualname__}" != target:
        return False
    return any(f"{base.__module__}.{base.__qualname__}" in _BASES for base in found.__mro__)
