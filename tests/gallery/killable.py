"""Changes of a gallery that can be stopped at every state that their files pass through.

``watch_states`` runs a change in this process and copies the folder whenever its files have changed: each copy is what
SIGKILL would leave there. Run as a program, this module forks processes that kill themselves. It reads a JSON
object a line: ``operation``, ``folder`` and ``kill_at``, the number of the event in the package's own code (a call, a
return, a call of anything else) at which the process gets SIGKILL. It answers with a JSON object a line: the
``child``, then ``killed`` and ``points``, the events at which the files had changed. Processes are forked, so that one
import of torch and FAISS serves them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401 - imported here, not in every process that writes a table

import rga_reid
from rga_reid.gallery import Gallery, GalleryBuilder, segments
from rga_reid.gallery import build as builder
from rga_reid.gallery import index as indexes
from rga_reid.gallery.watch import Arrivals, watch_folder

PACKAGE = str(Path(rga_reid.__file__).parent)
SHARD = 300
NEVER = 0  # no event has this number, so an operation runs at full speed
builder.SHARD_ROWS = SHARD
indexes._SAMPLE = 5  # measuring recall changes no file


def people(count: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    features = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    paths = [f"{seed}/{row}.jpg" for row in range(count)]
    return features, pd.DataFrame({"path": paths, "pid": np.arange(count) % 50})


def build(count: int, seed: int) -> Gallery:
    return Gallery.build(*people(count, seed), index="ivf")


def stream(folder: Path, *, resume: bool = False, overwrite: bool = False, wait: float = 30) -> None:
    features, table = people(1200, 2)
    with GalleryBuilder(folder, index="ivf", resume=resume, overwrite=overwrite, wait=wait) as made:
        start = len(made.paths)
        for first in range(start, 1200, 100):
            made.add(features[first : first + 100], table[first : first + 100])
        made.finish()


def events(count: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """People with cameras, times and a column of their own."""
    features, table = people(count, seed)
    times = pd.date_range("2026-11-20", periods=count, freq="min", tz="UTC")
    return features, table.assign(camera="hall", time=times, zone=[row / 2 for row in range(count)])


def maintain(folder: Path) -> None:
    """Join the small segments at the end, whose limit is lowered for that."""
    limits, segments.MERGED_ROWS = segments.MERGED_ROWS, (2000, 50)
    try:
        gallery = Gallery.open(folder)
        gallery.add(*people(50, 8))
        gallery.maintain()
    finally:
        segments.MERGED_ROWS = limits


def add(folder: Path) -> None:
    Gallery.open(folder).add(*people(30, 3))


def watch(folder: Path) -> None:
    """Follow a folder beside the gallery until its images are added."""
    crops = folder.parent / "crops"
    if not crops.exists():
        crops.mkdir()
        for row in range(30):
            (crops / f"{row:02d}.jpg").write_bytes(b"pixels")
            os.utime(crops / f"{row:02d}.jpg", (1e9, 1e9))  # complete
    gallery, (features, table) = Gallery.open(folder), events(30, 3)
    following = watch_folder(
        gallery,
        Arrivals(crops, gallery.known_paths),
        lambda paths, schema: (table.assign(path=list(map(str, paths))), schema),
        lambda rows, unreadable: [(features, rows)],
    )
    next(following)


def churn(folder: Path) -> None:
    gallery = Gallery.open(folder)
    for seed in range(10, 22):
        gallery.add(*people(30, seed))
        gallery.remove(paths=[f"{seed}/{row}.jpg" for row in range(30)])
    gallery.compact()


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "save": lambda folder: build(1100, 2).save(folder),
    "overwrite": lambda folder: build(1100, 2).save(folder, overwrite=True),
    "stream": stream,
    "stream over": lambda folder: stream(folder, overwrite=True),
    "add": add,
    "remove": lambda folder: Gallery.open(folder).remove(pids=7),
    "compact": lambda folder: Gallery.open(folder).compact(),
    "label": lambda folder: Gallery.open(folder).label("pid in (3, 4) and path like '%3.jpg'", "anna"),
    "events": lambda folder: Gallery.open(folder).add(*events(30, 3)),
    "retire": lambda folder: Gallery.open(folder).remove(where="pid == 7 or path like '1/9%'"),
    "maintain": maintain,
    "watch": watch,
    "churn": churn,
}


def list_files(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return the state of all files. They are replaced or appended to, so size and time show every change."""
    found = []
    for path, _, names in os.walk(folder):
        for name in (".", *names):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(path, name))
                size = 0 if name == "." else status.st_size
                found.append((os.path.join(path, name), status.st_ino, size, status.st_mtime_ns))
    return found


def run(operation: str, folder: Path, on_event: Callable[[int], None]) -> None:
    """Run an operation; call ``on_event`` with the number of every event in the package's code."""
    seen = 0

    def profile(frame: Any, event: str, argument: object) -> None:
        nonlocal seen
        if frame.f_code.co_filename.startswith(PACKAGE):
            seen += 1
            on_event(seen)

    sys.setprofile(profile)
    try:
        OPERATIONS[operation](folder)
    finally:
        sys.setprofile(None)


def on_change(folder: Path, note: Callable[[int], object]) -> Callable[[int], None]:
    """Return a function for ``run`` that calls ``note`` at the events at which the files have changed."""
    last = list_files(folder.parent)

    def compare(event: int) -> None:
        nonlocal last
        if (now := list_files(folder.parent)) != last:
            note(event)
            last = now

    return compare


def watch_states(operation: str, folder: Path, copies: Path) -> list[Path]:
    """Run an operation; return copies of the folder at every state of its files."""
    states: list[Path] = []

    def copy(event: int) -> None:
        if folder.exists():
            states.append(copies / str(event))
            shutil.copytree(folder, states[-1])

    run(operation, folder, on_change(folder, copy))
    return states


def kill_or_watch(task: dict[str, Any]) -> list[int]:
    """Run a task to its end or to its kill point; return the events at which files had changed."""
    folder, points = Path(task["folder"]), list[int]()
    signal.alarm(900)  # ends it if it hangs
    if task["kill_at"] == NEVER:
        OPERATIONS[task["operation"]](folder)
    elif task["kill_at"] is None:
        run(task["operation"], folder, on_change(folder, points.append))
    else:

        def kill(event: int) -> None:
            if event == task["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

        run(task["operation"], folder, kill)
    return points


def serve() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                points = kill_or_watch(task)
                os.write(writer, json.dumps(points).encode())
                os._exit(0)
            finally:
                os._exit(1)
        print(json.dumps({"child": child}), flush=True)
        os.close(writer)
        with os.fdopen(reader) as answer:
            points = json.loads(answer.read() or "[]")
        _, status = os.waitpid(child, 0)
        print(json.dumps({"killed": os.WIFSIGNALED(status), "points": points}), flush=True)


if __name__ == "__main__":
    serve()
