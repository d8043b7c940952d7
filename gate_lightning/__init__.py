"""Steered, amalgamated diffusion features (GATE) and plain ones (DIFT) on PyTorch Lightning and Hydra."""

import importlib
from typing import Any

from gate_lightning.version import __version__

#: public name → module that has it; docs/library.md says what they are for
_PUBLIC = {
    "Backbone": "gate_lightning.backbones.base",
    "Branch": "gate_lightning.features.branch",
    "Conditions": "gate_lightning.structures",
    "ControlNet": "gate_lightning.techniques.controlnet",
    "Denoise": "gate_lightning.techniques.denoise",
    "DiskCache": "gate_lightning.features.caches.disk",
    "FeatureRecorder": "gate_lightning.features.reading.hooks",
    "FeatureExtractor": "gate_lightning.features.reading.extractor",
    "MultiBackboneExtractor": "gate_lightning.features.wrappers.multi_backbone",
    "Guidance": "gate_lightning.techniques.guidance",
    "IPAdapter": "gate_lightning.techniques.ip_adapter",
    "Inversion": "gate_lightning.techniques.inversion",
    "LoRA": "gate_lightning.techniques.lora",
    "MemoryCache": "gate_lightning.features.caches.memory",
    "PooledExtractor": "gate_lightning.features.wrappers.pooled",
    "Prompt": "gate_lightning.techniques.prompt",
    "Technique": "gate_lightning.techniques.base",
    "extract": "gate_lightning.tools.extraction.extract",
    "load_backbone": "gate_lightning.engine.parts.library",
    "load_run": "gate_lightning.engine.jobs.trained_run",
    "read_features": "gate_lightning.features.caches.folder",
    "read_images": "gate_lightning.data.core.reading",
    "resolve_layers": "gate_lightning.features.config.layer_presets",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - names


def __getattr__(name: str) -> Any:
    # lazily: `import gate_lightning` must not import torch, and the engine must not be imported by its own floors
    if name not in _PUBLIC:
        renamed = importlib.import_module("gate_lightning.engine.command.renamed").RENAMED
        hint = "".join(f"; it is called {row.new} now" for row in renamed if (row.kind, row.old) == ("python", name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
