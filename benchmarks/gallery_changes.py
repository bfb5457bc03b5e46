"""Galleries that grow while they are searched, and filters, on this machine.

``adds``: 4 processes add 32 rows each, again and again, while one searches the gallery. ``one``: one image is added to
a large gallery, by a program that has it open, and as ``gallery add`` does it (open, look for the path, add; without
start and embedding). ``filter``: a gallery with six columns of metadata is opened, and searched with and without a
filter by time that keeps 1 % of the images; recall@10 is that against the exact search with the same filter. Times are
drawn at random, so the images that the filter keeps are spread over the files.

    python benchmarks/gallery_changes.py adds one filter --out gallery_changes.json
    python benchmarks/gallery_changes.py filter --filter-count 1000000 --indexes flat ivf hnsw
    python benchmarks/gallery_changes.py adds one filter --count 2000 --filter-count 20000 --seconds 2   # that it runs
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import pstats
import shutil
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
from gallery import QUERIES, TOP_K, recall, say, write_vectors

from rga_reid.experiments.benchmark import (
    describe_machine,
    describe_options,
    in_fresh_processes,
    time_interleaved,
)
from rga_reid.files import write_json
from rga_reid.gallery import Gallery
from rga_reid.gallery.build import save_features

START = pd.Timestamp("2026-01-01", tz="UTC")
DAYS = 100
RECENT = f"time >= '{(START + pd.Timedelta(days=DAYS - 1)).isoformat()}'"  # 1 % of the images


def events(count: int, name: str, seed: int = 0) -> pd.DataFrame:
    """Paths and six columns of metadata."""
    rng = np.random.default_rng(seed)
    seconds = rng.integers(0, DAYS * 86_400, count)
    return pd.DataFrame(
        {
            "path": [f"{name}/{row:09d}.jpg" for row in range(count)],
            "pid": pd.array(rng.integers(0, count // 10 + 1, count), dtype="Int64"),
            "camera": pd.array(
                rng.choice([f"cam{number:02d}" for number in range(20)], count), dtype="string"
            ),
            "time": START + pd.to_timedelta(seconds, unit="s"),
            "track": pd.array(rng.integers(0, 10_000, count), dtype="Int64"),
            "speed": pd.array(rng.random(count), dtype="Float64"),
            "zone": pd.array(rng.choice(["door", "hall", "stairs"], count), dtype="string"),
        }
    )


def build(folder: Path, name: str, kind: str, count: int) -> Path:
    """A gallery of the first vectors, with metadata."""
    vectors = np.load(folder / "gallery.npy", mmap_mode="r")[:count]
    save_features(folder / name, vectors, events(count, "first"), index=kind, overwrite=True)
    return folder / name


# ---------- adds by several processes ----------


def add_for(gallery: str, number: int, options: argparse.Namespace, start: Barrier, counts: Any) -> None:
    """Add rows for some seconds, in a separate process."""
    rng = np.random.default_rng(number)
    features = rng.standard_normal((options.rows, options.dimension), np.float32)
    opened, added, seconds = Gallery.open(gallery), 0, []
    # made before the clock starts: more than one writer can add
    tables = [events(options.rows, f"{number}/{turn}") for turn in range(int(100 * options.seconds))]
    start.wait()
    until = time.perf_counter() + options.seconds
    profile = cProfile.Profile()
    if options.profile and number == 0:
        profile.enable()
    while time.perf_counter() < until:
        table = tables.pop()
        begun = time.perf_counter()
        opened.add(features, table)
        seconds.append(time.perf_counter() - begun)
        added += options.rows
    profile.disable()
    counts.put((number, added, seconds, time.perf_counter() - until + options.seconds))
    if options.profile and number == 0:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def search_until(gallery: str, queries: np.ndarray, start: Barrier, done: Event, counts: Any) -> None:
    """Search a gallery, opened again every second, until the others are done."""
    opened, seconds = Gallery.open(gallery), []
    start.wait()
    last = time.perf_counter()
    while not done.is_set():
        begun = time.perf_counter()
        if begun - last > 1:
            opened, last = Gallery.open(gallery), begun
        opened.search(queries[len(seconds) % len(queries)][None], TOP_K)
        seconds.append(time.perf_counter() - begun)
    counts.put((-1, len(seconds), seconds, 0.0))


def measure_adds(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of all writers together."""
    gallery = build(folder, "adds", options.index, options.count)
    queries = np.load(folder / "queries.npy")
    context = multiprocessing.get_context("spawn")
    start, done, counts = context.Barrier(options.writers + 1), context.Event(), context.Queue()
    writers = [
        context.Process(target=add_for, args=(str(gallery), number, options, start, counts))
        for number in range(options.writers)
    ]
    reader = context.Process(target=search_until, args=(str(gallery), queries, start, done, counts))
    for process in (*writers, reader):
        process.start()
    answers = [counts.get() for _ in writers]
    done.set()
    answers.append(counts.get())
    for process in (*writers, reader):
        process.join()
    waits = np.concatenate([seconds for number, _, seconds, _ in answers if number >= 0])
    searches = np.array(next(seconds for number, _, seconds, _ in answers if number < 0))
    added = sum(rows for number, rows, _, _ in answers if number >= 0)
    opened = Gallery.open(gallery)
    assert len(opened) == options.count + added
    assert opened.table["path"].is_unique
    opened.check()
    return {
        "measured": f"{options.writers} processes adding {options.rows} rows to {options.count:,}",
        "rows/s": round(added / max(taken for number, _, _, taken in answers if number >= 0)),
        "add p50 ms": milliseconds(waits, 50),
        "add p99 ms": milliseconds(waits, 99),
        "searches/s": round(len(searches) / options.seconds, 1),
        "search p50 ms": milliseconds(searches, 50),
        "segments": opened.describe()["segments"],
    }


def milliseconds(seconds: Any, percentile: float) -> float:
    """A percentile in milliseconds."""
    return round(1e3 * float(np.percentile(seconds, percentile)), 2)


# ---------- adding one image ----------


def measure_one(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds to add one image."""
    gallery = build(folder, "one", options.index, options.count)
    feature = np.random.default_rng(0).standard_normal((1, options.dimension), np.float32)
    opened = Gallery.open(gallery)

    def add(name: str, gallery: Gallery) -> float:
        table = events(1, name)
        begun = time.perf_counter()
        gallery.add(feature, table)
        return time.perf_counter() - begun

    def command(name: str) -> float:
        table = events(1, name)
        begun = time.perf_counter()
        fresh = Gallery.open(gallery)
        assert not fresh.known_paths(table["path"])
        fresh.add(feature, table)
        return time.perf_counter() - begun

    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    adds = [add(f"open/{number}", opened) for number in range(options.repeats)]
    profile.disable()
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
        profile = cProfile.Profile()
        profile.enable()
    commands = [command(f"command/{number}") for number in range(options.repeats)]
    profile.disable()
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
    return {
        "measured": f"one image added to {options.count:,} ({options.index})",
        "add p50 ms": milliseconds(adds, 50),
        "add p99 ms": milliseconds(adds, 99),
        "open, look and add p50 ms": milliseconds(commands, 50),
        "open, look and add p99 ms": milliseconds(commands, 99),
        "segments": Gallery.open(gallery).describe()["segments"],
    }


# ---------- filters ----------


def open_gallery(path: Path) -> float:
    """Seconds to open a gallery and read its tables, in a process that has imported everything."""
    begun = time.perf_counter()
    Gallery.open(path)
    return time.perf_counter() - begun


def measure_filter(folder: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and recall with and without a filter."""
    say(f"filter: building {kind}")
    path = folder / kind
    if not path.exists():
        build(folder, kind, kind, options.filter_count)
    (seconds,) = in_fresh_processes(open_gallery, [path])
    gallery = Gallery.open(path)
    queries, vectors = np.load(folder / "queries.npy"), np.load(folder / "gallery.npy", mmap_mode="r")
    vectors = vectors[: options.filter_count]
    kept = np.flatnonzero(gallery.table["time"] >= START + pd.Timedelta(days=DAYS - 1))
    say(f"filter: searching {kind}")
    recalls = []
    for rows, where in ((np.arange(len(vectors)), None), (kept, RECENT)):
        truth = faiss.knn(queries, vectors[rows], TOP_K, metric=faiss.METRIC_INNER_PRODUCT)[1]
        found = gallery.search(queries, TOP_K, where=where, with_ids=True)["id"].to_numpy()
        recalls.append(recall(found.reshape(QUERIES, TOP_K), rows[truth]))
    row: dict[str, Any] = {
        "measured": f"filter by time on {options.filter_count:,} ({kind}), {len(kept):,} kept",
        "open s": round(seconds, 3),
        "recall@10": round(recalls[0], 4),
        "recall@10 filtered": round(recalls[1], 4),
    }
    for batch, repeats in ((1, 4 * options.repeats), (64, max(2, options.repeats // 10))):
        part = queries[:batch]
        plain, filtered = time_interleaved(
            [
                lambda part=part: gallery.search(part, TOP_K),
                lambda part=part: gallery.search(part, TOP_K, where=RECENT),
            ],
            repeats,
        )
        row[f"batch {batch} p50 ms"] = milliseconds(plain, 50)
        row[f"batch {batch} filtered p50 ms"] = milliseconds(filtered, 50)
    if not options.keep:
        shutil.rmtree(path)  # one gallery at a time on the disk
    return row


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["adds", "one", "filter"])
    parser.add_argument("--count", type=int, default=100_000, help="images before anything is added")
    parser.add_argument("--filter-count", type=int, default=1_000_000, help="images of filtered galleries")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--index", default="flat", help="index of the growing galleries")
    parser.add_argument(
        "--indexes", nargs="+", default=["flat", "ivf", "hnsw"], help="indexes of the filtered galleries"
    )
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32, help="rows of an addition")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long rows are added")
    parser.add_argument(
        "--repeats", type=int, default=100, help="single images; a filter is tried 4 times as often"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", help="for vectors and galleries, while they are needed")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep vectors and filtered galleries in --folder, for the next run",
    )
    parser.add_argument("--profile", action="store_true", help="print where the time of additions goes")
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    facts, results = {**describe_machine(), "faiss": faiss.__version__}, []
    with ExitStack() as stack:
        folder = Path(
            options.folder
            if options.keep
            else stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        )
        count = max(options.filter_count if part == "filter" else options.count for part in options.parts)
        if not (folder / "queries.npy").exists():
            say(f"making {count:,} vectors")
            write_vectors(folder, count, options.dimension)
        for part in options.parts:
            for kind in options.indexes if part == "filter" else [options.index]:
                if part == "adds":
                    results.append(measure_adds(folder, options))
                elif part == "one":
                    results.append(measure_one(folder, options))
                else:
                    results.append(measure_filter(folder, kind, options))
                print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
                if options.out:
                    asked = describe_options(options)
                    write_json(options.out, {"machine": facts, "options": asked, "results": results})


if __name__ == "__main__":
    main()
