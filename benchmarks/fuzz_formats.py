"""Formats for `fuzz.py`: valid files of every kind that the package reads, and their readers."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DModel
from fuzz_pairs import formats_of_pairs
from PIL import Image
from safetensors.torch import load_file, save_file

import gate_lightning
from gate_lightning.backbones.adapters.learned_embeddings import read_learned_prompt, read_learned_tokens
from gate_lightning.backbones.adapters.lora_files import read_adapter
from gate_lightning.backbones.adm.loading import load_adm_backbone
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.weights.checkpoints import read_checkpoint
from gate_lightning.data.files.captions import CaptionFile, read_captions
from gate_lightning.data.files.images import image_size, read_image
from gate_lightning.data.files.mask_values import mask_header
from gate_lightning.data.files.masks import LabelMap, MaskReader
from gate_lightning.data.files.pairing import read_classes
from gate_lightning.data.files.palette import Palette, read_palette
from gate_lightning.data.label_scarce.ddpm_segmentation import DDPMSegmentationDataModule
from gate_lightning.data.label_scarce.splits import random_split, read_split, write_split
from gate_lightning.data.pretraining.captioned_folder import CaptionedImages
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.engine.command.configuration import composed
from gate_lightning.engine.jobs.trained_run import load_run
from gate_lightning.engine.jobs.training import train
from gate_lightning.features.caches.folder import FeatureFolder, read_features
from gate_lightning.tools.comparison.compare import compare
from gate_lightning.tools.extraction.feature_arrays import ArrayFolder
from gate_lightning.tools.labelling.labelled_folder import Entry, LabelledFolder

__all__ = ["Format", "formats"]

TINY = Path(gate_lightning.__file__).parent / "assets/tiny"
LORA = TINY / "lora/moderate.safetensors"
NAMES = ("train/a.png", "train/b.png", "train/c.png")


@dataclass(frozen=True)
class Format:
    """A kind of files.

    Attributes:
        name: for the command line and the report.
        weight: share of the inputs.
        make: writes valid files into a folder.
        read: reads them as the package does.
        whole: whether the files are accepted as they are; a model that is too large to be written whole is not.
    """

    name: str
    weight: float
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    whole: bool = True


def formats() -> list[Format]:
    """All of them; the slow ones (whole models, whole runs) have less weight."""
    return [*_of_data(), *_of_weights(), *_of_stored_features(), *_of_runs()]


# data


def _of_data() -> Iterator[Format]:
    for suffix, weight in ((".png", 3), (".jpg", 2), (".tif", 2), (".bmp", 1), (".webp", 1), (".gif", 1)):
        yield Format(f"image{suffix}", weight, lambda f, s=suffix: _image(f / f"a{s}"), _read_images)  # type: ignore[misc]
    for mode in ("L", "P", "RGB", "I;16"):
        yield Format(f"mask-{mode.replace(';', '')}", 2, lambda f, m=mode: _mask(f / "a.png", m), _read_masks)  # type: ignore[misc]
    yield Format("mask-npy", 2, lambda f: np.save(f / "a.npy", _labels()), _read_masks)
    for name, text in _CAPTIONS.items():
        yield Format(name, 2, lambda f, n=name, t=text: _text(f / n, t), lambda f, n=name: CaptionFile(f / n).digest)  # type: ignore[misc]
    yield Format("captions-of-a-split", 1, _captions_of_split, lambda f: read_captions(f, "train", ["a", "b"]))
    yield Format(
        "classes", 1, lambda f: _text(f / "classes.txt", "sky\nKäfer\n"), lambda f: read_classes(f / "classes.txt")
    )
    yield Format("palette", 2, lambda f: _text(f / "palette.txt", _PALETTE), _read_palette)
    yield Format("split", 2, _make_split, lambda f: read_split(f / "split.json", NAMES))
    yield Format("data-set", 4, _make_data_set, _read_data_set)
    yield Format("ddpm-segmentation-set", 2, _make_ddpm, _read_ddpm)
    yield Format("captioned-images", 2, _make_captioned, _read_captioned)
    for name, make, read in formats_of_pairs():
        yield Format(name, 2, make, read)


_CAPTIONS = {
    "captions.txt": "a.png\ta horse\nb.png\tein Käfer\n",
    "captions.csv": 'image,caption\na.png,a horse\nb.png,"a car, red"\n',
    "captions.tsv": "image\tcaption\na.png\ta horse\nb.png\ta car\n",
    "captions.json": json.dumps({"a.png": "a horse", "b.png": "a car"}),
    "captions.jsonl": '{"image": "a.png", "caption": "a horse"}\n{"image": "b.png", "caption": "a car"}\n',
}
_PALETTE = "0 0 0 sky\n255 0 0 horse\n"


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _labels() -> np.ndarray:
    return (np.arange(64 * 48).reshape(48, 64) // 700 % 2).astype(np.uint8)


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    extra = {"exif": _turned()} if path.suffix == ".jpg" else {}
    Image.fromarray(values).save(path, **extra)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


def _mask(path: Path, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = _labels()
    if mode == "RGB":
        Image.fromarray(np.stack([labels * 255, labels * 0, labels * 0], -1)).save(path)
    elif mode == "P":
        image = Image.fromarray(labels).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(path)
    else:
        Image.fromarray(labels.astype(np.uint16) if mode == "I;16" else labels).save(path)


def _read_images(folder: Path) -> None:
    for path in _any(folder, "a.*"):
        image_size(path)
        read_image(path)


def _any(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern; the folder's own name where there is none, which readers must refuse too."""
    return sorted(folder.glob(pattern)) or [folder / pattern.replace("*", "png")]


def _read_masks(folder: Path) -> None:
    reader = MaskReader(("sky", "horse"), LabelMap(2), Palette(("sky", "horse"), ((0, 0, 0), (255, 0, 0))))
    for path in _any(folder, "a.*"):
        mask_header(path)
        reader.read(path)


def _captions_of_split(folder: Path) -> None:
    (folder / "captions/train").mkdir(parents=True)
    _text(folder / "captions/train/a.txt", "a horse")
    _text(folder / "captions/train/b.txt", "a car")


def _read_palette(folder: Path) -> None:
    palette = read_palette(folder / "palette.txt")
    palette.of(("sky", "horse"), folder / "palette.txt")


def _make_split(folder: Path) -> None:
    write_split(folder / "split.json", random_split(2, 3, 0), NAMES, {"seed": 0})


def _make_data_set(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            _image(folder / f"images/{split}/{name}.png")
            _mask(folder / f"masks/{split}/{name}.png")
    _text(folder / "classes.txt", "sky\nhorse\n")
    _text(folder / "palette.txt", _PALETTE)
    _text(folder / "captions.txt", "".join(f"{split}/{name}\ta horse\n" for split in ("train", "val") for name in "ab"))


def _read_data_set(folder: Path) -> None:
    FolderDataModule(root=str(folder)).check()
    data = FolderDataModule(root=str(folder), batch_size=2, num_workers=0)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))


def _make_ddpm(folder: Path) -> None:
    for split in ("train", "test"):
        place = folder / "horse_21/real" / split
        place.mkdir(parents=True)
        for name in "ab":
            _image(place / f"{name}.png")
            np.save(place / f"{name}.npy", _labels())


def _read_ddpm(folder: Path) -> None:
    data = DDPMSegmentationDataModule(root=str(folder), key="horse_21", train=2, test=2)
    data.check()
    for split in data.splits:
        source = data.make_source(split)
        for index in range(len(source)):
            source.load(index)


def _make_captioned(folder: Path) -> None:
    for name in "ab":
        _image(folder / f"{name}.png")
        _text(folder / f"{name}.txt", "a horse")


def _read_captioned(folder: Path) -> None:
    data = CaptionedImages(root=str(folder), size=32, batch_size=2)
    data.setup("fit")
    next(iter(data.train_dataloader()))


# weights


def _of_weights() -> Iterator[Format]:
    tensors = load_file(LORA)
    peft = {f"base_model.model.{key.removeprefix('unet.')}": value for key, value in tensors.items()}
    yield Format("lora", 5, lambda f: shutil.copy(LORA, f / "lora.safetensors"), _read_lora)  # type: ignore[arg-type]
    yield Format("lora-of-peft", 5, lambda f: _make_peft(f, peft), _read_peft)
    yield Format("lora-of-kohya", 3, lambda f: _make_kohya(f, tensors), _read_lora)
    yield Format("checkpoint-pt", 4, _make_checkpoint, lambda f: read_checkpoint(f / "a.pt"))
    yield Format("checkpoint-safetensors", 2, _make_plain, lambda f: read_checkpoint(f / "a.safetensors"))
    yield Format("learned-tokens-pt", 3, _make_tokens, lambda f: read_learned_tokens(f / "a.pt", _parts()))
    yield Format("learned-prompt", 2, _make_prompt, lambda f: read_learned_prompt(f / "a.safetensors", _parts()))
    yield Format("diffusers-folder", 4, _copy_tiny, lambda f: load_unet_backbone(weights=str(f)))
    yield Format("controlnet", 3, lambda f: _copy(TINY / "controlnet", f), _read_controlnet)
    yield Format("controlnet-of-shards", 3, _make_shards, _read_controlnet)
    yield Format("single-file", 2, _make_single, _read_single, whole=False)
    yield Format("adm-folder", 2, _make_adm, lambda f: load_adm_backbone(weights=str(f), native_size=16))
    yield Format("adm-checkpoint", 2, _make_adm_checkpoint, lambda f: load_adm_backbone(weights=str(f / "a.pt")), False)


@cache
def _backbone() -> Any:
    return load_unet_backbone()


def _parts() -> Any:
    return _backbone().adapted_parts


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _copy_tiny(folder: Path) -> None:
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        _copy(TINY / part, folder / part)
    shutil.copy(TINY / "model_index.json", folder)


def _read_lora(folder: Path) -> None:
    read_adapter(folder / "lora.safetensors", _parts())


def _make_kohya(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The same LoRA under kohya's names, with an alpha for every layer."""
    renamed: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        layer, _, kind = key.removesuffix(".weight").removeprefix("unet.").rpartition(".lora_")
        name = "lora_unet_" + layer.replace(".", "_")
        renamed[f"{name}.lora_{'down' if kind == 'A' else 'up'}.weight"] = value
        renamed[f"{name}.alpha"] = torch.tensor(float(min(value.shape)))
    save_file(renamed, folder / "lora.safetensors", {"ss_network_module": "networks.lora"})


def _make_peft(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    _text(folder / "adapter_config.json", json.dumps({**settings, "rank_pattern": {}, "alpha_pattern": {}}))


def _read_peft(folder: Path) -> None:
    backbone = _without_adapters()
    backbone.require_adapter("one", str(folder / "adapter_model.safetensors"))


def _without_adapters() -> Any:
    """The tiny backbone without adapters: those of former inputs are dropped."""
    backbone = _backbone()
    backbone.adapters.adapters.clear()
    return backbone


def _make_checkpoint(folder: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.ones(4, 3), "conv.bias": torch.zeros(4)}}, folder / "a.pt")


def _make_plain(folder: Path) -> None:
    save_file({"conv.weight": torch.ones(4, 3)}, folder / "a.safetensors", {"format": "pt"})


def _make_tokens(folder: Path) -> None:
    width = _parts()["text_encoder"].get_input_embeddings().weight.shape[1]
    torch.save({"string_to_param": {"*": torch.ones(2, width)}, "name": "thing", "step": 3}, folder / "a.pt")


def _make_prompt(folder: Path) -> None:
    width = _parts()["text_encoder"].get_input_embeddings().weight.shape[1]
    save_file({"prompt": torch.ones(7, width)}, folder / "a.safetensors")


def _read_controlnet(folder: Path) -> None:
    backbone = _without_adapters()
    if "fuzzed" in backbone.controlnets:
        del backbone.controlnets["fuzzed"]
    backbone.controlnet_sources["fuzzed"] = str(folder)
    backbone.require_controlnet("fuzzed")


def _make_shards(folder: Path) -> None:
    ControlNetModel.from_pretrained(TINY / "controlnet").save_pretrained(folder, max_shard_size="2MB")


def _make_single(folder: Path) -> None:
    unet = "model.diffusion_model."
    names = {
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    }
    save_file({unet + name: torch.ones(shape) for name, shape in names.items()}, folder / "a.safetensors")


def _read_single(folder: Path) -> None:
    load_unet_backbone(weights=str(folder / "a.safetensors"), tokenizer=str(TINY / "tokenizer"), offline=True)


def _make_adm(folder: Path) -> None:
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
    )
    unet.save_pretrained(folder)


def _make_adm_checkpoint(folder: Path) -> None:
    names = {"input_blocks.0.0.weight": (32, 3, 3, 3), "time_embed.0.weight": (128, 32), "out.2.weight": (6, 32, 3, 3)}
    torch.save({name: torch.ones(shape) for name, shape in names.items()}, folder / "a.pt")


# features


def _of_stored_features() -> Iterator[Format]:
    yield Format("feature-file", 3, _make_features, lambda f: read_features(f / "a.safetensors"))
    yield Format("feature-folder", 2, _make_features, _read_feature_folder)
    yield Format("feature-arrays", 2, _make_arrays, _read_arrays)
    yield Format("labelled-images", 3, _make_labelled, _read_labelled)


_FEATURES = {"plain": {"up": torch.ones(2, 3, 4), "mid": torch.ones(2, 2, 2)}}
_KEY = "0" * 32


def _make_features(folder: Path) -> None:
    FeatureFolder(folder, {"seed": 0}).write("a", _KEY, _FEATURES)


def _read_feature_folder(folder: Path) -> None:
    store = FeatureFolder(folder, {"seed": 0})
    store.holds("a", _KEY)
    store.read("a", _KEY)


def _make_arrays(folder: Path) -> None:
    ArrayFolder(folder, {"seed": 0}).write("a", _KEY, _FEATURES)


def _read_arrays(folder: Path) -> None:
    ArrayFolder(folder, {"seed": 0}).holds("a", _KEY)


def _make_labelled(folder: Path) -> None:
    store = LabelledFolder(folder)
    entry = Entry(image="a.png", name="a", uncertainty=0.5, mean_divergence=0.1, classes="sky")
    record = folder / ".records/a.json"
    record.parent.mkdir()
    _text(record, json.dumps(entry.__dict__))
    store.write_table([entry])


def _read_labelled(folder: Path) -> None:
    store = LabelledFolder(folder)
    if store.holds("a"):
        store.entry("a")
    if any(not math.isfinite(entry.uncertainty) for entry in store.read_table()):
        raise ValueError("an uncertainty that is not finite was read")


# runs


def _of_runs() -> Iterator[Format]:
    yield Format("run-folder-compared", 5, _make_run, _compare)
    yield Format("run-folder-loaded", 3, _make_run, _load)


_SMALL = (
    "dataset.train=2",
    "dataset.val=2",
    "dataset.test=2",
    "dataset.batch_size=2",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "callbacks=quiet",
    "logger=csv",
    "techniques=none",
    "head=linear",
    "layers=[up-level2-upsampler-out]",
)


@cache
def _run_files() -> dict[str, bytes]:
    """Files of a run of one step."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        train(composed(*_SMALL), list(_SMALL), Path(place))
        wanted = (".yaml", ".json", ".csv", ".ckpt")
        found = [path for path in Path(place).rglob("*") if path.suffix in wanted]
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def _make_run(folder: Path) -> None:
    for name, content in _run_files().items():
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _compare(folder: Path) -> None:
    compare(runs=str(folder), output=str(folder / "table"), metric="val/mIoU")


def _load(folder: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    load_run(folder / "run").predict(Image.open(io.BytesIO(_png(image))))


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()
