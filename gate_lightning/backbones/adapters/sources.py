"""Files of an adapter's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gate_lightning.backbones.adapters.lora_settings import PEFT_CONFIG, PEFT_WEIGHTS
from gate_lightning.backbones.specs import ADAPTER_KINDS, AdapterKind
from gate_lightning.errors import WeightsError

__all__ = ["ADAPTER_FILES", "adapter_file"]

#: files to download for an adapter's hub id
ADAPTER_FILES: Mapping[AdapterKind, tuple[str, ...]] = {
    "lora": ("*.safetensors", PEFT_CONFIG),
    "tokens": ("learned_embeds.safetensors",),
    "prompt": ("*.safetensors",),
}
#: names that libraries give the file
_NAMES: Mapping[AdapterKind, tuple[str, ...]] = {
    "lora": ("pytorch_lora_weights.safetensors", PEFT_WEIGHTS),
    "tokens": ("learned_embeds.safetensors",),
    "prompt": (),
}


def adapter_file(path: Path, kind: AdapterKind) -> Path:
    """The adapter's file: ``path`` itself, or the one in the folder that diffusers or PEFT wrote, or the only one.

    Raises:
        WeightsError: the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    named = [one for one in files if one.name in _NAMES[kind]] or files
    if len(named) == 1:
        return named[0]
    found = sorted(one.name for one in path.iterdir())
    raise WeightsError(
        f"{path} holds {'several files' if named else 'no file'} of a {ADAPTER_KINDS[kind]} (found: {found}); expected "
        f"one of {', '.join((*_NAMES[kind], 'any one *.safetensors'))}: name the file itself. Pickled ones (.bin) are "
        f"saved again as safetensors"
    )
