"""What wandb wrote into the files of an offline run: records by wandb's own messages, framed as in LevelDB's logs."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FIRST, LAST, WHOLE = 2, 4, 1


@dataclass
class OfflineRun:
    """An offline run: rows in their order, configuration by dotted key, summary, and what ``wandb.init`` was told."""

    folder: Path
    run: Any = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def keys(self) -> set[str]:
        """Names that rows have."""
        return {key for row in self.rows for key in row}


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs in ``wandb/`` of a run folder, in order of their start."""
    import wandb

    wandb.teardown()  # waits until all is written
    return [read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def read_run(path: Path) -> OfflineRun:
    """Read a ``.wandb`` file."""
    from wandb.proto import wandb_internal_pb2

    found = OfflineRun(path.parent)
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _take(found.config, record.run.config.update)
        elif kind == "config":
            _take(found.config, record.config.update)
        elif kind == "history":
            found.rows.append({})
            _take(found.rows[-1], record.history.item)
        elif kind == "summary":
            _take(found.summary, record.summary.update)
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _take(into: dict[str, Any], items: Any) -> None:
    """Set values, those of nested keys in mappings."""
    for item in items:
        *above, last = item.nested_key or [item.key]
        node = into
        for name in above:
            node = node.setdefault(name, {})
        node[last] = json.loads(item.value_json)


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    position, parts = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK  # the rest of a block is padding
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += HEADER
        piece, position = content[position : position + length], position + length
        parts = piece if kind in (WHOLE, FIRST) else parts + piece
        if kind in (WHOLE, LAST):
            yield parts
