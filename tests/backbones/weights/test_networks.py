"""Weights cover their network, or it is refused: folders, and every way in which files leave something random."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.tiny.architecture import write_folder
from gate_lightning.backbones.weights import networks
from gate_lightning.backbones.weights.locate import ASSET, find_weights, weight_files
from gate_lightning.backbones.weights.networks import open_part
from gate_lightning.errors import WeightsError

KINDS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "controlnet": ControlNetModel,
}
PARTS = list(KINDS)


@pytest.fixture(scope="module")
def tiny() -> Path:
    return find_weights(f"{ASSET}tiny")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(tiny, tmp_path / "tiny")


def edit(part: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    (path,) = part.glob("*.safetensors")
    save_file(change(load_file(path)), path, {"format": "pt"})


def opened(folder: Path, part: str) -> Any:
    return open_part(KINDS[part], folder / part, torch.float32)


@pytest.mark.parametrize("part", PARTS)
def test_a_network_holds_the_numbers_of_its_file(tiny: Path, part: str) -> None:
    (path,) = (tiny / part).glob("*.safetensors")
    stored, network = load_file(path), opened(tiny, part)
    assert not network.training
    assert network.state_dict().keys() == stored.keys()
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float())
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("first", [0, 16], ids=["aligned", "behind a bias of four numbers"])
def test_weights_keep_the_file_s_pages_or_leave_them_all(first: int) -> None:
    file = torch.arange(1024, dtype=torch.float32)  # torch's own memory begins at a multiple of 64 bytes
    given = {"weight": file[: 16 * 16].view(16, 16), "bias": file[256 + first // 4 :][:16]}
    network = networks.fill_network(torch.nn.Linear(16, 16, device="meta"), given, torch.float32, "here")
    inside = range(file.data_ptr(), file.data_ptr() + file.nbytes)
    assert {one.data_ptr() in inside for one in network.parameters()} == {first == 0}
    assert all(one.data_ptr() % 64 == 0 and torch.equal(one, given[name]) for name, one in network.named_parameters())


@pytest.mark.parametrize("part", PARTS)
def test_it_equals_what_the_library_loads(tiny: Path, part: str) -> None:
    theirs, ours = KINDS[part].from_pretrained(tiny / part, dtype=torch.float32), opened(tiny, part)
    assert repr(ours) == repr(theirs)
    for (name, own), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert torch.equal(own, other), name


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_and_an_unknown_tensor_are_named(folder: Path, part: str) -> None:
    name = next(key for key in opened(folder, part).state_dict() if key.endswith("weight"))
    edit(folder / part, lambda state: {key: state[key] for key in state if key != name})
    with pytest.raises(
        WeightsError, match=rf"{part} does not fit .*: 1 missing, such as {name}\. Take a complete copy"
    ):
        opened(folder, part)
    edit(folder / part, lambda state: {**state, name: torch.zeros(3), "more.weight": torch.zeros(1)})
    with pytest.raises(
        WeightsError, match=rf"1 not expected, such as more\.weight; 1 .* such as {name} is \(3,\), exp"
    ):
        opened(folder, part)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("_orig_mod.", "torch.compile"), ("module.", "Data"), ("net.", r"removeprefix\('net\.'\)")]
)
def test_a_prefix_that_is_the_only_obstacle_is_named(folder: Path, part: str, prefix: str, wrapper: str) -> None:
    edit(folder / part, lambda state: {prefix + key: tensor for key, tensor in state.items()})
    with pytest.raises(WeightsError, match=rf"{part} fits \w+ but for '{prefix}' in the names.*{wrapper}"):
        opened(folder, part)


def test_a_wrapper_inside_a_network_is_named_too(folder: Path) -> None:
    edit(
        folder / "unet", lambda state: {key.replace("mid_block.", "mid_block._orig_mod."): state[key] for key in state}
    )
    with pytest.raises(WeightsError, match=r"but for '_orig_mod\.' in the names"):
        opened(folder, "unet")


def test_former_names_and_counters_are_understood(folder: Path, tiny: Path) -> None:
    edit(
        folder / "text_encoder",
        lambda state: (
            {f"text_model.{key}": state[key] for key in state}
            | {"text_model.embeddings.position_ids": torch.arange(40)[None]}
        ),
    )
    ours, theirs = opened(folder, "text_encoder"), opened(tiny, "text_encoder")
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_former_attention_names_of_an_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    saved.save_pretrained(tmp_path / "vae")
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for new, before in former.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    edit(tmp_path / "vae", lambda state: {old(key): tensor for key, tensor in state.items()})
    loaded = opened(tmp_path, "vae")
    assert torch.equal(
        loaded.encoder.mid_block.attentions[0].to_k.weight, saved.encoder.mid_block.attentions[0].to_k.weight
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(float("nan")), r"conv_in\.bias holds values that are not finite"),
        (torch.tensor(float("-inf")), r"conv_in\.bias holds values that are not finite"),
        (torch.tensor(3, dtype=torch.int8), r"conv_in\.bias is int8, a number format that is not read"),
        (torch.tensor(True), r"conv_in\.bias is bool"),
        (torch.tensor(1e38, dtype=torch.float64) * 10, r"numbers up to 1e\+39, too large for float32"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(folder: Path, value: Tensor, message: str) -> None:
    edit(folder / "unet", lambda state: {**state, "conv_in.bias": value.expand(32).clone()})
    with pytest.raises(WeightsError, match=message):
        opened(folder, "unet")


def test_weights_too_large_for_half_precision_name_the_way_out(folder: Path) -> None:
    edit(folder / "unet", lambda state: {**state, "conv_in.bias": torch.full((32,), 7e4)})
    opened(folder, "unet")
    with pytest.raises(
        WeightsError, match=r"conv_in\.bias .* 7e\+04, too large for float16; set backbone\.dtype=bfloat16"
    ):
        open_part(UNet2DConditionModel, folder / "unet", torch.float16)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, pytest.param(torch.float8_e5m2, marks=pytest.mark.thorough)])
def test_float8_weights_are_converted_exactly(folder: Path, kind: torch.dtype) -> None:
    name = "mid_block.resnets.0.conv1.weight"
    edit(folder / "unet", lambda state: {**state, name: state[name].to(kind)})
    (path,) = (folder / "unet").glob("*.safetensors")
    stored = load_file(path)[name].float()  # exact: 8 bits into 32
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        loaded = open_part(UNet2DConditionModel, folder / "unet", dtype).state_dict()[name]
        assert torch.equal(loaded.float(), stored)


def sharded(part: Path, variant: str = "") -> list[Path]:
    """The files of a network written again as two shards and an index."""
    (path,) = part.glob("*.safetensors")
    state, stem = load_file(path), path.stem
    path.unlink()
    halves = [{key: state[key] for number, key in enumerate(state) if number % 2 == half} for half in (0, 1)]
    paths = [part / f"{stem}-0000{half + 1}-of-00002{variant}.safetensors" for half in (0, 1)]
    for half, shard in zip(halves, paths, strict=True):
        save_file(half, shard)
    places = {key: shard.name for half, shard in zip(halves, paths, strict=True) for key in half}
    (part / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": places}))
    return paths


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_and_missing_ones_named(folder: Path, tiny: Path, variant: str) -> None:
    paths = sharded(folder / "unet", variant)
    loaded = open_part(
        UNet2DConditionModel, folder / "unet", torch.float32, weight_files(folder / "unet", variant[1:] or None)
    )
    assert torch.equal(loaded.conv_out.weight, opened(tiny, "unet").conv_out.weight)
    paths[1].unlink()
    with pytest.raises(WeightsError, match=r"names 2 files, of which 1 are missing, such as .*00002-of-00002"):
        open_part(
            UNet2DConditionModel, folder / "unet", torch.float32, weight_files(folder / "unet", variant[1:] or None)
        )
    next((folder / "unet").glob("*.index*")).unlink()
    with pytest.raises(WeightsError, match=r"index of its shards|variant=fp16"):
        opened(folder, "unet")


@pytest.mark.parametrize("places", [3, {}, {"a": 3}, {"a": "../x.safetensors"}, {"a": ["x"]}])
def test_an_index_of_another_form_is_refused(folder: Path, places: Any) -> None:
    for path in sharded(folder / "unet"):
        path.unlink()
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match="names no shards"):
        opened(folder, "unet")


def test_a_folder_of_one_variant_names_the_key(folder: Path) -> None:
    for part in PARTS[:3]:
        (path,) = (folder / part).glob("*.safetensors")
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(WeightsError, match=r"of the variant fp16: set backbone\.variant=fp16"):
        load_unet_backbone(str(folder))
    assert load_unet_backbone(str(folder), variant="fp16").dtype == torch.float32


def test_a_folder_of_two_variants_says_how_to_make_it_one(folder: Path) -> None:
    """The advice is followed: first the key, then the copy."""
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_suffix(".fp16.safetensors"))
    with pytest.raises(WeightsError, match=r"set backbone\.variant=fp16"):
        load_unet_backbone(str(folder))
    for part in ("vae", "text_encoder"):
        with pytest.raises(WeightsError, match=rf"{part} holds no .*without variant only: copy them, with \.fp16 in"):
            load_unet_backbone(str(folder), variant="fp16")
        (plain,) = (folder / part).glob("*.safetensors")
        shutil.copy(plain, plain.with_suffix(".fp16.safetensors"))
    load_unet_backbone(str(folder), variant="fp16")


def test_a_whole_model_with_a_random_part_is_not_loaded(folder: Path) -> None:
    edit(folder / "text_encoder", lambda state: {"_orig_mod." + key: state[key] for key in state})
    with pytest.raises(WeightsError, match=r"text_encoder fits CLIPTextModel but for '_orig_mod\.'"):
        load_unet_backbone(str(folder))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"layers_per_block": 10**10}),
        ("unet", {"layers_per_block": [2, 2, 2, 10**6]}),
        ("unet", {"transformer_layers_per_block": 10**9}),
        ("unet", {"block_out_channels": [10**15] * 4}),
        ("unet", {"block_out_channels": "wide"}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"attention_head_dim": None}),
        ("unet", {"down_block_types": {"a": 1}}),
        ("unet", {"act_fn": 3}),
        ("unet", {"norm_eps": "small"}),
        ("unet", {"upcast_attention": "false"}),
        ("vae", {"scaling_factor": [1]}),
        ("vae", {"layers_per_block": 10**9}),
        ("vae", {"latent_channels": -4}),
        ("text_encoder", {"num_hidden_layers": 10**9}),
        ("text_encoder", {"num_hidden_layers": "two"}),
        ("text_encoder", {"num_attention_heads": 3}),
        ("text_encoder", {"max_position_embeddings": 10**12}),
        ("text_encoder", {"vocab_size": 10**18}),
        ("controlnet", {"conditioning_embedding_out_channels": 7}),
    ],
)
def test_an_impossible_config_is_refused_before_it_is_built(folder: Path, part: str, change: dict[str, Any]) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    start = time.monotonic()
    with pytest.raises(WeightsError, match=part):
        opened(folder, part)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("model", ["sd-v1-4", "sd-2-1", "sd-2-1-base", "sdxl-base-1.0"])
def test_released_configs_are_accepted(shared_dir: Path, model: str) -> None:
    folder = shared_dir / "data" / "hf_layouts" / model
    if not folder.is_dir():
        pytest.skip("no released configs")
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        config = json.loads((folder / part / "config.json").read_text())
        networks._check_types(kind, config, part)
        built = networks.build_network(lambda kind=kind, config=config: kind.from_config(config), config, 1700, part)
        assert len(built.state_dict()) > 200


def test_folders_are_written_and_read_in_full(tmp_path: Path, tiny: Path) -> None:
    loaded = opened(tiny, "unet")
    write_folder(tmp_path, torch.float32, unet=loaded)
    assert torch.equal(opened(tmp_path, "unet").conv_in.weight, loaded.conv_in.weight)
