"""Runs of an ablation: which there are, and their training and testing in separate processes."""

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
from rga_reid._deprecated import rename_options
from rga_reid.data import table_digest
from rga_reid.errors import InputError
from rga_reid.experiments.ablation_plan import Plan, Variant
from rga_reid.experiments.recipes import merge
from rga_reid.files import DiskError, make_folder, write_json, write_text
from rga_reid.inputs import read_json, truncate
from rga_reid.process import NoLocksError, lock
from rga_reid.runtime import digest_code

PLAN = "plan.json"  #: in the folder of an ablation

#: in the folder of a run
SETTINGS, RECIPE, TRAIN, TRAINED = "run.json", "recipe.yaml", "train", "trained.json"
QUERIES, RANKED, RESULT = "queries.parquet", "ranked.parquet", "result.json"
CAMERAS = "cameras.parquet"
ERROR, LOG = "error.txt", "log.txt"
LAST = "last.ckpt"  # as in training.callbacks, which would import Lightning
_LOCK = ".lock"

_POLL_SECONDS = 0.2
_TAIL = 1 << 16  # bytes of a log that are read: several hours of lines within an epoch
_EPOCH = re.compile(rb"epoch (\d+)/(\d+) ")
_HEADING = re.compile(rb"^== (?:training|testing)\n", re.MULTILINE)
_TESTING_SHARE = 0.05  # of the work of a run
_MAX_ERROR, _MAX_SETTING = 500, 80  # characters shown
_NOT_SET = object()
# its time is saved in the checkpoint, so it survives a kill
_TIMER = {"class_path": "pytorch_lightning.callbacks.Timer", "init_args": {"interval": "step"}}

State = Literal["finished", "failed", "interrupted", "new"]


@dataclass(frozen=True)
class DataSource:
    """The data set of an ablation.

    Args:
        root, card: arguments of ``read_table``.
        digest: digest of names, identities, cameras and splits of all images, independent of their folder;
            None before a synthetic data set is generated.
        synthetic: settings of a synthetic data set, as the digest does not cover the size of images.
    """

    root: str
    card: str
    digest: str | None
    synthetic: Mapping[str, Any] | None = None

    @classmethod
    def from_table(
        cls, root: str, card: str, table: pd.DataFrame, synthetic: Mapping[str, Any] | None = None
    ) -> DataSource:
        """Return the source of a table."""
        return cls(os.path.abspath(root), card, table_digest(table), synthetic)


@dataclass(frozen=True)
class Run:
    """Training and test of a variant with one seed; its result depends on the code of ``modules`` of the user."""

    variant: str
    seed: int
    recipe: Mapping[str, Any] = field(repr=False)
    data: DataSource
    flip: bool
    folder: Path
    modules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.variant} seed {self.seed}"

    @property
    def state(self) -> State:
        """State of the run according to its files."""
        if (self.folder / RESULT).is_file():
            return "finished"
        if (self.folder / ERROR).is_file():
            return "failed"
        return "interrupted" if (self.folder / TRAIN).is_dir() else "new"

    def settings(self) -> dict[str, Any]:
        """Return all settings that determine the result, as JSON values."""
        settings = {
            "variant": self.variant,
            "seed": self.seed,
            "flip": self.flip,
            "dataset": {
                "card": self.data.card,
                "digest": self.data.digest,
                "synthetic": self.data.synthetic,
            },
            "recipe": _without_imports(self.recipe),
            "code": digest_code(self.modules),
        }
        return to_json_values(settings)

    def check(self) -> None:
        """Refuse to continue a run that was started with other settings.

        Raises:
            InputError: with the first settings that differ.
        """
        if not (self.folder / SETTINGS).is_file():
            return
        try:
            started = read_settings(self.folder)
        except InputError as error:
            raise InputError(f"{error}; delete {self.folder} to run it again") from None
        if self.data.digest is None and isinstance(started.get("dataset"), dict):
            started["dataset"]["digest"] = None
        settings = self.settings()
        if self.state != "finished" and not (self.folder / TRAIN / LAST).is_file():
            settings["code"] = {}  # it has trained nothing that is kept
        changes = compare_settings(started, settings)
        if changes:
            raise InputError(
                f"{self.folder}: started with other settings ({'; '.join(changes[:3])}); choose another "
                "--out, or delete this folder to run it again"
            )

    def prepare(self) -> None:
        """Write the recipe and the settings of the run."""
        make_folder(self.folder)
        (self.folder / ERROR).unlink(missing_ok=True)
        callbacks = (self.recipe.get("trainer") or {}).get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]  # Lightning accepts one, too
        timed = {"trainer": {"callbacks": [*callbacks, _TIMER]}}
        write_text(self.folder / RECIPE, yaml.safe_dump(merge(dict(self.recipe), timed), sort_keys=False))
        write_json(self.folder / SETTINGS, self.settings())

    def train_options(self) -> list[str]:
        """Return the options of ``train`` that are not in the recipe."""
        out = self.folder / TRAIN
        return ["--data.root", self.data.root, "--seed", str(self.seed), "--out", str(out)]

    def commands(self) -> list[tuple[str, list[str]]]:
        """Return the remaining steps, ``training`` and ``testing``, with their commands."""
        out = self.folder / TRAIN
        how = "--resume" if (out / LAST).is_file() else "--overwrite"
        train = ["train", "--config", str(self.folder / RECIPE), *self.train_options(), how]
        test = [str(self.folder), "--root", self.data.root, "--card", self.data.card]
        test += ["--flip"] if self.flip else []
        test += [word for name in self.recipe.get("imports", []) for word in ("--import", name)]
        steps = [("training", python_module("rga_reid.commands", train))]
        steps.append(("testing", python_module("rga_reid.experiments.ablation_worker", test)))
        return steps[1:] if (self.folder / TRAINED).is_file() else steps

    def failure_reason(self) -> str:
        """Return the first line of the error."""
        return failure_reason(self.folder)


@dataclass(frozen=True)
class Progress:
    """Progress of ``make_runs``.

    Args:
        done: runs done, including fractions of active ones.
        work: what this call has done of them: without the part of a run that an earlier call did.
        total: runs of this call.
        active: names of active runs, with their steps.
        news: a line about a run that has ended, or "".
        started: a line about a run that starts, or "".
        trains: whether this call has started a training; the tests of earlier trainings take far less time.
    """

    done: float
    work: float
    total: int
    active: tuple[str, ...] = ()
    news: str = ""
    started: str = ""
    trains: bool = False


@dataclass(frozen=True)
class Outcome:
    """States of all runs after a call of ``make_runs``."""

    finished: tuple[Run, ...]
    failed: tuple[Run, ...]
    locked: tuple[Run, ...] = ()  #: in use by another process
    remaining: tuple[Run, ...] = ()  #: not selected in this call, and not finished


def plan_runs(plan: Plan, out: Path, data: DataSource) -> list[Run]:
    """Return the runs of a plan in the order they are made.

    Raises:
        InputError: one of them was started with other settings.
    """
    modules = {variant.name: _used_modules(variant, plan) for variant in plan.variants}
    runs = [
        Run(v.name, seed, v.recipe, data, plan.flip, out / v.name / f"seed-{seed}", modules[v.name])
        for v, seed in plan.order()
    ]
    for run in runs:
        run.check()
    return runs


def _used_modules(variant: Variant, plan: Plan) -> tuple[str, ...]:
    """Return the imports of a variant without those of which only other variants name a class."""

    def names_class(other: Variant, module: str) -> bool:
        return f'"{module}.' in json.dumps(_without_imports(other.recipe))

    return tuple(
        module
        for module in variant.recipe.get("imports", [])
        if names_class(variant, module) or not any(names_class(other, module) for other in plan.variants)
    )


def _without_imports(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "imports"}


def write_plan(plan: Plan, out: Path) -> None:
    """Write what a report needs: title, baseline, and the order and recipes of the variants."""
    make_folder(out)
    names = [variant.name for variant in plan.variants]
    content = {
        "title": plan.title,
        "baseline": plan.baseline,
        "variants": names,
        "recipes": recipe_names(plan),
    }
    write_json(out / PLAN, content)


def recipe_names(plan: Plan) -> list[str]:
    """Return the recipes that a plan names, each once."""
    return list(dict.fromkeys(variant.recipe_name for variant in plan.variants))


def make_runs(
    runs: Sequence[Run],
    *,
    select: Callable[[Run], bool] = lambda run: True,
    jobs: int = 1,
    devices: Sequence[str] = (),
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train and test the runs that are not finished. A failed run does not stop the others.

    Args:
        runs: runs of a plan.
        select: returns whether a run is part of this call.
        jobs: number of runs at a time.
        devices: GPUs, as in CUDA_VISIBLE_DEVICES, which the jobs use in turn. Without GPUs, the jobs share
            the processor cores.
        report: called several times per second.
    """
    waiting = [run for run in runs if select(run) and run.state != "finished"]
    total = len(waiting)
    locked: list[Run] = []
    ended = 0
    saved = 0.0  # of ended runs, by earlier calls
    trains = False
    active: dict[int, _Job] = {}
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    run = waiting.pop(0)
                    job = _Job(run, _environment(slot, jobs, devices), jobs)
                    if job.start():
                        active[slot] = job
                        trains |= job.step == "training"
                        line = (
                            f"[{total - len(waiting)}/{total}] {run.name}: {job.step}, log {run.folder / LOG}"
                        )
                        report(Progress(ended, ended - saved, total, started=line, trains=trains))
                    else:
                        locked.append(run)
                        ended += 1
                        saved += 1
            for slot, job in list(active.items()):
                if not job.poll():
                    del active[slot]
                    ended += 1
                    saved += job.saved
                    failed = job.run.state == "failed"
                    reason = f": {job.run.failure_reason()}" if failed else ""
                    news = f"{job.run.name} {job.run.state}{reason}"
                    report(Progress(ended, ended - saved, total, news=news, trains=trains))
            done = ended + sum(job.done() for job in active.values())
            work = done - saved - sum(job.saved for job in active.values())
            names = tuple(f"{job.run.name} {job.step}" for job in active.values())
            report(Progress(done, work, total, names, trains=trains))
            time.sleep(_POLL_SECONDS if active else 0)
    finally:
        for job in active.values():  # after Ctrl-C: checkpoints are kept
            job.terminate()
        for job in active.values():
            job.wait()
    return collect_outcome(runs, locked)


def collect_outcome(runs: Sequence[Run], locked: Sequence[Run] = ()) -> Outcome:
    """Return the states of runs according to their files."""
    in_use = {run.folder for run in locked}
    groups: dict[str, list[Run]] = {"finished": [], "failed": [], "locked": [], "remaining": []}
    for run in runs:
        state: str = run.state
        if state != "finished" and run.folder in in_use:
            state = "locked"
        groups[state if state in groups else "remaining"].append(run)
    return Outcome(**{name: tuple(group) for name, group in groups.items()})


@dataclass
class _Job:
    """The processes of one run, one after another."""

    run: Run
    environment: Mapping[str, str]
    jobs: int
    step: str = ""
    process: subprocess.Popen[bytes] | None = None
    steps: list[tuple[str, list[str]]] = field(default_factory=list)
    lock: ExitStack = field(default_factory=ExitStack)
    handle: int | None = None
    saved: float = 0.0  #: fraction of the run that earlier calls have done

    def start(self) -> bool:
        """Lock the folder and start; return false if another process has locked it or finished the run."""
        self.handle = self.lock.enter_context(lock_run(self.run.folder))
        if self.handle is None or self.run.state == "finished":
            self.lock.close()
            return False
        self.run.prepare()
        self.steps = self.run.commands()
        if self.steps[0][0] == "testing":
            self.saved = 1 - _TESTING_SHARE
        elif (self.run.folder / LOG).exists():
            self.saved = self.done()
        self._start_step()
        return True

    def poll(self) -> bool:
        """Return whether the run is still active; start the next step if one has ended."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return True
        if code == 0:
            if self.step == "training":
                write_json(self.run.folder / TRAINED, {"runs_side_by_side": self.jobs})
            if self.steps:
                self._start_step()
                return True
        else:
            ending = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            last = self._log_tail().decode("utf-8", "replace").strip().split("\n")[-1]
            reason = f"{self.step}: {ending}: {last.removeprefix('rga-reid: error: ')}\n"
            write_text(self.run.folder / ERROR, reason)
        self.lock.close()
        return False

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        """Wait until the process has ended, and unlock the folder."""
        if self.process is not None:
            self.process.wait()
        self.lock.close()

    def done(self) -> float:
        """Return the fraction of the run that is done, according to the epochs in its log."""
        if self.step == "testing":
            return 1 - _TESTING_SHARE
        epochs = _EPOCH.findall(self._log_tail())
        return (1 - _TESTING_SHARE) * int(epochs[-1][0]) / int(epochs[-1][1]) if epochs else self.saved

    def _start_step(self) -> None:
        self.step, command = self.steps.pop(0)
        assert self.handle is not None
        with open(self.run.folder / LOG, "ab", opener=_open_no_link) as log:
            log.write(f"== {self.step}\n".encode())  # see _HEADING
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=[self.handle],  # locked as long as this process lives
            )

    def _log_tail(self) -> bytes:
        """Return the end of the log of the current step."""
        file = self.run.folder / LOG
        with open(file, "rb") as log:
            log.seek(max(0, file.stat().st_size - _TAIL))
            return _HEADING.split(log.read())[-1]


def list_gpus() -> list[str]:
    """Return the GPUs of this machine, as in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _environment(slot: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    environment = dict(os.environ)
    package = str(Path(rga_reid.__file__).parents[1])  # a checkout need not be installed
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    environment["PYTHONSAFEPATH"] = "1"  # nothing is imported from the current folder (Python 3.11)
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    elif jobs > 1 and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return environment


def _open_no_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def failure_reason(folder: Path) -> str:
    """Return the first line of the error in the folder of a run."""
    try:
        with open(folder / ERROR, encoding="utf-8", errors="replace") as file:
            return truncate(file.readline(_MAX_ERROR), _MAX_ERROR)
    except FileNotFoundError:
        return "another process is trying it again"


@contextmanager
def lock_run(folder: Path) -> Iterator[int | None]:
    """Lock the folder of a run; yield a handle for child processes, or None if it is locked already.

    The lock lasts until the last process that has inherited the handle ends, so a training process whose
    parent was killed keeps it.
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


def python_module(module: str, words: Sequence[str]) -> list[str]:
    """Return the command ``python -m module words``, without imports from the current folder.

    That folder may hold a data set of unknown origin. Python has an option for this from 3.11 on.
    """
    start = "import sys; sys.path = [path for path in sys.path if path]; import runpy; "
    start += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", start, module, *words]


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings that a run was started with; see ``Run.settings``.

    Raises:
        InputError: not a JSON object.
    """
    settings = read_json(folder / SETTINGS)
    if not isinstance(settings, dict):
        raise InputError(f"{folder / SETTINGS}: expected a JSON object")
    if isinstance(settings.get("recipe"), dict):
        settings["recipe"] = rename_options(settings["recipe"], warn=False)  # of version 1
    return settings


def to_json_values(value: Any) -> Any:
    """Return plain values as JSON would read them back: tuples become lists."""
    return json.loads(json.dumps(value))


def compare_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return how the settings of two runs differ; of their code, only modules that both have are compared."""
    codes = [one.get("code") for one in (before, after)]
    old, new = (code if isinstance(code, dict) else {} for code in codes)  # runs of older releases have none
    edited = [f"the code of {name} has changed" for name in old if new.get(name, old[name]) != old[name]]
    first, second = ({key: value for key, value in one.items() if key != "code"} for one in (before, after))
    return [*edited, *changed_settings(first, second)]


def changed_settings(before: Any, after: Any, key: str = "") -> list[str]:
    """Return the settings that differ, each as ``key was A, is B``; null and a missing one are the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        inner = (
            changed_settings(before.get(k, _NOT_SET), after.get(k, _NOT_SET), f"{key}.{k}" if key else k)
            for k in keys
        )
        return [line for lines in inner for line in lines]
    if before == after or all(one in (None, _NOT_SET) for one in (before, after)):
        return []
    shown = ("not set" if one is _NOT_SET else json.dumps(one) for one in (before, after))
    name, was, now = (truncate(text, _MAX_SETTING) for text in (key, *shown))
    return [f"{name} was {was}, is {now}"]
