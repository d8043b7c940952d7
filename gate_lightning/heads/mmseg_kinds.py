"""Which decode heads of mmsegmentation work on a pyramid, what each reads, and why the others do not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

__all__ = ["KINDS", "REFUSED", "Kind", "Read"]


@dataclass(frozen=True)
class Read:
    """What a head is about to read.

    Attributes:
        channels, strides: of every level, in the order in which the head gets them.
        width: ``channels`` of the head.
    """

    channels: Sequence[int]
    strides: Sequence[int]
    width: int


@dataclass(frozen=True)
class Kind:
    """What a head type reads, and what must be known to build it.

    Attributes:
        reads: "levels": a list of levels. "equal": a list of levels, resized to the first of them. "map": one map:
            the levels resized to the first of them and concatenated. "pair": the last two levels; a single one is both.
            "detail": the last level, and the first one beside it if there are several.
        derived: option → function of what is read; cannot be set.
        defaults: option → the same, for options that mmsegmentation leaves to its recipes; can be set.
        norm: whether it takes the normalisation asked for.
        prepare: run before the first head of this type is built.
        finish: run on the head that was built.
        frozen: suffixes of parameters that no gradient can ever reach and that are therefore not trained: biases that
            a softmax or a centring takes out again, and classifiers of intermediate outputs that are not used here.
        frozen_with_batch_norm: the same, where the reason is a batch normalisation further on.
    """

    reads: Literal["levels", "equal", "map", "pair", "detail"]
    derived: Mapping[str, Callable[[Read], object]] = field(default_factory=dict)
    defaults: Mapping[str, Callable[[Read], object]] = field(default_factory=dict)
    norm: bool = True
    prepare: Callable[[], None] | None = None
    finish: Callable[[Any], None] | None = None
    frozen: tuple[str, ...] = ()
    frozen_with_batch_norm: tuple[str, ...] = ()


def _share(divisor: int) -> Callable[[Read], int]:
    """The head's width over ``divisor``, at least 1."""
    return lambda read: max(read.width // divisor, 1)


def _constant(value: object) -> Callable[[Read], object]:
    return lambda read: value


def _criss_cross_attention() -> None:
    """Give CCHead its attention, which is plain PyTorch but lies in a package that asks for compiled operators."""
    from mmseg.models.decode_heads import cc_head

    if cc_head.CrissCrossAttention is not None:
        return
    parent = importlib.util.find_spec("mmcv")
    assert parent is not None
    assert parent.origin is not None
    place = Path(parent.origin).parent / "ops" / "cc_attention.py"
    spec = importlib.util.spec_from_file_location("gate_lightning_cc_attention", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cc_head.CrissCrossAttention = module.CrissCrossAttention


def _fixed_bases(head: Any) -> None:
    """Let Hamburger start from the same bases in every pass: drawn anew, they would make predictions random.

    Drawn here and not in the first pass, so that they are in checkpoints.
    """
    ham = head.hamburger.ham
    ham.rand_init = False
    ham.register_buffer("bases", ham._build_bases(1, ham.S, head.ham_channels // ham.S, ham.R, device="cpu"))


def _callable_dropout(head: Any) -> None:
    """Let ANNHead run with ``dropout_ratio=0``, where it calls a dropout that it has not."""
    if head.dropout is None:
        head.dropout = nn.Identity()


#: Types that build without compiled operators, run without a further network's output and learn. Each is in the tests.
#: Widths inside are those of mmsegmentation's recipes, as shares of ``channels``.
KINDS: dict[str, Kind] = {
    "ANNHead": Kind(
        "pair",
        defaults={"project_channels": _share(2)},
        finish=_callable_dropout,
        frozen_with_batch_norm=("value_project.bias", "out_project.bias"),
    ),
    "APCHead": Kind("map"),
    "ASPPHead": Kind("map"),
    "CCHead": Kind("map", prepare=_criss_cross_attention, frozen=("cca.key_conv.bias",)),
    "DAHead": Kind(
        "map",
        defaults={"pam_channels": _share(8)},
        frozen=("pam.key_project.bias", "am_conv_seg.weight", "am_conv_seg.bias"),
    ),
    "DMHead": Kind("map"),
    "DNLHead": Kind(
        "map",
        frozen=("theta.conv.bias", "phi.conv.bias", "conv_mask.bias"),
        frozen_with_batch_norm=("g.conv.bias",),
    ),
    "DepthwiseSeparableASPPHead": Kind(
        "detail",
        derived={"c1_in_channels": lambda read: read.channels[0] if len(read.channels) > 1 else 0},
        defaults={"c1_channels": lambda read: 48 if len(read.channels) > 1 else 0},
    ),
    "DepthwiseSeparableFCNHead": Kind("map", frozen_with_batch_norm=("depthwise_conv.bn.bias",)),
    "EMAHead": Kind(
        "map", defaults={"ema_channels": _share(1), "num_bases": _constant(64), "num_stages": _constant(3)}
    ),
    "EncHead": Kind("levels", derived={"use_se_loss": _constant(False)}),
    "FCNHead": Kind("map"),
    "FPNHead": Kind("levels", derived={"feature_strides": lambda read: list(read.strides)}),
    "GCHead": Kind("map", frozen=("conv_mask.bias",)),
    "ISAHead": Kind("map", defaults={"isa_channels": _share(2)}, frozen_with_batch_norm=("value_project.bias",)),
    "LightHamHead": Kind("levels", defaults={"ham_channels": _share(1)}, finish=_fixed_bases),
    "NLHead": Kind("map", frozen=("phi.conv.bias",), frozen_with_batch_norm=("g.conv.bias",)),
    "PSPHead": Kind("map"),
    "SETRMLAHead": Kind(
        "equal",
        derived={"mla_channels": _share(1), "channels": lambda read: read.width * len(read.channels)},
        defaults={"up_scale": _constant(1)},
    ),
    "SETRUPHead": Kind("map"),
    "SegformerHead": Kind("levels"),
    "SegmenterMaskTransformerHead": Kind(
        "map",
        derived={"embed_dims": _share(1), "dropout_ratio": _constant(0.0)},  # it has drop_rate and drop_path_rate
        defaults={"num_layers": _constant(2), "num_heads": _share(64)},
        norm=False,
    ),
    "UPerHead": Kind("levels"),
}

#: mmsegmentation's other decode heads → why they are not here, and what to take instead
REFUSED: dict[str, str] = {
    "DDRHead": "it reads the two branches of DDRNet",
    "DPTHead": "it reads tokens of a vision transformer; use UPerHead or FPNHead",
    "IterativeDecodeHead": "it is put together from further heads (K-Net)",
    "LRASPPHead": "it averages over 49×49 positions, more than diffusion features have; use ASPPHead",
    "Mask2FormerHead": "it needs mmdetection and compiled operators",
    "MaskFormerHead": "it needs mmdetection",
    "OCRHead": "it refines the logits of a first head; use DAHead or EMAHead",
    "PIDHead": "it reads the three branches of PIDNet",
    "PSAHead": "it needs compiled operators; use CCHead or DAHead",
    "PointHead": "it refines the logits of a first head; use UPerHead",
    "STDCHead": "it differs from FCNHead only in a loss; use FCNHead",
    "SideAdapterCLIPHead": "it reads CLIP",
    "VPDDepthHead": "it estimates depth",
}
