"""Weight files: location, integrity and digests.

Files are checked before a library opens them, so that the error names a missing, truncated or mistaken download.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from gate_lightning.errors import WeightsError, first_line

__all__ = [
    "ASSET",
    "PART_PATTERNS",
    "align_weights",
    "check_weight_file",
    "file_digest",
    "find_weights",
    "folder_digest",
    "open_part",
    "read_json",
    "weight_files",
]

#: prefix of sources shipped in the package: ``asset:tiny/controlnet``.
ASSET = "asset:"

#: suffixes of files that hold weights
_CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

#: files of one network in its folder, for downloads.
PART_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")

_WHOLE = 64 * 2**20  # files up to 64 MiB are hashed whole
_BLOCK = 2**20
_BLOCKS = 64
_ALIGNMENT = 64  # bytes; what torch itself allocates at


def find_weights(
    source: str, revision: str | None = None, patterns: Iterable[str] = (), offline: bool = False, advice: str = ""
) -> Path:
    """Local path of a weight source: folder, file, ``asset:…`` of this package, or hub id (downloaded or cached).

    Args:
        source: path, ``asset:<path inside gate_lightning/assets>``, or ``owner/name`` or ``owner/name@revision`` on the
            Hugging Face hub.
        revision: commit or tag of a hub id without its own.
        patterns: files to download of a hub id.
        offline: use only what the hub's local cache has.
        advice: last sentence of the error if nothing is found.

    Raises:
        WeightsError: nothing was found.
    """
    if source.startswith(ASSET):
        path = Path(str(files("gate_lightning") / "assets" / source.removeprefix(ASSET)))
        if not path.exists():
            raise WeightsError(f"{source}: the package has no {path}; reinstall it, or train it (experiment=tiny/…)")
        return path
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith(_CHECKPOINTS):
        raise WeightsError(
            f"{source} does not exist; expected a folder, a file, or a hub id like owner/name"
            + (f". {advice}" if advice else "")
        )
    repo_id, _, named = source.partition("@")
    return _download(repo_id, named or revision, list(patterns), offline, advice)


def _download(repo_id: str, revision: str | None, patterns: list[str], offline: bool, advice: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=patterns or None, local_files_only=offline)
        )
    except Exception as error:  # the client raises errors of several libraries
        raise WeightsError(
            f"{repo_id} is no local folder, and the hub did not give it ({type(error).__name__}: {first_line(error)}). "
            f"Download it where there is network (`hf download {repo_id}`), or give a folder. {advice}".rstrip()
        ) from error


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Safetensors files of one part of a model, sorted.

    Raises:
        WeightsError: there are none of that variant.
    """
    found = sorted(folder.glob("*.safetensors"))
    marked = [path for path in found if variant is not None and f".{variant}" in path.name]
    plain = [path for path in found if path.name.count(".") == 1 and ".fp16" not in path.name]
    chosen = marked if variant is not None else plain
    if not chosen:
        seen = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
        wanted = "*.safetensors" if variant is None else f"*.{variant}.safetensors"
        raise WeightsError(
            f"{folder} holds no {wanted} (found: {seen}). Pickled weights (.bin, .ckpt) are not read: "
            f"save them as safetensors"
        )
    return chosen


def open_part(kind: type[Any], folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Load one network of a diffusers or transformers folder, after checking its files.

    Args:
        kind: the class whose ``from_pretrained`` reads it.
        folder: holds config.json and the weights.
        dtype: floating-point type to load as.
        variant: file name variant such as "fp16".

    Raises:
        WeightsError: files missing, broken, or of another class or size.
    """
    config = read_json(folder / "config.json")
    made_by = config.get("_class_name", kind.__name__)
    if made_by != kind.__name__:
        raise WeightsError(f"{folder} holds a {made_by}, expected a {kind.__name__}")
    for path in weight_files(folder, variant):
        check_weight_file(path)
    transformers_logging.disable_progress_bar()  # a bar per network is noise; large ones take seconds
    try:
        network = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, variant=variant, dtype=dtype
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder} does not load as a {kind.__name__}: {first_line(error)}") from error
    return align_weights(network)


def align_weights(network: nn.Module) -> nn.Module:
    """Copy memory-mapped weights at unaligned offsets into memory of their own, in place.

    Matrix kernels choose their blocking by alignment, so that the length of a file's header would change last bits.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return network


def check_weight_file(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, after comparing the size in its header with that of the file.

    Raises:
        WeightsError: the file is missing, truncated, or no safetensors file (an HTML page, a git-LFS pointer).
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        with path.open("rb") as content:
            start = content.read(512)
        size = path.stat().st_size
        kind = _other_kind(start)
        problem = kind or f"no safetensors file, or its download is incomplete ({error}); fetch it again"
        raise WeightsError(f"{path} ({size} bytes) is {problem}") from error


def _other_kind(start: bytes) -> str:
    """Description of a file that is often found in place of weights, by its first bytes; "" for others."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the weights: run `git lfs pull` in its folder"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: the download address was wrong or asked for a login"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "a pickled PyTorch file; save it as safetensors first"
    return ""


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's size and content.

    Files above 64 MiB are sampled: 64 blocks of 1 MiB at even distances, first and last included. Training changes
    every tensor, so that another checkpoint is recognised; an edit between the blocks is not.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            for block in iter(lambda: file.read(_BLOCK), b""):
                digest.update(block)
            return digest.hexdigest()
        for index in range(_BLOCKS):
            file.seek((size - _BLOCK) * index // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def folder_digest(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 (hex) over the names (relative to ``root``) and digests of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file with an object.

    Raises:
        WeightsError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content
