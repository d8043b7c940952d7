"""A run that was interrupted anywhere goes on as if it had not been: against real Lightning loops."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from gate_lightning.errors import ConfigError, ResumeError
from tests.support.toy_data import ManualModule, Stop, ToyData, ToyModule, trainer_of

EPOCHS = {"max_epochs": 3}
STEPS = {"max_steps": 14, "max_epochs": -1}
#: an epoch has ten batches, so with three of them a step its last step is a single batch
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": EPOCHS,
    "steps": STEPS,
    "accumulate2": {**EPOCHS, "accumulate_grad_batches": 2},
    "accumulate3": {**EPOCHS, "accumulate_grad_batches": 3},
    "validate-in-epoch": {**EPOCHS, "val_check_interval": 4},
    "accumulate-validate": {**EPOCHS, "accumulate_grad_batches": 2, "val_check_interval": 5},
    "limited": {**EPOCHS, "limit_train_batches": 7, "val_check_interval": 0.5},
    "steps-validate": {**STEPS, "val_check_interval": 7, "check_val_every_n_epoch": None, "accumulate_grad_batches": 2},
    "every-second-epoch": {**EPOCHS, "check_val_every_n_epoch": 2},
}
STOPS = [
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 6),
    ("on_before_optimizer_step", 4),
    ("on_train_batch_end", 4),
    ("on_train_batch_end", 13),
    ("on_train_epoch_start", 2),
    ("on_validation_batch_start", 2),
    ("on_validation_batch_end", 1),
]
PERIODS = [1, 2, 3, 5, 7, 10]


def some(*lists: Any, default: set[tuple[int, ...]], thorough: set[tuple[int, ...]]) -> list[Any]:
    """All combinations, of which those at the given places run by default or are thorough, and the rest is slow."""
    marks = dict.fromkeys(thorough, pytest.mark.thorough) | dict.fromkeys(default, ())
    places = itertools.product(*(range(len(entries)) for entries in lists))
    combined = zip(places, itertools.product(*lists), strict=True)
    return [pytest.param(*values, marks=marks.get(place, pytest.mark.slow)) for place, values in combined]


def run(
    folder: Path, settings: dict[str, Any], *callbacks: Callback, resume: Path | None = None, **data: Any
) -> ToyModule:
    module = ToyModule()
    trainer_of(folder, callbacks, **settings).fit(module, ToyData(**data), ckpt_path=resume, weights_only=False)
    return module


def interrupted(folder: Path, settings: dict[str, Any], *callbacks: Callback, **data: Any) -> ToyModule:
    module = ToyModule()
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer_of(folder, callbacks, **settings).fit(module, ToyData(**data))
    return module


def check_rest(whole: ToyModule, after: ToyModule) -> None:
    assert after.seen == whole.seen[len(whole.seen) - len(after.seen) :]
    assert torch.equal(after.weight, whole.weight)


def check_goes_on(whole: ToyModule, before: ToyModule, after: ToyModule) -> None:
    """The resumed run sees the rest, from a window of accumulation that had not made its step on."""
    assert before.seen == whole.seen[: len(before.seen)]
    assert len(before.seen) + len(after.seen) >= len(whole.seen)
    check_rest(whole, after)
    # A validation that had not ended when the run stopped belongs to the second run. One inside a window of
    # accumulation that is done again happens in both.
    total = len(whole.validated)
    assert before.validated == whole.validated[: len(before.validated)]
    assert after.validated == whole.validated[total - len(after.validated) :]
    assert total <= len(before.validated) + len(after.validated) <= total + 1


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ToyModule]:
    return {name: run(tmp_path_factory.mktemp(name), settings) for name, settings in SETTINGS.items()}


@pytest.mark.parametrize(
    ("name", "stop"),
    some(
        list(SETTINGS),
        STOPS,
        default={(0, 1), (2, 1), (4, 3), (5, 4), (6, 6)},
        thorough={(0, 5), (1, 4), (3, 2), (4, 6), (5, 7), (7, 2), (8, 4)},
    ),
)
def test_interrupted_run_goes_on(
    whole_runs: dict[str, ToyModule], tmp_path: Path, name: str, stop: tuple[str, int]
) -> None:
    before = interrupted(tmp_path, SETTINGS[name], Stop(*stop))
    after = run(tmp_path, SETTINGS[name], resume=tmp_path / "on_exception.ckpt")
    check_goes_on(whole_runs[name], before, after)


def last_batch(settings: dict[str, Any]) -> int:
    return 12 if "max_steps" in settings else 20 if "limit_train_batches" in settings else 26


def saved_in(folder: Path) -> list[tuple[int, Path]]:
    return [(int(path.stem.split("=")[1]), path) for path in sorted(folder.glob("step=*.ckpt"))]


@pytest.mark.parametrize(
    ("name", "every"), some(list(SETTINGS), PERIODS, default={(3, 2), (6, 4)}, thorough={(0, 5), (4, 1), (7, 3)})
)
def test_killed_run_goes_on_from_any_periodic_checkpoint(
    whole_runs: dict[str, ToyModule], tmp_path: Path, name: str, every: int
) -> None:
    settings, whole = SETTINGS[name], whole_runs[name]
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    interrupted(tmp_path, settings, saver, Stop("on_train_batch_start", last_batch(settings)))
    for step, checkpoint in saved_in(tmp_path):
        after = run(tmp_path, settings, resume=checkpoint)
        check_rest(whole, after)
        # saved when the step was made, before a validation that was due then
        assert after.validated == [entry for entry in whole.validated if entry[0] >= step]


@pytest.mark.parametrize(
    ("name", "at_epoch_end"),
    some(list(SETTINGS), [True, False], default={(1, 0), (4, 1)}, thorough={(0, 0), (5, 1), (7, 0), (8, 1)}),
)
def test_checkpoint_of_an_epoch_or_validation_goes_on(
    whole_runs: dict[str, ToyModule], tmp_path: Path, name: str, at_epoch_end: bool
) -> None:
    settings, whole = SETTINGS[name], whole_runs[name]
    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=at_epoch_end)
    interrupted(tmp_path, settings, saver, Stop("on_train_batch_start", last_batch(settings)))
    for step, checkpoint in saved_in(tmp_path):
        after = run(tmp_path, settings, resume=checkpoint)
        check_rest(whole, after)
        done = sum(entry[0] <= step for entry in whole.validated)
        # a validation inside a window of accumulation is done again with the window
        assert after.validated in (whole.validated[done:], whole.validated[max(done - 1, 0) :])


class Interrupt(Callback):
    """Ctrl-C during the n-th training batch."""

    def __init__(self, call: int) -> None:
        self.call = call

    def on_before_zero_grad(self, trainer: Any, module: ToyModule, optimizer: Any) -> None:
        if len(module.seen) == self.call:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_goes_on(whole_runs: dict[str, ToyModule], tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    before = ToyModule()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored
    try:
        with pytest.raises(SystemExit):
            trainer_of(tmp_path, [Interrupt(15)], **SETTINGS["accumulate-validate"]).fit(before, ToyData())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert len(before.seen) == 15
    after = run(tmp_path, SETTINGS["accumulate-validate"], resume=tmp_path / "on_exception.ckpt")
    check_goes_on(whole_runs["accumulate-validate"], before, after)


def test_twice_interrupted_run_goes_on(whole_runs: dict[str, ToyModule], tmp_path: Path) -> None:
    settings, whole = SETTINGS["accumulate3"], whole_runs["accumulate3"]
    interrupted(tmp_path, settings, Stop("on_train_batch_end", 5))
    first, second = tmp_path / "on_exception.ckpt", tmp_path / "first.ckpt"
    first.rename(second)
    middle = ToyModule()
    trainer = trainer_of(tmp_path, [Stop("on_train_batch_start", 4)], **settings)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(middle, ToyData(), ckpt_path=second, weights_only=False)
    check_rest(whole, run(tmp_path, settings, resume=first))


@pytest.mark.thorough
def test_workers_change_nothing(whole_runs: dict[str, ToyModule], tmp_path: Path) -> None:
    before = interrupted(tmp_path, EPOCHS, Stop("on_train_batch_start", 6), num_workers=2)
    after = run(tmp_path, EPOCHS, resume=tmp_path / "on_exception.ckpt", num_workers=2)
    check_goes_on(whole_runs["plain"], before, after)


def test_modules_that_optimise_by_hand_go_on(tmp_path: Path) -> None:
    """Two optimisers: the global step grows by two a batch."""
    whole, before, after = ManualModule(), ManualModule(), ManualModule()
    trainer_of(tmp_path, **EPOCHS).fit(whole, ToyData())
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer_of(tmp_path, [Stop("on_train_batch_end", 14)], **EPOCHS).fit(before, ToyData())
    trainer_of(tmp_path, **EPOCHS).fit(after, ToyData(), ckpt_path=tmp_path / "on_exception.ckpt", weights_only=False)
    assert len(before.seen) == 14
    assert before.seen + after.seen == whole.seen
    assert torch.equal(after.weight, whole.weight)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"data": {"batch_size": 4}}, "batch_size: 2 → 4"),
        ({"data": {"seed": 3}}, "seed: 0 → 3"),
        ({"data": {"length": 22}}, "images: 20 → 22"),
        ({"trainer": {"accumulate_grad_batches": 2}}, "accumulate_grad_batches: 1 → 2"),
        ({"trainer": {"limit_train_batches": 8}}, "batches_per_epoch: 10 → 8"),
    ],
)
def test_other_data_or_batches_are_refused(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    interrupted(tmp_path, EPOCHS, Stop("on_train_batch_start", 6))
    settings = {**EPOCHS, **changed.get("trainer", {})}
    with pytest.raises(ResumeError, match=named):
        run(tmp_path, settings, resume=tmp_path / "on_exception.ckpt", **changed.get("data", {}))


def test_other_batches_are_allowed_on_request(tmp_path: Path) -> None:
    interrupted(tmp_path, EPOCHS, Stop("on_train_batch_start", 6))
    module, data = ToyModule(), ToyData(batch_size=4)
    data.allow_changes = True
    checkpoint = tmp_path / "on_exception.ckpt"
    trainer_of(tmp_path, **EPOCHS).fit(module, data, ckpt_path=checkpoint, weights_only=False)
    assert {len(names) for names, *_ in module.seen} == {4}


def test_overfit_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="debug=overfit"):
        run(tmp_path, {**EPOCHS, "overfit_batches": 2})
