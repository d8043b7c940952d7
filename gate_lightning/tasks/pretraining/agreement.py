"""Does an image show what its prompt says?  Measured by a small classifier of rendered single-object scenes.

The classifier knows kinds and colours of the scenes' objects and, so that an empty image is not given a kind by
force, scenes without an object.  The measurement is the share of generated images of the 48 single-object prompts
whose predicted kind and colour are both the prompt's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.weights.checkpoints import read_safetensors
from gate_lightning.backbones.weights.networks import fill_network
from gate_lightning.data.pretraining.batches import LabelledBatch
from gate_lightning.data.pretraining.datamodule import NOTHING, stacked
from gate_lightning.data.scenes.captions import single_object_prompts
from gate_lightning.data.scenes.world import COLORS, KINDS
from gate_lightning.tasks.base import BaseTask
from gate_lightning.techniques.sampling import Sampling, sample_images
from gate_lightning.utils.files import write_atomically
from gate_lightning.utils.finite import check_outputs
from gate_lightning.utils.seeding import torch_generator

__all__ = ["KindColorNet", "SingleObjectTask", "agreement", "judge", "load_classifier"]


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


class SingleObjectTask(BaseTask):
    """Trains `KindColorNet`, on images disturbed a little so that it reads generated ones too.

    Args:
        optimizer, scheduler: see `BaseTask`.
        seed: of the disturbance.
    """

    batch_type = LabelledBatch

    def __init__(
        self, optimizer: Callable[..., Optimizer], scheduler: Callable[..., Any] | None = None, seed: int = 0
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.net, self.seed = KindColorNet(), seed

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Sum of both cross-entropies."""
        images = batch.images
        generator = torch_generator("training", self.seed, self.current_epoch, batch_idx, self.global_rank)
        # Generated images are softer and noisier than rendered ones.
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        amount, strength = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images)
        noise = torch.randn(images.shape, generator=generator).to(images)
        kind, color = self.net(torch.lerp(images, blurred, amount) + 0.1 * strength * noise)
        loss = F.cross_entropy(kind.float(), batch.labels["kind"])
        loss = loss + F.cross_entropy(color.float(), batch.labels["color"], ignore_index=-1)
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Accuracy of kind, colour and both on held-out rendered images (both: those with an object)."""
        kind, color = self.net(batch.images)
        check_outputs(kind, "predicted kinds")
        has = batch.labels["kind"] != NOTHING
        right_kind, right_color = kind.argmax(1) == batch.labels["kind"], color.argmax(1) == batch.labels["color"]
        self.log("val/kind", right_kind.float().mean(), sync_dist=True, batch_size=len(kind))
        count = int(has.sum())
        self.log("val/color", right_color[has].float().mean(), sync_dist=True, batch_size=count)
        self.log("val/both", (right_kind & right_color)[has].float().mean(), sync_dist=True, batch_size=count)

    def export(self, folder: Path) -> None:
        """Write the classifier's weights into a folder, as ``single_object.safetensors``."""
        content = save({k: v.contiguous() for k, v in self.net.state_dict().items()})
        write_atomically(folder / "single_object.safetensors", content)


def load_classifier(path: str | Path) -> KindColorNet:
    """The trained classifier from its file.

    Raises:
        WeightsError: the file is missing, broken, or of another network.
    """
    weights, _ = read_safetensors(Path(path))
    net: KindColorNet = fill_network(KindColorNet(), weights, torch.float32, str(path))
    return net.eval().requires_grad_(False)


@torch.no_grad()
def judge(net: nn.Module, images: np.ndarray, wanted: list[tuple[str, str]]) -> dict[str, Any]:
    """Shares of images that show the wanted kind, colour, and both; the last also by kind.

    Args:
        net: a `KindColorNet`.
        images: uint8 (N, H, W, 3).
        wanted: N pairs of kind and colour.
    """
    pixels = stacked(list(images))
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
    backbone: Backbone,
    classifier: str | Path,
    output: str | Path,
    repeats: int = 4,
    steps: int = 30,
    guidance: float = 4.0,
    seed: int = 0,
    batch_size: int = 24,
) -> str:
    """Write ``<output>/agreement.json``: how often images of the 48 single-object prompts show what was asked for.

    Args:
        backbone: what makes the images.
        classifier: file of `SingleObjectTask`.
        output: folder.
        repeats: images per prompt.
        steps, guidance, seed: see `Sampling`.
        batch_size: images made together.

    Returns:
        The shares that `judge` found, in words; chance is about one in 48.
    """
    prompts = [entry for entry in single_object_prompts() for _ in range(repeats)]
    how = Sampling("ddim", steps, guidance, backbone.native_size, seed=seed)
    texts = [text for text, _, _ in prompts]
    images = [
        sample_images(backbone, texts[first : first + batch_size], first, how)
        for first in range(0, len(texts), batch_size)
    ]
    wanted = [(kind, color) for _, kind, color in prompts]
    result = judge(load_classifier(classifier), np.concatenate(images), wanted)
    report = json.dumps({**result, "steps": steps, "guidance": guidance, "seed": seed}, indent=2) + "\n"
    write_atomically(Path(output) / "agreement.json", report.encode())
    shares = ", ".join(f"{name} {result[name]:.3f}" for name in ("kind", "color", "both", "empty"))
    return f"{len(texts)} images: {shares}"
