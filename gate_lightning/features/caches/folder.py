"""Features on disk: one safetensors file per image, and a manifest beside them.

A file holds all branches and layers of an image at their own resolution, as tensors ``branch/layer``. Its header has
the digest of the description, the key of the image, and a checksum of the tensors.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gate_lightning.errors import CacheError
from gate_lightning.structures import BranchFeatures, Features
from gate_lightning.utils.checks import a_path, check_choice
from gate_lightning.utils.dtypes import DTYPES, storable
from gate_lightning.utils.files import claim, clean_leftovers, write_atomically

__all__ = ["FeatureFolder", "read_features"]

log = logging.getLogger(__name__)

_HEADER = "gate_lightning"


class FeatureFolder:
    """Folder of features by image name, written atomically; safe for several processes at once.

    Args:
        folder: created if it does not exist.
        description: all that the features depend on besides the images, JSON-able.
        dtype: "float16", "bfloat16" or "float32" of the files.

    Raises:
        CacheError: the folder was written by another description, or cannot be written.
        ConfigError: an unknown dtype.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any], dtype: str = "float16") -> None:
        check_choice(dtype, "dtype of stored features", DTYPES)
        self.folder, self.dtype = a_path(folder, "folder"), DTYPES[dtype]
        whole = {**description, "stored_as": dtype}
        self.digest = claim(self.folder / "manifest.json", whole, "features", self._used)
        clean_leftovers(self.folder)

    def path(self, name: str) -> Path:
        """File of an image; ``name`` is a relative path with forward slashes."""
        return self.folder / f"{name}.safetensors"

    def holds(self, name: str, key: str) -> bool:
        """True if a complete file of that image has that key; the checksum is not verified."""
        header = _header(self.path(name))
        return header is not None and self._mine(header, key)

    def read(self, name: str, key: str) -> Features | None:
        """Stored features (C, h, w) of an image on the CPU; None if there are none of that key.

        A damaged file counts as none, with a warning.
        """
        path = self.path(name)
        if not path.exists():
            return None
        try:
            features, header = _load(path)
        except CacheError as error:
            log.warning("%s; its features are computed again", error)
            return None
        return features if self._mine(header, key) else None

    def write(self, name: str, key: str, features: Mapping[str, BranchFeatures]) -> int:
        """Store or replace the features (C, h, w) of one image; returns the size in bytes.

        Raises:
            CacheError: they cannot be written, or have values that the dtype cannot hold.
        """
        tensors = {
            f"{branch}/{layer}": storable(value, self.dtype, f"{branch}/{layer} of {name}")
            for branch, layers in features.items()
            for layer, value in layers.items()
        }
        header = {"description": self.digest, "image": key, "order": list(tensors), "checksum": _checksum(tensors)}
        # one entry: safetensors writes several in random order, and equal features are to be equal files
        content = save(tensors, {_HEADER: json.dumps(header)})
        write_atomically(self.path(name), content)
        return len(content)

    def _used(self) -> bool:
        # also what is written by other layouts: one folder, one layout
        return any(path.suffix in (".safetensors", ".npy") for path in self.folder.rglob("*"))

    def _mine(self, header: Mapping[str, Any], key: str) -> bool:
        return header.get("description") == self.digest and header.get("image") == key


def read_features(path: str | Path) -> Features:
    """Read the features of one image: branch → layer id → (C, h, w), in the stored dtype on the CPU.

    Raises:
        CacheError: the file is missing, damaged, or no file of features.
    """
    return _load(a_path(path, "path"))[0]


def _header(path: Path) -> dict[str, Any] | None:
    """Header of a complete file; None if it is missing, truncated or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:  # compares the announced size with the file's
            return _own_header(file)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _own_header(file: Any) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((file.metadata() or {})[_HEADER])
    return header


def _load(path: Path) -> tuple[Features, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = _own_header(file)
            tensors = {name: file.get_tensor(name) for name in header["order"]}
    except FileNotFoundError as error:
        raise CacheError(f"{path} does not exist") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CacheError(f"{path} is damaged or no file of features ({type(error).__name__}: {error})") from error
    if header.get("checksum") != _checksum(tensors):
        raise CacheError(f"{path} is damaged: its content is not what was written (checksum)")
    features: Features = {}
    for name, value in tensors.items():
        branch, _, layer = name.rpartition("/")
        features.setdefault(branch, {})[layer] = value
    return features, header


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name, value in tensors.items():
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.flatten().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
