"""Settings of a LoRA besides its matrices, as PEFT writes them: in the header of the file, or beside it.

diffusers writes them into the header (``lora_adapter_metadata``), PEFT as ``adapter_config.json`` beside
``adapter_model.safetensors``. What would change the network in a way that is not computed here is refused by its key.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gate_lightning.errors import WeightsError
from gate_lightning.utils.text import parse_json, read_json

__all__ = ["LoRASettings", "header_settings", "settings_beside", "settings_file"]

log = logging.getLogger(__name__)

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HEADER = "lora_adapter_metadata"
_PARTS = ("unet", "text_encoder", "text_encoder_2")
_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights")
#: of training, of the choice of layers, or without effect on linear layers and convolutions (fan_in_fan_out)
_WITHOUT_EFFECT = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out"),
    *("inference_mode", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("runtime_config", "megatron_config", "megatron_core", "qalora_group_size", "eva_config", "velora_config"),
    "ensure_weight_tying",
)
#: ways of drawing the first matrices that leave the network itself as it is
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_NAME = re.compile(r"[\w.-]+")
#: far above the layers of any network; every layer is compared with every name
_MOST_NAMES = 10_000


@dataclass(frozen=True)
class LoRASettings:
    """Ranks and alphas of the layers of one part.

    Attributes:
        where: source of the settings, for messages; "" for none.
        rank, alpha: of layers without their own; None if they are not said.
        ranks, alphas: by name of a layer, or the end of a name.
        stabilised: rank-stabilised LoRA, whose strength is alpha / √rank.
    """

    where: str = ""
    rank: int | None = None
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False

    def strength(self, layer: str, rank: int, alpha: float | None) -> float:
        """Factor of a layer's branch.

        Args:
            layer: its module path.
            rank: of its matrices.
            alpha: of the file itself, which comes first; without any alpha it is the rank.

        Raises:
            WeightsError: the settings are of another rank.
        """
        said = _of_layer(self.ranks, layer, self.rank)
        if said is not None and said != rank:
            raise WeightsError(f"{self.where} says rank {said} for {layer}, whose matrices have rank {rank}")
        if alpha is None:
            alpha = _of_layer(self.alphas, layer, self.alpha)
        if alpha is None and self.where:
            raise WeightsError(f"{self.where} has no lora_alpha, without which the strength of the LoRA is unknown")
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self.stabilised else rank)


def header_settings(path: Path, header: Mapping[str, str]) -> dict[str, LoRASettings]:
    """Settings by part in the header of a file, whose keys are ``<part>.<setting>``; none where it has none.

    Raises:
        WeightsError: no JSON, values that are impossible, or settings that are not computed here.
    """
    text = header.get(_HEADER)
    if not text:
        return {}
    where = f"{path}, {_HEADER} in its header"
    parts: dict[str, dict[str, Any]] = {}
    for key, value in parse_json(text, where, WeightsError).items():
        part, _, setting = key.rpartition(".")
        parts.setdefault(part or "unet", {})[setting] = value  # without part: a file of the U-Net alone
    return {part: _checked(given, where) for part, given in parts.items() if part in _PARTS}


def settings_file(path: Path) -> Path | None:
    """PEFT's settings that belong to a LoRA file: beside ``adapter_model.safetensors``, or beside an only file."""
    config = path.parent / PEFT_CONFIG
    own = path.name == PEFT_WEIGHTS
    if not config.is_file():
        if own:
            log.warning("%s has no %s beside it: its strength is taken to be 1 (alpha = rank).", path, PEFT_CONFIG)
        return None
    if own or len(list(path.parent.glob("*.safetensors"))) == 1:
        return config
    log.warning("%s is taken to belong to %s, not to %s.", config, PEFT_WEIGHTS, path.name)
    return None


def settings_beside(config: Path) -> dict[str, LoRASettings]:
    """Settings of all parts in PEFT's ``adapter_config.json``; errors as for `header_settings`."""
    settings = _checked(read_json(config, WeightsError), str(config))
    return dict.fromkeys(_PARTS, settings)


def _checked(given: Mapping[str, Any], where: str) -> LoRASettings:
    for key, value in given.items():
        if key not in _READ and key not in _WITHOUT_EFFECT and value not in (None, False, "", [], {}):
            raise WeightsError(
                f"{where}: {key}={value!r:.80} is not computed here (expected LoRA with ranks, alphas and rsLoRA); "
                f"merge such an adapter into the network with PEFT and load that"
            )
    if given.get("peft_type", "LORA") != "LORA":
        raise WeightsError(f"{where}: peft_type={given['peft_type']!r:.40}, expected LORA")
    if given.get("bias", "none") not in ("none", None):
        raise WeightsError(f"{where}: bias={given['bias']!r:.40} changes biases of the network; expected none")
    start = given.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise WeightsError(
            f"{where}: init_lora_weights={start!r:.40} changes the network's own weights; convert the adapter to plain "
            f"LoRA with PEFT (save_pretrained(…, path_initial_model_for_weight_conversion=…))"
        )
    stabilised = given.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise WeightsError(f"{where}: use_rslora={stabilised!r:.40}, expected true or false")
    return LoRASettings(
        where,
        _rank(given.get("r"), "r", where),
        _alpha(given.get("lora_alpha"), "lora_alpha", where),
        {name: _rank(one, name, where) or 0 for name, one in _pattern(given, "rank_pattern", where).items()},
        {name: _alpha(one, name, where) or 0.0 for name, one in _pattern(given, "alpha_pattern", where).items()},
        stabilised,
    )


def _rank(value: Any, name: str, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"{where}: the rank {name}={value!r:.40}, expected a whole number of 1 or more")
    return value


def _alpha(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise WeightsError(f"{where}: the alpha {name}={value!r:.40}, expected a finite number")
    return float(value)


def _pattern(given: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Values by name of a layer. PEFT reads regular expressions there; these can take for ever, and are refused."""
    pattern = given.get(key) or {}
    if not isinstance(pattern, Mapping):
        raise WeightsError(f"{where}: {key} is a {type(pattern).__name__}, expected names of layers and numbers")
    if len(pattern) > _MOST_NAMES:
        raise WeightsError(f"{where}: {key} has {len(pattern):,} names of layers, more than {_MOST_NAMES:,}")
    made: dict[str, Any] = {}
    for name, value in pattern.items():
        literal = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not _NAME.fullmatch(literal) or value is None:
            raise WeightsError(
                f"{where}: {key} has {name!r:.60}: {value!r:.20}; expected the name of a layer, or the end of one, and "
                f"a number. Regular expressions are not run"
            )
        made[f"^{literal}" if name.startswith("^") else literal] = value
    return made


def _of_layer(values: Mapping[str, Any], layer: str, default: Any) -> Any:
    # PEFT's rule: the first pattern that is the whole name, or its end behind a dot
    names = (f".{layer}", f".text_model.{layer}")  # as older versions of transformers call it
    for pattern, value in values.items():
        if any(
            f".{pattern[1:]}" == name if pattern.startswith("^") else name.endswith(f".{pattern}") for name in names
        ):
            return value
    return default
