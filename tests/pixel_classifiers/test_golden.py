"""The released classifier, its votes and its uncertainty, computed with the released code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble
from gate_lightning.pixel_classifiers.released import ReleasedPixels
from gate_lightning.pixel_classifiers.votes import image_uncertainty, js_divergence, majority_vote
from tests.support.paths import GOLDEN

BUCKETS = {"conv": (4, 40), "ddpm": (2, 30)}
NAMES = {"conv": "weight_assigner", "ddpm": "weight_assigner_ddpm"}


def _load(file: Path) -> dict[str, Tensor]:
    with np.load(file) as golden:
        return {name: torch.from_numpy(golden[name]) for name in golden.files}


def _released(golden: dict[str, Tensor], prefixes: list[str]) -> tuple[ReleasedPixels, PixelEnsemble]:
    """Weights of the released code in ours. Two of its biases have no effect and no place here."""
    stacked = {
        name.removeprefix(prefixes[0]): torch.stack(
            [golden[prefix + name.removeprefix(prefixes[0])] for prefix in prefixes]
        )
        for name in golden
        if name.startswith(prefixes[0])
    }
    members = len(prefixes)
    fuse, ensemble = ReleasedPixels(BUCKETS, members), PixelEnsemble(70, 21, members)
    state = {}
    for group, name in NAMES.items():
        for ours, theirs in (("first", 0), ("norm", 2), ("last", 4)):
            for part in ("weight", "bias", "running_mean", "running_var"):
                value = stacked.get(f"{name}.0.{theirs}.{part}")
                if value is not None and not (part == "bias" and ours != "first"):
                    state[f"assigners.{group}.0.{ours}.{part}"] = value
    missing, unexpected = fuse.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("walk" in name or "dropout" in name for name in missing)
    places = {"linears.0": 0, "norms.0": 2, "linears.1": 3, "norms.1": 5, "linears.2": 6}
    parts = ("weight", "bias", "running_mean", "running_var")
    ensemble.load_state_dict(
        {
            f"{ours}.{p}": stacked[f"layers.{i}.{p}"]
            for ours, i in places.items()
            for p in parts
            if f"layers.{i}.{p}" in stacked
        }
    )
    return fuse.eval(), ensemble.eval()


@torch.no_grad()
def test_logits_and_sparsity_of_the_pixel_classifier():
    golden = _load(GOLDEN / "q_pixel_classifier_21.npz")
    fuse, ensemble = _released(golden, ["w/"])
    fusion = fuse({"conv": golden["x"][None], "ddpm": golden["ddpm"][None]})
    torch.testing.assert_close(ensemble(fusion.features)[0], golden["logits"], rtol=0, atol=1e-6)
    assert fuse.norms(fusion).item() == pytest.approx(-golden["neg_sparsity"].item(), abs=1e-6)


@torch.no_grad()
def test_votes_and_uncertainty_of_an_ensemble():
    golden = _load(GOLDEN / "q_predict_labels.npz")
    fuse, ensemble = _released(golden, ["w0/", "w1/", "w2/"])
    fusion = fuse({"conv": golden["features"][None], "ddpm": golden["ddpm"][None]})
    logits = ensemble(fusion.features)  # (3, 120, 21)
    assert torch.equal(majority_vote(logits.argmax(dim=2), 21).view(12, 10), golden["pred"])
    uncertainty = image_uncertainty(js_divergence(logits.transpose(1, 2)))
    assert uncertainty.item() == pytest.approx(golden["uncertainty"].item(), abs=1e-6)
