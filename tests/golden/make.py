"""Make the reference outputs in this folder.

    PYTHONPATH=. python tests/golden/make.py [--released <folder of reference outputs of the released code>]

Without ``--released`` only ``features.npz`` is made anew: features of a small network of keyed random weights, read the
plain way (tests/support/plain_reference.py), at sampled positions. With it the outputs of the released GATE and DIFT
code for modules, metrics and prompts are copied too: numbers and random weights, recompressed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gate_lightning.utils.seeding import keyed_generator, keyed_noise
from tests.support.plain_reference import LAYERS, PlainReference, reference_parts

FOLDER = Path(__file__).parent
POSITIONS = 48
LEGACY = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-upsampler-out", "up-level3-repeat2-vit-out")
#: case → image size, timestep, draws, prompt, whether a ControlNet steers, layers
CASES: dict[str, tuple[tuple[int, int], int, int, str, bool, tuple[str, ...]]] = {
    "all": ((64, 96), 51, 1, "a photo of a horse", False, tuple(LAYERS)),
    "legacy_canny": ((64, 64), 51, 1, "a photo of a horse", True, LEGACY),
    "dift_semantic": ((64, 64), 261, 8, "a photo of a horse", False, ("up-level1-upsampler-out",)),
    "dift_odd_size": ((72, 88), 101, 2, "", False, ("up-level2-upsampler-out",)),
}
RELEASED = (
    *("o_amalgamation_level", "o_weight_assigner", "q_compute_iou", "q_pixel_classifier_21", "q_predict_labels"),
    *("r_correspondence", "r_pck_thresholds", "t_dift_eval_spair", "m_prompts"),
)


def case_inputs(name: str) -> dict[str, Tensor]:
    """Images, noises and control images of a case."""
    (height, width), _, draws, *_ = CASES[name]
    latent = (draws, 4, height // 8, width // 8)
    return {
        "images": (0.5 * keyed_noise((1, 3, height, width), name, "images")).clamp(-1, 1),
        "posterior_noise": keyed_noise(latent, name, "posterior"),
        "noise": keyed_noise(latent, name, "noise"),
        "control": (keyed_noise((1, 3, height, width), name, "control") > 1).float(),
    }


def sampled(name: str, layer: str, value: Tensor) -> Tensor:
    """Some numbers of a feature map, at positions that depend on case and layer."""
    flat = value.flatten()
    rows = keyed_generator("positions", name, layer).choice(len(flat), POSITIONS, replace=False)
    return flat[torch.from_numpy(np.sort(rows))]


def features() -> dict[str, np.ndarray]:
    """``case/layer`` → numbers."""
    reference, stored = PlainReference(reference_parts()), {}
    for name, (_, timestep, draws, prompt, controlled, layers) in CASES.items():
        given = case_inputs(name)
        images, control = (given[key].expand(draws, -1, -1, -1) for key in ("images", "control"))
        noises = (given["posterior_noise"], given["noise"])
        found = reference.features(images, *noises, timestep, prompt, layers, control if controlled else None)
        for layer, value in found.items():
            mean = value.mean(dim=0, keepdim=True)
            stored[f"{name}/{layer}"] = sampled(name, layer, mean).numpy()
            stored[f"{name}/{layer}/norm"] = mean.double().norm().float().numpy()
    return stored


def copy_released(source: Path) -> None:
    """Modules, metrics, prompts with the text encoder that made them, and the list of layer ids."""
    for name in RELEASED:
        with np.load(source / f"{name}.npz") as arrays:
            np.savez_compressed(FOLDER / f"{name}.npz", **{key: arrays[key] for key in arrays.files})
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(source / "tiny-sd" / part, FOLDER / part, dirs_exist_ok=True, copy_function=shutil.copyfile)
    manifest = json.loads((source / "manifest_features.json").read_text())
    prompts = next(entry["prompts"] for entry in manifest["entries"] if entry["file"] == "m_prompts.npz")
    facts = {"all_layer_ids": manifest["facts"]["all_layer_ids"], "prompts": prompts}
    (FOLDER / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name in ("timesteps_table.json", "t_dift_eval_spair.json"):
        shutil.copyfile(source / name, FOLDER / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path)
    given = parser.parse_args()
    np.savez_compressed(FOLDER / "features.npz", **features())
    if given.released is not None:
        copy_released(given.released)


if __name__ == "__main__":
    main()
