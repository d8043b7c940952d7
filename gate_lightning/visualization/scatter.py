"""Points of several kinds over two values."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gate_lightning.errors import ConfigError
from gate_lightning.utils.files import write_atomically

__all__ = ["scatter_chart"]

#: of kinds that are told apart by colour, and of those told apart by form; further ones repeat them
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#72b7b2", "#eeca3b", "#ff9da6")
FORMS = ("o", "s", "^", "D", "v", "P", "X", "*")


def scatter_chart(
    points: Sequence[tuple[float, float, str, str]], titles: tuple[str, str], title: str, path: Path
) -> None:
    """Points over two values, with lines at zero; the vertical one is drawn in percent.

    Args:
        points: across, up (a fraction), kind by colour, kind by form.
        titles: of both axes.
        title: above.
        path: PNG file; its folder is created.

    Raises:
        ConfigError: no point.
    """
    if not points:
        raise ConfigError("a scatter plot needs a point")
    figure = Figure(figsize=(6.6, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#999999", lw=0.8)
    axes.axvline(0, color="#999999", lw=0.8)
    colours = {kind: COLOURS[n % len(COLOURS)] for n, kind in enumerate(dict.fromkeys(one[2] for one in points))}
    forms = {kind: FORMS[n % len(FORMS)] for n, kind in enumerate(dict.fromkeys(one[3] for one in points))}
    for across, up, colour, form in points:
        axes.plot(across, 100 * up, forms[form], color=colours[colour], ms=6, mec="white", mew=0.6)
    for kind, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=kind)
    for kind, form in forms.items() if len(forms) > 1 else ():
        axes.plot([], [], form, color="#666666", label=kind)
    axes.set_xlabel(titles[0])
    axes.set_ylabel(titles[1])
    axes.set_title(title, fontsize=10)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
