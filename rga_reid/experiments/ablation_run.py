"""One run of an ablation: a folder, and what its files tell. Nothing is known of a run but from its files.

OUT/VARIANT/seed-N/
  run.json         what was asked: recipe, seed, data set
  recipe.yaml      the same for `train`
  train/           folder of `train`
  trained.json     the training has ended
  queries.parquet  average precision and rank of the first match of each query
  ranked.parquet   the ten best matches of each query
  result.json      metrics, parameters, operations, training time: the run is finished
  error.txt        why it failed
  log.txt          what its processes printed
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from rga_reid.data import table_digest
from rga_reid.errors import InputError
from rga_reid.experiments.recipes import merge
from rga_reid.files import DiskError, make_folder, write_json, write_text
from rga_reid.inputs import read_json, shortened
from rga_reid.locks import NoLocksError, lock

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
        return as_read_again(asked)

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
        return program("rga_reid.experiments.trial", [*words, *(["--flip"] if self.flip else [])])

    def commands(self) -> list[tuple[str, list[str]]]:
        """What is left to be done, with a word for each."""
        left = [] if (self.folder / TRAINED).is_file() else [("training", self.training())]
        return [*left, ("testing", self.testing())]

    def fail(self, what: str) -> None:
        """Write down why the run failed."""
        write_text(self.folder / ERROR, what + "\n")

    def why(self) -> str:
        """The first line of the error."""
        return why_failed(self.folder)


def why_failed(folder: Path) -> str:
    """The first line of the error that a run left in its folder; the file may be anybody's."""
    try:
        with open(folder / ERROR, encoding="utf-8", errors="replace") as file:
            return shortened(file.readline(_LONGEST_ERROR), _LONGEST_ERROR)
    except FileNotFoundError:
        return "it is being tried again by another process"


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
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


def as_read_again(value: Any) -> Any:
    """What JSON makes of plain values: tuples become lists."""
    return json.loads(json.dumps(value))


def changed_settings(one: Any, two: Any, where: str = "") -> list[str]:
    """The settings that differ, each as ``key was A, is B``."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = dict.fromkeys([*one, *two])
        inner = (changed_settings(one.get(k), two.get(k), f"{where}.{k}" if where else k) for k in keys)
        return [line for lines in inner for line in lines]
    name, before, after = (shortened(text, _SHOWN) for text in (where, json.dumps(one), json.dumps(two)))
    return [] if one == two else [f"{name} was {before}, is {after}"]
