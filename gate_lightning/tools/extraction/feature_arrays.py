"""Features as NumPy files, in the layouts of the field's released extraction code."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.structures import BranchFeatures
from gate_lightning.utils.checks import a_path, check_choice
from gate_lightning.utils.dtypes import DTYPES, storable
from gate_lightning.utils.files import claim, clean_leftovers, write_atomically
from gate_lightning.utils.text import read_json

__all__ = ["ArrayFolder", "ArrayLayout"]

#: by layer: <layer>/<image>.npy; by image: <image>/<layer>.npy; joined: <image>.npy, all layers in one array
ArrayLayout = Literal["npy_by_layer", "npy_by_image", "npy_joined"]


class ArrayFolder:
    """Features by image name as ``.npy`` files, written like `FeatureFolder` writes its own.

    With several branches each has a folder of its own at the top. An image's record (in ``.records``, written last)
    lists its files and the key of the image they belong to.

    Args:
        folder, description: see `FeatureFolder`.
        dtype: "float16" or "float32"; NumPy has no bfloat16.
        layout: see ArrayLayout. Joined: every layer is resized (nearest) to the largest one, then channels are
            concatenated in the order of the layers.

    Raises:
        CacheError: the folder was written by another description, or cannot be written.
        ConfigError: an unknown layout, or a dtype that NumPy does not have.
    """

    def __init__(
        self, folder: str | Path, description: Mapping[str, Any], dtype: str = "float16", layout: str = "npy_by_layer"
    ) -> None:
        check_choice(layout, "layout", ("safetensors", *get_args(ArrayLayout)))
        check_choice(dtype, "dtype of .npy files", ("float16", "float32"))
        self.folder, self.dtype, self.layout = a_path(folder, "folder"), DTYPES[dtype], layout
        whole = {**description, "stored_as": dtype, "layout": layout}
        self.digest = claim(self.folder / "manifest.json", whole, "features", self._used)
        clean_leftovers(self.folder)

    def holds(self, name: str, key: str) -> bool:
        """True if all files of the image with that key exist and have the length recorded for them."""
        try:
            record = read_json(self._record(name))
            if (record["description"], record["image"]) != (self.digest, key):
                return False
            return all((self.folder / path).stat().st_size == size for path, (size, _) in record["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # DataError among them
            return False

    def write(self, name: str, key: str, features: Mapping[str, BranchFeatures]) -> int:
        """Store the features (C, h, w) of one image, replacing what there is; size in bytes.

        Raises:
            CacheError: they cannot be written, or have values that the dtype cannot hold.
        """
        files: dict[str, tuple[int, int]] = {}
        for path, value in self._arrays(name, features).items():
            buffer = io.BytesIO()
            np.save(buffer, storable(value, self.dtype, f"{path}").numpy())
            content = buffer.getvalue()
            write_atomically(self.folder / path, content)
            files[path] = (len(content), zlib.crc32(content))
        record = {"description": self.digest, "image": key, "files": files}
        write_atomically(self._record(name), json.dumps(record).encode())
        return sum(size for size, _ in files.values())

    def _used(self) -> bool:
        # files of other layouts too: one folder, one layout
        return any(path.suffix in (".npy", ".safetensors") for path in self.folder.rglob("*"))

    def _record(self, name: str) -> Path:
        return self.folder / ".records" / f"{name}.json"

    def _arrays(self, name: str, features: Mapping[str, BranchFeatures]) -> dict[str, Tensor]:
        arrays = {}
        for branch, layers in features.items():
            top = f"{branch}/" if len(features) > 1 else ""
            if self.layout == "npy_joined":
                arrays[f"{top}{name}.npy"] = _joined(layers)
                continue
            for layer, value in layers.items():
                place = f"{layer}/{name}" if self.layout == "npy_by_layer" else f"{name}/{layer}"
                arrays[f"{top}{place}.npy"] = value
        return arrays


def _joined(layers: BranchFeatures) -> Tensor:
    """All layers (C, h, w) in one array (sum of C, largest h, largest w)."""
    for layer, value in layers.items():
        if value.ndim != 3:
            raise ConfigError(f"layout=npy_joined joins feature maps; {layer} has the shape {tuple(value.shape)}")
    size = tuple(max(value.shape[axis] for value in layers.values()) for axis in (-2, -1))
    return torch.cat([interpolate(value[None].float(), size=size, mode="nearest")[0] for value in layers.values()])
