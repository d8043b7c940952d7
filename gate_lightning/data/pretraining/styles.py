"""A folder of captioned images in kohya's layout, made of scenes: what the embedded adapters learn from."""

from __future__ import annotations

import logging
from pathlib import Path

from PIL import Image

from gate_lightning.data.scenes.captions import caption
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import SceneSpec
from gate_lightning.errors import ConfigError
from gate_lightning.utils.files import write_atomically, write_image

log = logging.getLogger(__name__)

FIRST_SEED = 8_000_000
"""First scene seed of the adapters' images; apart from training, validation and the experiments' data."""


def tags(spec: SceneSpec) -> str:
    """Comma-separated keywords, as a tagger would write them: ``red car, blue tree, grass, night sky``."""
    objects = [f"{o.color} {o.kind}" for o in sorted(spec.objects, key=lambda o: o.x)]
    return ", ".join([*objects, spec.ground, f"{spec.sky} sky"])


def write_style_set(
    output: str | Path,
    count: int = 30,
    first_seed: int = FIRST_SEED,
    domain: str = "target",
    size: int = 64,
    repeats: int = 10,
) -> None:
    """Write ``<repeats>_empty``, ``<repeats>_tags`` and ``<repeats>_sentences`` with the same images each.

    Args:
        output: folder, created where missing.
        count: images.
        first_seed: seed of the first scene.
        domain: "source" or "target".
        size: side in pixels.
        repeats: how often each image counts in a pass.

    Raises:
        ConfigError: a number below 1, or an unknown domain.
        CacheError: a file cannot be written.
    """
    if count < 1 or repeats < 1:
        raise ConfigError(f"count is {count} and repeats {repeats}; expected at least 1 each.")
    for seed in range(first_seed, first_seed + count):
        spec = sample_scene(seed, domain=domain)
        image = render(spec, size=size).image
        texts = {"empty": "", "tags": tags(spec), "sentences": caption(spec, "fine", wording="full")}
        for style, text in texts.items():
            folder = Path(output) / f"{repeats}_{style}"
            write_image(folder / f"{seed}.png", Image.fromarray(image))
            write_atomically(folder / f"{seed}.txt", f"{text}\n".encode())
    log.info("%d images in three caption styles: %s", count, output)
