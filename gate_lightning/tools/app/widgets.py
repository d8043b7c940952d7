"""Widgets that both tabs of the page have: settings, and commands to copy."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gate_lightning.tools.app.settings import Settings
from gate_lightning.tools.app.workbench import Session, Workbench

__all__ = ["command_box", "settings_form", "settings_of"]


def command_box(text: str, label: str, prefix: str = "") -> Any:
    """Box with commands to copy."""
    return gr.Code(
        text,
        language="shell",
        label=label,
        wrap_lines=True,
        lines=3,
        max_lines=8,
        show_line_numbers=False,
        elem_id=f"{prefix}command",
    )


def settings_form(workbench: Workbench, first: Session, button: str, prefix: str = "") -> tuple[list[Any], Any]:
    """Fields of the settings in the order of `settings_of`, and the button that applies them.

    Args:
        workbench: knows what can be chosen.
        first: what is chosen at first.
        button: its words.
        prefix: of the widgets' ids.
    """
    chosen = first.settings
    with gr.Accordion("Settings", open=True):
        with gr.Row():
            backbone = gr.Dropdown(
                workbench.backbones, value=chosen.backbone, label="Backbone", elem_id=f"{prefix}backbone"
            )
            timestep = gr.Number(
                chosen.timestep, precision=0, label="Timestep (0: hardly any noise)", elem_id=f"{prefix}timestep"
            )
            ensemble = gr.Number(chosen.ensemble, precision=0, label="Noises averaged", elem_id=f"{prefix}ensemble")
        with gr.Row():
            layers = gr.Dropdown(
                workbench.layers(first), value=list(chosen.layers), multiselect=True, allow_custom_value=True,
                label="Layers: presets, or layers of the backbone", elem_id=f"{prefix}layers")  # fmt: skip
            techniques = gr.Dropdown(
                workbench.techniques, value=list(chosen.techniques), multiselect=True,
                label="Techniques (none: plain features)", elem_id=f"{prefix}techniques")  # fmt: skip
            prompt = gr.Textbox(
                chosen.prompt, label="Prompt", placeholder="for the technique prompt", max_lines=1,
                elem_id=f"{prefix}prompt")  # fmt: skip
        apply = gr.Button(button, variant="primary", elem_id=f"{prefix}apply")
    return [backbone, timestep, layers, techniques, ensemble, prompt], apply


def settings_of(
    backbone: str, timestep: int, layers: list[str], techniques: list[str], ensemble: int, prompt: str
) -> Settings:
    """Settings from the values of the fields."""
    return Settings(backbone, timestep, tuple(layers), tuple(techniques), ensemble, prompt.strip())
