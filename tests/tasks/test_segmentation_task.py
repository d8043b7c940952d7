from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.data.core.prediction import PredictionBatch
from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.heads.linear import LinearHead
from gate_lightning.losses.contrastive import KeypointContrastiveLoss
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.metrics.boundary import BoundaryMetrics
from gate_lightning.metrics.segmentation import SegmentationMetrics
from gate_lightning.structures import Conditions, ImageBatch, SegmentationBatch
from gate_lightning.tasks.inference import Inference
from gate_lightning.utils.files import differences
from tests.support.segmentation_fakes import LABELS, FakeData, FakeExtractor, make_task, make_trainer


def random_batch(height: int, width: int, masked: bool = True, count: int = 2) -> SegmentationBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, height, width, generator=generator) * 2 - 1
    masks = torch.randint(0, 3, (count, height, width), generator=generator) if masked else None
    conditions = Conditions(tuple(f"p{i}" for i in range(count)))
    return ImageBatch(images, conditions) if masks is None else SegmentationBatch(images, conditions, masks)


def test_logits_are_the_upsampled_head_on_the_amalgamated_features() -> None:
    task, batch = make_task().eval(), random_batch(16, 24)
    features = task.extractor(batch.images, batch.conditions)
    expected = task.head(task.amalgamation(features).levels)
    expected = interpolate(expected, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.equal(task.infer(batch.images, batch.conditions), expected)


def test_odd_sizes_are_padded_for_the_backbone_and_cropped_back() -> None:
    task, batch = make_task().eval(), random_batch(13, 19)
    logits = task.infer(batch.images, batch.conditions)
    assert logits.shape == (2, 3, 13, 19)
    mirrored = torch.nn.functional.pad(batch.images, (0, 5, 0, 3), mode="reflect")
    assert torch.equal(logits, task.infer(mirrored, batch.conditions)[..., :13, :19])


def test_controls_are_padded_with_the_image() -> None:
    task, batch = make_task().eval(), random_batch(13, 19)
    conditions = Conditions(batch.conditions.sample_ids, control_images={"canny": batch.images})
    task.infer(batch.images, conditions)
    assert task.extractor.seen[-1].control_images["canny"].shape == (2, 3, 16, 24)


def test_sliding_windows_key_the_noise_by_their_offset() -> None:
    task, batch = make_task(inference=Inference("slide", crop_size=16, stride=8)).eval(), random_batch(16, 32)
    task.infer(batch.images, batch.conditions)
    assert [c.windows[0] for c in task.extractor.seen] == [(0, 0), (0, 8), (0, 16)]


def test_prediction_has_the_size_of_the_file() -> None:
    task, batch = make_task().eval(), random_batch(16, 24, masked=False)
    assert task.predict_step(batch, 0).shape == (2, 16, 24)
    of_files = PredictionBatch(batch.images, batch.conditions, ("a.png", "b.png"), ((40, 61), (40, 61)))
    labels = task.predict_step(of_files, 0)
    assert labels.shape == (2, 40, 61)
    assert labels.dtype == torch.int64
    mixed = PredictionBatch(batch.images, batch.conditions, ("a.png", "b.png"), ((40, 61), (61, 40)))
    with pytest.raises(ConfigError, match="sizes"):
        task.predict_step(mixed, 0)


@pytest.mark.parametrize("val_size", [(16, 16), (21, 30)])
def test_validation_counts_every_labelled_pixel_once(tmp_path: Path, val_size: tuple[int, int]) -> None:
    task, data = make_task().eval(), FakeData(val_size)
    (result,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    confusion, losses, pixels = np.zeros((3, 3)), 0.0, 0
    source = data.source("val")
    for index in range(3):
        sample = source.load(index)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            logits = task.infer(image, Conditions((sample.sample_id,)))[0].numpy()
        for y, x in np.ndindex(*val_size):
            truth = sample.mask[y, x]
            if truth != 255:
                confusion[truth, logits[:, y, x].argmax()] += 1
                losses += np.log(np.exp(logits[:, y, x]).sum()) - logits[truth, y, x]
                pixels += 1
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    assert result["val/mIoU"] == pytest.approx(np.mean(confusion.diagonal() / union), abs=1e-6)
    assert result["val/aAcc"] == pytest.approx(confusion.trace() / confusion.sum(), abs=1e-6)
    assert result["val/mAcc"] == pytest.approx(np.mean(confusion.diagonal() / confusion.sum(1)), abs=1e-6)
    assert result["val/loss"] == pytest.approx(losses / pixels, rel=1e-4)
    assert task.per_class["val"]["sea"]["IoU"] == pytest.approx(confusion[1, 1] / union[1], abs=1e-6)


def test_boundary_iou_is_an_option(tmp_path: Path) -> None:
    task, data = make_task(boundary_ratio=0.1).eval(), FakeData()
    (result,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    expected = BoundaryMetrics(3, ratio=0.1)
    for index in range(3):
        sample = data.source("val").load(index)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            labels = task.label_maps(image, Conditions((sample.sample_id,)), (16, 16))
        expected.update(labels, torch.from_numpy(sample.mask)[None].long())
    assert result["val/boundary_mIoU"] == pytest.approx(expected.compute()["boundary_mIoU"].item())
    assert task.per_class["val"]["sea"]["boundary_IoU"] == expected.per_class()["1"]["boundary_IoU"]
    (again,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    assert again == pytest.approx(result)
    with pytest.raises(ConfigError, match="boundary_ratio"):
        make_task(boundary_ratio=2.0)


def test_several_views_evaluate_and_predict_alike(tmp_path: Path) -> None:
    task, data = make_task(inference=Inference(scales=[1, 1.5], flip=True)).eval(), FakeData((21, 30))
    (result,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    assert len(task.extractor.seen) == 4 * len(data.val_dataloader())
    metrics = SegmentationMetrics(3)
    for batch in data.val_dataloader():
        metrics.update(task.predict_step(batch, 0), batch.masks)
    assert metrics.compute()["mIoU"].item() == pytest.approx(result["val/mIoU"], abs=1e-6)
    assert 0.0 < result["val/loss"] < 10.0


def test_masks_may_be_larger_than_the_images() -> None:
    task = make_task().eval()
    batch = random_batch(16, 16)
    masks = torch.zeros(2, 33, 35, dtype=torch.int64)
    logits = interpolate(task.infer(batch.images, batch.conditions), size=(33, 35), mode="bilinear")
    assert torch.equal(task.predict_step(SegmentationBatch(batch.images, batch.conditions, masks), 0), logits.argmax(1))


class Logged(dict[str, float]):
    """What a training step logs, without a trainer."""

    def __init__(self, task: Any) -> None:
        task.log = lambda name, value, **_: self.__setitem__(name, float(value))
        task.log_dict = lambda values, **_: self.update({k: float(v) for k, v in values.items()})
        task._trainer = type("T", (), {"optimizers": [type("O", (), {"param_groups": [{"lr": 0.1}]})()]})()


def test_loss_adds_auxiliary_and_regularization_with_their_weights() -> None:
    torch.manual_seed(0)
    auxiliary = LinearHead((6, 6), (4, 8), 3)
    task, batch = make_task(auxiliary_head=auxiliary, auxiliary_weight=0.25, dropout=0.0).eval(), random_batch(16, 16)
    task.amalgamation.sparsity = 0.5
    logged = Logged(task)
    total = float(task.training_step(batch, 0).detach())
    pyramid = task.pyramid(batch.images, batch.conditions)
    parts = []
    for head in (task.head, auxiliary):
        logits = interpolate(head(pyramid.levels), size=(16, 16), mode="bilinear", align_corners=False)
        parts.append(float(torch.nn.functional.cross_entropy(logits, batch.masks).detach()))
    regularization = float(task.amalgamation.regularization(pyramid).detach())
    assert regularization != 0.0
    assert total == pytest.approx(parts[0] + 0.25 * parts[1] + regularization, rel=1e-5)
    assert logged["train/loss"] == pytest.approx(total)
    assert logged["train/loss_auxiliary"] == pytest.approx(0.25 * parts[1], rel=1e-5)
    weights = pyramid.weights[1].mean(dim=(0, 1))
    assert logged["weights/stride8/steered"] == pytest.approx(float(weights[1].detach()), rel=1e-5)
    assert logged["weights/stride4/plain"] + logged["weights/stride4/steered"] == pytest.approx(1.0)


def test_padding_is_not_trained_on() -> None:
    """The loss of an odd image equals that of its logits, cropped, against its mask."""
    task, batch = make_task(dropout=0.0).eval(), random_batch(13, 19)
    Logged(task)
    loss = task.training_step(batch, 0).detach()
    logits = task.infer(batch.images, batch.conditions)
    assert float(loss) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, batch.masks).detach()), rel=1e-6
    )


def test_images_without_masks_are_not_trained_on() -> None:
    with pytest.raises(ConfigError, match="without masks"):
        make_task().training_step(random_batch(16, 16, masked=False), 0)


def test_only_trainable_parts_learn_and_learn_something(tmp_path: Path) -> None:
    task, data = make_task(), FakeData()
    frozen = {name: value.clone() for name, value in task.extractor.named_parameters()}
    trained = {name: value.clone() for name, value in task.named_parameters() if value.requires_grad}
    (before,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    make_trainer(tmp_path, max_steps=40, val_check_interval=100).fit(task, data)
    (after,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    assert all(torch.equal(frozen[name], value) for name, value in task.extractor.named_parameters())
    assert all(not torch.equal(trained[name], value) for name, value in task.named_parameters() if name in trained)
    assert after["val/mIoU"] > before["val/mIoU"] + 0.2


def test_schedule_counts_optimiser_steps_not_batches(tmp_path: Path) -> None:
    task = make_task()
    trainer = make_trainer(tmp_path, max_steps=4, accumulate_grad_batches=3, val_check_interval=100)
    trainer.fit(task, FakeData())
    assert trainer.global_step == 4
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_schedule_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(make_task(), FakeData())


def test_checkpoint_holds_the_trainable_part_and_names_the_rest(tmp_path: Path) -> None:
    task = make_task(FakeExtractor(big=1_000_000))
    make_trainer(tmp_path, RunCheckpoint(2, "val/mIoU")).fit(task, FakeData())
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    expected = {name for name in task.state_dict() if not name.startswith("extractor")}
    assert set(checkpoint["state_dict"]) == expected
    # running statistics of normalisation belong to the trained part although no gradient reaches them
    assert "head.norms.0.running_mean" in expected
    assert checkpoint["frozen"] == task.extractor.description
    assert len(checkpoint["random_state"]) == 1
    assert path.stat().st_size < 200_000  # the extractor alone has 4 MB
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert "optimizer_states" not in best
    assert set(best["state_dict"]) == expected


def saved_state(task: Any) -> dict[str, Any]:
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    return checkpoint


def test_other_frozen_parts_are_refused_by_name() -> None:
    checkpoint = saved_state(make_task())
    other = FakeExtractor()
    other.description = {"backbone": {"digest": "xyz"}, "branches": [{"timestep": 100}], "seed": 0}
    task = make_task(other)
    with pytest.raises(ResumeError) as caught:
        task.on_load_checkpoint(checkpoint)
    assert "backbone.digest: 'abc' → 'xyz'" in str(caught.value)
    assert "branches[0].timestep: 50 → 100" in str(caught.value)
    assert "seed" not in str(caught.value)
    task.allowed_changes = frozenset({"frozen"})
    task.on_load_checkpoint(checkpoint)


def test_other_trainable_weights_are_refused_by_name() -> None:
    checkpoint = saved_state(make_task())
    with pytest.raises(ResumeError, match=r"norms\.0\.weight: \(6,\) in the checkpoint, \(9,\) here"):
        make_task(FakeExtractor(channels=9)).on_load_checkpoint(checkpoint)
    auxiliary = LinearHead((6, 6), (4, 8), 3)
    with pytest.raises(ResumeError, match=r"auxiliary_head.*absent in the checkpoint"):
        make_task(auxiliary_head=auxiliary).on_load_checkpoint(checkpoint)


def test_differences_name_where_and_what() -> None:
    before = {"a": [1, {"b": 2}], "c": 3}
    assert differences(before, {"a": [1, {"b": 2}], "c": 3}) == []
    assert differences(before, {"a": [1, {"b": 5}], "d": 4}) == [
        "a[1].b: 2 → 5",
        "c: 3 → '(absent)'",
        "d: '(absent)' → 4",
    ]
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a: [1] → [1, 2]"]
    assert differences(None, {"a": 1}) == ["description: None → {'a': 1}"]


def test_negative_auxiliary_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="auxiliary_weight"):
        make_task(auxiliary_weight=-0.1)


def test_a_loss_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="KeypointContrastiveLoss is no loss of logits and masks"):
        make_task(loss=KeypointContrastiveLoss())


@pytest.mark.parametrize("which", ["loss", "auxiliary_loss"])
def test_a_loss_for_other_classes_is_refused_before_anything_is_computed(which: str) -> None:
    with pytest.raises(ConfigError, match="class_weight has 2 entries for 3 classes"):
        make_task(**{which: CrossEntropyLoss(LABELS.ignore_index, class_weight=[1.0, 2.0])})


def test_metrics_name_the_classes_of_the_labels() -> None:
    assert make_task().metrics["val"].class_names == LABELS.classes


def test_images_without_a_labelled_pixel_do_not_move_the_mean_loss(tmp_path: Path) -> None:
    """Padding of the last batch in distributed validation looks like that."""
    losses = []
    for ignored in (False, True):
        data = FakeData(eval_batch_size=1)
        samples = data.source("val").samples
        if ignored:
            samples.append(replace(samples[0], mask=np.full_like(samples[0].mask, 255)))
        (result,) = make_trainer(tmp_path).validate(make_task().eval(), data, verbose=False)
        losses.append(result["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
