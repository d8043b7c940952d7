"""PEFT's settings beside and inside LoRA files, against PEFT itself; what cannot be honoured is refused by its key."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from gate_lightning.backbones.adapters.lora_files import read_adapter
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import WeightsError
from tests.support.small_networks import build, relative

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    """For all tests that add no adapter to it."""
    return build("one_repeat")


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    saved_by_peft(folder, r=4, lora_alpha=8)
    return folder


@pytest.fixture
def saved(plain_folder: Path, tmp_path: Path) -> Path:
    """A folder of PEFT with rank 4 and alpha 8, to be changed."""
    return Path(shutil.copytree(plain_folder, tmp_path, dirs_exist_ok=True))


def saved_by_peft(folder: Path, **settings: Any) -> None:
    """A folder of PEFT with random matrices on linear layers and convolutions of the U-Net."""
    torch.manual_seed(5)
    config = LoraConfig(target_modules=["to_q", "to_k", "conv1", "proj_in"], **settings)
    model = get_peft_model(build("one_repeat").unet, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)


@torch.no_grad()
def ours(backbone: UNetBackbone, name: str = "a") -> Tensor:
    with backbone.adapters.applied(backbone.unet, "unet", [((name, 1.0),)]):
        return backbone.unet(LATENTS, 40, TEXT).sample


@torch.no_grad()
def theirs(folder: Path) -> Tensor:
    return PeftModel.from_pretrained(build("one_repeat").unet, folder).eval()(LATENTS, 40, TEXT).sample


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8},
        pytest.param({"r": 4, "lora_alpha": 8, "use_rslora": True}, marks=pytest.mark.thorough),
        {"r": 4, "lora_alpha": 3, "rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"to_k": 16, "conv1": 1}},
        {"r": 4, "lora_alpha": 3, "alpha_pattern": {"^" + LAYER.replace(".", "\\."): 40, "q": 90, "to_q$": 1}},
        pytest.param(
            {"r": 2, "lora_alpha": 1, "fan_in_fan_out": True, "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
            marks=pytest.mark.thorough,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_folder_of_peft_does_what_peft_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    backbone = build("one_repeat")
    saved_by_peft(tmp_path, **settings)
    expected = theirs(tmp_path)
    with torch.no_grad():
        assert relative(backbone.unet(LATENTS, 40, TEXT).sample, expected) > 0.02
    backbone.require_adapter("a", str(tmp_path))
    backbone.require_adapter("b", str(tmp_path / "adapter_model.safetensors"))
    for name in "ab":
        assert relative(ours(backbone, name), expected) < 1e-5


def test_the_digest_covers_the_settings(backbone: UNetBackbone, saved: Path) -> None:
    before = read_adapter(saved / "adapter_model.safetensors", backbone.adapted_parts).digest
    change(saved, lora_alpha=4)
    assert read_adapter(saved / "adapter_model.safetensors", backbone.adapted_parts).digest != before


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["conv_in"]),
        ("bias", "all"),
        ("lora_bias", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [3]),
        ("use_qalora", True),
        ("some_future_setting", 2),
        ("peft_type", "LOHA"),
        ("r", 0),
        ("r", -2),
        ("r", True),
        ("r", 5),
        ("lora_alpha", "8"),
        ("lora_alpha", 10**400),
        ("lora_alpha", None),
        ("lora_alpha", {}),
        ("use_rslora", "yes"),
        ("rank_pattern", {"to_q": 0}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"to_q": None}),
        ("alpha_pattern", {"(a+)+$": 1}),
        ("alpha_pattern", {".*": 1}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_key(
    backbone: UNetBackbone, saved: Path, key: str, value: Any
) -> None:
    change(saved, **{key: value})
    named = {"r": "rank", "rank_pattern": "rank"}.get(key, key)
    with pytest.raises(WeightsError, match=rf"adapter_config\.json.*{named}"):
        backbone.require_adapter("a", str(saved))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"r": NaN}', b"[" * 100_000])
def test_a_broken_config_is_named(backbone: UNetBackbone, saved: Path, content: bytes) -> None:
    (saved / "adapter_config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        backbone.require_adapter("a", str(saved))


def test_a_config_belongs_to_its_file(backbone: UNetBackbone, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = saved / "adapter_model.safetensors"
    alone, other = saved / "alone", saved / "other.safetensors"
    alone.mkdir()
    other.write_bytes(weights.read_bytes())
    (alone / "mine.safetensors").write_bytes(weights.read_bytes())
    (alone / "adapter_config.json").write_bytes((saved / "adapter_config.json").read_bytes())
    with caplog.at_level(logging.WARNING):
        strengths = [strength(backbone, path) for path in (weights, other, alone / "mine.safetensors")]
        assert strengths == [2.0, 1.0, 2.0]
        assert "is taken to belong to adapter_model.safetensors, not to other.safetensors" in caplog.text
        (saved / "adapter_config.json").unlink()
        assert strength(backbone, weights) == 1.0
    assert "has no adapter_config.json beside it" in caplog.text


def strength(backbone: UNetBackbone, path: Path) -> float:
    return next(one.strength for _, one in read_adapter(path, backbone.adapted_parts).branches("unet"))


def test_settings_in_two_places_are_refused(backbone: UNetBackbone, saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    save_file(load_file(path), path, {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 8}'})
    with pytest.raises(WeightsError, match=r"settings in its header and in adapter_config\.json"):
        backbone.require_adapter("a", str(saved))


def test_a_text_encoder_of_peft_is_found_by_its_layers(backbone: UNetBackbone, tmp_path: Path) -> None:
    model = get_peft_model(build("one_repeat").text_encoder, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path / "adapter_model.safetensors", backbone.adapted_parts)
    assert list(adapter.paths) == ["text_encoder"]
    assert next(one.strength for _, one in adapter.branches("text_encoder")) == 3.0


def pair(**changed: Any) -> dict[str, Tensor]:
    made = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 32), f"unet.{LAYER}.lora_B.weight": torch.ones(32, 2)}
    return {**made, **changed}


HOSTILE = {
    "backtracking": json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"(.*.*.*.*.*)*x": 3}}),
    "many": json.dumps(
        {"unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": {f"x{i}.to_q": 3 for i in range(10**5)}}
    ),
    "nested": '{"unet.r": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "nan": '{"unet.r": 2, "unet.lora_alpha": NaN}',
    "infinite": '{"unet.r": 2, "unet.lora_alpha": 1e999}',
    "pattern nan": '{"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": Infinity}}',
    "zero rank": '{"unet.r": 0, "unet.lora_alpha": 2}',
    "no alpha": '{"unet.r": 2}',
    "list": "[1]",
    "rank 3": '{"unet.r": 3, "unet.lora_alpha": 2}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_at_once(backbone: UNetBackbone, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(pair(), path, {"lora_adapter_metadata": HOSTILE[name]})
    start = time.monotonic()
    with pytest.raises(WeightsError, match="lora_adapter_metadata in its header"):
        read_adapter(path, backbone.adapted_parts)
    assert time.monotonic() - start < 5


ALPHA = f"unet.{LAYER}.alpha"
DOWN = f"unet.{LAYER}.lora_A.weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({ALPHA: torch.tensor(float("nan"))}, r"alpha is nan, expected one finite number"),
        ({ALPHA: torch.tensor(float("inf"))}, r"alpha is inf"),
        ({ALPHA: torch.tensor(True)}, r"alpha is True"),
        ({ALPHA: torch.ones(2)}, r"alpha is a tensor \(2,\)"),
        ({DOWN: torch.ones(2, 32, dtype=torch.int8)}, r"lora_A\.weight is int8"),
        ({DOWN: torch.ones(2, 32, dtype=torch.bool)}, r"lora_A\.weight is bool"),
        ({DOWN: torch.ones(0, 32), f"unet.{LAYER}.lora_B.weight": torch.ones(32, 0)}, "another architecture"),
        ({DOWN: torch.tensor(1.0)}, "another architecture"),
        ({f"unet.{LAYER}.lora_A.other.weight": torch.ones(2, 32)}, "holds two adapters in one"),
    ],
)
def test_numbers_that_are_none_are_refused(
    backbone: UNetBackbone, tmp_path: Path, changed: dict[str, Tensor], message: str
) -> None:
    save_file(pair(**changed), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message):
        read_adapter(tmp_path / "a.safetensors", backbone.adapted_parts)


def test_matrices_too_large_for_half_precision_are_refused(backbone: UNetBackbone, tmp_path: Path) -> None:
    save_file(pair(**{DOWN: torch.full((2, 32), 1e5)}), tmp_path / "a.safetensors")
    read_adapter(tmp_path / "a.safetensors", backbone.adapted_parts)
    with pytest.raises(WeightsError, match=r"too large for float16; set backbone\.dtype"):
        read_adapter(tmp_path / "a.safetensors", {"unet": backbone.unet.half()})


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_matrices_are_read_exactly(backbone: UNetBackbone, tmp_path: Path, kind: torch.dtype) -> None:
    values = (torch.randn(2, 32) * 3).to(kind)
    save_file(pair(**{DOWN: values, ALPHA: torch.tensor(4.0).to(kind)}), tmp_path / "a.safetensors")
    ((_, branch),) = read_adapter(tmp_path / "a.safetensors", backbone.adapted_parts).branches("unet")
    assert branch.strength == 2.0
    assert torch.equal(branch.down, values.float())


@pytest.mark.parametrize(
    "prefix",
    [
        "diffusion_model.",
        "model.diffusion_model.",
        "unet._orig_mod.",
        "_orig_mod.",
        "module.",
        "module.unet.",
        "unet.module._orig_mod.",
        "base_model.model.unet.",
        "unet.base_model.model.",
        "pipe.unet.",
        "lora_unet__orig_mod_",
    ],
)
def test_prefixes_of_wrappers_are_seen_through(backbone: UNetBackbone, tmp_path: Path, prefix: str) -> None:
    layer = LAYER.replace(".", "_") if prefix.endswith("_") else LAYER
    save_file(
        {key.replace(f"unet.{LAYER}", prefix + layer): one for key, one in pair().items()}, tmp_path / "a.safetensors"
    )
    assert read_adapter(tmp_path / "a.safetensors", backbone.adapted_parts).paths == {"unet": (LAYER,)}


def test_an_unknown_prefix_is_named(backbone: UNetBackbone, tmp_path: Path) -> None:
    save_file({f"my.wrapper.{key}": one for key, one in pair().items()}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"fits this backbone but for 'my\.wrapper\.' in the names of 1 of its 1 "):
        read_adapter(tmp_path / "a.safetensors", backbone.adapted_parts)


@pytest.mark.parametrize(
    ("key", "tensor", "header"),
    [
        ("unet:999999999999:up", torch.ones(2, 2), {}),
        ("unet:" + "9" * 5000 + ":up", torch.ones(2, 2), {}),
        ("unet:0:up", torch.tensor(1.0), {}),
        ("unet:0:up", torch.ones(32, 1), {"unet": "3"}),
        ("unet:0:up", torch.ones(32, 1), {"unet": '{"a": 1}'}),
        ("unet:0:up", torch.ones(32, 1), {"unet": "[[1], 2]"}),
        ("<s>", torch.tensor(1.0), {"<s>": "<embed>"}),
        ("<s>", torch.ones(3, dtype=torch.int32), {"<s>": "<embed>"}),
    ],
)
def test_hostile_numbered_files_are_refused(
    backbone: UNetBackbone, tmp_path: Path, key: str, tensor: Tensor, header: dict[str, str]
) -> None:
    state = {"unet:0:down": torch.ones(1, 32), "unet:0:up": torch.ones(32, 1), key: tensor}
    save_file(state, tmp_path / "a.safetensors", header or None)
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        read_adapter(tmp_path / "a.safetensors", backbone.adapted_parts)


def test_a_folder_with_several_or_no_files_is_refused(backbone: UNetBackbone, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no file of a LoRA \(found: \[\]\); expected one of pytorch_lora"):
        backbone.require_adapter("a", str(tmp_path))
    for name in ("x", "y"):
        save_file(pair(), tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"holds several files of a LoRA \(found: \['x\.safetensors', 'y\."):
        backbone.require_adapter("a", str(tmp_path))
    (tmp_path / "y.safetensors").unlink()
    backbone.require_adapter("a", str(tmp_path))
