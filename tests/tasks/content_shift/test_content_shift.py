"""Ranking by content shift: exact answers of plain features, captions of the neighbour, controls, what is missing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gate_lightning.backbones.base import Backbone
from gate_lightning.callbacks.reports.content_shift import short_table
from gate_lightning.data.card import ClassLabels
from gate_lightning.engine.command.used_keys import check_overrides
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.untrained import keys_measured
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.metrics.content_shift.drift import noise_drift
from gate_lightning.metrics.content_shift.laplacian import contour_difference
from gate_lightning.metrics.content_shift.statistic import Bootstrap
from gate_lightning.metrics.content_shift.table import figures
from gate_lightning.structures import ImageBatch, SegmentationBatch
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.drift import NoiseDrift
from gate_lightning.tasks.content_shift.laplacian import LaplacianScore
from gate_lightning.tasks.content_shift.measure import ImageMeasure
from gate_lightning.tasks.content_shift.probe import ClosedFormProbe
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.study import ShiftResults, compared_rows, measure_content_shift
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.composition import composed
from tests.support.small_networks import build, conditions, random_images

LAYER = "up-level1-upsampler-out"
CAPTIONS = ("a red circle", "a house", "a photo of a circle", "a red house")
NONE, PROMPT = Branch("none", 50, (LAYER,)), Branch("prompt", 50, (LAYER,), (Prompt(),))
BOTH = {"own": LaplacianScore("own"), "plain": LaplacianScore("plain")}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("one_repeat")


def batches(captions: tuple[str, ...] | None = CAPTIONS, each: int = 2) -> list[ImageBatch]:
    images, known = random_images(4, 32, 32), conditions(4, captions=captions)
    return [ImageBatch(images[at : at + each], known[slice(at, at + each)]) for at in range(0, 4, each)]


def measured(backbone: Backbone, *branches: Branch, sample: Any = None, **settings: Any) -> ShiftResults:
    given = {"timesteps": (200,), **settings}
    measures = {"own": LaplacianScore("own"), "plain": LaplacianScore("plain"), **given.pop("measures", {})}
    return measure_content_shift(ShiftReader({"": backbone}, branches, **given), sample or batches(), measures)


def test_plain_features_have_no_shift_against_their_own_anchor(backbone: Backbone) -> None:
    found = measured(backbone, NONE, timesteps=(50, 200))
    assert [*found.statistics["own"]] == [("none", 50, LAYER), ("none", 200, LAYER)]
    for statistics in found.statistics.values():
        for (_, timestep, _), one in statistics.items():
            assert one.value == 0.0
            assert one.of_images.tolist() == [0.0] * 4
            assert one.anchor == f"none at t = {timestep}"
    assert found.images == ("s0", "s1", "s2", "s3")


def test_scores_are_those_of_features_read_by_hand(backbone: Backbone) -> None:
    found = measured(backbone, PROMPT)  # a plain branch is added
    images, known = random_images(4, 32, 32), conditions(4, captions=CAPTIONS)
    extractor = FeatureExtractor(
        backbone,
        [replace(one, name=f"{one.name}{t}", timestep=t, noise_seed=0) for one in (NONE, PROMPT) for t in (0, 200)],
    )
    maps = {name: layers[LAYER] for name, layers in extractor(images, known).items()}
    anchor = contour_difference(maps["none0"], maps["none200"])
    for reference, start in (("own", "prompt0"), ("plain", "none0")):
        difference = contour_difference(maps[start], maps["prompt200"])
        score = found.statistics[reference]["prompt", 200, LAYER]
        torch.testing.assert_close(score.of_images, 1 - difference / anchor, rtol=1e-4, atol=1e-5)
        assert score.value == pytest.approx(float(1 - difference.mean() / anchor.mean()), rel=1e-4)


@pytest.mark.parametrize(
    "each", [pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough), 4]
)
def test_shuffled_captions_are_those_of_the_next_image(backbone: Backbone, each: int) -> None:
    found = measured(backbone, NONE, PROMPT, sample=batches(each=each))
    rolled = measured(backbone, PROMPT, sample=batches((*CAPTIONS[1:], CAPTIONS[0])))
    shuffled = found.statistics["own"]["prompt (shuffled)", 200, LAYER]
    torch.testing.assert_close(
        shuffled.values, rolled.statistics["own"]["prompt", 200, LAYER].values, rtol=1e-3, atol=1e-3
    )
    assert not torch.allclose(shuffled.values, found.statistics["own"]["prompt", 200, LAYER].values, rtol=1e-2)
    assert compared_rows(found)["prompt (shuffled)"].ranked is False


@pytest.mark.parametrize(
    "branch",
    [replace(PROMPT, techniques=(Prompt("a house"),)), replace(PROMPT, techniques=(Prompt(fallback="a house"),))],
)
def test_only_what_reads_captions_is_shuffled(backbone: Backbone, branch: Branch) -> None:
    sample = batches(None if branch.techniques[0].text is None else CAPTIONS)  # type: ignore[attr-defined]
    assert [*measured(backbone, NONE, branch, sample=sample).candidates] == ["none", "prompt"]


@pytest.mark.thorough
def test_controls_of_equal_cost_are_plain_features_of_several_noises(backbone: Backbone) -> None:
    steps = Branch("steps", 50, (LAYER,), (Denoise(steps=2),))
    found = measured(backbone, NONE, PROMPT, steps, noises=(2, 4), timesteps=(100,))
    passes = {name: cost.passes for name in found.candidates if (cost := found.cost(name)) is not None}
    assert passes == {"none": 1, "prompt": 1, "steps": 3, "none x2": 2, "none x4": 4, "prompt (shuffled)": 1}
    rows = compared_rows(found)
    assert rows["steps"].controls["passes"] == "none x4"
    assert rows["prompt"].controls["passes"] == rows["prompt"].plain == "none"
    assert [name for name, row in rows.items() if row.ranked] == ["none", "prompt", "steps"]
    assert all(cost.seconds > 0 for cost in found.costs.values())
    lines = tuple(figures(found.statistics, rows, Bootstrap(4)))
    ranking = next(line for line in short_table(lines, found).splitlines() if line.startswith("own: "))
    names = ranking.removeprefix("own: ").split(" > ")
    values = {one.candidate: one.figure.value for one in lines if one.measure == "own"}
    expected = sorted({*values} - {"prompt (shuffled)"}, key=lambda name: -values[name])
    assert [name.strip("[]") for name in names] == expected
    assert {name for name in names if name.startswith("[")} == {"[none x2]", "[none x4]"}


class Words(ImageMeasure):
    """Counts images; nothing to go by, or an error, where it is told so."""

    def __init__(self, lacks: str = "", fails: str = "") -> None:
        super().__init__()
        self.lacks, self.fails = lacks, fails

    def missing(self, batch: ShiftBatch) -> str | None:
        return self.lacks or None

    def update(self, batch: ShiftBatch) -> None:
        if self.fails:
            raise ConfigError(self.fails)
        self.add("none", None, None, torch.ones(len(batch)))


@pytest.mark.thorough
def test_what_cannot_be_measured_is_told_of_and_the_rest_comes(backbone: Backbone) -> None:
    branches = [
        replace(PROMPT, name="adapted", techniques=(LoRA("style", "no/such.safetensors"),)),
        Branch("steps", 50, (LAYER,), (Denoise(steps=2, stride=10),)),
        Branch("own", 50, (LAYER,), (Prompt(file=None, template="a {category}"),)),
    ]
    measures = {"masks": Words(lacks="no masks"), "sizes": Words(fails="layers of different sizes"), "count": Words()}
    found = measured(backbone, NONE, *branches, measures=measures, timesteps=(200, 990))
    assert found.left_out["masks"] == "no masks"
    assert found.left_out["sizes"] == "layers of different sizes"
    assert "no/such.safetensors" in found.left_out["adapted"]
    assert "these images have none" in found.left_out["own at t = 200"]
    assert "990" in found.left_out["steps at t = 990"]
    assert {key[:2] for key in found.statistics["own"]} == {("none", 200), ("none", 990), ("steps", 200)}
    assert found.statistics["count"]["none", None, None].value == 1.0


def test_what_is_no_sample_or_measures_nothing_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="1 image: content shift is ranked over a sample of at least 2"):
        measured(backbone, NONE, sample=batches()[0:1] and [ImageBatch(random_images(1, 32, 32), conditions(1))])
    with pytest.raises(ConfigError, match=r"nothing could be measured:\n  masks: none"):
        measure_content_shift(ShiftReader({"": backbone}, [NONE]), batches(), {"masks": Words(lacks="none")})
    with pytest.raises(ConfigError, match=r"^task\.timesteps=5000"):
        ShiftReader({"": backbone}, [NONE], (5000,))
    with pytest.raises(ConfigError, match=r"^task\.timesteps=\[50, -1\]: .*timestep: -1\}"):
        ShiftReader({"": backbone}, [NONE], (50, -1))
    with pytest.raises(ConfigError, match=r"task\.noises=1"):
        ShiftReader({"": backbone}, [NONE], noises=(1,))
    with pytest.raises(ConfigError, match="reference='none'"):
        LaplacianScore("none")


@pytest.mark.thorough
def test_little_memory_changes_nothing(backbone: Backbone) -> None:
    sample = batches()[:1]
    whole = measured(backbone, PROMPT, sample=sample)  # a plain branch is added
    frugal = measured(backbone, PROMPT, sample=sample, memory_gib=1e-6, max_samples=1)
    for key, one in whole.statistics["own"].items():
        torch.testing.assert_close(frugal.statistics["own"][key].values, one.values, rtol=1e-3, atol=1e-3)


@pytest.mark.thorough
def test_how_passes_are_run_is_what_the_configuration_says() -> None:
    given = ["features.passes=eager", "features.max_samples=3", "backbone.weights=random"]
    config = composed("task=content_shift", *given, name="eval")
    check_overrides(given[:2], keys_measured(config), "content shift")
    config.task.measures = {"prompt_grounding": config.task.measures.prompt_grounding}
    reader = Components(runs.resolve(config), "").task.reader
    made = reader._extractor(["none"], 50, 0)
    assert (made.recordings.kind, made.limit.most) == ("eager", 3)
    painter = reader.repainter._painter(["none"], 0.4, 2).extractor
    assert (painter.recordings.kind, painter.limit.most) == ("eager", 3)
    assert Components(runs.resolve(composed("task=content_shift", name="eval")), "").config.task.max_samples == 64
    with pytest.raises(ConfigError, match=r"features\.pooling=2: content shift compares features as they are"):
        Components(runs.resolve(composed("task=content_shift", "features.pooling=2", name="eval")), "").task  # noqa: B018


@pytest.mark.thorough
def test_the_command_ranks_without_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gate_lightning")
    given = ["task=content_shift", "task.data.images=3", "dataset.size=32", "logger=none", "trainer.accelerator=cpu"]
    given += [
        "task.timesteps=[100,300]",
        f"layers=[{LAYER}]",
        "backbone.weights=random",
        "callbacks.shift_images.steps=2",
    ]
    given += ["technique.lora.weights=null", "callbacks.shift_images.count=1", "task.resamples=50"]
    given += ["task.measures.drift_moves.draws=2"]
    kept = ("laplacian_own", "laplacian_plain", "drift_moves", "probe_ridge")
    names = composed("task=content_shift").task.measures
    given += [f"task.measures.{name}=null" for name in names if name not in kept]
    run = tmp_path / "run"
    found = evaluate(composed(*given, name="eval"), given, run)
    assert found["test/laplacian_own/none"] == 0.0
    assert {"test/laplacian_plain/controlnet", "test/laplacian_own/prompt_shuffled"} <= {*found}
    rows = list(csv.DictReader((run / "content_shift.csv").open()))
    averaged = {(row["measure"], row["candidate"]): row for row in rows if row["timestep"] == "all"}
    assert float(averaged["drift_moves", "prompt"]["value"]) == pytest.approx(found["test/drift_moves/prompt"])
    one = averaged["laplacian_own", "none x2"]
    assert (one["kind"], one["rank"], one["passes"]) == ("noises", "", "2.0")
    cells = [float(row["value"]) for row in rows if row["measure"] == "probe_ridge" and row["candidate"] == "prompt"]
    assert cells[2] == pytest.approx(sum(cells[:2]) / 2)
    of_images = list(csv.DictReader((run / "content_shift_images.csv").open()))
    assert len({row["image"] for row in of_images}) == 3
    described = json.loads((run / "content_shift.json").read_text())
    assert [*described["candidates"]] == ["none", "prompt", "controlnet", "none x2", "prompt (shuffled)"]
    assert "technique.lora.weights.moderate" in described["not_measured"]["combined"]
    assert len(described["lines"]) == len(rows)
    assert (run / f"images/content_shift_{LAYER}.png").is_file()
    first = {measure: name for (measure, name), row in averaged.items() if row["rank"] == "1"}
    assert {*first} == {*kept}
    (ended,) = (text for text in caplog.messages if text.startswith("done in "))
    told = [part.split(" by ") for part in ended.partition(": ranked first: ")[2].split("; ")]
    assert {measure: name for name, measures in told for measure in measures.split(", ")} == first
    page = (run / "report.html").read_text()
    assert "laplacian_own: controlnet" in page
    assert 'class="card"' not in page
    again = evaluate(composed(f"run={run}", name="eval"), [f"run={run}"], tmp_path / "again")
    assert again == pytest.approx(found, rel=1e-3, abs=1e-3)


def with_masks(seed: int = 0) -> list[ImageBatch]:
    """Images whose masks are their bright parts, padded by the backbone."""
    images, known = random_images(4, 36, 44, seed), conditions(4)
    masks = (images.mean(dim=1) > 0).long()
    masks[:, :3] = 255
    return [SegmentationBatch(images[at : at + 2], known[slice(at, at + 2)], masks[at : at + 2]) for at in (0, 2)]


@pytest.mark.parametrize("kind", ["ridge", "centroid"])
def test_probes_find_what_masks_say(backbone: Backbone, kind: str) -> None:
    labels = ClassLabels(("dark", "bright"), ((0, 0, 0), (255, 255, 255)))
    values = {}
    for name, network, layer in (("padded", backbone, LAYER), ("pixels", build("pixels"), "pixels-stride4")):
        reader = ShiftReader({"": network}, [Branch("none", 50, (layer,))], (50,))
        found = measure_content_shift(reader, with_masks(), {"probe": ClosedFormProbe(kind)}, labels)
        statistic = found.statistics["probe"]["none", 50, layer]
        # every labelled pixel is in one union or in two
        labelled, sums = 4 * 33 * 44, statistic.values.sum(dim=0)
        assert float(sums[2:].sum()) == 2 * labelled - float(sums[:2].sum())
        values[name] = statistic.value
    assert values["pixels"] > 0.6 > values["padded"]  # a random network knows nothing of brightness
    without = measured(backbone, NONE, measures={"probe": ClosedFormProbe(kind)})
    assert without.left_out["probe"] == "the data set has no masks"


@pytest.mark.thorough
def test_drift_is_that_of_several_noises(backbone: Backbone) -> None:
    clean = Branch("clean", 50, (LAYER,), (Inversion(stride=50),))
    measures = {"moves": NoiseDrift("moves", 3), "total": NoiseDrift("total", 3)}
    found = measured(backbone, NONE, clean, measures=measures, noises=(2,))
    images, known = random_images(4, 32, 32), conditions(4)
    plain = [replace(NONE, name=str(d), timestep=200, noise_index=d) for d in range(3)]
    drawn = FeatureExtractor(backbone, plain)(images, known)
    expected = noise_drift([drawn[str(d)][LAYER] for d in range(3)])
    one = found.statistics["moves"]["none", 200, LAYER]
    torch.testing.assert_close(one.values[:, 0], expected.moves, rtol=1e-3, atol=1e-6)
    assert one.value == pytest.approx(float(expected.moves.mean() / expected.contrast.mean()), rel=1e-3)
    assert {key[0] for key in found.statistics["total"]} == {"none", "none x2"}
    assert "all its draws would be equal" in found.left_out["clean at t = 200, further noises"]
    # two noises halve the variance
    totals = [found.statistics["total"][name, 200, LAYER].values[:, 0].mean() for name in ("none", "none x2")]
    assert float(totals[1] / totals[0]) == pytest.approx(0.5, abs=0.15)


def test_several_timesteps_and_clean_latents_are_candidates(backbone: Backbone) -> None:
    clean = Branch("clean", -1, (LAYER,))
    measures = {"moves": NoiseDrift("moves", 2)}
    found = measured(backbone, NONE, clean, measures=measures, fused=[(50, 200)], timesteps=(50,))
    name = "none at 50+200"
    assert [*found.candidates] == ["none", "clean", name]
    assert {key[0] for key in found.statistics["moves"]} == {"none", name}
    assert {row: cost.passes for (row, _), cost in found.costs.items()} == {"none": 1, "clean": 1, name: 2}
    images, known = random_images(4, 32, 32), conditions(4)
    branches = [replace(NONE, name=str(t), timestep=t) for t in (-1, 0, 50, 200)]
    maps = {key: layers[LAYER] for key, layers in FeatureExtractor(backbone, branches)(images, known).items()}
    together = torch.cat([maps["50"], maps["200"]], dim=1) / 2**0.5
    anchor = contour_difference(maps["0"], maps["50"])
    for row, features in (("clean", maps["-1"]), (name, together)):
        expected = 1 - contour_difference(maps["0"], features) / anchor
        torch.testing.assert_close(found.statistics["plain"][row, 50, LAYER].of_images, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"task\.fused: \[50\] is no list of different timesteps"):
        measured(backbone, NONE, fused=[(50,)])


@pytest.mark.parametrize(
    "branches",
    [(replace(PROMPT, name="p"), replace(NONE, name="p")), (replace(PROMPT, name="none"),), (PROMPT, PROMPT)],
)
def test_no_candidate_is_dropped_because_plain_features_have_its_name(backbone: Backbone, branches: Any) -> None:
    with pytest.raises(ConfigError, match=f"several candidates are named {branches[0].name};"):
        ShiftReader({"": backbone}, branches, (200,))


def test_fused_timesteps_are_lists(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"task\.fused: 50 is no list"):
        ShiftReader({"": backbone}, [NONE], (200,), fused=[50, 150])  # type: ignore[list-item]
