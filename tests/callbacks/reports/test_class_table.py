from __future__ import annotations

import math

from gate_lightning.callbacks.reports.class_table import class_text


def scores(count: int) -> dict[str, dict[str, float]]:
    return {f"class {i}": {"IoU": i / count, "Acc": 0.5, "Precision": 0.1, "share": 1 / count} for i in range(count)}


def test_classes_stand_side_by_side_in_their_order() -> None:
    table = scores(3)
    table["class 1"]["IoU"] = math.nan
    assert class_text(table).splitlines() == [
        "class      IoU    Acc  share    class      IoU    Acc  share",
        "class 0    0.0   50.0   33.3    class 2   66.7   50.0   33.3",
        "class 1      –   50.0   33.3",
    ]


def test_of_many_classes_the_worst_and_the_best_are_shown() -> None:
    table = scores(150)
    table["class 0"]["IoU"] = math.nan
    lines = class_text(table).splitlines()
    assert len(lines) == 14
    assert lines[0] == "the 10 lowest IoUs of 150 classes"
    assert lines[2].startswith("class 1 ")
    assert lines[9].startswith("class 149 ")
    assert class_text(scores(30)).count("\n") == 15
    assert max(map(len, class_text({f"{'x' * 40}{k}": v for k, v in scores(150).items()}).splitlines())) <= 79
