"""Widgets of the tab in which objects are followed through a video, by gradio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from gate_lightning.errors import GateError
from gate_lightning.tools.app.clips import Clip
from gate_lightning.tools.app.figures import Figure, figures, message
from gate_lightning.tools.app.following import BRUSHES, VideoBench
from gate_lightning.tools.app.widgets import command_box, settings_form, settings_of

__all__ = ["video_tab"]


def video_tab(bench: VideoBench) -> None:
    """First frame to paint on, settings, result and command, and what happens when they are used."""
    clip = gr.State(bench.first)
    told = gr.HTML("", elem_id="video-message")
    with gr.Row():
        with gr.Column(min_width=300):
            editor = gr.ImageEditor(
                _canvas(bench, bench.first),
                label="First frame: paint what is to be followed",
                brush=gr.Brush(default_size=16, colors=[_hex(one) for one in BRUSHES], color_mode="fixed"),
                sources=(),
                transforms=(),
                layers=False,
                elem_id="editor",
            )
            new = gr.UploadButton(
                "Choose a video, or its frames", file_count="multiple", file_types=["video", "image"], size="sm",
                elem_id="new-video")  # fmt: skip
        with gr.Column(min_width=300):
            shown = gr.HTML("", elem_id="frame")
            video = gr.Video(None, label="Followed", visible=False, autoplay=True, loop=True, elem_id="followed")
    fields, follow = settings_form(bench.workbench, bench.workbench.first, "Follow it", "video-")
    stop = gr.Button("Stop", size="sm", elem_id="video-stop")
    command = command_box("", "The same by a command", "video-")

    def opened(files: list[str]) -> tuple[Any, ...]:
        try:
            found = bench.clips.keep(files)
            return found, _canvas(bench, found), "", "", gr.update(value=None, visible=False), ""
        except GateError as error:
            return gr.skip(), gr.skip(), message(str(error)), gr.skip(), gr.skip(), gr.skip()

    def followed(now: Clip, painted: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            settings = settings_of(*values)
            settings.check(bench.workbench.backbones, bench.workbench.techniques)
            mask = bench.drawn(now, [np.asarray(layer) for layer in (painted or {}).get("layers", [])])
            line = bench.command(now, mask, settings)
            for one in bench.followed(now, mask, settings):
                figure = Figure(one.image, f"frame {one.index + 1} of {one.count}", "")
                yield "", figures([figure], ""), gr.update(visible=False), line
            path = str(bench.video(now, mask, settings))
            files = f"Masks and frames are in {bench.folder_of(mask, settings)}."
            yield "", f'<p class="gate-legend">{files}</p>', gr.update(value=path, visible=True), line
        except GateError as error:
            yield message(str(error)), gr.skip(), gr.skip(), gr.skip()

    new.upload(opened, new, [clip, editor, told, shown, video, command], api_visibility="private")
    running = follow.click(
        followed, [clip, editor, *fields], [told, shown, video, command], show_progress="hidden",
        api_visibility="private")  # fmt: skip
    stop.click(None, None, None, cancels=running, api_visibility="private")


def _canvas(bench: VideoBench, clip: Clip) -> Any:
    frame = bench.start(clip)
    return {"background": frame, "layers": [], "composite": frame}


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
