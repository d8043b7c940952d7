"""Weight files: location, integrity and digests.

Files are checked before a library opens them, so that the error names a missing, truncated or mistaken download.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gate_lightning.errors import WeightsError, first_line
from gate_lightning.utils.text import read_json

__all__ = [
    "ASSET",
    "PART_PATTERNS",
    "check_weight_file",
    "file_digest",
    "find_weights",
    "folder_digest",
    "stored_bytes",
    "variants",
    "weight_files",
]

#: prefix of sources shipped in the package: ``asset:tiny/controlnet``.
ASSET = "asset:"

#: suffixes of files that hold weights
_CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

#: files of one network in its folder, for downloads.
PART_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")

_BLOCK = 2**20
#: names, without ending, under which diffusers and transformers save a network
_STEMS = ("diffusion_pytorch_model", "model")


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
    there = _existing(source)
    if there is not None:
        return there
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith(_CHECKPOINTS):
        raise WeightsError(
            f"{source} does not exist; expected a folder, a file, or a hub id like owner/name"
            + (f". {advice}" if advice else "")
        )
    repo_id, _, named = source.partition("@")
    return _download(repo_id, named or revision, list(patterns), offline, advice)


def stored_bytes(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _existing(source: str) -> Path | None:
    """Path of that name, whether accents are written as one character or as two; None where there is none."""
    if not source:
        return None
    for name in dict.fromkeys((source, *(unicodedata.normalize(form, source) for form in ("NFC", "NFD")))):
        try:
            path = Path(name).expanduser()
            path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):  # a zero byte; ~ of nobody
            continue
        except OSError as error:
            raise WeightsError(f"{source} cannot be read: {error.strerror or error}") from error
        return path
    return None


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
    """Safetensors files of one network: one file, or the shards that its index names.

    Args:
        folder: holds them beside the network's config.json.
        variant: file name variant such as "fp16".

    Raises:
        WeightsError: there are none of that variant, or a shard is missing.
    """
    mark = "" if variant is None else f".{variant}"
    for stem in _STEMS:
        whole = folder / f"{stem}{mark}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / f"{stem}.safetensors.index{mark}.json"
        if index.is_file():
            return _shards(index)
    seen = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    wanted = " or ".join(f"{stem}{mark}.safetensors" for stem in _STEMS)
    raise WeightsError(f"{folder} holds no {wanted} (found: {seen}). {_other_files(folder, variant)}")


def variants(folder: Path) -> list[str]:
    """File name variants, such as "fp16", of the networks in a folder; "" for files of none."""
    marks = (path.name.split(".")[1:-1] for stem in _STEMS for path in folder.glob(f"{stem}*.safetensors"))
    return sorted({mark[0].split("-")[0] if mark else "" for mark in marks})


def _other_files(folder: Path, variant: str | None) -> str:
    """Advice for a folder without the wanted weights."""
    there = variants(folder)
    if variant is not None and "" in there:
        return (
            f"This part has files without variant only: copy them, with .{variant} in their names, so that all parts "
            f"have the same, or leave backbone.variant at null where the others have such files too"
        )
    others = [one for one in there if one and one != variant]
    if others:
        return f"Its weights are of the variant {' or '.join(others)}: set backbone.variant={others[0]}"
    if list(folder.glob("*-of-*.safetensors")):
        return "The index of its shards (….safetensors.index.json) is missing: fetch it too"
    return "Pickled weights (.bin, .ckpt) are not read: save them as safetensors"


def _shards(index: Path) -> list[Path]:
    places = read_json(index, WeightsError).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise WeightsError(f"{index} names no shards; expected weight_map: {{tensor: file beside the index, …}}")
    paths = [index.parent / name for name in sorted(set(names))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightsError(
            f"{index} names {len(paths)} files, of which {len(missing)} are missing, such as {missing[0]}; fetch "
            f"them too"
        )
    return paths


def check_weight_file(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, after comparing the size in its header with that of the file.

    Raises:
        WeightsError: the file is missing, truncated, no safetensors file (an HTML page, a git-LFS pointer), or names
            a tensor twice.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is a folder, expected a file" if path.is_dir() else f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            json.loads(content.read(length), object_pairs_hook=_once)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as content:
            start = content.read(512)
        size = path.stat().st_size
        kind = _other_kind(start)
        problem = kind or f"no safetensors file, or its download is incomplete ({error}); fetch it again"
        raise WeightsError(f"{path} ({size} bytes) is {problem}") from error
    return metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, unless two have one name; for ``json.loads``."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("its header has a name twice")
    return made


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
    """SHA-256 (hex) of a file's size and content; about 0.7 s per GB."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def folder_digest(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 (hex) over the names (relative to ``root``) and digests of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()
