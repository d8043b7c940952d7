"""Seeded little images with exact masks, keypoints and captions (``dataset=scenes``).

>>> spec = sample_scene(7)
>>> image = render(spec, size=64)
>>> text = caption(spec, "fine")
"""

from .captions import (
    LEVELS,
    MAX_WORDS,
    VOCABULARY,
    WORDINGS,
    caption,
    check_words,
    place_word,
    single_object_prompts,
    size_word,
)
from .layout import sample_scene, visible_fractions
from .render import render
from .rendering import Keypoints, Rendering
from .shapes import KEYPOINT_NAMES
from .world import (
    COLORS,
    DOMAINS,
    GROUNDS,
    KINDS,
    LEAK_FREE_KINDS,
    MERGED,
    MERGED_PALETTE,
    PART_PALETTE,
    PART_TO_MERGED,
    PARTS,
    SKIES,
    ObjectSpec,
    SceneSpec,
)

__all__ = [
    "COLORS",
    "DOMAINS",
    "GROUNDS",
    "KEYPOINT_NAMES",
    "KINDS",
    "LEAK_FREE_KINDS",
    "LEVELS",
    "MAX_WORDS",
    "MERGED",
    "MERGED_PALETTE",
    "PARTS",
    "PART_PALETTE",
    "PART_TO_MERGED",
    "SKIES",
    "VOCABULARY",
    "WORDINGS",
    "Keypoints",
    "ObjectSpec",
    "Rendering",
    "SceneSpec",
    "caption",
    "check_words",
    "place_word",
    "render",
    "sample_scene",
    "single_object_prompts",
    "size_word",
    "visible_fractions",
]
