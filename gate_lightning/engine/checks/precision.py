"""Floating-point types of a run, chosen for the trainer and its GPU, the memory format of weights, and TF32."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice, did_you_mean

__all__ = ["choose_types", "tell_types"]

log = logging.getLogger(__name__)

#: value of ``backbone.dtype`` and ``backbone.channels_last`` that is chosen here
AUTO = "auto"
#: values of ``backbone.dtype``
TYPES = ("float32", "bfloat16", "float16", AUTO)
#: precisions of the trainer with autocast, and the type that it computes in
_MIXED = {"bf16-mixed": "bfloat16", "bf16": "bfloat16", "16-mixed": "float16", "16": "float16"}
#: those without
_PLAIN = ("32-true", "32", "None")
#: today's names of both
_NAMED = ("32-true", "bf16-mixed", "16-mixed")
#: those that convert all weights
_CONVERTING = ("64-true", "64", "bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")


def choose_types(config: DictConfig) -> None:
    """Put a value in place of every ``backbone.dtype=auto`` and ``backbone.channels_last=auto``.

    The type is that of the trainer's autocast where the GPU has it. Backbones run outside autocast, in the type of
    their weights. Those of a task that trains them, and all on a CPU, are float32. Weights are channels_last on a GPU
    in types other than float32, for which it was measured (docs/gpu.md).

    Args:
        config: composed configuration; changed in place.

    Raises:
        ConfigError: a type, memory format or precision that there is not, or a precision that would convert frozen
            weights after they were loaded and described.
    """
    precision = _precision(config)
    if precision in _CONVERTING:
        raise ConfigError(
            f"trainer.precision={precision} converts all weights, frozen ones too; choose 32-true, bf16-mixed or "
            "16-mixed, and the type of frozen weights by backbone.dtype"
        )
    if precision not in (*_MIXED, *_PLAIN):
        raise ConfigError(
            f"trainer.precision={precision}: {did_you_mean(precision, _NAMED)}expected one of {', '.join(_NAMED)}"
        )
    nodes = dict(_backbones(config))
    for name, node in nodes.items():
        if str(node.get("_target_")).startswith("gate_lightning."):  # others may have types of their own
            check_choice(node["dtype"], f"{name}.dtype", TYPES)
            if "channels_last" in node and not (
                isinstance(node["channels_last"], bool) or node["channels_last"] == AUTO
            ):
                raise ConfigError(f"{name}.channels_last={node['channels_last']!r}: expected true, false or {AUTO}")
    for node in nodes.values():
        if node["dtype"] == AUTO:
            node["dtype"], _ = _choice(config, precision)
        if node.get("channels_last") == AUTO:
            node["channels_last"] = node["dtype"] != "float32" and _on_gpu(config)


def tell_types(config: DictConfig, resolved: DictConfig) -> None:
    """Log, of a trainer with autocast, in what types frozen weights are and why; on a GPU, whether there is TF32.

    Args:
        config: composed configuration.
        resolved: the same, resolved.
    """
    precision = _precision(config)
    types = {f"{name}.dtype": str(node["dtype"]) for name, node in _backbones(resolved)}
    if precision in _MIXED and types:
        reason = _choice(config, precision)[1]
        listed = ", ".join(f"{key}={value}" for key, value in types.items())
        log.info("frozen weights: %s; auto for trainer.precision=%s: %s", listed, precision, reason)
    if resolved.get("tf32") and _on_gpu(config):
        log.info("products of float32 are computed in TF32, about 1e-3 off; exactly: tf32=false")


def _choice(config: DictConfig, precision: str) -> tuple[str, str]:
    """The type that ``auto`` is, and why."""
    wanted = _MIXED.get(precision)
    if wanted is None:
        return "float32", "no autocast"
    if not _on_gpu(config):
        return "float32", "float32 without a GPU"
    if _trains_backbone(config):
        return "float32", "float32, as the task trains the backbone"
    import torch

    gpu = torch.cuda.get_device_name()
    if wanted == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32", f"float32, as {gpu} has no bfloat16; trainer.precision=16-mixed is for such cards"
    return wanted, f"{wanted} on {gpu}; exact features: backbone.dtype=float32"


def _on_gpu(config: DictConfig) -> bool:
    """True if the trainer computes on a GPU of CUDA, which is not touched: a process that has may not fork others."""
    if str(OmegaConf.select(config, "trainer.accelerator")) not in ("auto", "gpu", "cuda"):
        return False
    import torch  # takes seconds, and most tools have no trainer

    return torch.cuda.is_available()


def _trains_backbone(config: DictConfig) -> bool:
    from hydra.utils import get_class

    return bool(getattr(get_class(OmegaConf.select(config, "task._target_")), "trains_backbone", False))


def _precision(config: DictConfig) -> str:
    return str(OmegaConf.select(config, "trainer.precision"))


def _backbones(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Key and node of every backbone that has a type."""
    nodes = {"backbone": config.get("backbone")}
    further = config.get("backbones")
    if isinstance(further, DictConfig):
        nodes |= {f"backbones.{name!s}": node for name, node in further.items()}
    yield from ((name, node) for name, node in nodes.items() if isinstance(node, DictConfig) and "dtype" in node)
