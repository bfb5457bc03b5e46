"""Galleries of synthetic vectors beside bare FAISS indexes with the same settings, on this machine.

For each kind of index: seconds to build, size on disk, peak anonymous memory of the build against the size of
the index, seconds to open, latency (p50, p99) and queries per second at batch 1 and 64, and recall@10 against
the exact search. Bare FAISS is one index of all vectors in memory, searched with as many threads; both take
turns, query batch by query batch, in one run. Where a gallery has one segment, the bare index is what FAISS
reads from that segment's file, so both search the same lists or graph (``--build-bare`` builds another). The
bare IVF-PQ index is refined from stored vectors as the gallery's is. Memory is that of the build, with
vectors in a mapped file (Linux, glibc). The JSON is written after each kind of index, with the machine that
measured it, and ``--resume`` continues from there. A million vectors of 512 numbers need about 7 GB of disk.

    python benchmarks/gallery.py --out gallery.json
    python benchmarks/gallery.py --out gallery.json --resume --indexes flat hnsw
    python benchmarks/gallery.py --count 20000        # to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
from memory import peak_anonymous
from synthetic import BLOCK

from rga_reid.experiments.benchmark import (
    describe_machine,
    describe_options,
    in_fresh_processes,
    time_interleaved,
)
from rga_reid.files import write_json
from rga_reid.gallery import Gallery
from rga_reid.gallery.build import save_features

TOP_K = 10
QUERIES = 1024
BATCHES = (1, 64)
FACTORY = {
    "flat": "Flat",
    "hnsw": "HNSW{hnsw_m},Flat",
    "ivf": "IVF{nlist},Flat",
    "ivfpq": "IVF{nlist},PQ{pq_m}x{pq_bits}np,RFlat",
}
COLUMNS = ["index", "what", "build s", "disk MB", "batch", "p50 ms", "p99 ms", "q/s", "recall@10", "× p50"]


def write_vectors(folder: Path, count: int, dimension: int, seed: int = 0) -> None:
    """People in clusters, about ten images each: unit vectors in memory maps, gallery and queries."""
    rng = np.random.default_rng(seed)
    people = max(1, count // 10)
    centres = np.lib.format.open_memmap(folder / "centres.npy", "w+", np.float32, (people, dimension))
    for start in range(0, people, BLOCK):
        block = rng.standard_normal((min(BLOCK, people - start), dimension), np.float32)
        centres[start : start + BLOCK] = block
    for name, rows in (("gallery", count), ("queries", QUERIES)):
        vectors = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, dimension))
        for start in range(0, rows, BLOCK):
            owners = rng.integers(0, people, min(BLOCK, rows - start))
            block = centres[owners] + 0.7 * rng.standard_normal((len(owners), dimension), np.float32)
            vectors[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
        vectors.flush()


def build(folder: Path, kind: str) -> None:
    """A gallery from the vectors, which stay in their file."""
    vectors = np.load(folder / "gallery.npy", mmap_mode="r")
    table = pd.DataFrame({"path": [f"{row:09d}.jpg" for row in range(len(vectors))]})
    save_features(folder / kind, vectors, table, index=kind, overwrite=True)


def built(case: tuple[Path, str, int]) -> tuple[float, float]:
    """Seconds and peak anonymous MiB of a build."""
    folder, kind, threads = case
    faiss.omp_set_num_threads(threads)
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        start = time.perf_counter()
        build(folder, kind)
        seconds = time.perf_counter() - start

    memory = peak_anonymous(timed)
    return seconds, memory


def opened(case: tuple[Path, str]) -> float:
    """Seconds to open a gallery, in a process that has imported everything."""
    start = time.perf_counter()
    Gallery.open(case[0] / case[1])
    return time.perf_counter() - start


def bare_index(vectors: np.ndarray, kind: str, settings: dict[str, int] | None) -> Any:
    """A FAISS index of all vectors."""
    # a small gallery has no index, and is searched exactly
    kind, settings = ("flat", {}) if settings is None else (kind, settings)
    made: Any = faiss.index_factory(
        vectors.shape[1], FACTORY[kind].format(**settings), faiss.METRIC_INNER_PRODUCT
    )
    if kind == "hnsw":
        made.hnsw.efConstruction = settings["ef_construction"]
        made.hnsw.efSearch = settings["ef_search"]
    if kind in ("ivf", "ivfpq"):
        sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 65_536), replace=False)
        made.train(vectors[np.sort(sample)])
        faiss.extract_index_ivf(made).nprobe = settings["nprobe"]
    if kind == "ivfpq":
        made.k_factor = settings["refine"]
    for start in range(0, len(vectors), BLOCK):
        made.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
    return made


def loaded_index(folder: Path, vectors: np.ndarray, kind: str, settings: dict[str, int] | None) -> Any:
    """The index of a gallery's only segment as FAISS reads it; None if there is not exactly one."""
    files = list((folder / kind / "segments").glob("*/index.faiss"))
    if settings is None or len(files) != 1 or len(list((folder / kind / "segments").iterdir())) != 1:
        return None
    made: Any = faiss.read_index(str(files[0]))
    if kind == "hnsw":
        made.hnsw.efSearch = settings["ef_search"]
    else:
        made.nprobe = settings["nprobe"]
    if kind == "ivfpq":
        refined: Any = faiss.IndexRefineFlat(made, faiss.swig_ptr(vectors))
        refined.k_factor = settings["refine"]
        return refined
    return made


class Count:
    """A file that keeps nothing but its size."""

    bytes = 0

    def write(self, data: Any) -> int:
        """Count the bytes; return their number."""
        self.bytes += len(data)
        return len(data)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true rows that were found."""
    return float(np.mean([len(np.intersect1d(*rows)) for rows in zip(found, true, strict=True)])) / TOP_K


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def measure(
    folder: Path, kind: str, truth: np.ndarray, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of results for a kind of index."""
    say(f"{kind}: building the gallery")
    ((seconds, memory),) = in_fresh_processes(built, [(folder, kind, options.threads)])
    (opening,) = in_fresh_processes(opened, [(folder, kind)])
    gallery = Gallery.open(folder / kind)
    vectors, queries = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("gallery", "queries"))
    queries = np.array(queries)
    settings = gallery.describe()["settings"]
    start = time.perf_counter()
    bare = None if options.build_bare else loaded_index(folder, vectors, kind, settings)
    built_bare = bare is None
    if built_bare:
        say(f"{kind}: building the bare index")
        bare = bare_index(vectors, kind, settings)
    bare_seconds = round(time.perf_counter() - start, 2) if built_bare else "-"
    say(f"{kind}: searching")
    writer = Count()
    faiss.write_index(bare, faiss.PyCallbackIOWriter(writer.write, 1 << 20))
    serialised = writer.bytes
    disk = gallery.size_on_disk() or 0
    mine = np.concatenate(
        [
            gallery.search(queries[first : first + 64], TOP_K, with_ids=True)["id"].to_numpy()
            for first in range(0, QUERIES, 64)
        ]
    ).reshape(QUERIES, TOP_K)
    recalls = [recall(bare.search(queries, TOP_K)[1], truth), recall(mine, truth)]
    for batch in BATCHES:
        parts = [queries[first : first + batch] for first in range(0, QUERIES - batch + 1, batch)]
        first, second = cycle(parts), cycle(parts)
        times = time_interleaved(
            [
                lambda parts=first: bare.search(next(parts), TOP_K),
                lambda parts=second: gallery.search(next(parts), TOP_K),
            ],
            options.repeats if batch > 1 else 4 * options.repeats,
        )
        middle = float(np.median(times[0]))
        for what, taken, hit, built_in, size in zip(
            ("bare FAISS", "Gallery"),
            times,
            recalls,
            (bare_seconds, round(seconds, 2)),
            (serialised, disk),
            strict=True,
        ):
            yield {
                "index": kind,
                "what": what,
                "build s": built_in,
                "disk MB": round(size / 1e6, 1),
                "batch": batch,
                "p50 ms": round(1e3 * float(np.median(taken)), 3),
                "p99 ms": round(1e3 * float(np.percentile(taken, 99)), 3),
                "q/s": round(batch / float(np.mean(taken)), 1),
                "recall@10": round(hit, 4),
                "× p50": round(float(np.median(taken)) / middle, 3),
            }
    yield {
        "index": kind,
        "what": "Gallery, build and open",
        "peak MiB": round(memory, 1),
        "index MiB": round(serialised / 2**20, 1),
        "open s": round(opening, 4),
        "bare index": "built" if built_bare else "loaded from the gallery's file",
        "segments": gallery.describe()["segments"],
        "settings": gallery.describe()["settings"],
    }


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="vectors of the gallery")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--indexes", nargs="+", default=list(FACTORY), choices=FACTORY)
    parser.add_argument("--repeats", type=int, default=50, help="batches of 64; of single queries four times")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", help="for vectors and galleries, while they are needed")
    parser.add_argument("--out", help="write the results there as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the indexes that --out has already")
    parser.add_argument(
        "--build-bare", action="store_true", help="build bare indexes, also where the gallery's file is one"
    )
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    facts = {**describe_machine(), "faiss": faiss.__version__}
    settings = describe_options(options, "resume", "indexes")
    machines, results = finished(options, settings) if options.resume else ({}, [])
    known = set(machines)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    show(results)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if not known.issuperset(options.indexes):
            say("making vectors, and the exact answers")
            write_vectors(folder, options.count, options.dimension)
            vectors = np.load(folder / "gallery.npy", mmap_mode="r")
            queries = np.load(folder / "queries.npy")
            truth = faiss.knn(queries, vectors, TOP_K, metric=faiss.METRIC_INNER_PRODUCT)[1]
        for kind in options.indexes:
            if kind in known:
                continue
            rows = list(measure(folder, kind, truth, options))
            show(rows)
            results += rows
            machines[kind] = facts
            if options.out:
                write_json(options.out, {"machines": machines, "options": settings, "results": results})
            shutil.rmtree(folder / kind)  # one gallery at a time on the disk


def finished(
    options: argparse.Namespace, settings: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Read ``--out``: the machine of each kind, and results. Results of other options are refused."""
    if not options.out or not Path(options.out).exists():
        return {}, []
    content = json.loads(Path(options.out).read_text())
    if content["options"] != settings:
        raise SystemExit(f"{options.out}: measured with other options: {content['options']}")
    return content["machines"], content["results"]


def show(results: list[dict[str, Any]]) -> None:
    """Print rows of results."""
    for row in results:
        if "batch" in row:
            print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)
        else:
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
