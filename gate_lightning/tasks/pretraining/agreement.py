"""Does an image show what its prompt says?  Measured by a small classifier of rendered single-object scenes.

The classifier knows kinds and colours of the scenes' objects and, so that an empty image is not given a kind by
force, scenes without an object.  The measurement is the share of generated images of the 48 single-object prompts
whose predicted kind and colour are both the prompt's.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from gate_lightning.data.pretraining.datamodule import TRAIN_SEED, VAL_SEED, EndlessDataModule, to_pixels
from gate_lightning.data.scenes import COLORS, KINDS, render, sample_scene, single_object_prompts
from gate_lightning.tasks.pretraining.optimisation import OptimisedModule
from gate_lightning.tasks.pretraining.sampling import load_parts, sample

log = logging.getLogger(__name__)

NOTHING = len(KINDS)
"""Class of images without an object; their colour counts for nothing."""

_EMPTY_SHARE = 0.1


class SingleObjectScenes(Dataset[dict[str, Any]]):
    """Scenes of the source domain with one object, a tenth with none.

    Args:
        length: number of different scenes.
        first_seed: seed of scene 0.
        size: side in pixels.
    """

    def __init__(self, length: int, first_seed: int, size: int = 64) -> None:
        self.length, self.first_seed, self.size = length, first_seed, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``pixels`` (3, S, S) in [-1, 1], ``kind`` and ``color`` (-1 without an object)."""
        seed = self.first_seed + draw % self.length
        rng = np.random.default_rng([seed, 0xA6])
        empty = rng.random() < _EMPTY_SHARE
        wanted = KINDS[int(rng.integers(len(KINDS)))]
        spec = sample_scene(seed, kinds=None if empty else (wanted,), count=(0, 0) if empty else (1, 1))
        kind = KINDS.index(spec.objects[0].kind) if spec.objects else NOTHING
        color = list(COLORS).index(spec.objects[0].color) if spec.objects else -1
        return {"pixels": to_pixels(render(spec, size=self.size).image), "kind": kind, "color": color}


class SingleObjectData(EndlessDataModule):
    """Training and held-out single-object scenes.

    Args:
        train_length: different training scenes.
        val_length: held-out scenes.
        loading: `EndlessDataModule`'s arguments.
    """

    def __init__(self, train_length: int = 40_000, val_length: int = 2_000, **loading: Any) -> None:
        super().__init__(**{"batch_size": 64, "val_batch_size": 100, **loading})
        self.train_length, self.val_length = train_length, val_length

    def setup(self, stage: str | None = None) -> None:
        """Describe the data; images are rendered when asked for."""
        self.train_set = SingleObjectScenes(self.train_length, TRAIN_SEED)
        self.val_set = SingleObjectScenes(self.val_length, VAL_SEED)


class KindColorNet(nn.Module):
    """Images (B, 3, 64, 64) in [-1, 1] to logits of kind (B, 7) and colour (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out in (24, 48, 96, 128):
            layers += [nn.Conv2d(width, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            width = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, NOTHING + 1 + len(COLORS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of kind and colour.  The maximum over places: an object is somewhere, not everywhere."""
        logits = self.head(self.body(pixels).amax(dim=(2, 3)))
        return logits[:, : NOTHING + 1], logits[:, NOTHING + 1 :]


class SingleObjectTask(OptimisedModule):
    """Trains `KindColorNet`, on images disturbed a little so that it reads generated ones too."""

    def __init__(self, **optimisation: Any) -> None:
        super().__init__(**{"lr": 2e-3, "warmup": 50, "decay_share": 0.5, **optimisation})
        self.net = KindColorNet()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of both cross-entropies."""
        pixels, generator = batch["pixels"], self.step_generator()
        # Generated images are softer and noisier than rendered ones.
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        amount = torch.rand(len(pixels), 1, 1, 1, generator=generator).to(pixels)
        noise = 0.1 * torch.rand(len(pixels), 1, 1, 1, generator=generator).to(pixels)
        pixels = torch.lerp(pixels, blurred, amount) + noise * self.noise_like(pixels, generator)
        kind, color = self.net(pixels)
        loss = F.cross_entropy(kind.float(), batch["kind"])
        loss = loss + F.cross_entropy(color.float(), batch["color"], ignore_index=-1)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accuracy of kind, colour and both on held-out rendered images (both: those with an object)."""
        kind, color = self.net(batch["pixels"])
        right_kind, has = kind.argmax(1) == batch["kind"], batch["kind"] != NOTHING
        right_color = color.argmax(1) == batch["color"]
        self.log("val/kind", right_kind.float().mean(), sync_dist=True, batch_size=len(kind))
        count = int(has.sum())
        self.log("val/color", right_color[has].float().mean(), sync_dist=True, batch_size=count)
        self.log("val/both", (right_kind & right_color)[has].float().mean(), sync_dist=True, batch_size=count)

    def export(self, folder: Path) -> None:
        """Write ``single_object.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.net.state_dict().items()}, folder / "single_object.safetensors")


def load_classifier(path: str | Path) -> KindColorNet:
    """The trained classifier from its file."""
    net = KindColorNet()
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


@torch.no_grad()
def judge(net: nn.Module, images: np.ndarray, wanted: list[tuple[str, str]]) -> dict[str, Any]:
    """Shares of images that show the wanted kind, colour, and both; the last also by kind.

    Args:
        net: a `KindColorNet`.
        images: uint8 (N, H, W, 3).
        wanted: N pairs of kind and colour.
    """
    pixels = torch.stack([to_pixels(p) for p in images])
    outputs = [net(part) for part in pixels.split(200)]
    kinds = torch.cat([o[0] for o in outputs]).argmax(1)
    colors = torch.cat([o[1] for o in outputs]).argmax(1)
    kind = (kinds == torch.tensor([KINDS.index(k) for k, _ in wanted])).numpy()
    color = (colors == torch.tensor([list(COLORS).index(c) for _, c in wanted])).numpy()
    both = kind & color
    names = np.array([k for k, _ in wanted])
    by_kind = {name: float(both[names == name].mean()) for name in KINDS if (names == name).any()}
    return {
        "kind": float(kind.mean()),
        "color": float(color.mean()),
        "both": float(both.mean()),
        "empty": float((kinds == NOTHING).float().mean()),
        "both_by_kind": by_kind,
        "images": len(images),
    }


def agreement(
    folder: str | Path,
    classifier: str | Path,
    repeats: int = 4,
    steps: int = 30,
    guidance: float = 4.0,
    seed: int = 0,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Prompt agreement of a model folder on the 48 single-object prompts; chance is about one in 48.

    Args:
        folder: model folder.
        classifier: file of `SingleObjectTask`.
        repeats: images per prompt.
        steps, guidance, seed: see `sample`.
        output: folder for ``agreement.json``, or None.

    Returns:
        What `judge` returns.
    """
    prompts = [entry for entry in single_object_prompts() for _ in range(repeats)]
    images = sample(load_parts(folder), [text for text, _, _ in prompts], steps, guidance, seed)
    result = judge(load_classifier(classifier), images, [(kind, color) for _, kind, color in prompts])
    result |= {"steps": steps, "guidance": guidance, "seed": seed}
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "agreement.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
