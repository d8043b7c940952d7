"""Environment of a run, which it depends on besides its configuration: command, versions, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from gate_lightning.engine.checks.redaction import redacted_override
from gate_lightning.version import __version__

__all__ = ["environment"]

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core", "torchmetrics", "numpy")


def environment() -> dict[str, Any]:
    """Command, versions and commit that a result depends on."""
    return {
        "version": __version__,
        "command": [redacted_override(word) for word in sys.argv],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
