"""Generated scenes of one object each."""

from __future__ import annotations

import numpy as np
import pytest

from gate_lightning.data.classification.scene_kinds import SceneKindsDataModule
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import KINDS
from gate_lightning.errors import ConfigError


def module(**settings: object) -> SceneKindsDataModule:
    return SceneKindsDataModule(**{"train": 12, "val": 6, "test": 18, "size": 32, **settings})  # type: ignore[arg-type]


def test_the_class_is_the_kind_of_the_only_object() -> None:
    source = module().source("test")
    for index in range(len(source)):
        sample = source.load(index)
        spec = sample_scene(int(sample.sample_id.rsplit("/", 1)[-1]), "target", (KINDS[source.label(index)],))
        (only,) = spec.objects
        assert only.kind == KINDS[sample.label]
        np.testing.assert_array_equal(sample.image, render(spec, 32).image)


def test_kinds_are_equally_many() -> None:
    report = module().check()
    np.testing.assert_array_equal(report.splits[2].pixels, [3] * len(KINDS) + [0])
    assert not report.warnings


def test_captions_never_tell_the_kind() -> None:
    for captions in ("fine", "coarse", "shuffled"):
        source = module(captions=captions).source("test")
        texts = [source.load(index).caption or "" for index in range(len(source))]
        assert not {*KINDS} & {word for text in texts for word in text.split()}
        assert (len(set(texts)) > 1) == (captions != "coarse")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"captions='kinds': .*expected one of fine, coarse, shuffled"):
        module(captions="kinds")
    with pytest.raises(ConfigError, match=r"dataset.size=8: expected a whole number from 16"):
        module(size=8)
