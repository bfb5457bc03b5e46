"""Makes the runs of an ablation, some at a time, each in processes of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

import rga_reid
from rga_reid.data import table_digest
from rga_reid.errors import InputError
from rga_reid.experiments.ablation_plan import Plan
from rga_reid.experiments.recipes import merge
from rga_reid.files import DiskError, make_folder, write_json, write_text
from rga_reid.inputs import read_json, truncate
from rga_reid.process import NoLocksError, lock

PLAN = "plan.json"  # in the folder of an ablation
_LOOK = 0.2  # seconds between two looks at the processes
_TAIL = 4096  # bytes of a log that are looked at
_EPOCH = re.compile(rb"epoch (\d+)/(\d+) ")
_HEADING = re.compile(rb"^== (?:training|testing)\n", re.MULTILINE)
_TESTING_SHARE = 0.05  # of a run's work


@dataclass(frozen=True)
class Progress:
    """What is going on: told now and then while runs are made.

    Args:
        done: of this call's work, in runs, with the parts of those under way.
        total: runs that this call makes.
        active: names of the runs under way, and what they do.
        news: a line about a run that has ended, or "".
    """

    done: float
    total: int
    active: tuple[str, ...] = ()
    news: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the runs stand after a call, in the order they are made."""

    finished: tuple[Run, ...]
    failed: tuple[Run, ...]
    elsewhere: tuple[Run, ...] = ()  #: another process holds these
    left: tuple[Run, ...] = ()  #: not asked for in this call, and not finished


def plan_runs(plan: Plan, out: Path, data: DataSource) -> list[Run]:
    """The runs of a plan in the order they are made.

    Raises:
        InputError: one of them was begun with other settings.
    """
    runs = [
        Run(v.name, seed, v.recipe, data, plan.flip, out / v.name / f"seed-{seed}")
        for v, seed in plan.order()
    ]
    for run in runs:
        run.check()
    return runs


def write_plan(plan: Plan, out: Path) -> None:
    """Keep what a report of the folder needs to know: title, baseline and the order of the variants."""
    make_folder(out)
    names = [variant.name for variant in plan.variants]
    write_json(out / PLAN, {"title": plan.title, "baseline": plan.baseline, "variants": names})


def make_runs(
    runs: Sequence[Run],
    *,
    wanted: Callable[[Run], bool] = lambda run: True,
    jobs: int = 1,
    devices: Sequence[str] = (),
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train and test what is not finished. A run that fails is written down and does not stop the others.

    Args:
        runs: of a plan.
        wanted: which of them this call makes.
        jobs: runs at a time.
        devices: GPUs by the names that CUDA_VISIBLE_DEVICES takes; each job in turn gets one. Without any,
            the jobs share the processor's cores.
        tell: called several times a second.
    """
    waiting = [run for run in runs if wanted(run) and run.state != "finished"]
    total = len(waiting)
    elsewhere: list[Run] = []
    ended = 0
    active: dict[int, _Job] = {}
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    run = waiting.pop(0)
                    job = _Job(run, _environment(slot, jobs, devices), jobs)
                    if job.start():
                        active[slot] = job
                    else:  # another process has it, or has finished it since
                        elsewhere.append(run)
                        ended += 1
            news = ""
            for slot, job in list(active.items()):
                if not job.look():
                    del active[slot]
                    ended += 1
                    error = f": {job.run.why()}" if job.run.state == "failed" else ""
                    news = f"{job.run.name} {job.run.state}{error}"
                    tell(Progress(ended, total, news=news))
            under_way = sum(job.share() for job in active.values())
            tell(Progress(ended + under_way, total, tuple(job.title for job in active.values())))
            time.sleep(_LOOK if active else 0)
    finally:
        for job in active.values():  # Ctrl-C: what was trained until now is kept
            job.terminate()
        for job in active.values():
            job.stop()
    return outcome(runs, elsewhere)


def outcome(runs: Sequence[Run], elsewhere: Sequence[Run] = ()) -> Outcome:
    """What the folders tell."""
    states = {id(run): run.state for run in runs}
    others = [run for run in runs if states[id(run)] != "finished" and run not in elsewhere]
    return Outcome(
        finished=tuple(run for run in runs if states[id(run)] == "finished"),
        failed=tuple(run for run in others if states[id(run)] == "failed"),
        elsewhere=tuple(run for run in elsewhere if states[id(run)] != "finished"),
        left=tuple(run for run in others if states[id(run)] != "failed"),
    )


@dataclass
class _Job:
    """The processes of one run, one after the other."""

    run: Run
    environment: Mapping[str, str]
    jobs: int
    doing: str = ""
    process: subprocess.Popen[bytes] | None = None
    left: list[tuple[str, list[str]]] = field(default_factory=list)
    held: ExitStack = field(default_factory=ExitStack)
    handle: int | None = None

    @property
    def title(self) -> str:
        return f"{self.run.name} {self.doing}"

    def start(self) -> bool:
        """Take hold of the folder and start; false if another program holds it, or has finished the run."""
        self.handle = self.held.enter_context(lock_run(self.run.folder))
        if self.handle is None or self.run.state == "finished":
            self.held.close()
            return False
        self.run.begin()
        self.left = self.run.commands()
        self._next()
        return True

    def look(self) -> bool:
        """Whether the run is still under way; goes on to the next process when one has ended."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return True
        if code != 0:
            self.run.fail(f"{self.doing}: {_ending(code)}: {self._last_words()}")
        elif self.doing == "training":
            write_json(self.run.folder / TRAINED, {"runs_side_by_side": self.jobs})
        if code == 0 and self.left:
            self._next()
            return True
        self.held.close()
        return False

    def terminate(self) -> None:
        """Ask the process to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """Wait until the process has ended."""
        if self.process is not None:
            self.process.wait()
        self.held.close()

    def share(self) -> float:
        """The part of the run that is done, by the epochs its log tells of."""
        if self.doing == "testing":
            return 1 - _TESTING_SHARE
        epochs = _EPOCH.findall(_tail(self.run.folder / LOG))
        return (1 - _TESTING_SHARE) * int(epochs[-1][0]) / int(epochs[-1][1]) if epochs else 0.0

    def _next(self) -> None:
        self.doing, command = self.left.pop(0)
        assert self.handle is not None
        with open(self.run.folder / LOG, "ab", opener=_not_through_a_link) as log:
            log.write(f"== {self.doing}\n".encode())  # as _HEADING finds it
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=[self.handle],  # the folder is held as long as this process lives
            )

    def _last_words(self) -> str:
        lines = _tail(self.run.folder / LOG).decode("utf-8", "replace").strip().split("\n")
        return lines[-1].removeprefix("rga-reid: error: ")


def gpus() -> list[str]:
    """The GPUs of this machine, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _environment(slot: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    environment = dict(os.environ)
    ours = str(Path(rga_reid.__file__).parents[1])  # a checkout need not be installed
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [ours, environment.get("PYTHONPATH")]))
    # from Python 3.11 on, processes that a training starts import nothing from the current folder either
    environment["PYTHONSAFEPATH"] = "1"
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    elif jobs > 1 and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return environment


def _not_through_a_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _tail(file: Path) -> bytes:
    """The end of a log, from where its last process began."""
    if not file.is_file():
        return b""
    with open(file, "rb") as log:
        log.seek(max(0, file.stat().st_size - _TAIL))
        return _HEADING.split(log.read())[-1]


ASKED, RECIPE, TRAIN, TRAINED = "run.json", "recipe.yaml", "train", "trained.json"
QUERIES, RANKED, RESULT, ERROR, LOG = (
    "queries.parquet",
    "ranked.parquet",
    "result.json",
    "error.txt",
    "log.txt",
)
LAST = "last.ckpt"  # the checkpoint that `train` leaves; its own constant would bring Lightning along
_LOCK = ".lock"
_LONGEST_ERROR = 500  # characters of an error that are told
_SHOWN = 80  # characters of a setting that has changed
# its time is in the checkpoint: it outlives a kill
_TIMER = {"class_path": "pytorch_lightning.callbacks.Timer", "init_args": {"interval": "step"}}

State = Literal["finished", "failed", "interrupted", "new"]


@dataclass(frozen=True)
class DataSource:
    """Where the images are.

    Args:
        root, card: as ``read_table`` takes them.
        digest: of the names, identities, cameras and splits of all images: the same wherever they lie. None
            before they are drawn: then runs that were begun are not asked for theirs.
        drawn: the settings that it was drawn by, if it is synthetic: names do not tell the images' size.
    """

    root: str
    card: str
    digest: str | None
    drawn: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, root: str, card: str, table: pd.DataFrame, drawn: Mapping[str, Any] | None = None
    ) -> DataSource:
        """The source that ``table`` was read from."""
        return cls(os.path.abspath(root), card, table_digest(table), drawn)


@dataclass(frozen=True)
class Run:
    """A variant trained and tested with one seed."""

    variant: str
    seed: int
    recipe: Mapping[str, Any] = field(repr=False)
    data: DataSource
    flip: bool
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.variant} seed {self.seed}"

    @property
    def state(self) -> State:
        """What the files tell."""
        if (self.folder / RESULT).is_file():
            return "finished"
        if (self.folder / ERROR).is_file():
            return "failed"
        return "interrupted" if (self.folder / TRAIN).is_dir() else "new"

    def settings(self) -> dict[str, Any]:
        """What makes this run's result; where the data set lies does not."""
        asked = {
            "variant": self.variant,
            "seed": self.seed,
            "flip": self.flip,
            "dataset": {"card": self.data.card, "digest": self.data.digest, "synthetic": self.data.drawn},
            "recipe": dict(self.recipe),
        }
        return round_trip(asked)

    def check(self) -> None:
        """Refuse to go on with a run that was begun with other settings.

        Raises:
            InputError: with the first settings that differ.
        """
        file = self.folder / ASKED
        if not file.is_file():
            return
        try:
            begun = read_json(file)
        except InputError as error:
            raise InputError(f"{error}; delete {self.folder} to make this run again") from None
        if self.data.digest is None and isinstance(begun, dict) and isinstance(begun.get("dataset"), dict):
            begun["dataset"]["digest"] = None
        found = changed_settings(begun, self.settings())
        if found:
            raise InputError(
                f"{self.folder}: begun with other settings ({'; '.join(found[:3])}); choose another "
                "--out, or delete this folder to run it again"
            )

    def begin(self) -> None:
        """Write down what is asked, before anything is done."""
        make_folder(self.folder)
        (self.folder / ERROR).unlink(missing_ok=True)
        trainer = self.recipe.get("trainer") or {}
        callbacks = trainer.get("callbacks") or []  # Lightning takes a single one, too
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        timed = {"trainer": {"callbacks": [*listed, _TIMER]}}
        write_text(self.folder / RECIPE, yaml.safe_dump(merge(dict(self.recipe), timed), sort_keys=False))
        write_json(self.folder / ASKED, self.settings())

    def training(self) -> list[str]:
        """The command that trains, or goes on training."""
        out = self.folder / TRAIN
        how = "--resume" if (out / LAST).is_file() else "--overwrite"
        words = ["train", "--config", str(self.folder / RECIPE), "--data.root", self.data.root]
        words += ["--seed", str(self.seed), "--out", str(out), how]
        return program("rga_reid.commands", words)

    def testing(self) -> list[str]:
        """The command that tests the last epoch and writes the result."""
        words = [str(self.folder), "--root", self.data.root, "--card", self.data.card]
        return program("rga_reid.experiments.ablation_worker", [*words, *(["--flip"] if self.flip else [])])

    def commands(self) -> list[tuple[str, list[str]]]:
        """What is left to be done, with a word for each."""
        left = [] if (self.folder / TRAINED).is_file() else [("training", self.training())]
        return [*left, ("testing", self.testing())]

    def fail(self, what: str) -> None:
        """Write down why the run failed."""
        write_text(self.folder / ERROR, what + "\n")

    def why(self) -> str:
        """The first line of the error."""
        return failure_reason(self.folder)


def failure_reason(folder: Path) -> str:
    """The first line of the error that a run left in its folder; the file may be anybody's."""
    try:
        with open(folder / ERROR, encoding="utf-8", errors="replace") as file:
            return truncate(file.readline(_LONGEST_ERROR), _LONGEST_ERROR)
    except FileNotFoundError:
        return "it is being tried again by another process"


@contextmanager
def lock_run(folder: Path) -> Iterator[int | None]:
    """Hold a run's folder; yields a handle for the children to inherit, or None if it is held elsewhere.

    The system lets go when the last process that has the handle ends: a training whose parent was killed
    still holds its folder.
    """
    make_folder(folder)
    try:
        handle = lock(folder / _LOCK, create=True)
    except NoLocksError as error:
        raise DiskError(folder, f"its file system has no locks: {error.strerror}") from None
    except OSError as error:
        raise DiskError.of(folder, error) from None
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def program(module: str, words: Sequence[str]) -> list[str]:
    """The command that runs a module as ``python -m`` does, but for one thing: nothing in the current folder,
    which may be that of a data set, is imported.
    """
    start = "import sys; sys.path = [place for place in sys.path if place]; import runpy; "
    start += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", start, module, *words]


def round_trip(value: Any) -> Any:
    """What JSON makes of plain values: tuples become lists."""
    return json.loads(json.dumps(value))


def changed_settings(one: Any, two: Any, where: str = "") -> list[str]:
    """The settings that differ, each as ``key was A, is B``."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = dict.fromkeys([*one, *two])
        inner = (changed_settings(one.get(k), two.get(k), f"{where}.{k}" if where else k) for k in keys)
        return [line for lines in inner for line in lines]
    name, before, after = (truncate(text, _SHOWN) for text in (where, json.dumps(one), json.dumps(two)))
    return [] if one == two else [f"{name} was {before}, is {after}"]
