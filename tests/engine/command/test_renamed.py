"""Old names: refused with the new one wherever they stand, and listed in docs/migration.md."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.engine.command.renamed import RENAMED, migration_page, refuse_old_names
from gate_lightning.errors import ConfigError
from tests.support.composition import composed
from tests.support.paths import REPOSITORY


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("edges=input", "edge_channels"),
        ("+feature_cache_dir=x", "cache.folder"),
        ("~features.cached_views", "cache.augmented_views"),
        ("features={pooling: 2, cached_views: 4}", "cache.augmented_views"),
        ("task.data={picture_size: 64}", "task.data.image_size"),
        ("callbacks.picture_table.x=1", "callbacks.image_table"),
        ("callbacks.uncertainty_pictures=null", "callbacks.uncertainty_images"),
        ("pictures.size=256", "task.data"),
        ("pictures={styles: [empty]}", "task.data"),
        ("tool.folder=x", "backbone.weights"),
        ("control=plain,all", "ablation"),
        ("+recipe@backbones.x=y", "experiment/_base"),
        ("tool.layout=npy_by_layer,npy_by_picture", "tool.layout=npy_by_image"),
        ("tool={layout: 'npy_by_picture'}", "tool.layout=npy_by_image"),
        ("dataset=scenes,scene_pictures", "dataset=scene_images"),
        ("backbones.second.scale=0.5", "backbone_scale"),
        ("experiment=gate/ade20k_as_released_gate", "experiment=*_released_class"),
        ("layers=[ddpm,mid]", "layers=ddpm_segmentation"),
        ("techniques=[{name: a, layers: ddpm}]", "layers=ddpm_segmentation"),
    ],
)
def test_old_names_are_refused(override: str, new: str) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_old_names(["seed=1", override])
    first, last = str(error.value).splitlines()
    assert first.startswith(f"{override}: ")
    assert f"is now {new}" in first
    assert last.endswith("docs/migration.md")


def test_names_of_today_pass() -> None:
    refuse_old_names(
        [
            "-m",
            "--config-dir=x",
            "control_images={depth: edges}",
            "edge_channels=true",
            "dataset=scene_images",
            "backbones.second.native_size=64",
            "experiment=ddpm_segmentation/horse21",
            "a b=",
            "~x",
        ]
    )


def test_all_old_names_of_a_command_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"(?s)picture_scale.*noise_draws"):
        refuse_old_names(["picture_scale=1", "noise_draws=2"])


@pytest.mark.parametrize("row", [row for row in RENAMED if row.kind == "key"], ids=lambda row: row.old)
def test_old_keys_are_gone(row) -> None:
    assert OmegaConf.select(composed(name="eval"), row.old.replace("*", "any")) is None
    assert not (config_folder() / row.old).exists()


def test_the_page_is_the_table() -> None:
    assert (REPOSITORY / "docs/migration.md").read_text() == migration_page()
