"""A folder of captioned images in kohya's layout, made of scenes: what the embedded adapters learn from."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2

from gate_lightning.data.scenes.captions import caption
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import SceneSpec
from gate_lightning.errors import ConfigError

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
        ConfigError: a number below 1, an unknown domain, or an image that cannot be written.
    """
    if count < 1 or repeats < 1:
        raise ConfigError(f"count is {count} and repeats {repeats}; expected at least 1 each.")
    for seed in range(first_seed, first_seed + count):
        spec = sample_scene(seed, domain=domain)
        image = render(spec, size=size).image[..., ::-1]
        texts = {"empty": "", "tags": tags(spec), "sentences": caption(spec, "fine", wording="full")}
        for style, text in texts.items():
            folder = Path(output) / f"{repeats}_{style}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{seed}.png"
            if not cv2.imwrite(str(path), image):
                raise ConfigError(f"{path} cannot be written; check that the folder is writable.")
            path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    log.info("%d images in three caption styles: %s", count, output)
