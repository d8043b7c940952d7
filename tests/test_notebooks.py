"""The notebooks run, as the programs that they are, and show what their text says."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.support.paths import REPOSITORY


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that a notebook shows; none is drawn."""
    figures: list[Any] = []

    def show() -> None:
        figures.append(plt.gcf())
        plt.close()

    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", show)
    return figures


def test_features_of_an_image(shown: list[Any]) -> None:
    space = runpy.run_path(str(REPOSITORY / "notebooks/features.py"))
    assert [len(figure.axes) for figure in shown] == [1, 5, 5, 6]
    colours = [axis.images[0].get_array() for axis in shown[-1].axes[1:]]
    assert all(colour.shape == (16, 16, 3) for colour in colours)
    # steering changes features: no two branches look the same
    assert min(np.abs(one - colours[0]).max() for one in colours[1:]) > 0.05
    assert list(space["maps"]) == ["plain", "caption", "ControlNet", "LoRA", "all three"]


@pytest.mark.thorough
def test_matches_between_two_images(shown: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    space = runpy.run_path(str(REPOSITORY / "notebooks/matching.py"))
    assert [len(figure.axes) for figure in shown] == [2, 1, 1, 1]
    # matches are nearer to the truth than the same place, which is right where nothing moved
    assert space["distance"] < 0.8 * space["unmoved"]


@pytest.mark.slow
def test_few_labels_to_masks(shown: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    space = runpy.run_path(str(REPOSITORY / "notebooks/few_labels.py"))
    assert space["labels"].shape == space["scene"].mask.shape
    # sky and ground alone are 78 % of the scenes' pixels
    assert np.mean(space["labels"] == space["scene"].mask) > 0.6
    assert len(shown) == 2
