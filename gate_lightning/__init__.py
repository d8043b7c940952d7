"""Steered, amalgamated diffusion features (GATE) and plain ones (DIFT) on PyTorch Lightning and Hydra."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["FeatureExtractor", "load_run"]


def __getattr__(name: str) -> Any:
    # lazily: `import gate_lightning` must not import torch, and the engine must not be imported by its own floors
    if name == "load_run":
        from gate_lightning.engine.evaluation import load_run

        return load_run
    if name == "FeatureExtractor":
        from gate_lightning.features.extractor import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
