"""Captions of scenes in a small closed vocabulary, from "a photo" to every object with colour, size and place.

Captions are lower case words separated by single blanks, without punctuation. Which of several wordings a caption
gets is decided by the seed of the scene, so a scene always has the same caption.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gate_lightning.data.scenes.world import COLORS, GROUNDS, KINDS, SKIES, ObjectSpec, SceneSpec
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice

LEVELS: tuple[str, ...] = ("empty", "coarse", "kinds", "fine", "noisy")
WORDINGS: tuple[str, ...] = ("varied", "full")
PLACES: dict[str, str] = {"left": "on the left", "middle": "in the middle", "right": "on the right"}

DROP_RATE = 0.25
WRONG_KIND_RATE = 0.12
WRONG_PLACE_RATE = 0.12
WRONG_COLOR_RATE = 0.30

MAX_WORDS = 38
"""No caption of a scene with up to four objects has more words than this."""

_ON_GROUND = {name: f"on a {name}" if name == "road" else f"on {name}" for name in GROUNDS}
_UNDER_SKY = {name: f"under {'an' if name[0] in 'aeiou' else 'a'} {name} sky" for name in SKIES}

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "of", "photo", "small", "large", *KINDS, *COLORS}
        | {word for text in (*PLACES.values(), *_ON_GROUND.values(), *_UNDER_SKY.values()) for word in text.split()}
    )
)
"""Every word that a caption may contain, sorted."""

_WORDS = frozenset(VOCABULARY)


@dataclass(frozen=True)
class _Mention:
    """Words of a caption about one object; "" leaves a word out."""

    kind: str
    color: str
    size: str
    place: str


def size_word(obj: ObjectSpec) -> str:
    """ "small", "large" or "" (in between), relative to other objects of the same kind."""
    fraction = obj.size_fraction
    return "small" if fraction < 0.35 else "large" if fraction > 0.55 else ""


def place_word(obj: ObjectSpec) -> str:
    """ "left", "middle" or "right", from the foot point.

    The middle is the fifth of the image from 0.4 to 0.6 and not a third: large objects cannot stand near the border,
    and with thirds more than half of all objects would be "in the middle".
    """
    return "left" if obj.x < 0.4 else "right" if obj.x > 0.6 else "middle"


def check_words(text: str) -> None:
    """Raise ``ConfigError`` naming every word of ``text`` that is not in ``VOCABULARY``."""
    unknown = sorted({word for word in text.split() if word not in _WORDS})
    if unknown:
        raise ConfigError(f"unknown words {', '.join(map(repr, unknown))}; valid words: {' '.join(VOCABULARY)}")


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _phrase(mention: _Mention, short: bool) -> str:
    words = [mention.color, mention.kind] if short else [mention.size, mention.color, mention.kind]
    text = _article(" ".join(word for word in words if word))
    return text if short or not mention.place else f"{text} {PLACES[mention.place]}"


def _mentions(spec: SceneSpec) -> list[_Mention]:
    # From left to right, as one would describe an image, and independent of the drawing order.
    objects = sorted(spec.objects, key=lambda obj: obj.x)
    return [_Mention(obj.kind, obj.color, size_word(obj), place_word(obj)) for obj in objects]


def _other(rng: np.random.Generator, names: tuple[str, ...], name: str) -> str:
    rest = [other for other in names if other != name]
    return rest[int(rng.integers(len(rest)))]


def _misread(mention: _Mention, rng: np.random.Generator) -> _Mention | None:
    """Mention of an object by an imperfect captioner; None if it is overlooked."""
    # All numbers are drawn for every object, so that one error does not shift the next object's errors.
    drop, kind, place, color = rng.random(4)
    wrong_kind = _other(rng, KINDS, mention.kind)
    wrong_place = _other(rng, tuple(PLACES), mention.place)
    wrong_color = _other(rng, tuple(COLORS), mention.color)
    if drop < DROP_RATE:
        return None
    return _Mention(
        wrong_kind if kind < WRONG_KIND_RATE else mention.kind,
        wrong_color if color < WRONG_COLOR_RATE else mention.color,
        mention.size,
        wrong_place if place < WRONG_PLACE_RATE else mention.place,
    )


def _describe(mentions: list[_Mention], spec: SceneSpec, rng: np.random.Generator, wording: str) -> str:
    """Fine caption that joins the mentions."""
    style, order = rng.random(2)
    varied = wording == "varied"
    short = varied and style < (0.5 if len(spec.objects) == 1 else 0.2)
    # Half of the captions start with "a photo of"; never the longest, which would exceed the word limit.
    prefixed = varied and len(spec.objects) < 4 and (style * 20) % 2 < 1
    text = " and ".join(_phrase(mention, short) for mention in mentions)
    if not text:
        text = "a photo"
    elif prefixed:
        text = f"a photo of {text}"
    if short:
        return text
    where = [_ON_GROUND[spec.ground], _UNDER_SKY[spec.sky]]
    if varied and order < 0.3:
        where.reverse()
    return " ".join([text, *where])


def caption(spec: SceneSpec, level: str = "fine", wording: str = "varied") -> str:
    """Caption of a scene.

    Args:
        spec: the scene; the domain does not show in the text.
        level: "empty" (no words), "coarse" ("a photo"), "kinds" ("a photo of a horse and a car"), "fine" (colour and
            kind of every object, mostly with size, place, ground and sky), or "noisy": the fine text of a captioner
            that overlooks 25 % of the objects and gets 12 % of kinds, 12 % of places and 30 % of colours wrong.
        wording: "varied" also gives short forms such as "a red car" (half of the single objects, a fifth of the other
            scenes) and other orders; "full" always gives the complete form.

    Returns:
        At most ``MAX_WORDS`` words of ``VOCABULARY`` for scenes with up to four objects.

    Raises:
        ConfigError: unknown level or wording; the text lists the valid ones.
    """
    check_choice(level, "caption level", LEVELS)
    check_choice(wording, "wording", WORDINGS)
    if level == "empty":
        return ""
    mentions = _mentions(spec)
    if level == "coarse" or (level == "kinds" and not mentions):
        return "a photo"
    if level == "kinds":
        return "a photo of " + " and ".join(_article(mention.kind) for mention in mentions)
    if level == "noisy":
        # a generator of its own: "fine" and "noisy" of a scene differ by the errors, not by the wording
        errors = np.random.default_rng([spec.seed, 0xE4])
        mentions = [seen for seen in (_misread(mention, errors) for mention in mentions) if seen is not None]
    return _describe(mentions, spec, np.random.default_rng([spec.seed, 0x77]), wording)


def single_object_prompts() -> list[tuple[str, str, str]]:
    """All 48 prompts about one object as (prompt, kind, colour), e.g. ("a photo of a red car", "car", "red")."""
    return [(f"a photo of {_article(f'{color} {kind}')}", kind, color) for kind in KINDS for color in COLORS]
