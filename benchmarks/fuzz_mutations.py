"""Mutations of files for `fuzz.py`: bytes, text, JSON, YAML, safetensors, PNG and zip archives, as people and disks
break them and as an attacker would."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["mutated"]

Mutation = Callable[[bytes, random.Random], bytes]

_TOKENS = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"NaN",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"../../x",
    b"\n",
    b"\t",
    b",",
    b'"',
    b"[" * 3000,
    b"{" * 100,
    b"%s${oc.env:HOME}",
    "Käfer".encode("cp1252"),
    "馬".encode("gbk"),
    b"\r",
    b"(a+)+$",
    b"inf",
    b"\xed\xa0\x80",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2,
    1.5,
    10**6,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "/",
    "1",
    "a" * 100_000,
    "(a+)+$",
    "\ud800",
    "Ⅷ",
    [],
    [[]],
    [None],
    {},
    {"": ""},
    {"_target_": "os.system"},
    ["up"] * 200,
)


def mutated(path: Path, content: bytes, rng: random.Random) -> bytes:
    """``content`` of a file after one to three mutations that suit its suffix."""
    choices = [*_BYTES, *_BY_SUFFIX.get(path.suffix.lower(), ()) * 3]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(choices)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> tuple[int, int]:
    """Begin and end of a part; small parts and those near the beginning are likelier."""
    if not content:
        return 0, 0
    begin = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 400))
    return begin, min(len(content), begin + rng.choice((1, 2, 4, 8, 64, 1024, len(content))))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 16)) if content else 0):
        begin, _end = _place(content, rng)
        changed[begin] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, 7, 8, 9, len(content) // 2, max(len(content) - 1, 0)))]


def _delete(content: bytes, rng: random.Random) -> bytes:
    begin, end = _place(content, rng)
    return content[:begin] + content[end:]


def _double(content: bytes, rng: random.Random) -> bytes:
    begin, end = _place(content, rng)
    return content[:end] + content[begin : min(end, begin + 100_000)] + content[end:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    begin, _ = _place(content, rng)
    return content[:begin] + rng.choice(_TOKENS) + content[begin:]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    begin, _ = _place(content, rng)
    token = rng.choice(_TOKENS)
    return content[:begin] + token + content[begin + len(token) :]


def _noise(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 16, 4000))) + content[rng.choice((0, 8, len(content))) :]


def _encoding(content: bytes, rng: random.Random) -> bytes:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return (text + "ä\n").encode(rng.choice(("utf-16", "utf-16-be", "utf-32", "cp1252", "utf-8-sig")), "replace")


def _line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    index = rng.randrange(len(lines))
    how = rng.randrange(5)
    if how == 0:
        del lines[index]
    elif how == 1:
        lines.insert(index, lines[index])
    elif how == 2:
        lines[index] = b""
    elif how == 3:
        lines[index] = lines[index] + lines[rng.randrange(len(lines))]
    else:
        cells = lines[index].replace(b"\t", b" ").replace(b",", b" ").split(b" ")
        cells[rng.randrange(len(cells))] = rng.choice(_TOKENS)
        lines[index] = (b"\t" if b"\t" in lines[index] else b"," if b"," in lines[index] else b" ").join(cells)
    return b"\n".join(lines)


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _line(content, rng)
    return json.dumps(_changed(value, rng)).encode()


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    index = rng.randrange(len(lines))
    lines[index] = _json(lines[index], rng)
    return b"\n".join(lines)


def _nested(content: bytes, rng: random.Random) -> bytes:
    text, depth = content.decode("utf-8", "replace"), rng.choice((500, 5000, 200_000))
    key = '"x": ' if text.lstrip().startswith("{") else ""
    begin = max(text.find("{"), text.find("["), 0) + 1
    return f"{text[:begin]}{key}{'[' * depth}{']' * depth}, {text[begin:]}".encode()


def _changed(value: Any, rng: random.Random) -> Any:
    """``value`` with one node, key or entry changed, at any depth."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    how = rng.random()
    if how < 0.6:
        value[key] = _changed(value[key], rng)
    elif how < 0.75:
        del value[key]
    elif isinstance(value, list):
        value.insert(key, rng.choice(_VALUES))
    elif how < 0.9:
        new = rng.choice(("module.", "_orig_mod.", "../", "")) + str(key) + rng.choice(("", "x", ".weight"))
        value[new] = value.pop(key)
    else:
        value[rng.choice(("x", "__metadata__", "_target_", str(key) + ".alpha"))] = rng.choice(_VALUES)
    return value


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header as JSON, changed, with its right length (or another one)."""
    if len(content) < 8:
        return content
    (length,) = struct.unpack("<Q", content[:8])
    header = _json(content[8 : 8 + length], rng)
    if rng.random() < 0.3:
        header = header.replace(*rng.choice(_DTYPES))
    size = rng.choice((len(header),) * 8 + (0, len(header) - 1, 2**40, 2**63))
    return struct.pack("<Q", max(size, 0)) + header + content[8 + length :]


_DTYPES = (
    (b'"F32"', b'"I32"'),
    (b'"F32"', b'"F8_E4M3"'),
    (b'"F32"', b'"BOOL"'),
    (b'"F32"', b'"C64"'),
    (b'"F16"', b'"BF16"'),
    (b"[", b"[0,"),
)


def _values(content: bytes, rng: random.Random) -> bytes:
    """Numbers of a safetensors file that are not finite, or too large."""
    if len(content) < 8:
        return content
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    number = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38)))
    if begin + 4 > len(content):
        return content
    at = begin + 4 * rng.randrange((len(content) - begin) // 4)
    return content[:at] + number + content[at + 4 :]


def _png(content: bytes, rng: random.Random) -> bytes:
    """A chunk of a PNG changed, with its right checksum."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return content
    index = rng.choice((0, rng.randrange(len(chunks))))
    kind, data = chunks[index]
    if rng.random() < 0.2:
        chunks.insert(index, chunks[rng.randrange(len(chunks))])
    elif kind == b"IHDR" and rng.random() < 0.5:
        sizes = [rng.choice((0, 1, 7, 2**16, 2**31 - 1)) for _ in range(2)]
        chunks[index] = (kind, struct.pack(">II", *sizes) + data[8:])
    else:
        chunks[index] = (kind, rng.choice((_flip, _truncate, _insert))(data, rng))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return content[:8] + body


def _zip(content: bytes, rng: random.Random) -> bytes:
    """A member of a zip archive changed, with its right checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, zlib.error, OSError, NotImplementedError, RuntimeError):
        return content
    if not members:
        return content
    index = rng.choice((0, rng.randrange(len(members))))
    name, data = members[index]
    if rng.random() < 0.15:
        del members[index]
    else:
        members[index] = (name, rng.choice((_flip, _truncate, _delete, _insert, _noise))(data, rng))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return made.getvalue()


def _yaml(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"x: !!python/object/apply:os.system [touch x]\n",
            b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
            b"? [1, 2]\n: 3\n",
            b"- x\n",
            b"task: ${oc.env:HOME}\n",
            b"1: 2\n",
            b"task: null\n",
            b"task: {_target_: os.getcwd}\n",
            b"dataset: []\n",
            b"? {a: b}\n: c\n",
            b"\tx: 1\n",
            b"x: " + b"[" * 2000 + b"\n",
            b"seed: 2001-01-01\n",
        )
    ) + rng.choice((content, b"", content[: len(content) // 2]))


_BYTES: tuple[Mutation, ...] = (_flip, _truncate, _delete, _double, _insert, _overwrite, _noise)
_TEXT: tuple[Mutation, ...] = (_line, _line, _encoding)
_BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".txt": _TEXT,
    ".csv": _TEXT,
    ".tsv": _TEXT,
    ".json": (_json, _json, _json, _nested, _encoding),
    ".jsonl": (_json_lines, _json_lines, *_TEXT, _nested),
    ".yaml": (_yaml, *_TEXT),
    ".safetensors": (_safetensors, _safetensors, _values),
    ".png": (_png, _png),
    ".pt": (_zip,),
    ".ckpt": (_zip,),
}
