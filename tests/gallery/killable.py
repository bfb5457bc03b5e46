"""Runs changes of a gallery in processes that kill themselves when told to, for test_gallery_crashes.py.

Reads a JSON object a line: ``operation``, ``folder``, ``kill_at``, the number of the event in rga_reid's own
code (a call, a return, a call of anything else) at which the process gets SIGKILL, and ``watch``. Answers a
JSON object a line: ``killed``, and if it was to watch ``points``, the events at which the files were not
as at the event before: killing at any other event leaves the same files as killing at the last of these.
Processes are forked, so that one import of torch and FAISS serves them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401 - imported here, not in every process that writes a table

import rga_reid
from rga_reid.gallery import Gallery, GalleryBuilder
from rga_reid.gallery import gallery as builder
from rga_reid.gallery import index as indexes
from rga_reid.gallery.folder_store import writing

PACKAGE = str(Path(rga_reid.__file__).parent)
SHARD = 300
builder.SHARD_ROWS = SHARD
indexes._SAMPLE = 5  # measuring recall changes no file


def people(count: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    features = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    paths = [f"{seed}/{row}.jpg" for row in range(count)]
    return features, pd.DataFrame({"path": paths, "pid": np.arange(count) % 50})


def build(count: int, seed: int) -> Gallery:
    return Gallery.build(*people(count, seed), index="ivf")


def stream(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    features, table = people(1200, 2)
    with GalleryBuilder(folder, index="ivf", resume=resume, overwrite=overwrite) as made:
        start = len(made.paths)
        for first in range(start, 1200, 100):
            made.add(features[first : first + 100], table[first : first + 100])
        made.finish()


def add(folder: Path) -> None:
    Gallery.open(folder).add(*people(30, 3))


def churn(folder: Path) -> None:
    gallery = Gallery.open(folder)
    for seed in range(10, 22):
        gallery.add(*people(30, seed))
        gallery.remove(paths=[f"{seed}/{row}.jpg" for row in range(30)])
    gallery.compact()


def hold(folder: Path) -> None:
    with writing(folder):
        (folder.parent / "held").touch()
        time.sleep(600)


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "save": lambda folder: build(1100, 2).save(folder),
    "overwrite": lambda folder: build(1100, 2).save(folder, overwrite=True),
    "stream": stream,
    "stream over": lambda folder: stream(folder, overwrite=True),
    "add": add,
    "remove": lambda folder: Gallery.open(folder).remove(pids=7),
    "compact": lambda folder: Gallery.open(folder).compact(),
    "churn": churn,
    "hold": hold,
}


def on_disk(folder: Path) -> list[tuple[str, int, int, int]]:
    """What is there; files are written anew or added to, so that size and time tell every change."""
    found = []
    for place, _, names in os.walk(folder):
        for name in (".", *names):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(place, name))
                size = 0 if name == "." else status.st_size
                found.append((os.path.join(place, name), status.st_ino, size, status.st_mtime_ns))
    return found


def run(operation: str, folder: Path, kill_at: int | None, watched: bool) -> list[int]:
    """Run it, and tell at which events the files had changed."""
    seen, points, last = 0, [], on_disk(folder.parent) if watched else []

    def watch(frame: Any, event: str, argument: object) -> None:
        nonlocal seen, last
        if frame.f_code.co_filename.startswith(PACKAGE):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if watched and (now := on_disk(folder.parent)) != last:
                points.append(seen)
                last = now

    signal.alarm(900)  # ends it where it hangs
    sys.setprofile(watch)
    try:
        OPERATIONS[operation](folder)
    finally:
        sys.setprofile(None)
    return points


def serve() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                points = run(task["operation"], Path(task["folder"]), task["kill_at"], task["watch"])
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
