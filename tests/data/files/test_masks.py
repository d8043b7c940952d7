"""Mask values and colours → labels; what has no meaning is named, counted, and advised on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.files.masks import LabelMap, MaskReader
from gate_lightning.data.files.palette import default_palette, read_palette
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.visualization.overlay import WRONG_COLOUR
from tests.support.folders import write


def slow_apply(rule: LabelMap, values: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Pixel by pixel."""
    labels = np.full(values.shape, 255, dtype=np.uint8)
    unknown: dict[int, int] = {}
    for place, value in np.ndenumerate(values):
        renumbered = int(value) in rule.label_map
        if (value == rule.ignore_index and not renumbered) or (rule.reduce_zero_label and value == 0):
            continue
        label = rule.label_map.get(int(value), -1) if rule.label_map else int(value) - int(rule.reduce_zero_label)
        if 0 <= label < rule.num_classes:
            labels[place] = label
        else:
            unknown[int(value)] = unknown.get(int(value), 0) + 1
    return labels, unknown


@pytest.mark.parametrize(
    "rule",
    [
        LabelMap(5),
        LabelMap(5, ignore_index=None),
        LabelMap(5, ignore_index=2),
        LabelMap(5, reduce_zero_label=True),
        LabelMap(3, ignore_index=9, label_map={0: 1, 7: 0, 3: 2, 4: 2}),
        LabelMap(2, label_map={0: 0, 255: 1}),
    ],
)
@pytest.mark.parametrize("values", [[0, 1, 2, 3, 4], list(range(12)), [255, 0, 1], [70000, -3, 1, 1, 70000], [65535]])
def test_label_map_against_a_loop(rule: LabelMap, values: list[int]) -> None:
    mask = np.random.default_rng(0).choice(values, (6, 7)).astype(np.int32)
    labels, unknown = rule.apply(mask)
    expected, strange = slow_apply(rule, mask)
    assert labels.dtype == np.uint8
    assert (labels == expected).all()
    assert unknown == strange


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"ignore_index": -1}, "dataset.ignore_index=-1: expected a whole number"),
        ({"reduce_zero_label": True, "label_map": {0: 1}}, "use one of them"),
        ({"label_map": {7: 3}}, "outside the classes 0 … 2"),
        ({"label_map": {"a": 1}}, "file value of dataset.label_map='a'"),
        ({"label_map": {0: 0.5}}, r"dataset.label_map\[0\]=0.5"),
        ({"label_map": [0, 1]}, r"label_map is \[0, 1\]; expected"),
    ],
)
def test_contradicting_rules_are_refused(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LabelMap(3, **arguments)


@pytest.mark.parametrize(
    ("num_classes", "value", "advice"),
    [
        (3, 3, r"If 3 means unlabelled use dataset.ignore_index=3, .* dataset.reduce_zero_label=true; else add it"),
        (3, 200, r"If 200 means unlabelled use dataset.ignore_index=200; else say its class: 'dataset.label_map="),
        (2, 65535, r"If 65535 is foreground use 'dataset.label_map=\{0: 0, 65535: 1\}', if it is ignored"),
        (2, 255, r"If 255 is foreground use 'dataset.label_map=\{0: 0, 255: 1\}', if it is ignored"),
    ],
)
def test_advice_fits_the_mistake(tmp_path: Path, num_classes: int, value: int, advice: str) -> None:
    mask = np.zeros((4, 5), dtype=np.uint8 if value < 256 else np.uint16)
    mask[1, :3] = value
    reader = MaskReader(tuple("abc"[:num_classes]), LabelMap(num_classes, ignore_index=None))
    with pytest.raises(DataError, match=rf"m.png: unknown label values: {value} in 3 pixels; .*{advice}"):
        reader.read(write(tmp_path / "m.png", mask))


@pytest.mark.parametrize(
    ("rule", "present", "advice"),
    [
        (LabelMap(2), [0], "'dataset.label_map={0: 0, 255: 1}'"),
        (LabelMap(2), [1], "'dataset.label_map={1: 1, 255: 0}'"),
        (LabelMap(1), [0], "'dataset.label_map={0: 0, 255: 1}', with both names in classes.txt"),
        (LabelMap(2, ignore_index=9, label_map={3: 1, 4: 1}), [1], "'dataset.label_map={3: 1, 4: 1, 9: 0}'"),
        (LabelMap(3), [0], "'dataset.label_map={file value: class index, …}'"),
        (LabelMap(2, reduce_zero_label=True), [], "dataset.reduce_zero_label=false"),
        (LabelMap(2, ignore_index=None), [], "Choose masks with labels"),
    ],
)
def test_advice_where_too_much_is_ignored(rule: LabelMap, present: list[int], advice: str) -> None:
    assert advice in rule.advice_on_ignored(present)


def test_many_unknown_values_are_summed_up(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", np.arange(20, dtype=np.uint8).reshape(4, 5))
    with pytest.raises(DataError, match=r"and 10 more; 3 classes and ignored are 0 … 2, 19\. .*label_map"):
        MaskReader(("a", "b", "c"), LabelMap(3, ignore_index=19)).read(path)


PALETTE = "# r g b name\n0 0 0 void\n128 64 128 road surface\n\n70 70 70 building\n1 2 3 road surface\n"


def test_palette_file(tmp_path: Path) -> None:
    path = tmp_path / "palette.txt"
    path.write_text(PALETTE)
    palette = read_palette(path)
    assert palette.names == ("void", "road surface", "building", "road surface")
    assert palette.of(("building", "road surface"), path) == ((70, 70, 70), (128, 64, 128))


def test_colours_become_labels_and_strange_ones_are_counted(tmp_path: Path) -> None:
    (tmp_path / "palette.txt").write_text(PALETTE)
    palette = read_palette(tmp_path / "palette.txt")
    colours = [(0, 0, 0), (128, 64, 128), (70, 70, 70), (1, 2, 3), (128, 64, 129), (255, 255, 255)]
    image = np.array([colours, colours[::-1]], dtype=np.uint8)
    labels, unknown = palette.decode(image, ("building", "road surface"))
    assert labels.tolist() == [[255, 1, 0, 1, 255, 255], [255, 255, 1, 0, 1, 255]]
    assert unknown == {(128, 64, 129): 2, (255, 255, 255): 2}
    reader = MaskReader(("building", "road surface"), LabelMap(2), palette)
    with pytest.raises(DataError, match=r"m.png: unknown colours: \(128, 64, 129\) in 2 pixels, .*palette file"):
        reader.read(write(tmp_path / "m.png", image))


def test_colour_masks_need_a_palette(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", np.zeros((2, 2, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"m.png is an RGB mask .* write palette.txt"):
        MaskReader(("a",), LabelMap(1)).read(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("0 0 0\n", "line 1: '0 0 0'; expected `r g b name`"),
        ("0 0 0 a\n0 0 256 b\n", "line 2"),
        ("0 0 0 a\n0 x 0 b\n", "line 2"),
        ("0 0 0 a\n0 0 0 b\n", r"line 2: \(0, 0, 0\) is also 'a'"),
        ("# nothing\n", "no colours"),
    ],
)
def test_broken_palette_files_are_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "palette.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=named):
        read_palette(path)


def test_palette_must_fit_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "palette.txt"
    path.write_text(PALETTE)
    with pytest.raises(DataError, match=r"no colour for \['sky'\], no class for \['building'\]"):
        read_palette(path).of(("sky", "road surface"), path)


def test_default_colours_differ_and_do_not_depend_on_how_many() -> None:
    colours = default_palette(150)
    assert len(set(colours)) == 150
    assert default_palette(7) == colours[:7]
    near = [np.abs(np.subtract(a, b)).sum() for n, a in enumerate(colours[:20]) for b in colours[:n]]
    assert min(near) > 30


def test_no_default_colour_looks_like_an_error() -> None:
    assert min(np.abs(np.subtract(colour, WRONG_COLOUR)).sum() for colour in default_palette(255)) > 80
