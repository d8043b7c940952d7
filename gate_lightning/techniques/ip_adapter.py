"""IP-Adapter: the image itself as a prompt, by cross-attention of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, ImagePrompt, Technique
from gate_lightning.utils.checks import number

__all__ = ["IPAdapter"]

_PUBLISHED = (
    "Both are published at huggingface.co/h94/IP-Adapter: for Stable Diffusion 1.x models/ip-adapter_sd15.safetensors "
    "(or -plus) and the folder models/image_encoder, for SDXL sdxl_models/ip-adapter_sdxl_vit-h.safetensors with "
    "models/image_encoder, or sdxl_models/ip-adapter_sdxl.safetensors with sdxl_models/image_encoder. Fetch them with: "
    "hf download h94/IP-Adapter --include 'models/*' 'sdxl_models/*' --local-dir <folder>"
)


@dataclass(frozen=True)
class IPAdapter(Technique):
    """IP-Adapter (Ye et al. 2023, arXiv 2308.06721) that shows the denoiser the image itself.

    Tokens of the image's CLIP embedding (4, or 16 of its patches for "plus") are attended to beside the prompt, with
    keys and values of their own, and the result is added at a scale. GATE finds it to help less than a ControlNet
    (table 3). CLIP sees the middle square of the image (of a window, where windows are read).

    Args:
        weights: its file, ``.safetensors`` or ``.bin``.
        image_encoder: folder of the CLIP vision model with projection that it was trained with.
        scale: factor of the attention on the image's tokens; 0 is none.

    Raises:
        ConfigError: a scale that is no number.
    """

    weights: str | None = None
    image_encoder: str | None = None
    scale: float = 1.0

    kind = "ip_adapter"
    order = 33
    short = "scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number(self.scale, "ip_adapter.scale", 0))
        for key in ("weights", "image_encoder"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"ip_adapter.{key}={value!r}: expected a path")

    @property
    def adapter(self) -> str:
        """Its name in the backbone, that of the file without dots, which separate modules."""
        return re.sub(r"\W", "_", Path(self.weights or "").stem)

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able; the weights are identified by the backbone's description."""
        return {"technique": self.kind, "adapter": self.adapter, "scale": self.scale}

    def prepare(self, backbone: Backbone) -> None:
        """Load adapter and image encoder beside the backbone."""
        self.check_supported(backbone)
        missing = [key for key in ("weights", "image_encoder") if getattr(self, key) is None]
        if missing:
            raise WeightsError(
                f"the ip_adapter technique has no {' and no '.join(missing)}: give it both, "
                f"IPAdapter(weights=<file>, image_encoder=<folder>) (technique.ip_adapter.weights=<file> "
                f"technique.ip_adapter.image_encoder=<folder>). {_PUBLISHED}"
            )
        assert self.weights is not None and self.image_encoder is not None
        for source in (self.weights, self.image_encoder):
            if not Path(source).expanduser().exists():
                raise WeightsError(f"{source}, of the ip_adapter technique, does not exist. {_PUBLISHED}")
        backbone.require_image_prompts(self.adapter, self.weights, self.image_encoder)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Show the image in every pass."""
        prompt = ImagePrompt(self.adapter, self.scale)
        return replace(conditioning, image_prompts=(*conditioning.image_prompts, prompt))
