"""Shared fixtures. The default suite needs no network, accelerator, weights or data."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# before any import of the hub's client, which reads it once
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """What was imported stays, so that garbage is found without a walk through it, and less often.

    A network is many small objects: every one that is built would set off collections.
    """
    if "hydra" in sys.modules:  # some test composes configurations
        from tests.support.parsed_files import parse_files_once

        parse_files_once()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The developers' folder of real images and reference outputs; tests that want it skip elsewhere."""
    folder = Path(os.environ.get("GATE_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder of reference data (set GATE_SHARED)")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors on few cores: more threads only wait for each other.

    For the session, so that fixtures of modules compute with as many threads as the tests that compare with them.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_handlers_left() -> Iterator[None]:
    """Commands that a test runs in this process set up logging; the lines of later tests are not theirs to print."""
    root = logging.getLogger()
    before = list(root.handlers)
    levels = {logger: logger.level for logger in (root, logging.getLogger("lightning.pytorch"))}
    yield
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
        handler.close()
    for logger, level in levels.items():
        logger.setLevel(level)
