"""Branches of GATE's recipe for semantic correspondence."""

from __future__ import annotations

from typing import Any

__all__ = ["correspondence_branches"]


def correspondence_branches(attention: str | None = None, other: str | None = "a photo") -> tuple[dict[str, Any], ...]:
    """Branches of ``techniques=all`` in semantic correspondence: GATE's seven features (its README, SPair-71k).

    Two with the fine prompt and two with ControlNet, each under two noises; two with a LoRA, one moderately trained and
    one slightly over-trained; and the cross-attention of the up stage under ControlNet and LoRA, concatenated. Those
    with ControlNet are denoised over ten timesteps before they are read.

    Args:
        attention: prompt of the attention feature; None for the fine prompt.
        other: prompt of the branches with a LoRA or ControlNet; None for the simple one.
    """
    text = {} if other is None else {"prompt": {"text": other}}
    prompt = [] if other is None else ["prompt"]
    denoised = {"techniques": [*prompt, "controlnet"], **text, "denoise_steps": 10}
    return (
        {"name": "prompt", "techniques": ["prompt"]},
        {"name": "prompt2", "techniques": ["prompt"]},
        *(
            {"name": role, "techniques": [*prompt, "lora"], **text, "lora": {"role": role}}
            for role in ("moderate", "overtrained")
        ),
        {"name": "controlnet", **denoised},
        {"name": "controlnet2", **denoised},
        {
            "name": "attention",
            "techniques": ["prompt", "controlnet", "lora"],
            **({} if attention is None else {"prompt": {"text": attention}}),
            "lora": {"role": "moderate"},
            "denoise_steps": 10,
            "layers": "attn-up-cross",
            "concatenated": True,
        },
    )
