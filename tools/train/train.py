"""Train the bundled model: from recordings and a teacher to a folder that dfstream loads.

    python tools/train/train.py run --audio AUDIO --teacher dfn3 --work WORK --minutes 90
    python tools/train/train.py smoke --audio AUDIO --teacher dfn3 --work WORK

``run`` does all of it: prepares the recordings, writes mixtures in processes of their own while the network
trains, goes on where it was stopped, and exports. The other commands are its parts. AUDIO is a folder with
``clips.csv`` (see ``corpus.py``) and, if there are any, room responses in ``rirs.npz``.
"""

# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training import Budget, Settings

# before any library counts the cores: every process of a training has one
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import corpus
import mixing
import pool
from dfstream.errors import UsageError
from dfstream.model import Model
from reporting import errors_in_a_line
from targets import Layout, Teacher

#: Seeds of the mixtures that are trained on and of those that are validated on.
_TRAIN_SEED, _VALID_SEED = 1, 5

#: Shards that have to be there before training begins, and shards and batches to validate on.
_FIRST_SHARDS, _VALID_SHARDS, _VALID_BATCHES = 16, 8, 12


@dataclasses.dataclass(frozen=True)
class Source:
    """Where mixtures come from.

    Attributes
    ----------
    audio : tuple of Path
    teacher : str
        As `Model.load` takes it.
    work : Path
    licences : tuple of str
        Families of licences that speech and noise may have.
    """

    audio: tuple[Path, ...]
    teacher: str
    work: Path
    licences: tuple[str, ...]

    def shards(self, split: corpus.Split) -> Path:
        """Return the folder of the mixtures of a split."""
        return self.work / ("valid" if split == "valid" else "pool")

    def mixer(self, split: corpus.Split) -> mixing.Mixer:
        """Open the clips of a split."""
        speech = corpus.list_clips(self.audio, self.work, "speech", split, self.licences)
        noise = corpus.list_clips(self.audio, self.work, "noise", split, self.licences)
        rooms = [
            mixing.load_rooms(folder / "rirs.npz") for folder in self.audio if (folder / "rirs.npz").exists()
        ]
        return mixing.Mixer(speech, noise, list(itertools.chain(*rooms)))


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several generators writes.

    Attributes
    ----------
    split, seed
    worker, workers : int
        Which of how many; they take turns.
    shards : int, optional
        Shards in all; endless without.
    keep : int, optional
        Shards that stay in the folder.
    """

    split: corpus.Split
    seed: int
    worker: int = 0
    workers: int = 1
    shards: int | None = None
    keep: int | None = None


def generate(source: Source, share: Share, say: Callable[[str], None] | None = None) -> None:
    """Write shards until all are there, or the file ``STOP`` appears in their folder."""
    folder = source.shards(share.split)
    teacher = Teacher(Model.load(source.teacher), pool.TEACHER_ITEMS, mixing.SAMPLES)
    numbers = pool.turns(share.worker, share.workers, folder / "STOP")
    if share.shards is not None:
        numbers = itertools.takewhile(lambda number: number < (share.shards or 0), numbers)
    begun = time.monotonic()
    written = pool.write_shards(source.mixer(share.split), teacher, folder, share.seed, numbers, share.keep)
    for done, path in enumerate(written, 1):
        if say is not None:
            rate = done * pool.SHARD_ITEMS * mixing.FRAMES / 100 / (time.monotonic() - begun)
            say(f"{path.name}: {rate:.0f} s of audio a second")


def start_generators(source: Source, workers: int, seed: int, keep: int | None) -> list[Any]:
    """Start generators of training mixtures in processes of their own."""
    spawn = multiprocessing.get_context("spawn")
    shares = [Share("train", seed, worker, workers, keep=keep) for worker in range(workers)]
    processes = [spawn.Process(target=generate, args=(source, share), daemon=True) for share in shares]
    for process in processes:
        process.start()
    return processes


def fit(
    source: Source, out: Path, settings: Settings, budget: Budget, *, items: int = 16,
    initial: Path | None = None, generators: Sequence[Any] = (), pause_s: float | None = None,
) -> None:  # fmt: skip
    """Train on the shards that are there or appear, and export the averaged weights.

    Parameters
    ----------
    source : Source
    out : Path
        Of the run.
    settings : Settings
    budget : Budget
    items : int
        Crops of a batch.
    initial : Path, optional
        Weights to begin with, or a folder with the graphs of a model.
    generators : sequence of Process
        Those that write shards.
    pause_s : float, optional
        Seconds after which to stop for now.
    """
    import torch

    from batches import Batches, Cropping
    from export import export, recovered
    from network import load_weights
    from training import WEIGHTS, Run

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if not (torch.cuda.is_available() or settings.device == "cpu"):
        raise UsageError(f"no device {settings.device} here", hint="--device cpu")
    if settings.device != "cpu":
        torch.set_float32_matmul_precision("high")
    config = Model.load(source.teacher).config
    shards = pool.Pool(source.shards("train"))
    while generators and len(shards) < _FIRST_SHARDS:
        if not any(process.is_alive() for process in generators):
            raise UsageError("the generators of mixtures ended before training could begin")
        time.sleep(1.0)
    if not len(shards):
        raise UsageError(f"no mixtures in {source.shards('train')}", hint="run generate first")
    layout, device = Layout.of(config), settings.device
    held = pool.Pool(source.shards("valid"))
    fixed = Batches(held, layout, config, Cropping(items=16, seed=7, augmented=False), device)
    valid = [fixed(number) for number in range(_VALID_BATCHES)] if len(held) else []
    begin = recovered if initial and initial.is_dir() else load_weights
    run = Run(out, settings, begin(initial) if initial else None)
    threads = 1 if device == "cpu" else 4
    supply = Batches(shards, layout, config, Cropping(items=items, threads=threads), device)
    run.train(supply, budget, valid, click.echo, pause_s)
    click.echo(export(load_weights(out / WEIGHTS), out / "model"))


_audio = click.option(
    "--audio", multiple=True, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with clips.csv; may be repeated.",
)  # fmt: skip
_teacher = click.option("--teacher", default="dfn3", show_default=True, help="Model to learn from.")
_work = click.option("--work", required=True, type=click.Path(path_type=Path, file_okay=False))
_licences = click.option(
    "--licences", default=",".join(corpus.FAMILIES), show_default=True, metavar="FAMILY,...",
    help="Licence families that recordings may have.",
)  # fmt: skip


def _with_source(command: Callable[..., None]) -> Callable[..., None]:
    for option in (_licences, _work, _teacher, _audio):
        command = option(command)
    return command


def _source(audio: tuple[Path, ...], teacher: str, work: Path, licences: str) -> Source:
    work.mkdir(parents=True, exist_ok=True)
    return Source(audio, teacher, work, tuple(licences.split(",")))


@click.group()
def cli() -> None:
    """Train the bundled model."""


@cli.command()
@_with_source
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
def prepare(processes: int, **where: Any) -> None:
    """Decode the recordings and let the teacher clean the speech."""
    source = _source(**where)
    corpus.prepare(source.audio, source.work, source.teacher, click.echo, processes)


@cli.command()
@_with_source
def data(**where: Any) -> None:
    """Print what is trained on and under which licences, for the card."""
    source = _source(**where)
    for kind in ("speech", "noise"):
        clips = corpus.list_clips(source.audio, source.work, kind, "train", source.licences)
        click.echo(f"{kind}\n\n{corpus.data_table(clips)}\n")


@cli.command("generate")
@_with_source
@click.option("--split", type=click.Choice(["train", "valid"]), default="train", show_default=True)
@click.option("--shards", type=click.IntRange(1), help="How many; endless without.")
@click.option("--worker", type=click.IntRange(0), default=0, help="Which of the --workers this one is.")
@click.option("--workers", type=click.IntRange(1), default=1)
@click.option("--seed", type=click.IntRange(0), help="Of the mixtures.")
@click.option("--keep", type=click.IntRange(1), help="Shards that stay; the oldest go.")
def generate_command(
    split: corpus.Split, shards: int | None, worker: int, workers: int, seed: int | None, keep: int | None,
    **where: Any,
) -> None:  # fmt: skip
    """Write mixtures with their targets."""
    seed = seed if seed is not None else _TRAIN_SEED if split == "train" else _VALID_SEED
    generate(_source(**where), Share(split, seed, worker, workers, shards, keep), click.echo)


@cli.command()
@_with_source
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Of the run; WORK/run by default."
)
@click.option("--minutes", type=float, help="Of training; --steps instead ends after steps.")
@click.option("--steps", type=click.IntRange(1))
@click.option("--pause", type=float, help="Minutes after which to stop for now; the same command goes on.")
@click.option(
    "--generators", type=click.IntRange(0), default=1, show_default=True, help="Processes that mix."
)
@click.option(
    "--keep", type=click.IntRange(1), default=2_000, show_default=True, help="Shards that stay (22 MB each)."
)
@click.option(
    "--seed", type=click.IntRange(0), default=_TRAIN_SEED, show_default=True, help="Of the mixtures."
)
@click.option(
    "--init", type=click.Path(path_type=Path, exists=True),
    help="Weights to begin with, or the folder of a model that was exported.",
)  # fmt: skip
@click.option("--rate", type=float, default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--warmup", type=click.IntRange(1), default=200, show_default=True, help="Steps up to it.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Crops a step.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--bf16", is_flag=True, help="bfloat16 in the network: GPUs, recent processors.")
def run(
    out: Path | None, minutes: float | None, steps: int | None, pause: float | None, generators: int,
    keep: int, seed: int, init: Path | None, rate: float, warmup: int, batch: int, device: str, bf16: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Prepare, mix, train and export, or go on with it."""
    from optimiser import Schedule
    from training import Budget, Settings

    begun, budget = time.monotonic(), Budget(minutes, steps)
    source = _source(**where)
    corpus.prepare(source.audio, source.work, source.teacher, click.echo, max(generators, 1))
    generate(source, Share("valid", _VALID_SEED, shards=_VALID_SHARDS))
    writers = start_generators(source, generators, seed, keep)
    settings = Settings(schedule=Schedule(rate, warmup), device=device, bf16=bf16)
    left_s = None if pause is None else 60 * pause - (time.monotonic() - begun)
    out = out or source.work / "run"
    try:
        fit(source, out, settings, budget, items=batch, initial=init, generators=writers, pause_s=left_s)
    finally:
        for writer in writers:
            writer.terminate()


@cli.command()
@_with_source
@click.option("--device", default="cpu", show_default=True)
def smoke(device: str, **where: Any) -> None:
    """Go all the way in about a minute, to see that it can be gone: a few mixtures, a few steps."""
    from training import Budget, Settings

    source = _source(**where)
    corpus.prepare(source.audio, source.work, source.teacher, click.echo)
    generate(source, Share("train", _TRAIN_SEED, shards=2), click.echo)
    fit(source, source.work / "smoke", Settings(device=device, report_s=1.0), Budget(steps=10), items=8)


def main() -> None:
    """Run a command; errors are one line."""
    try:
        with errors_in_a_line():
            cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)


if __name__ == "__main__":
    main()
