"""Training of the denoising parts: reproducible batches, exact resuming, export."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.callbacks.state.ema import WeightAverage
from gate_lightning.callbacks.state.export import Export, export_checkpoint
from gate_lightning.data.pretraining.datamodule import EndlessBatches, RenderedScenes, SceneImages
from gate_lightning.data.pretraining.latents import CAPTION_SHARES, SceneLatents, build_cache, wordings
from gate_lightning.data.scenes import sample_scene
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.autoencoder import AutoencoderTask
from gate_lightning.tasks.pretraining.encoding import FolderEncoder
from gate_lightning.tasks.pretraining.objective import loss_weights, spread_timesteps
from gate_lightning.tasks.pretraining.optimisation import trapezoid
from gate_lightning.tasks.pretraining.unet import UNetTask


class PooledEncoder:
    """A stand-in for the autoencoder: average-pooled images as latents."""

    identity = "pooled"

    def latents(self, pixels: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(pixels, 4)
        return torch.cat([pooled, pooled.mean(dim=1, keepdim=True)], dim=1)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([[len(c)] * tiny.MAX_TOKENS for c in captions])


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


def test_trapezoid_rises_holds_and_falls_to_zero() -> None:
    assert trapezoid(0, 1000, 100, 0.2) == pytest.approx(0.01)
    assert trapezoid(500, 1000, 100, 0.2) == 1.0
    assert trapezoid(900, 1000, 100, 0.2) == pytest.approx(0.5)
    assert trapezoid(1000, 1000, 100, 0.2) == 0.0
    assert trapezoid(10**9, -1, 100, 0.2) == 1.0


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


def test_endless_batches_share_each_pass_between_processes_and_continue() -> None:
    ranks = [list(islice(EndlessBatches(12, 3, seed=1, rank=r, world_size=2), 4)) for r in (0, 1)]
    first_pass = [draw for batches in ranks for batch in batches[:2] for draw in batch]
    second_pass = [draw for batches in ranks for batch in batches[2:] for draw in batch]
    assert sorted(first_pass) == list(range(12))
    assert sorted(second_pass) == list(range(12, 24))
    assert next(iter(EndlessBatches(12, 3, seed=1, start=3, rank=1, world_size=2))) == ranks[1][3]


def test_rendered_scenes_spread_the_target_domain() -> None:
    scenes = RenderedScenes(20, first_seed=5, target_share=0.2)
    domains = [scenes[i]["domain"] for i in range(20)]
    assert sum(domains) == 4
    assert not any(a and b for a, b in pairwise(domains))
    assert scenes[3]["pixels"].shape == (3, 64, 64)
    torch.testing.assert_close(scenes[23]["pixels"], scenes[3]["pixels"])


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
    build_cache(tmp_path / "a.safetensors", PooledEncoder(), 7, 6, processes=1)
    build_cache(tmp_path / "b.safetensors", PooledEncoder(), 7, 6, processes=2)
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in ("latents", "tokens"))
    assert not list(tmp_path.glob("*.tmp"))


def unet_data(folder: Path) -> SceneLatents:
    data = SceneLatents(PooledEncoder(), folder, train_length=6, val_length=4, batch_size=2, processes=1)
    data.prepare_data()
    return data


def unet_task() -> UNetTask:
    torch.manual_seed(0)
    return UNetTask(warmup=1, decay_share=0.0)


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


def test_export_writes_the_average_and_training_keeps_its_own(tmp_path: Path) -> None:
    task, average = unet_task(), WeightAverage(0.5)
    trainer(tmp_path, 2, average, Export(tmp_path / "model")).fit(task, unet_data(tmp_path / "cache"))
    written = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    wanted = average.state_dict()["average"]["unet.conv_in.weight"]
    torch.testing.assert_close(written["conv_in.weight"], wanted.half())
    assert not torch.equal(task.unet.conv_in.weight, wanted)
    # the same from the checkpoint, as for a run that is still going
    step = export_checkpoint(unet_task(), tmp_path / "checkpoints" / "last.ckpt", tmp_path / "again")
    assert step == 2
    again = load_file(tmp_path / "again" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(again[key], written[key]) for key in written)


def test_autoencoder_trains_and_is_exported_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = SceneImages(train_length=8, val_length=8, batch_size=2, val_batch_size=4)
    task = AutoencoderTask(warmup=1)
    trainer(tmp_path, 2, Export(tmp_path / "model")).fit(task, data)
    encoder = FolderEncoder(tmp_path / "model")
    pixels = torch.stack([data.val_set[i]["pixels"] for i in range(8) if not data.val_set[i]["domain"]])
    latents = encoder.latents(pixels)
    assert latents.shape[1:] == (4, 16, 16)
    np.testing.assert_allclose(latents.std(dim=(0, 2, 3)), 1.0, atol=0.05)
    assert encoder.tokens(["a red car", ""]).shape == (2, tiny.MAX_TOKENS)


def test_missing_autoencoder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiment=tiny/autoencoder"):
        _ = FolderEncoder(tmp_path).identity


def test_average_refuses_other_weights(tmp_path: Path) -> None:
    average = WeightAverage(0.9)
    average.load_state_dict({"average": {"other": torch.zeros(1)}})
    with pytest.raises(ConfigError, match="other"):
        trainer(tmp_path, 2, average).fit(unet_task(), unet_data(tmp_path / "cache"))


def test_a_model_folder_is_trained_further_from_its_own_weights() -> None:
    task, folder = UNetTask(start_from="tiny"), Path(tiny.__file__).parents[1] / "assets" / "tiny"
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, stored[name].float()) for name, value in task.unet.state_dict().items())
    words = load_file(folder / "text_encoder" / "model.safetensors")
    name = next(name for name in words if name.endswith("token_embedding.weight"))
    assert torch.equal(task.text_encoder.get_input_embeddings().weight, words[name].float())
    assert all(p.requires_grad for p in task.parameters())
    assert task.unet.training and task.text_encoder.training


def test_a_model_of_another_vocabulary_is_not_trained_further() -> None:
    with pytest.raises(ConfigError, match=r"knows \d+ tokens, the tokenizer of this task \d+"):
        UNetTask(words=["other"], start_from="tiny")
