"""Training of the denoising parts: reproducible batches, exact resuming, export."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.callbacks.state.ema import WeightAverage
from gate_lightning.callbacks.state.export import Export
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.datamodule import SceneImages
from gate_lightning.data.pretraining.latents import CAPTION_SHARES, SceneLatents, build_cache, wordings
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.errors import ConfigError
from gate_lightning.ops.edges import canny
from gate_lightning.tasks.pretraining.autoencoder import AutoencoderTask
from gate_lightning.tasks.pretraining.denoising import loss_weights, spread_timesteps
from gate_lightning.tasks.pretraining.tiny_parts import FolderEncoder, untrained_backbone
from gate_lightning.tasks.pretraining.unet import UNetTask
from gate_lightning.tasks.schedules import constant
from tests.support.small_networks import build

ADAM = partial(torch.optim.AdamW, lr=1e-3)


def test_what_is_trained_has_weights_in_float32() -> None:
    for made in (AutoencoderTask, UNetTask):
        with pytest.raises(ConfigError, match=r"backbone\.dtype is torch\.bfloat16"):
            made(build("tiny").finish("bfloat16", False), ADAM)


class PooledEncoder:
    """A stand-in for the autoencoder: average-pooled images as latents."""

    identity = "pooled"

    def latents(self, pixels: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(pixels, 4)
        return torch.cat([pooled, pooled.mean(dim=1, keepdim=True)], dim=1)


def trainer(folder: Path, steps: int, *callbacks: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=2,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder / "checkpoints", every_n_train_steps=2, save_last=True), *callbacks],
    )


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "balanced"])
def test_loss_weights_have_mean_one(weighting: Any) -> None:
    weights = loss_weights(tiny.build_scheduler().alphas_cumprod, weighting)
    assert weights.mean() == pytest.approx(1.0, abs=1e-5)
    assert (weights > 0).all()


def test_unknown_weighting_is_refused() -> None:
    with pytest.raises(ConfigError, match="balanced"):
        loss_weights(torch.full((4,), 0.5), "heavy")  # type: ignore[arg-type]


def test_spread_timesteps_cover_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = sum(torch.bincount(spread_timesteps(16, 1000, generator), minlength=1000) for _ in range(500))
    assert counts.sum() == 8000
    assert (counts > 0).float().mean() > 0.99


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_target_leads_back_to_the_latents(prediction_type: str) -> None:
    """Noisy latents and target determine the latents: solved here as each kind of prediction is defined."""
    backbone = build("one_repeat")
    backbone.schedule.prediction_type = prediction_type
    task = UNetTask(backbone, ADAM)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = CaptionedBatch(("", "", ""), latents=latents)
    noisy, timesteps, target = task.noised(batch, task.generator("validation", 0))
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    signal, sigma = (part[timesteps].float().view(-1, 1, 1, 1) for part in (alphas.sqrt(), (1 - alphas).sqrt()))
    solved = {
        "epsilon": (noisy - sigma * target) / signal,
        "v_prediction": signal * noisy - sigma * target,
        "sample": target,
    }
    torch.testing.assert_close(solved[prediction_type], latents, atol=1e-3, rtol=1e-3)


def test_captions_of_different_lengths_are_each_read_whole() -> None:
    task = UNetTask(untrained_backbone(), ADAM)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    noised = task.noised(CaptionedBatch(("",) * 3, latents=latents), task.generator("training", 0))
    captions = ["a red car", "a red car on grass " * 12, ""]
    together = task.error(*noised, captions)
    alone = [task.error(*(part[row : row + 1] for part in noised), captions[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_rendered_scenes_spread_the_target_domain() -> None:
    data = SceneImages(train_length=20, val_length=2)
    data.setup()
    batch = data.source("train")[[SampleRequest(index) for index in range(20)]]
    domains = batch.labels["domain"].tolist()
    assert sum(domains) == 4
    assert not any(a and b for a, b in pairwise(domains))
    assert batch.images.shape == (20, 3, 64, 64)


def test_every_scene_has_all_wordings() -> None:
    for seed in range(20):
        spec = sample_scene(seed)
        texts = dict(zip(CAPTION_SHARES, wordings(spec), strict=True))
        assert texts["empty"] == ""
        assert texts["coarse"] == "a photo"
        assert all(f"{o.color} {o.kind}" in texts["short"] for o in spec.objects)
    assert sum(CAPTION_SHARES.values()) == pytest.approx(1.0)


@pytest.mark.slow
def test_cache_is_the_same_whatever_the_number_of_processes(tmp_path: Path) -> None:
    build_cache(tmp_path / "a.safetensors", PooledEncoder(), range(7, 13), processes=1)
    build_cache(tmp_path / "b.safetensors", PooledEncoder(), range(7, 13), processes=2)
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in ("latents", "captions"))
    assert not list(tmp_path.glob("*.tmp"))


def unet_data(folder: Path, **settings: Any) -> SceneLatents:
    data = SceneLatents(
        PooledEncoder(), folder, **{"train_length": 6, "val_length": 4, "batch_size": 2, "processes": 1, **settings}
    )
    data.prepare_data()
    return data


def test_latents_captions_and_edges_belong_to_one_scene(tmp_path: Path) -> None:
    data = unet_data(tmp_path, make_control=partial(canny, low=60, high=110))
    data.setup()
    batch = data.source("train")[[SampleRequest(3, epoch=1), SampleRequest(1, epoch=1)]]
    for row, index in enumerate((3, 1)):
        spec = sample_scene(10_000_000 + index)
        assert batch.captions[row] in wordings(spec)
        image = data.image("train", index)
        pooled = PooledEncoder().latents(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1)
        torch.testing.assert_close(batch.latents[row], pooled[0], atol=2e-3, rtol=0)
        edges = torch.from_numpy(canny(image, low=60, high=110)).float() / 255
        torch.testing.assert_close(batch.control_images[row], edges.expand(3, -1, -1) if edges.ndim == 2 else edges)
    drawn = {data.source("train")[[SampleRequest(3, epoch)]].captions for epoch in range(20)}
    assert len(drawn) > 3
    assert data.source("val")[[SampleRequest(0)]].captions == (wordings(sample_scene(9_000_000))[0],)


def unet_task() -> UNetTask:
    return UNetTask(untrained_backbone(), ADAM, partial(constant, warmup_steps=0))


@pytest.mark.slow
def test_a_resumed_unet_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    data = unet_data(tmp_path / "cache")
    straight = unet_task()
    averages = [WeightAverage(0.9), WeightAverage(0.9)]
    trainer(tmp_path / "straight", 4, averages[0]).fit(straight, data)

    trainer(tmp_path / "broken", 2, WeightAverage(0.9)).fit(unet_task(), unet_data(tmp_path / "cache"))
    resumed = unet_task()
    torch.manual_seed(99)  # the global generator must not matter
    trainer(tmp_path / "broken", 4, averages[1]).fit(
        resumed,
        unet_data(tmp_path / "cache"),
        ckpt_path=tmp_path / "broken" / "checkpoints" / "last.ckpt",
        weights_only=False,
    )
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name, rtol=0, atol=0)
    first, second = (a.state_dict()["average"] for a in averages)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_export_writes_the_average_and_training_keeps_its_own(tmp_path: Path) -> None:
    task, average = unet_task(), WeightAverage(0.5)
    trainer(tmp_path, 2, average, Export(tmp_path / "model")).fit(task, unet_data(tmp_path / "cache"))
    written = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    wanted = average.state_dict()["average"]["backbone.unet.conv_in.weight"]
    torch.testing.assert_close(written["conv_in.weight"], wanted.half())
    assert not torch.equal(task.backbone.unet.conv_in.weight, wanted)


def test_autoencoder_trains_and_is_exported_folded(tmp_path: Path) -> None:
    data = SceneImages(train_length=8, val_length=8, batch_size=2, eval_batch_size=4)
    task = AutoencoderTask(untrained_backbone(), ADAM)
    trainer(tmp_path, 2, Export(tmp_path / "model")).fit(task, data)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("backbone.vae.") for name in checkpoint["state_dict"])
    encoder = FolderEncoder(tmp_path / "model")
    batch = data.source("val")[[SampleRequest(index) for index in range(8)]]
    latents = encoder.latents(batch.images[batch.labels["domain"] == 0])
    assert latents.shape[1:] == (4, 16, 16)
    np.testing.assert_allclose(latents.std(dim=(0, 2, 3)), 1.0, atol=0.05)


def test_missing_autoencoder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiment=tiny/autoencoder"):
        _ = FolderEncoder(tmp_path).identity


def test_average_refuses_other_weights(tmp_path: Path) -> None:
    average = WeightAverage(0.9)
    average.load_state_dict({"average": {"other": torch.zeros(1)}})
    with pytest.raises(ConfigError, match="other"):
        trainer(tmp_path, 2, average).fit(unet_task(), unet_data(tmp_path / "cache"))


def test_a_model_is_trained_further_from_its_own_weights() -> None:
    task, folder = UNetTask(load_unet_backbone("tiny"), ADAM), Path(tiny.__file__).parents[2] / "assets" / "tiny"
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    unet = task.backbone.unet.state_dict()
    assert all(torch.equal(unet[name], value.float()) for name, value in stored.items())
    trained = {name.split(".")[1] for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {"unet", "text_encoder"}
