"""The training itself: steps, validation, checkpoints; goes on where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from dfstream.atomic import replacing
from dfstream.errors import UsageError
from losses import Weights, filtered, losses
from network import Net, Shape
from optimiser import Optimiser, RunningMean, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from batches import Batch, Batches

#: Files of a run: everything to go on, the averaged weights alone, the measured course, the request to end.
CHECKPOINT, WEIGHTS, CURVE, STOP = "last.pt", "weights.pt", "curve.csv", "STOP"


@dataclasses.dataclass(frozen=True)
class Budget:
    """When training ends, and with it the fall of the learning rate: after minutes or steps."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UsageError("training ends after minutes or after steps", hint="give one of the two")

    def progress(self, step: int, seconds: float) -> float:
        """Return what share is used up, 1 or more at the end."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return seconds / (60 * self.minutes)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run trains.

    Attributes
    ----------
    schedule, weights
    average : float
        Share of the averaged weights that a step keeps.
    report_s, validate_s, save_s : float, seconds
        Between lines, validations and checkpoints.
    device : str
    bf16 : bool
        Run the network in bfloat16 where that is safe; for devices that are quicker at it.
    """

    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    weights: Weights = dataclasses.field(default_factory=Weights)
    average: float = 0.999
    report_s: float = 30.0
    validate_s: float = 900.0
    save_s: float = 180.0
    device: str = "cpu"
    bf16: bool = False


class Run:
    """One training in a folder.

    Parameters
    ----------
    folder : Path
        Holds the checkpoint; where there is one, the run goes on from it.
    settings : Settings
    initial : Net, optional
        Weights to begin with.
    seed : int
        Of the first weights.
    """

    def __init__(self, folder: Path, settings: Settings, initial: Net | None = None, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings = folder, settings
        torch.manual_seed(seed)
        shape = initial.shape if initial else Shape()
        self.net = Net(shape)
        if initial:
            self.net.load_state_dict(initial.state_dict())
        self.net.to(settings.device)
        self._optimiser = Optimiser(self.net)
        self._mean = RunningMean(self.net, settings.average)
        self.step, self.seconds = 0, 0.0
        if (folder / CHECKPOINT).exists():
            self._load()

    def train(
        self,
        batches: Batches,
        budget: Budget,
        valid: Iterable[Batch] = (),
        say: Callable[[str], None] = print,
        pause_s: float | None = None,
    ) -> None:
        """Train until the budget is used up, some seconds are over, or the file `STOP` appears."""
        clock = _Clock(self._settings, self.step, self.seconds)
        supply = batches.ahead(self.step)
        sums: dict[str, float] = {}
        pause = math.inf if pause_s is None else clock.seconds + pause_s
        while (progress := budget.progress(self.step, clock.seconds)) < 1 and clock.seconds < pause:
            if (self._folder / STOP).exists():
                break
            terms = self._step(next(supply), self._settings.schedule.rate(self.step, progress))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            self.seconds = clock.seconds
            if count := clock.due("report", self.step):
                means = " ".join(f"{name} {value / count:.4f}" for name, value in sums.items())
                where = f"{time.strftime('%H:%M:%S')} step {self.step} at {progress:.3f}"
                say(f"{where}: {means}, {count / clock.since:.2f} steps/s")
                sums = {}
            if clock.due("validate", self.step):
                say(self.note(valid))
            if clock.due("save", self.step):
                self.save()
        self.save()
        say(self.note(valid))

    def _step(self, batch: Batch, rate: float) -> dict[str, float]:
        self.net.train()
        with self._precision():
            out = self.net(batch.feat_erb, batch.feat_spec)
        terms = losses(self.net, out, batch, self._settings.weights)
        terms.total(self._settings.weights).backward()
        norm = self._optimiser.step(rate)
        self._mean.update(self.net, self.step)
        self.step += 1
        return {name: value.item() for name, value in vars(terms).items()} | {"norm": norm}

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if not self._settings.bf16:
            return contextlib.nullcontext()
        cast: contextlib.AbstractContextManager[Any] = torch.autocast(self._settings.device, torch.bfloat16)
        return cast

    # -- measuring ---------------------------------------------------------------------------------

    def averaged(self) -> Net:
        """Return a copy of the network with the averaged weights."""
        net = Net(self.net.shape)
        net.load_state_dict(self._mean.weights)
        net.to(self._settings.device).eval()
        return net

    def note(self, valid: Iterable[Batch]) -> str:
        """Measure the averaged weights on batches and append the result to the curve."""
        figures = validate(self.averaged(), valid, self._settings.weights)
        if not figures:
            return f"step {self.step}: nothing to validate on"
        path = self._folder / CURVE
        if not path.exists():
            path.write_text(",".join(["step", "minutes", *figures]) + "\n")
        line = [str(self.step), f"{self.seconds / 60:.1f}", *(f"{value:.5f}" for value in figures.values())]
        with path.open("a") as curve:
            curve.write(",".join(line) + "\n")
        return f"valid at step {self.step}: " + " ".join(
            f"{name} {value:.4f}" for name, value in figures.items()
        )

    # -- keeping -----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint and the averaged weights."""
        mean = {name: value.cpu() for name, value in self._mean.weights.items()}
        config = dataclasses.asdict(self.net.shape)
        everything = {
            "config": config, "model": self.net.state_dict(), "mean": mean,
            "optimiser": self._optimiser.state(), "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        for name, stored in ((CHECKPOINT, everything), (WEIGHTS, {"config": config, "model": mean})):
            with replacing(self._folder / name) as temporary:
                torch.save(stored, temporary)

    def _load(self) -> None:
        stored = torch.load(self._folder / CHECKPOINT, map_location=self._settings.device, weights_only=True)
        if stored["config"] != dataclasses.asdict(self.net.shape):
            raise UsageError(f"{self._folder / CHECKPOINT} is of a network of another shape")
        self.net.load_state_dict(stored["model"])
        for name, value in stored["mean"].items():
            self._mean.weights[name].copy_(value)
        self._optimiser.load(stored["optimiser"])
        self.step, self.seconds = stored["step"], stored["seconds"]


@torch.no_grad()
def validate(net: Net, batches: Iterable[Batch], weights: Weights) -> dict[str, float]:
    """Return the mean terms of the loss, and the error of the deep-filtered bins in dB of the target."""
    sums: dict[str, float] = {}
    count, error, energy = 0, 0.0, 0.0
    for batch in batches:
        out = net(batch.feat_erb, batch.feat_spec)
        terms = losses(net, out, batch, weights)
        for name, value in (vars(terms) | {"total": terms.total(weights)}).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        re, im = filtered(out.z.float(), batch.noisy, net.shape.coef_range)
        error += float(((re - batch.target[:, :, 0]) ** 2 + (im - batch.target[:, :, 1]) ** 2).sum())
        energy += float(batch.target.square().sum())
        count += 1
    if not count:
        return {}
    return {name: value / count for name, value in sums.items()} | {
        "error_db": 10 * math.log10(error / energy)
    }


class _Clock:
    """Seconds of training, and which of the things that happen now and then are due."""

    def __init__(self, settings: Settings, step: int, spent: float) -> None:
        self._begun = time.monotonic() - spent
        self._every = {"report": settings.report_s, "validate": settings.validate_s, "save": settings.save_s}
        self._last = dict.fromkeys(self._every, (time.monotonic(), step))
        self.since = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def due(self, what: str, step: int) -> int:
        """Return how many steps there were since it last happened if it is due, else 0."""
        at, before = self._last[what]
        self.since = time.monotonic() - at
        if self.since < self._every[what]:
            return 0
        self._last[what] = time.monotonic(), step
        return step - before
