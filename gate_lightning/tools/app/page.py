"""Widgets of the page, by gradio; what they do is in `Workbench` and `VideoBench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from gate_lightning.errors import GateError
from gate_lightning.tools.app.figures import message
from gate_lightning.tools.app.following import VideoBench
from gate_lightning.tools.app.video_tab import video_tab
from gate_lightning.tools.app.widgets import command_box, settings_form, settings_of
from gate_lightning.tools.app.workbench import VIEWS, Session, Workbench

__all__ = ["STYLE", "page", "theme"]

#: seconds after which gradio's own copies of images are deleted, and between two looks for them
_KEPT = (600, 3600)
STYLE = """
.gate-figures {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 220px), 1fr)); gap: 12px}
.gate-figures figure {margin: 0}
.gate-figures img {width: 100%; display: block; border-radius: 6px}
.gate-figures figcaption {font-size: .9em; margin-top: 4px; overflow-wrap: anywhere}
.gate-legend, .gate-empty {font-size: .9em; opacity: .8; margin: 8px 0 0}
.gate-message {border: 2px solid #c62828; border-radius: 6px; padding: 10px 14px; background: #c6282822;
  white-space: pre-wrap; overflow-wrap: anywhere}
#source img {cursor: crosshair}
.gate-drop {min-height: 90px}
"""


def theme() -> Any:
    """Colours and fonts: those of the system, nothing is loaded."""
    return gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def page(workbench: Workbench, videos: VideoBench) -> Any:
    """The page as gradio's blocks."""
    with gr.Blocks(title="gate_lightning: matches", analytics_enabled=False, delete_cache=_KEPT) as blocks:
        with gr.Tab("Images"):
            gr.Markdown(
                "# Where is this point?\nClick a point of the first image; the others show where its features are "
                "found."
            )
            _matches(workbench)
        with gr.Tab("Video"):
            gr.Markdown(
                "# Where does it go?\nPaint an object of the first frame, in several colours for several objects, and "
                "follow it through the video."
            )
            video_tab(videos)
    return blocks


def _matches(workbench: Workbench) -> None:
    """Images, settings and command, and what happens when they are used."""
    first, start = workbench.first, workbench.screen(workbench.first)
    session = gr.State(first)
    told = gr.HTML("", elem_id="message")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            source = gr.Image(
                start.source, label="Click a point", interactive=False, buttons=[], elem_id="source", format="jpeg"
            )
            with gr.Row():
                new_source = gr.UploadButton(
                    "Choose another image", file_types=["image"], size="sm", elem_id="new-source"
                )
                turn = gr.Button("Click in the next one instead", size="sm", elem_id="turn")
        with gr.Column(scale=5, min_width=300):
            view = gr.Radio(
                [(title, name) for name, title in VIEWS.items()], value=first.view, show_label=False, elem_id="view"
            )
            shown = gr.HTML(start.figures, elem_id="figures")
            dropped = gr.File(
                label="Drop images to search in",
                file_count="multiple",
                height=130,
                elem_id="new-targets",
            )
            clear = gr.Button("Remove these images", size="sm", elem_id="clear")
    fields, apply = settings_form(workbench, first, "Apply")
    command = command_box(start.command, "The same by commands, one for each image")
    outputs = [session, source, shown, command, told]

    def on(trigger: Any, change: Callable[..., Session], *inputs: Any) -> Any:
        return trigger(_answered(workbench, change), [session, *inputs], outputs, show_progress="minimal",
                api_visibility="private")  # fmt: skip

    def clicked(now: Session, event: gr.SelectData) -> tuple[Any, ...]:
        return _answered(workbench, lambda one: workbench.clicked(one, *event.index))(now)

    source.select(clicked, [session], outputs, show_progress="hidden", api_visibility="private")
    on(new_source.upload, workbench.with_source, new_source)
    taken = on(dropped.upload, workbench.with_targets, dropped)
    taken.then(lambda: None, None, dropped, api_visibility="private")  # the field is free again
    on(turn.click, workbench.turned)
    on(clear.click, workbench.without_targets)
    on(view.input, workbench.with_view, view)
    layers = fields[2]

    def settled(now: Session, *values: Any) -> tuple[Any, ...]:
        answer = _answered(workbench, lambda one: workbench.with_settings(one, lambda: settings_of(*values)))(now)
        told_of = answer[-1]
        known = gr.skip() if told_of else gr.update(choices=workbench.layers(answer[0]))
        return (*answer, known)

    apply.click(settled, [session, *fields], [*outputs, layers], show_progress="minimal", api_visibility="private")


def _answered(workbench: Workbench, change: Callable[..., Session]) -> Callable[..., tuple[Any, ...]]:
    """A change of a session as an event of gradio: the new session and what it shows, or the old one and a message."""

    def answer(session: Session, *inputs: Any) -> tuple[Any, ...]:
        try:
            changed = change(session, *inputs)
            screen = workbench.screen(changed)
        except GateError as error:
            return (gr.skip(), gr.skip(), gr.skip(), gr.skip(), message(str(error)))
        return (changed, screen.source, screen.figures, screen.command, "")

    return answer
