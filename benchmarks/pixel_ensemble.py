"""Ten pixel classifiers together against ten one after another: the same members on the same batches.

    python benchmarks/pixel_ensemble.py --channels 256 --dtype float64
    python benchmarks/pixel_ensemble.py --channels 3674 --dtype float32 --threads 2

Three ways to train the members, each member on its own shuffle of the same pixels (made up, learnable):

    together    the stacked ensemble, one step for all; members that stop leave the stack
    alone       the same code with one member at a time
    modules     torch.nn modules and torch.optim.Adam with its defaults, one member at a time, as the released code does

"alone" and "together" use the fused Adam of conf/optimizer. Seconds are those of the training loops, which gather their
pixels themselves. The run stops with an error if the ways differ in the steps at which members stop or, at float64, in
a single prediction. The last lines are the ratios of the CPU seconds and of the seconds passed to those of "together".
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble, member_losses
from gate_lightning.pixel_classifiers.members import Members, narrow_members
from gate_lightning.pixel_classifiers.stopping import StoppingRule

RATE = 1e-3


@dataclass(frozen=True)
class Pixels:
    """What is trained on.

    Attributes:
        features: (N, D).
        labels: (N,) int64.
        batches: (steps, M, P) int64 rows of ``features``.
    """

    features: Tensor
    labels: Tensor
    batches: Tensor

    def at(self, step: int, members: Tensor) -> tuple[Tensor, Tensor]:
        """Features (A, P, D) and labels (A, P) of some members' pixels."""
        rows = self.batches[step, members]
        return self.features[rows], self.labels[rows]


@dataclass
class Result:
    """Of one way: logits (M, N, K) of all pixels, steps each member made, CPU seconds and seconds passed."""

    logits: Tensor
    steps: list[int]
    cpu: float
    wall: float


def make_pixels(options: argparse.Namespace) -> Pixels:
    """Classes with centres; three in ten labels are drawn anew, so that losses of single batches stop falling."""
    generator = torch.Generator().manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    classes = torch.randint(options.classes, (options.pool,), generator=generator)
    centres = torch.randn(options.classes, options.channels, generator=generator, dtype=dtype)
    noise = torch.randn(options.pool, options.channels, generator=generator, dtype=dtype)
    shape = (options.steps, options.members, options.pixels)
    batches = torch.randint(options.pool, shape, generator=generator)
    features = 6 * options.channels**-0.5 * centres[classes] + noise
    wrong = torch.rand(options.pool, generator=generator) < 0.3
    labels = torch.where(wrong, torch.randint(options.classes, (options.pool,), generator=generator), classes)
    return Pixels(features.to(options.device), labels.to(options.device), batches.to(options.device))


def train_stack(ensemble: PixelEnsemble, numbers: Sequence[int], pixels: Pixels, options: argparse.Namespace) -> Result:
    """Train the members of ``ensemble``, which are those of ``numbers``."""
    mine = torch.tensor(numbers)
    kept, rule = Members(ensemble, len(numbers)), StoppingRule(len(numbers), options.patience)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=RATE, fused=True)
    cpu, wall = time.process_time(), time.perf_counter()
    for step in range(options.steps):
        rows, labels = pixels.at(step, mine[kept.active])
        losses = member_losses(ensemble(rows), labels)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        kept.stop(rule.update(losses, step // options.epoch), optimizer)
        if rule.finished:
            break
    synchronize(options)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    with kept.whole(), torch.no_grad():
        logits = ensemble.eval()(pixels.features.unsqueeze(0))
    return Result(logits, rule.steps.tolist(), cpu, wall)


def train_alone(ensemble: PixelEnsemble, pixels: Pixels, options: argparse.Namespace) -> Result:
    """One member after the other, by the same code."""
    results = []
    for member in range(options.members):
        single = copy.deepcopy(ensemble)
        narrow_members(single, torch.tensor([member]))
        results.append(train_stack(single, [member], pixels, options))
    return joined(results)


def train_modules(ensemble: PixelEnsemble, pixels: Pixels, options: argparse.Namespace) -> Result:
    """One member after the other, as ordinary modules."""
    return joined(
        [train_module(as_modules(ensemble, member), member, pixels, options) for member in range(options.members)]
    )


def train_module(network: nn.Module, member: int, pixels: Pixels, options: argparse.Namespace) -> Result:
    """The stopping rule written out once more."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    best, waited, step = float("inf"), 0, 0
    cpu, wall = time.process_time(), time.perf_counter()
    for step in range(options.steps):
        rows, labels = pixels.at(step, torch.tensor(member))
        optimizer.zero_grad()
        loss = cross_entropy(network(rows), labels)
        loss.backward()
        optimizer.step()
        if step // options.epoch > 3:
            best, waited = (loss.item(), 0) if loss.item() < best else (best, waited + 1)
            if waited > options.patience:
                break
    synchronize(options)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    with torch.no_grad():
        logits = network.eval()(pixels.features)
    return Result(logits.unsqueeze(0), [step + 1], cpu, wall)


def as_modules(ensemble: PixelEnsemble, member: int) -> nn.Sequential:
    """A member as Linear, ReLU and BatchNorm1d, with the same initial values."""
    layers: list[nn.Module] = []
    for index, stacked in enumerate(ensemble.linears):
        linear = nn.Linear(stacked.weight.shape[2], stacked.weight.shape[1])
        linear.load_state_dict({"weight": stacked.weight[member], "bias": stacked.bias[member]})
        layers.append(linear)
        if index < len(ensemble.norms):
            layers += [nn.ReLU(), nn.BatchNorm1d(linear.out_features)]
    return nn.Sequential(*layers).to(ensemble.first_weight)


def joined(results: Sequence[Result]) -> Result:
    """Members one after another: their seconds add up."""
    steps = [result.steps[0] for result in results]
    logits = torch.cat([result.logits for result in results])
    return Result(logits, steps, sum(result.cpu for result in results), sum(result.wall for result in results))


def warm_up(options: argparse.Namespace) -> None:
    """A few steps of both kinds on little: what torch loads at the first step of an optimizer is nobody's cost."""
    small = argparse.Namespace(**vars(options) | {"channels": 4, "steps": 3, "members": 2, "pool": 64})
    pixels = make_pixels(small)
    start = PixelEnsemble(small.channels, small.classes, small.members).to(pixels.features)
    train_modules(start, pixels, small)
    train_stack(start, range(small.members), pixels, small)


def synchronize(options: argparse.Namespace) -> None:
    """Wait for what an accelerator still has to do."""
    if options.device != "cpu":
        torch.get_device_module(options.device).synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print steps, seconds and ratios; exit with an error if the ways disagree."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    pixels = make_pixels(options)
    start = PixelEnsemble(options.channels, options.classes, options.members).to(pixels.features)
    ways: dict[str, Callable[[], Result]] = {
        "together": lambda: train_stack(copy.deepcopy(start), range(options.members), pixels, options),
        "alone": lambda: train_alone(start, pixels, options),
        "modules": lambda: train_modules(start, pixels, options),
    }
    warm_up(options)
    results: dict[str, Result] = {}
    for name, train in ways.items():
        results[name] = train()
        found = results[name]
        print(f"{name:10} CPU {found.cpu:8.2f} s   passed {found.wall:8.2f} s   steps {found.steps}", flush=True)
    problems = [text for name in ("alone", "modules") if (text := difference(results["together"], results[name], name))]
    for name in ("alone", "modules"):
        cpu, wall = (getattr(results[name], what) / getattr(results["together"], what) for what in ("cpu", "wall"))
        print(f"{name} / together: CPU {cpu:.2f}x, passed {wall:.2f}x")
    if problems and options.dtype == "float64":
        sys.exit("\n".join(problems))


def difference(one: Result, two: Result, name: str) -> str:
    """What two ways disagree in, or nothing. Printed in either case."""
    same = one.logits.argmax(dim=2) == two.logits.argmax(dim=2)
    gap = (one.logits - two.logits).abs().max().item()
    print(f"{name}: same steps {one.steps == two.steps}, same predictions {same.double().mean():.6f}, logits {gap:.1e}")
    return "" if one.steps == two.steps and bool(same.all()) else f"{name} and together differ"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=256, help="D; Horse-21 in GATE: 3674 per branch and 2816")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=64, help="of a batch")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epoch", type=int, default=20, help="steps of an epoch; the rule counts from the fifth")
    parser.add_argument("--patience", type=int, default=25)
    parser.add_argument("--pool", type=int, default=4096, help="pixels there are")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has it")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
