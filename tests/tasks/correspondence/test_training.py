"""Networks trained on the keypoints of pairs: they learn what tells places apart, and are chosen by validation."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from gate_lightning.heads.descriptors import ConvDescriptors
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.structures import Conditions, FeatureInfo, Features, Pair
from gate_lightning.tasks.correspondence.semantic import SemanticCorrespondence
from tests.examples.pairs_data import PairsDataModule, ShiftedImages, ShiftedPairs
from tests.support.correspondence import KEY, SETTINGS, ColourExtractor, configured


class DistractedExtractor(ColourExtractor):
    """Colours of pixels, and in a second branch noise of the image's own that tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = {"colours": {"x": FeatureInfo(3, 1)}, "noise": {"x": FeatureInfo(3, 1)}}

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        maps = []
        for image, name in zip(images, conditions.sample_ids, strict=True):
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            maps.append(torch.randn(image.shape, generator=generator))
        return {"colours": {"x": images.clone()}, "noise": {"x": torch.stack(maps)}}


class ManyPairs(PairsDataModule):
    """As many as are needed to learn from; those for validation are others."""

    def make_source(self, split: str) -> Any:
        images = ShiftedImages(split, 64 if split == "train" else 80)
        return ShiftedPairs(images) if split == "train" else images

    @cache  # noqa: B019 - the pairs of a split are the same objects
    def pairs_of(self, split: str) -> tuple[Pair, ...]:
        return tuple(ShiftedImages(split, 80).pair(number) for number in range(64, 80))

    share_of = pairs_of


def trained(task: SemanticCorrespondence, steps: int, folder: Path) -> tuple[float, float]:
    """PCK on validation pairs before and after."""
    settings: dict[str, Any] = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}
    data = ManyPairs(batch_size=4)
    scores = [Trainer(**settings).validate(task, data, verbose=False)[0][f"val/{KEY}"]]
    Trainer(**settings, max_steps=steps, num_sanity_val_steps=0, limit_val_batches=0).fit(task, data)
    scores.append(Trainer(**settings).validate(task, data, verbose=False)[0][f"val/{KEY}"])
    return scores[0], scores[1]


def task_of(amalgamation: Any, head: Any = None) -> SemanticCorrespondence:
    torch.manual_seed(0)
    extractor = DistractedExtractor()
    fused = amalgamation(extractor.feature_info)
    own = None if head is None else head(fused.out_channels)
    return SemanticCorrespondence(
        extractor, fused, ReadOut(), own, optimizer=partial(torch.optim.AdamW, lr=0.03), thresholds=("img",)
    )


@pytest.mark.slow
def test_a_convolution_learns_to_leave_out_what_tells_nothing(tmp_path: Path) -> None:
    before, after = trained(task_of(ConcatAmalgamation, ConvDescriptors), 120, tmp_path)
    assert before < 0.2 and after > 0.8


@pytest.mark.thorough
def test_branch_weights_are_trained(tmp_path: Path) -> None:
    task = task_of(partial(WeightedAmalgamation, joined=True, dropout=0.0, hidden_channels=8))

    def loss() -> float:
        """Of all training pairs."""
        task.log, task.log_dict = (lambda *_, **__: None), (lambda *_, **__: None)  # type: ignore[method-assign]
        found = [task.training_step(batch, 0).item() for batch in ManyPairs(batch_size=4).train_dataloader()]
        del task.log, task.log_dict
        return sum(found) / len(found)

    before = loss()
    trained(task, 100, tmp_path)
    assert loss() < 0.9 * before


def test_images_of_different_sizes_are_described_apart() -> None:
    torch.manual_seed(0)
    extractor = ColourExtractor()
    fused = ConcatAmalgamation(extractor.feature_info)
    task = SemanticCorrespondence(extractor, fused, ReadOut(), ConvDescriptors(fused.out_channels))
    logged: dict[str, Any] = {}
    task.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batch = next(iter(PairsDataModule(batch_size=2).train_dataloader()))
    together = task.training_step(batch, 0)
    # one more row of pixels, in which no keypoint lies
    taller = replace(batch.target, images=torch.cat([batch.target.images, batch.target.images[:, :, -1:]], dim=2))
    apart = task.training_step(replace(batch, target=taller), 0)
    assert apart.isfinite() and abs((apart - together).item()) < 0.3 and set(logged) == {"train/loss"}


def test_a_run_is_trained_evaluated_and_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gate_lightning")
    run = tmp_path / "run"
    own = ("head=conv_descriptors", "trainer.max_steps=8", "trainer.val_check_interval=4", "callbacks.report=null")
    own = (*own, f"monitor=val/{KEY}", "optimizer.lr=0.01")
    found = train(configured(*own, name="train"), [*SETTINGS, *own], run)
    assert {f"val/{KEY}", f"test/{KEY}"} <= set(found)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {"head.conv.weight"}
    again = evaluate(configured(f"run={run}", "trust=true", "split=test"), [f"run={run}", "trust=true"], tmp_path / "x")
    assert again[f"test/{KEY}"] == pytest.approx(found[f"test/{KEY}"])
    results, where = (record.getMessage() for record in caplog.records[-2:])
    assert results.startswith(f"test/{KEY} ") and results.count("PCK_") == 4
    assert where == f"all {len(again)} metrics, as fractions: {run / 'metrics_test.json'}"


def test_what_has_no_weights_is_not_trained_and_what_has_some_is_not_measured_untrained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train here"):
        train(configured(name="train"), SETTINGS, tmp_path / "trained")
    own = ("head=conv_descriptors",)
    with pytest.raises(ConfigError, match="head has weights that nobody has trained"):
        evaluate(configured(*own), [*SETTINGS, *own], tmp_path / "measured")
    assert json.loads((tmp_path / "measured" / "status.json").read_text())["status"] == "failed"


def test_a_metric_that_validation_does_not_give_is_told_before_training(tmp_path: Path) -> None:
    own = ("head=conv_descriptors", "trainer.max_steps=1", "monitor=val/PCK_0.10_bbx_per-image_le")
    with pytest.raises(ConfigError, match=r"gives no such metric.*did you mean val/PCK_0\.10_.*there are: val/PCK"):
        train(configured(*own, name="train"), [*SETTINGS, *own], tmp_path)


@pytest.mark.thorough
def test_a_metric_that_was_not_measured_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = ("monitor=test/PCK_0.10_igm_per-image_le",)
    evaluate(configured(*own), [*SETTINGS, *own], tmp_path / "run")
    assert "was not measured; did you mean test/PCK_0.10_img_per-image_le" in caplog.text
