"""Experiments around few labelled images: sweeps name layers that there are, the student reads images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from PIL import Image

from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.trained_run import load_run
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from tests.support.composition import composed
from tests.support.folders import make_folder

ENSEMBLE = (
    "task=label_scarce",
    "backbone.weights=random",
    "techniques=none",
    "layers=[up-level2-upsampler-out]",
    *("repeats=1", "dataset.train=3", "dataset.val=1", "dataset.test=2", "task.max_steps_per_member=3"),
    *("task.data.members=3", "task.data.pixels_per_batch=16", "trainer.accelerator=cpu", "logger=csv"),
)


def swept(name: str) -> dict[str, list[str]]:
    """What a sweep of an experiment goes through."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={name}"], return_hydra_config=True)
    lines = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides(lines)
    return {override.key_or_group: list(override.sweep_string_iterator()) for override in parsed}


@pytest.mark.parametrize(
    ("name", "target", "count"),
    [
        ("sweep/single_layer", "loading.load_unet_backbone", 15),
        ("sweep/single_layer_ddpm_segmentation", "adm.loading.load_adm_backbone", 18),
    ],
)
@pytest.mark.slow
def test_single_layers_are_layers_of_the_network(name: str, target: str, count: int) -> None:
    params = swept(name)
    node = runs.resolve(composed(f"experiment={name}")).backbone
    assert node._target_.endswith(target)
    with torch.device("meta"):
        backbone = get_object(node._target_)("random", architecture=node.architecture)
    assert len(set(params["layers"])) == len(params["layers"]) == count
    assert set(params["layers"]) <= backbone.layers.keys()
    assert all(0 <= int(timestep) < backbone.schedule.length for timestep in params["timestep"])


@pytest.mark.slow
def test_a_student_trains_on_images_alone(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {split: [(32, 32)] * 4 for split in ("train", "val", "test")})
    tiny = ("head.decode.width=4", "head.decode.decoder.channels=8", "backbone.native_size=32", "trainer.max_epochs=2")
    settings = ("experiment=student_tiny", f"dataset.root={root}", "dataset.batch_size=2", *tiny, "logger=csv")
    run_folder = tmp_path / "run"
    config = composed(*settings, "callbacks=quiet", "trainer.accelerator=cpu")
    task = Components(runs.resolve(config), "").task
    (layers,) = task.extractor.feature_info.values()
    assert {layer: info.channels for layer, info in layers.items()} == {"pixels-stride1": 3}
    metrics = train(config, list(settings), run_folder)
    assert {"val/mIoU", "test/mIoU"} <= metrics.keys()
    run = load_run(run_folder)
    labels = run.predict(root / "images/test/001.png")
    assert labels.shape == (32, 32)
    # nothing but the image is looked at: another name, which keys the noise of diffusion features, changes nothing
    (tmp_path / "other.png").write_bytes((root / "images/test/001.png").read_bytes())
    assert (run.predict(tmp_path / "other.png") == labels).all()
    state = torch.load(run.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    assert any(name.startswith("head.network.layer4") for name in state)


@pytest.mark.slow
def test_from_an_ensemble_to_its_student_s_data(tmp_path: Path) -> None:
    """What the commands of docs/label_scarce.md do, but for the training of the student."""
    ensemble, given = tmp_path / "ensemble", [*ENSEMBLE, "callbacks=quiet"]
    train(composed(*given), given, ensemble)
    made, labelled, data = (tmp_path / name for name in ("made", "labelled", "data"))
    tools = {
        "generate": ("backbone.weights=random", "tool.count=3", "tool.steps=1", "dataset.train=2", f"output={made}"),
        "pseudo_label": (f"run={ensemble}", f"input={made}", f"output={labelled}"),
        "student_set": (f"run={ensemble}", f"input={labelled}", f"output={data}", "tool.drop_uncertain=0.4"),
    }
    for tool, overrides in tools.items():
        config = composed(f"tool={tool}", *overrides, name="eval")
        evaluate(config, [f"tool={tool}", *overrides], tmp_path / "unused")
    predicted = tmp_path / "predicted"
    overrides = (f"run={ensemble}", f"input={made}", f"output={predicted}")
    evaluate(composed(*overrides, name="eval"), list(overrides), tmp_path / "unused")
    for name in ("000000", "000001", "000002"):
        folders = (predicted / "masks", labelled / "masks/train")
        np.testing.assert_array_equal(*(np.asarray(Image.open(folder / f"{name}.png")) for folder in folders))
    counts = {split: len(list((data / "images" / split).rglob("*.png"))) for split in ("train", "val", "test")}
    assert counts == {"train": 2, "val": 3, "test": 2}
    first = min((data / "masks/train").rglob("*.png"))  # random features see one class, of which nothing is learned
    corrected = np.array(Image.open(first))
    corrected[:20] = 1 - corrected[:20].clip(0, 1)
    Image.fromarray(corrected).save(first)
    settings = ("experiment=student_tiny", f"dataset.root={data}", "head.decode.width=4")
    report = Components(runs.resolve(composed(*settings)), "").datamodule.check()
    assert not report.errors
    assert len(report.classes) == 16
