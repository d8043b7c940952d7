"""Broken and hostile files of every reader of weights: errors of ours alone, at once, and with the file's name."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import unicodedata
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gate_lightning.backbones.adapters.learned_embeddings import read_learned_prompt, read_learned_tokens
from gate_lightning.backbones.adm.convert import adm_unet
from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.compatibility import check_parts
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.tokenizers import read_tokenizer
from gate_lightning.backbones.weights.checkpoints import read_checkpoint, read_safetensors
from gate_lightning.backbones.weights.locate import ASSET, check_weight_file, find_weights
from gate_lightning.errors import WeightsError
from tests.support.adm_oracle import random_oracle
from tests.support.small_networks import build


def safetensors(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(kind: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "length beyond the file": safetensors({"a": entry()}, length=2**40),
    "largest length": safetensors({"a": entry()}, length=2**64 - 1),
    "a name twice": safetensors(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry("I64", [1])).encode() + b"}"
    ),
    "a list": safetensors([1, 2]),
    "a number": safetensors(3),
    "nested": safetensors(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "overlap": safetensors({"a": entry(), "b": entry(offsets=(4, 8), shape=(1,))}),
    "hole": safetensors({"a": entry(shape=(1,), offsets=(4, 8))}),
    "beyond": safetensors({"a": entry(offsets=(0, 8000))}),
    "shape and offsets": safetensors({"a": entry(shape=(3,))}),
    "negative": safetensors({"a": entry(shape=(-2,))}),
    "huge shape": safetensors({"a": entry(shape=(2**40, 2**40))}),
    "unknown format": safetensors({"a": entry("F31")}),
    "text as format": safetensors({"a": entry(3)}),
    "metadata of numbers": safetensors({"__metadata__": {"a": 3}, "a": entry()}),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "more data": safetensors({"a": entry()}, bytes(20)),
    "empty": b"",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_safetensors(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        read_safetensors(tmp_path / "a.safetensors")


def test_folders_where_files_are_expected(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(WeightsError, match=r"a\.safetensors is a folder, expected a file"):
        check_weight_file(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"is a folder, expected a file"):
        read_checkpoint(tmp_path / "a.safetensors")


class Opens:
    """Pickles to a call."""

    def __reduce__(self) -> Any:
        return open, ("/tmp/hostile", "w")


def quantised() -> Any:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


CONTENTS: dict[str, Any] = {
    "code": {"a": Opens()},
    "a list": [torch.ones(2)],
    "numbers": {"a": 3},
    "nested": {"state_dict": {"state_dict": {"a": torch.ones(2)}}},
    "no names": {3: torch.ones(2)},
    "no network": {"state_dict": {}, "more": 1},
    "sparse": {"a": torch.eye(3).to_sparse()},
    "repeated": {"a": torch.ones(1).expand(10**9, 10**9)},
    "meta": {"a": torch.empty(3, device="meta")},
    "wrapped": {"module.a": torch.ones(2)},
    "compiled": {"a._orig_mod.b": torch.ones(2)},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", CONTENTS)
def test_contents_of_torch_archives(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(CONTENTS[name], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    if name == "no network":
        assert read_checkpoint(tmp_path / "a.pt") == {}
        return
    with pytest.raises(WeightsError, match=r"a\.pt"):
        read_checkpoint(tmp_path / "a.pt")
    assert not Path("/tmp/hostile").exists()


def test_plain_pickles_and_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for content in (
        pickle.dumps(OrderedDict(a=1), 2),
        b"\x80\x02" + b"(" * 1000,
        b"\x80\x02\x8a\xff",
        b"PK\x03\x04" + bytes(90),
        b"PK",
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.pt"):
            read_checkpoint(path)


def test_a_flipped_bit_of_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.arange(5000.0)}}, path)
    assert torch.equal(read_checkpoint(path)["a"], torch.arange(5000.0))
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(777.0, 778.0).numpy().tobytes()) + 1] ^= 4
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.ckpt is damaged or incomplete.*whole"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def tiny() -> Path:
    return find_weights(f"{ASSET}tiny")


TOKENIZERS: dict[str, tuple[str, bytes]] = {
    "no JSON": ("tokenizer.json", b"{"),
    "a list": ("tokenizer.json", b"[]"),
    "an empty object": ("tokenizer.json", b"{}"),
    "nested": ("tokenizer.json", b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "not UTF-8": ("tokenizer_config.json", b'{"a": "\xe4"}'),
    "another model": ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
    "length of text": ("tokenizer_config.json", b'{"model_max_length": "many"}'),
    "negative length": ("tokenizer_config.json", b'{"model_max_length": -3}'),
    "marks as numbers": ("tokenizer_config.json", b'{"bos_token": 3, "eos_token": []}'),
    "no marks": ("tokenizer_config.json", b'{"bos_token": null, "eos_token": null, "pad_token": null}'),
    "marks as a list": ("special_tokens_map.json", b"[]"),
    "vocabulary of text": ("vocab.json", b'{"a": "b"}'),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_files_of_tokenizers(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny / "tokenizer", tmp_path / "tokenizer")
    file, content = TOKENIZERS[name]
    if file == "vocab.json":
        (folder / "tokenizer.json").unlink()
        (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / file).write_bytes(content)
    with pytest.raises(WeightsError, match="tokenizer"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_timesteps": 10**12}, "num_train_timesteps=1000000000000"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000'"),
        ({"num_train_timesteps": True}, "num_train_timesteps=True"),
        ({"beta_start": None}, "betas cannot be computed"),
        ({"beta_end": 4.0}, "betas are not between 0 and 1"),
        ({"beta_start": -1.0, "beta_schedule": "linear"}, "betas are not between 0 and 1"),
        ({"beta_schedule": "steep"}, "betas cannot be computed"),
        ({"beta_schedule": ["linear"]}, "betas cannot be computed"),
        ({"trained_betas": []}, "betas"),
        ({"trained_betas": ["a"]}, "betas cannot be computed"),
        ({"trained_betas": 3}, "betas"),
        ({"prediction_type": ["epsilon"]}, "prediction_type"),
        ({"_class_name": ["EDM"]}, None),
    ],
)
def test_configs_of_schedulers(tiny: Path, change: dict[str, Any], message: str | None) -> None:
    config = json.loads((tiny / "scheduler" / "scheduler_config.json").read_text())
    if message is None:
        DiffusionSchedule({**config, **change})
        return
    with pytest.raises(WeightsError, match=message):
        DiffusionSchedule({**config, **change})


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"sample_size": None}),
        ("unet", {"sample_size": []}),
        ("unet", {"sample_size": "64"}),
        ("unet", {"cross_attention_dim": {}}),
        ("unet", {"addition_embed_type": ["text_time"]}),
        ("vae", {"scaling_factor": None}),
        ("vae", {"scaling_factor": 0}),
        ("vae", {"scaling_factor": "0.18"}),
        ("vae", {"shift_factor": [1]}),
        ("vae", {"latent_channels": "4"}),
        ("text_encoder", {"hidden_size": "768"}),
        ("text_encoder", {"vocab_size": None}),
    ],
)
def test_values_that_no_shape_tells(tiny: Path, tmp_path: Path, part: str, change: dict[str, Any]) -> None:
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WeightsError):
        load_unet_backbone(str(folder))


def test_parts_of_any_type_are_compared() -> None:
    for value in (None, "a", [], {}, 1e999):
        with pytest.raises(WeightsError):
            check_parts({"cross_attention_dim": value}, {}, [({"vocab_size": 3, "hidden_size": value}, 4)])


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("output_blocks.99999999999.0.x", torch.ones(1)),
        ("output_blocks." + "9" * 5000 + ".0.x", torch.ones(1)),
        ("output_blocks.9999.0.x", torch.ones(1)),
        ("time_embed.0.weight", torch.tensor(1.0)),
        ("input_blocks.0.0.weight", torch.ones(3)),
        ("out.2.weight", torch.tensor(1.0)),
        ("label_emb.weight", torch.tensor(1.0)),
        ("middle_block.1.qkv.weight", torch.tensor(1.0)),
        ("middle_block.1.qkv.weight", torch.ones(7, 2)),
        ("middle_block.1.qkv.bias", torch.zeros(0)),
        ("out.0.bias", torch.full((32,), float("nan"))),
    ],
)
def test_keys_of_guided_diffusion(key: str, tensor: torch.Tensor) -> None:
    with pytest.raises(WeightsError):
        adm_unet({**random_oracle().state_dict(), key: tensor}, 16)


def test_a_prefix_of_guided_diffusion_is_named() -> None:
    state = {f"model.{key}": tensor for key, tensor in random_oracle().state_dict().items()}
    with pytest.raises(WeightsError, match=r"They fit behind 'model\.'"):
        adm_unet(state, 16)


WIDE = torch.ones(2, 32)
TOKENS: dict[str, Any] = {
    "a number": 3,
    "a list": [WIDE],
    "an empty object": {},
    "numbers by name": {"<a>": 3},
    "whole numbers": {"<a>": WIDE.int()},
    "no name": {"": WIDE},
    "a blank name": {" ": WIDE},
    "numbers as names": {3: WIDE},
    "no axis": {"<a>": torch.tensor(1.0)},
    "nothing": {"<a>": torch.zeros(0, 32)},
    "repeated": {"<a>": torch.ones(1, 1).expand(10**10, 32)},
    "another width": {"<a>": torch.ones(2, 31)},
    "not finite": {"<a>": WIDE / 0},
    "string_to_param of a number": {"string_to_param": 3, "name": "a"},
    "string_to_param of a list": {"string_to_param": [WIDE]},
    "string_to_param of none": {"string_to_param": {}},
    "emb_params of a number": {"emb_params": 3},
    "another encoder": {"clip_g": WIDE},
}


@pytest.mark.parametrize("name", TOKENS)
def test_files_of_learned_tokens(tmp_path: Path, name: str) -> None:
    torch.save(TOKENS[name], tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt"):
        read_learned_tokens(tmp_path / "a.pt", build("one_repeat").adapted_parts)


@pytest.mark.parametrize(
    "content", [3, [], {}, {"a": WIDE, "b": WIDE}, torch.ones(1, 1).expand(10**10, 32), WIDE.int(), WIDE / 0]
)
def test_files_of_learned_prompts(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt"):
        read_learned_prompt(tmp_path / "a.pt", build("one_repeat").adapted_parts)


def test_float8_embeddings_are_read_exactly(tmp_path: Path) -> None:
    parts, vectors = build("one_repeat").adapted_parts, torch.randn(2, 32).to(torch.float8_e4m3fn)
    save_file({"<a>": vectors}, tmp_path / "a.safetensors")
    read = read_learned_tokens(tmp_path / "a.safetensors", parts).tokens["text_encoder"]["<a>"]
    assert torch.equal(read, vectors.float())
    prompt = read_learned_prompt(tmp_path / "a.safetensors", parts).prompt
    assert prompt is not None and torch.equal(prompt, vectors.float())


def test_the_name_of_a_nameless_token_is_part_of_its_digest(tmp_path: Path) -> None:
    parts = build("one_repeat").adapted_parts
    for name in ("a", "b"):
        torch.save({"emb_params": WIDE}, tmp_path / f"{name}.pt")
    one, other = (read_learned_tokens(tmp_path / f"{name}.pt", parts) for name in ("a", "b"))
    assert one.digest != other.digest


def test_a_parameter_dict_of_older_files_is_read(tmp_path: Path) -> None:
    torch.save({"string_to_param": nn.ParameterDict({"*": nn.Parameter(WIDE)}), "name": "a"}, tmp_path / "a.pt")
    assert list(read_learned_tokens(tmp_path / "a.pt", build("one_repeat").adapted_parts).tokens["text_encoder"]) == [
        "a"
    ]


@pytest.mark.parametrize(
    "source", ["a\0b", "~nobody-at-all/x/y", "x" * 5000, "/" * 3 + "\udcff", "", "asset:../../none"]
)
def test_sources_that_are_no_paths(source: str) -> None:
    with pytest.raises(WeightsError):
        find_weights(source)


def test_accents_may_be_written_either_way(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café.safetensors") for form in ("NFC", "NFD"))
    save_file({"a": torch.ones(1)}, tmp_path / decomposed)
    found = find_weights(str(tmp_path / composed))
    assert torch.equal(load_file(found)["a"], torch.ones(1))


def test_learned_tokens_are_found_however_their_accents_are_written() -> None:
    backbone = build("one_repeat")
    from gate_lightning.backbones.stable_diffusion.clip_text import text_length, token_windows

    composed, decomposed = (unicodedata.normalize(form, "<thé>") for form in ("NFC", "NFD"))
    for prompt, token in ((composed, decomposed), (decomposed, composed)):
        (window,) = token_windows(backbone.tokenizer, [f"a {prompt}"], 40, learned={token: WIDE})
        assert len(window.learned) == 2
        assert text_length(backbone.tokenizer, prompt, 40, learned={token: WIDE}) == 40
