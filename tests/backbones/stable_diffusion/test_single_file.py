from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from gate_lightning.backbones.stable_diffusion import single_file
from gate_lightning.backbones.stable_diffusion.architectures import (
    STABLE_DIFFUSIONS,
    Architecture,
    build_random_backbone,
)
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.weights.networks import check_fit
from gate_lightning.errors import ConfigError, WeightsError
from tests.support.marks import thorough_but
from tests.support.original_layout import (
    averaged,
    original_clip,
    original_open_clip,
    original_unet,
    original_vae,
    under,
)
from tests.support.small_networks import build, random_images

#: small networks by the architecture they stand for
MEMBERS = {"sd15": "one_repeat", "sd21": "sd2_like", "sdxl": "xl_like"}
TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "projection_dim")


@dataclass
class Case:
    kind: str
    saved: Any
    state: dict[str, Tensor]
    tokenizer: Path
    folder: Path

    def load(self, file: str = "model.safetensors", **own: Any) -> UNetBackbone:
        settings: dict[str, Any] = {"tokenizer": str(self.tokenizer), "offline": True}
        if self.kind == "sd21":
            settings["prediction_type"] = "v_prediction"
        return load_unet_backbone(str(self.folder / file), **{**settings, **own})

    def write(self, file: str = "model.safetensors", **changed: Tensor) -> Path:
        path = self.folder / file
        save_file({**self.state, **changed}, path)
        return path


@pytest.fixture(params=MEMBERS)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return make(request.param, tmp_path, monkeypatch)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return make("sd15", tmp_path, monkeypatch)


@cache
def original(kind: str) -> tuple[Any, dict[str, Tensor]]:
    """A small network, and its weights in the original layout."""
    saved: Any = build(MEMBERS[kind], seed=5)
    return saved, whole(kind, saved)


def whole(kind: str, saved: Any) -> dict[str, Tensor]:
    state = under("model.diffusion_model.", original_unet(saved.unet))
    state |= under("first_stage_model.", original_vae(saved.vae))
    if kind == "sdxl":
        state |= under("conditioner.embedders.0.transformer.", original_clip(saved.text_encoder))
        state |= under("conditioner.embedders.1.model.", original_open_clip(saved.text_encoder_2))
    elif kind == "sd21":
        state |= under("cond_stage_model.model.", original_open_clip(saved.text_encoder))
    else:
        state |= under("cond_stage_model.transformer.", original_clip(saved.text_encoder))
    return state


def make(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A checkpoint of a small network; the known architecture of that name is shrunken to it."""
    saved, state = original(kind)
    encoders = [saved.text_encoder, *([saved.text_encoder_2] if kind == "sdxl" else [])]
    architecture = Architecture(
        unet={key: value for key, value in saved.unet.config.items() if not key.startswith("_")},
        vae={key: value for key, value in saved.vae.config.items() if not key.startswith("_")},
        texts=tuple({key: getattr(encoder.config, key) for key in TEXT} for encoder in encoders),
        pads=("<|endoftext|>", "!")[: len(encoders)],
        prediction_type=None if kind == "sd21" else "epsilon",
        source="nobody/nothing",
    )
    monkeypatch.setattr(single_file, "STABLE_DIFFUSIONS", {kind: architecture})
    saved.tokenizer.save_pretrained(folder / "vocabulary")
    made = Case(kind, saved, dict(state), folder / "vocabulary", folder)
    made.write()
    return made


@torch.no_grad()
def same(one: UNetBackbone, other: UNetBackbone) -> bool:
    images, prompts = random_images(1), ["a red house", "a photo of"]
    embeds, expected = one.encode_text(prompts), other.encode_text(prompts)
    latents = other.encode(images).expand(2, -1, -1, -1)
    equal = torch.equal(one.encode(images), other.encode(images)) and torch.equal(embeds.hidden, expected.hidden)
    if expected.pooled is not None:
        equal = equal and embeds.pooled is not None and torch.equal(embeds.pooled, expected.pooled)
    decoded = torch.equal(one.decode(latents[:1]), other.decode(latents[:1]))
    return equal and decoded and torch.equal(one.denoise(latents, 50, embeds), other.denoise(latents, 50, expected))


def test_a_checkpoint_gives_the_network_that_was_saved(case: Case) -> None:
    loaded = case.load()
    assert type(loaded) is type(case.saved)
    assert same(loaded, case.saved)
    assert loaded.schedule.prediction_type == case.saved.schedule.prediction_type
    assert dict(loaded.layers) == dict(case.saved.layers)
    assert loaded.scaling_factor == case.saved.scaling_factor
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_ckpt_gives_the_same(small: Case, wrapped: bool, zipped: bool) -> None:
    content = {"state_dict": small.state, "global_step": 3} if wrapped else small.state
    torch.save(content, small.folder / "model.ckpt", _use_new_zipfile_serialization=zipped)
    assert same(small.load("model.ckpt"), small.saved)


def test_a_ckpt_with_code_is_refused_and_the_code_not_run(small: Case) -> None:
    torch.save({"state_dict": small.state, "callbacks": _Trap(small.folder / "sprung")}, small.folder / "model.ckpt")
    with pytest.raises(
        WeightsError, match=r"model\.ckpt holds more than tensors, and pickled code is not run.*\.safetensors"
    ):
        small.load("model.ckpt")
    assert not (small.folder / "sprung").exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_broken_files_are_named(small: Case) -> None:
    torch.save({"state_dict": small.state}, small.folder / "cut.ckpt")
    whole = (small.folder / "cut.ckpt").read_bytes()
    contents = {
        "cut.ckpt": (whole[:-3000], "damaged or incomplete"),
        "page.ckpt": (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS pointer"),
        "empty.ckpt": (b"", "incomplete"),
        "short.safetensors": ((small.folder / "model.safetensors").read_bytes()[:-9], "incomplete"),
    }
    for name, (content, message) in contents.items():
        (small.folder / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}.*{message}"):
            small.load(name)
    with pytest.raises(WeightsError, match=r"nothing\.ckpt does not exist; expected a folder, a file"):
        small.load("nothing.ckpt")


def test_averaged_weights_are_taken_where_there_are_some(small: Case) -> None:
    other: Any = build(MEMBERS["sd15"], seed=6)
    small.write("both.safetensors", **averaged(original_unet(other.unet)))
    latents, embeds = torch.randn(1, 4, 8, 8), small.saved.encode_text(["a"])
    with torch.no_grad():
        assert torch.equal(
            small.load("both.safetensors").denoise(latents, 50, embeds), other.denoise(latents, 50, embeds)
        )


@pytest.mark.thorough
def test_stable_diffusion_2_must_be_told_what_it_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("sd21", tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"backbone\.prediction_type=v_prediction"):
        case.load(prediction_type=None)
    base, v = case.load(prediction_type="epsilon"), case.load()
    assert (base.schedule.prediction_type, v.schedule.prediction_type) == ("epsilon", "v_prediction")
    assert base.identity.digest != v.identity.digest
    assert base.native_size == 64 * 8  # the base model's images are smaller
    with pytest.raises(ConfigError, match="prediction_type='noise'"):
        case.load(prediction_type="noise")


@pytest.mark.thorough
def test_fine_tunes_of_sdxl_tell_by_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("sdxl", tmp_path, monkeypatch)
    case.write("v.safetensors", v_pred=torch.empty(0), ztsnr=torch.empty(0))
    assert case.load().schedule.prediction_type == "epsilon"
    marked = case.load("v.safetensors")
    assert marked.schedule.prediction_type == "v_prediction"
    assert marked.schedule.config["rescale_betas_zero_snr"] is True
    case.write("edm.safetensors", edm_mean=torch.zeros(4))
    with pytest.raises(WeightsError, match=r"Playground v2\.5"):
        case.load("edm.safetensors")


def test_sdxls_autoencoder_stays_in_single_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = make("sdxl", tmp_path, monkeypatch).load(dtype="bfloat16", size_conditions={"crop": [3, 4]})
    assert isinstance(half, SDXLBackbone)
    assert (half.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    assert half.size_conditions.crop == (3, 4)


def test_the_tokenizer_has_to_come_from_somewhere(small: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match=r"nobody/nothing.*holds no tokenizer.*backbone\.tokenizer=<folder"):
        small.load(tokenizer=None)
    (tmp_path / "bare").mkdir()
    with pytest.raises(WeightsError, match=r"bare holds no tokenizer"):
        small.load(tokenizer=str(tmp_path / "bare"))


def test_a_tokenizer_of_another_model_is_refused(small: Case) -> None:
    build("tiny").tokenizer.save_pretrained(small.folder / "model" / "tokenizer")  # a model's folder will do
    with pytest.raises(WeightsError, match=r"text_encoder does not fit .*token_embedding.*backbone\.tokenizer"):
        small.load(tokenizer=str(small.folder / "model"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3)}, "reads 9 channels.*inpainting"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(3)}, r"unet does not fit.*conv_out\.bias is \(3,\)"),
        ({"first_stage_model.quant_conv.bias": None}, r"vae does not fit.*1 missing, such as quant_conv\.bias"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None}, "text_encoder does not fit"),
    ],
)
def test_another_kind_of_model_is_refused(small: Case, change: dict[str, Any], message: str) -> None:
    for key, tensor in change.items():
        small.state.pop(key)
        if tensor is not None:
            small.state[key] = tensor
    small.write()
    with pytest.raises(WeightsError, match=message):
        small.load()


def test_other_contents_are_refused_with_the_first_keys(small: Case) -> None:
    save_file({f"lora_unet_{index}.lora_down.weight": torch.zeros(1) for index in range(9)}, small.folder / "l.ckpt")
    with pytest.raises(WeightsError, match=r"found lora_unet_0.*\(9 keys\)\. A LoRA goes to technique\.lora"):
        small.load("l.ckpt")


def test_settings_that_are_for_the_other_kind_are_refused(small: Case) -> None:
    with pytest.raises(ConfigError, match=r"reads no size conditions"):
        small.load(size_conditions={})
    with pytest.raises(ConfigError, match=r"size_conditions: unknown key 'crops'; .*expected of original_size"):
        small.load(size_conditions={"crops": (0, 0)})
    with pytest.raises(ConfigError, match=r"backbone\.tokenizer and backbone\.prediction_type are for single-file"):
        load_unet_backbone("tiny", tokenizer=str(small.tokenizer))
    with pytest.raises(ConfigError, match=r"native_size=512.*32 px"):
        small.load(native_size=512)


@pytest.mark.parametrize("kind", thorough_but(("sd15",), STABLE_DIFFUSIONS))
def test_every_weight_of_the_released_sizes_finds_its_place(kind: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        one, other = (build_random_backbone(kind, controlnet=False) for _ in range(2))
    state = whole(kind, one)
    parts = ["unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "sdxl" else [])]
    assert single_file._recognise(Path("x"), state) == kind
    for part in parts:
        network = getattr(other, part)
        # refuses what is missing, unknown or of another shape
        given = check_fit(network, single_file._converted(Path("x"), state, part, network), part)
        assert len(given) == len(network.state_dict())


@pytest.mark.parametrize(("kind", "folder"), [("sd15", "sd-v1-4"), ("sd21", "sd-2-1"), ("sdxl", "sdxl-base-1.0")])
@pytest.mark.parametrize("source", ["sd-v1-4", "sd-2-1", "sdxl-base-1.0/tokenizer", "sdxl-base-1.0"])
def test_any_clip_tokenizer_says_what_the_models_own_says(
    shared_dir: Path, kind: str, folder: str, source: str
) -> None:
    layouts = shared_dir / "data" / "hf_layouts"
    if not layouts.is_dir():
        pytest.skip("no released tokenizers")
    made, _ = single_file._tokenizers(STABLE_DIFFUSIONS[kind], str(layouts / source), True)
    own = [CLIPTokenizer.from_pretrained(path) for path in sorted((layouts / folder).glob("tokenizer*"))]
    prompt = "A photo of 2 horses, café!"
    padded = [[one(prompt, padding="max_length").input_ids for one in tokenizers] for tokenizers in (made, own)]
    assert padded[0] == padded[1]
    assert [len(ids) for ids in padded[0]] == [77] * len(own)
