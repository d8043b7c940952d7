"""A residual segmentation network on the image itself, without a diffusion model, as a head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import Head
from gate_lightning.heads.mmseg import MMSegHead, norm_config, quiet
from gate_lightning.utils.checks import whole_number

__all__ = ["ResNetHead"]

#: depth → output channels of a block per inner channel
_EXPANSION = {18: 1, 34: 1, 50: 4, 101: 4, 152: 4}
_STAGES = 4
_STEM_STRIDE = 4
#: mean and standard deviation of ImageNet images in [0, 1], per channel
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResNetHead(Head):
    """A residual network with a decode head of mmsegmentation: DeepLabV3 (arXiv 1706.05587) with the defaults.

    The student of DatasetDDPM, trained on images that an ensemble has labelled. Stages whose stride would exceed
    ``output_stride`` keep the resolution and are dilated instead. Weights are random: nothing is downloaded.

    Args:
        in_channels, strides: (3,) and (1,), a single level: the image in [-1, 1].
        num_classes: K.
        depth: layers: 18, 34, 50, 101 or 152.
        width: channels of the first stage (64 in the published networks).
        output_stride: pixels per position of the last stage: 4, 8, 16 or 32.
        norm: "BN" (batch), "GN" (group, does not depend on the batch) or "SyncBN".
        decoder: options of `MMSegHead`, which reads the last stage of every stride, finest first.

    Raises:
        ConfigError: a level that is no image, or settings out of range.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        depth: int = 101,
        width: int = 64,
        output_stride: int = 8,
        norm: Literal["GN", "BN", "SyncBN"] = "BN",
        decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        if (self.in_channels, self.strides) != ((3,), (1,)):
            raise ConfigError(
                f"ResNetHead reads images, and got channels {list(in_channels)} at strides {list(strides)}; use it "
                "with backbone=pixels backbone.strides=[1] backbone.position=false techniques=none amalgamation=concat"
            )
        if depth not in _EXPANSION or output_stride not in (4, 8, 16, 32):
            raise ConfigError(
                f"depth={depth}, output_stride={output_stride}; expected a depth of {', '.join(map(str, _EXPANSION))} "
                "and an output stride of 4, 8, 16 or 32"
            )
        whole_number(width, "width", 1)
        whole = [_STEM_STRIDE * 2**stage for stage in range(_STAGES)]
        reached = [min(stride, output_stride) for stride in whole]
        dilations = [stride // got for stride, got in zip(whole, reached, strict=True)]
        last = [stage for stage in range(_STAGES) if reached[stage] not in reached[stage + 1 :]]
        channels = [_EXPANSION[depth] * width * 2**stage for stage in last]
        options: dict[str, Any] = {"type": "ASPPHead", "levels": "coarsest", "norm": norm, **(decoder or {})}
        self.decoder = MMSegHead(channels, [reached[stage] for stage in last], num_classes, **options)
        with quiet():
            from mmseg.models.backbones import ResNet  # seconds, so only where one is built

            self.network = ResNet(
                depth,
                stem_channels=width,
                base_channels=width,
                strides=[1, *(after // before for before, after in pairwise(reached))],
                dilations=dilations,
                out_indices=last,
                norm_cfg=norm_config(norm),
                contract_dilation=True,
                zero_init_residual=False,  # as in the network that DatasetDDPM trains
            )
            self.network.init_weights()
        self.register_buffer("_mean", torch.tensor(_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(1, -1, 1, 1), persistent=False)

    def predict(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at stride 4, or at the output stride where the first stage has it."""
        images = (levels[0] + 1.0) / 2.0
        logits: Tensor = self.decoder(self.network((images - self._mean) / self._std))
        return logits
