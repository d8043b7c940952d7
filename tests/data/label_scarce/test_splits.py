"""Random splits and the file they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gate_lightning.data.label_scarce.splits import Split, random_split, read_split, shipped_split, write_split
from gate_lightning.errors import ConfigError, DataError

NAMES = [f"real/{number}.png" for number in range(7)]


def test_every_image_is_in_one_part_and_the_training_count_stays() -> None:
    for seed in range(5):
        split = random_split(4, 7, seed)
        assert len(split.train) == 4
        assert sorted(split.train + split.test) == list(range(7))
        assert split == random_split(4, 7, seed)
    assert len({random_split(4, 7, seed).train for seed in range(5)}) > 1
    assert shipped_split(4, 7) == Split((0, 1, 2, 3), (4, 5, 6))


@pytest.mark.thorough
def test_every_image_gets_its_turn_in_the_training_part() -> None:
    turns = [sum(place in random_split(20, 40, seed).train for seed in range(300)) for place in range(40)]
    # binomial with p = 1/2: six standard deviations are 52
    assert all(abs(count - 150) < 52 for count in turns)


def test_fewer_labelled_images_are_among_more_and_the_test_stays() -> None:
    whole = random_split(5, 7, 3)
    few, more = whole.labelled(2), whole.labelled(4)
    assert set(few.train) < set(more.train) < set(whole.train)
    assert few.test == more.test == whole.test == whole.labelled(None).test
    assert sorted(few.train + few.unused) == sorted(whole.train)
    assert len(few.train) == 2


@pytest.mark.parametrize("count", [0, -1, True, 2.0])
def test_no_number_of_images(count: object) -> None:
    with pytest.raises(ConfigError, match=r"expected a whole number from 1, or null .None. for all images"):
        random_split(5, 7, 0).labelled(count)  # type: ignore[arg-type]


def test_more_labelled_images_than_there_are() -> None:
    with pytest.raises(ConfigError, match="labelled=6, but the training part has 5 images"):
        random_split(5, 7, 0).labelled(6)
    with pytest.raises(ConfigError, match="split_seed=-1"):
        random_split(5, 7, -1)


def test_a_written_split_reads_back(tmp_path: Path) -> None:
    split = random_split(5, 7, 2).labelled(3)
    write_split(tmp_path / "run/split.json", split, NAMES, {"split_seed": 2})
    assert read_split(tmp_path / "run/split.json", NAMES) == split
    content = json.loads((tmp_path / "run/split.json").read_text())
    assert content["split_seed"] == 2
    assert set(content["test"]) == {NAMES[place] for place in split.test}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "expected"),
        ('{"train": ["real/0.png"], "test": [1]}', "expected"),
        ('{"train": [], "test": ["real/1.png"]}', "names no train images"),
        ('{"train": ["real/0.png"]}', "names no test images"),
        ('{"train": ["real/9.png"], "test": ["real/1.png"]}', "first 'real/9.png'; its images are called like"),
        ('{"train": ["real/1.png"], "test": ["real/1.png"]}', "'real/1.png' more than once"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(path, NAMES)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_split(tmp_path / "none.json", NAMES)
