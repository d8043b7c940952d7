"""Class labels refuse what would make masks ambiguous."""

from __future__ import annotations

import pytest

from gate_lightning.data.card import ClassLabels, gate_branches
from gate_lightning.errors import ConfigError

BLACK, RED = (0, 0, 0), (255, 0, 0)


def test_names_are_stripped_and_counted() -> None:
    labels = ClassLabels((" sky ", "car"), (BLACK, [255, 0, 0]))
    assert labels.classes == ("sky", "car")
    assert labels.palette == (BLACK, RED)
    assert labels.num_classes == 2
    assert labels.ignore_index == 255


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"classes": ()}, "0 classes"),
        ({"classes": ("a", "a")}, "'a' is there twice, as 0 and 1"),
        ({"classes": ("a", " ")}, "class 1 has an empty name"),
        ({"classes": tuple(map(str, range(256))), "palette": (BLACK,) * 256}, "256 classes"),
        ({"palette": (BLACK,)}, "1 colours for 2 classes"),
        ({"palette": (BLACK, (0, 0, 256))}, "0 to 255"),
        ({"palette": (BLACK, (0, 0))}, "red, green, blue"),
        ({"ignore_index": 1}, "also class 'b'"),
    ],
)
def test_ambiguous_labels_are_refused(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ClassLabels(**{"classes": ("a", "b"), "palette": (BLACK, RED), **arguments})


def test_recipe_is_the_papers() -> None:
    """One branch steered by the prompt alone, two by everything, with LoRAs of two strengths."""
    recipe = gate_branches()
    assert [branch["techniques"] for branch in recipe] == [["prompt"], *[["prompt", "controlnet", "lora"]] * 2]
    assert [branch.get("lora") for branch in recipe] == [None, {"role": "moderate"}, {"role": "overtrained"}]
    assert len({branch["name"] for branch in recipe}) == 3
