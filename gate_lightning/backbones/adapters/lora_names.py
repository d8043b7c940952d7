"""Module paths by the names in LoRA files.

Files name the modules of diffusers' networks, with dots (diffusers, PEFT) or underscores (kohya). For SDXL, kohya's
tools use the original implementation's names instead (``input_blocks_4_1_…``). Wrappers of a network, such as
``torch.compile``, put prefixes of their own before these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from gate_lightning.backbones.weights.original_names import original_names

__all__ = ["LayerNames", "find_layer", "hidden_prefix"]

#: prefixes by part of the pipeline; a prefix stands after the longer ones that begin with it
_PREFIXES = {
    "unet": ("unet.", "lora_unet_", "diffusion_model."),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_", "text_encoders.clip_g.transformer."),
    "text_encoder": ("text_encoder.", "lora_te1_", "lora_te_", "text_encoders.clip_l.transformer."),
}
#: prefixes of PEFT, torch.compile (with kohya's underscores too), data parallelism and pipelines
_WRAPPERS = ("base_model.model.", "_orig_mod.", "_orig_mod_", "module.", "model.", "pipe.")
#: diffusers' former names of the text encoder's attention layers
_FORMER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


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


def find_layer(name: str, networks: Mapping[str, LayerNames]) -> tuple[str, str] | None:
    """(part, module path) of a layer in a LoRA file, or None.

    Names without a part's prefix belong to the U-Net, or to the only text encoder that has them (PEFT's own files).
    """
    part, inner = _split(name)
    if part:
        found = networks[part].find(inner) if part in networks else None
        return None if found is None else (part, found)
    having = [(one, path) for one, layers in networks.items() if (path := layers.find(inner)) is not None]
    return having[0] if len(having) == 1 or (having and having[0][0] == "unet") else None


def hidden_prefix(unknown: Iterable[str], networks: Mapping[str, LayerNames]) -> str:
    """Beginning, up to a dot, that all of these names share and behind which they are layers; "" without any."""
    names = list(unknown)
    first = names[0]
    for end in (place + 1 for place, sign in enumerate(first[:200]) if sign == "."):
        prefix = first[:end]
        if all(name.startswith(prefix) and find_layer(name[end:], networks) for name in names):
            return prefix
    return ""


def _split(name: str) -> tuple[str, str]:
    """Part of the pipeline, or "", and name inside it, without wrappers."""
    name = _bare(name)
    for part, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                return part, _bare(name.removeprefix(prefix))
    return "", name


def _bare(name: str) -> str:
    name = name.replace("._orig_mod.", ".")  # around single blocks
    while wrapper := next((one for one in _WRAPPERS if name.startswith(one)), None):
        name = name.removeprefix(wrapper)
    return name
