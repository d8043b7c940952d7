"""Module paths by the names in LoRA files.

Files name the modules of diffusers' networks, with dots (diffusers, PEFT) or underscores (kohya). For SDXL, kohya's
tools use the original implementation's names instead (``input_blocks_4_1_…``).
"""

from __future__ import annotations

from torch import nn

from gate_lightning.backbones.weights.original_names import original_names

__all__ = ["LayerNames", "split_part"]

#: prefixes by part of the pipeline; a prefix stands after the longer ones that begin with it
_PREFIXES = {
    "unet": ("base_model.model.unet.", "unet.", "lora_unet_"),
    "text_encoder_2": ("base_model.model.text_encoder_2.", "text_encoder_2.", "lora_te2_"),
    "text_encoder": ("base_model.model.text_encoder.", "text_encoder.", "lora_te1_", "lora_te_"),
}
#: diffusers' former names of the text encoder's attention layers
_FORMER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split_part(name: str) -> tuple[str, str]:
    """Part of the pipeline and name inside it; names without prefix belong to the U-Net."""
    for part, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                return part, name.removeprefix(prefix)
    return "unet", name.removeprefix("base_model.model.")


class LayerNames:
    """Module paths of a network's linear layers and convolutions by the names that LoRA files give them.

    Args:
        network: a U-Net or text encoder.
    """

    def __init__(self, network: nn.Module) -> None:
        self._paths: dict[str, str] = {}
        originals = dict(original_names(network))
        for path, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for name in (path, originals.get(path, path)):
                    # files from older versions of transformers have text_model
                    for spelled in (name, f"text_model.{name}"):
                        self._paths.setdefault(spelled, path)
                        self._paths.setdefault(spelled.replace(".", "_"), path)

    def find(self, name: str) -> str | None:
        """Path of the module that the file calls ``name``, or None."""
        name = name.replace(".processor.", ".")
        begin, _, last = name.rpartition(".")
        former = f"{begin}.{_FORMER[last]}" if last in _FORMER else name
        short = [one.removeprefix("text_model.").removeprefix("text_model_") for one in (name, former)]
        candidates = (name, f"{name}.0", former, *short)
        return next((self._paths[candidate] for candidate in candidates if candidate in self._paths), None)
