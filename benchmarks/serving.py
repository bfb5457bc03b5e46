"""A gallery that is served beside the same work in this process, and how it behaves under writers and kills.

The server and the clients are separate processes on the same cores. Four parts:

- ``latency``: search by picture, one request at a time, against decoding, embedding and searching in this process.
- ``throughput``: 32 clients at once, against batches of 32 in this process.
- ``writers``: 4 clients that add and 8 that search; every acknowledged image must be found at the end. Memory is that
  of the server, beyond the vectors that were added.
- ``kills``: ``kill -9`` while images are added; every acknowledged image must be in the gallery. The seconds are those
  from the start of the command until it answers.

    python benchmarks/serving.py --out serving.json
    python benchmarks/serving.py --count 2000 --turns 1 --seconds 10 --kills 3  # to see that it runs

The model is that of ``make demo``, the pictures are those of its data set.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
from serving_client import TOP_K

from rga_reid.experiments.benchmark import describe_machine
from rga_reid.files import write_json
from rga_reid.gallery import Gallery
from rga_reid.inference import load_embedder
from rga_reid.runtime import keep_freed_memory

CLIENTS = 32
CLIENT = Path(__file__).with_name("serving_client.py")
WRITERS, READERS = 4, 8
WARM_UP = 30.0  # seconds after which memory is measured first


@contextmanager
def serving(gallery: Path, log: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """Start a server; yield the process, its address, and the seconds until it answered."""
    command = [
        sys.executable,
        "-m",
        "rga_reid.commands",
        "serve",
        "--gallery",
        str(gallery),
        "--port",
        "0",
        *words,
    ]
    started = time.perf_counter()
    with open(log, "a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit(log.read_text())
        yield process, line.split()[1], time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def build(folder: Path, model: Any, pictures: Sequence[bytes], count: int) -> np.ndarray:
    """Write a gallery of features like those of the pictures, with noise; return the features of the pictures."""
    features = model.embed(list(pictures)).numpy()
    rng = np.random.default_rng(0)
    rows = features[rng.integers(len(features), size=count)]
    rows = rows + 0.5 / np.sqrt(rows.shape[1]) * rng.standard_normal(rows.shape, np.float32)
    table = pd.DataFrame(
        {"path": [f"{row:06d}.jpg" for row in range(count)], "camera": rng.integers(6, size=count)}
    )
    Gallery.build(rows, table, model=model.fingerprint).save(folder)
    return features


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 2) for p in (50, 99)}


def in_process(gallery: Gallery, model: Any, pictures: Sequence[bytes]) -> None:
    """Decode, embed and search some pictures together."""
    gallery.search(model.embed(list(pictures)), TOP_K, with_ids=True)


def run_clients(address: str, pictures: Path, clients: int, requests: int) -> dict[str, Any]:
    """Run the clients in another process."""
    words = [sys.executable, str(CLIENT), address, str(pictures), str(clients), str(requests)]
    return dict(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_searches(folder: Path, model: Any, pictures: Path, turns: int) -> dict[str, Any]:
    """Parts ``latency`` and ``throughput``; the server and this process take turns."""
    contents = [file.read_bytes() for file in sorted(pictures.iterdir())]
    gallery = Gallery.open(folder / "gallery")
    alone: list[float] = []
    served: list[float] = []
    batches: list[float] = []
    many: list[dict[str, Any]] = []
    pictures_in_turn = cycle(contents)
    read_only = serving(folder / "gallery", folder / "log", "--read-only")
    with keep_freed_memory(), read_only as (_, address, _):  # as the server does
        for turn in range(turns + 1):
            one = [timed(lambda: in_process(gallery, model, [next(pictures_in_turn)])) for _ in range(40)]
            answered = run_clients(address, pictures, 1, 40)
            together = [
                timed(lambda: in_process(gallery, model, (contents * CLIENTS)[:CLIENTS])) for _ in range(8)
            ]
            crowd = run_clients(address, pictures, CLIENTS, 8)
            if turn:  # the first is a warm-up
                alone += one
                served += answered["seconds"]
                batches += together
                many.append(crowd)
    own = CLIENTS * len(batches) / sum(batches)
    rate = sum(len(one["seconds"]) for one in many) / sum(one["total"] for one in many)
    crowd_seconds = [value for one in many for value in one["seconds"]]
    added = percentiles(served)["p50_ms"] - percentiles(alone)["p50_ms"]
    return {
        "latency": {
            "served": percentiles(served),
            "in_process": percentiles(alone),
            "added_p50_ms": round(added, 2),
            "target_added_p50_ms": 5,
        },
        "throughput": {
            "clients": CLIENTS,
            "served_per_second": round(rate, 1),
            "in_process_per_second": round(own, 1),
            "ratio": round(rate / own, 3),
            "target_ratio": 0.8,
            **percentiles(crowd_seconds),
            "target_p99_ms": 1000,
            "errors": sum(len(one["errors"]) for one in many),
        },
    }


def writer(address: str, features: np.ndarray, number: int, end: Callable[[], bool], done: list[int]) -> None:
    """Add features until ``end``, or until the server is gone."""
    rng = random.Random(number)
    with httpx.Client(base_url=address, timeout=600) as http:
        while not end():
            rows = [rng.randrange(len(features)) for _ in range(4)]
            body = {"features": features[rows].tolist(), "rows": [{"pid": number, "camera": 9}] * 4}
            try:
                answer = http.post("/v1/images", json=body)
            except httpx.HTTPError:
                return
            if answer.status_code == 201:
                done.extend(answer.json()["ids"])


def ask(http: httpx.Client, picture: bytes) -> float:
    """Search by a picture; return the seconds."""
    start = time.perf_counter()
    answer = http.post("/v1/search", files={"image": picture}, data={"top_k": TOP_K})
    seconds = time.perf_counter() - start
    if answer.status_code != 200 or len(answer.json()["queries"][0]["matches"]) != TOP_K:
        raise RuntimeError(answer.text)
    return seconds


def reader(
    address: str, picture: bytes, end: Callable[[], bool], seconds: list[float], errors: list[str]
) -> None:
    """Search until ``end``."""
    with httpx.Client(base_url=address, timeout=600) as http:
        while not end():
            try:
                seconds.append(ask(http, picture))
            except (RuntimeError, httpx.HTTPError) as error:
                errors.append(str(error))


def measure_writers(folder: Path, features: np.ndarray, picture: bytes, duration: float) -> dict[str, Any]:
    """Part ``writers``."""
    done: list[int] = []
    seconds: list[float] = []
    errors: list[str] = []
    with serving(folder / "gallery", folder / "log") as (process, address, _):
        until = time.monotonic() + duration

        def end() -> bool:
            return time.monotonic() > until

        threads = [
            threading.Thread(target=writer, args=(address, features, n, end, done)) for n in range(WRITERS)
        ]
        threads += [
            threading.Thread(target=reader, args=(address, picture, end, seconds, errors))
            for _ in range(READERS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(min(WARM_UP, duration / 2))
        memory = psutil.Process(process.pid)
        warm, before = memory.memory_full_info().uss, len(done)
        for thread in threads:
            thread.join()
        grown = memory.memory_full_info().uss - warm
        rows = (len(done) - before) * 4 * features.shape[1]
        with httpx.Client(base_url=address, timeout=600) as http:
            found = set()
            for start in range(0, len(done), 1000):
                ids = done[start : start + 1000]
                where = f"id between {min(ids)} and {max(ids)}"
                page = http.get("/v1/images", params={"where": where, "limit": 1000}).json()
                while True:
                    found |= {image["id"] for image in page["images"]}
                    if page["next"] is None:
                        break
                    page = http.get(
                        "/v1/images", params={"where": where, "limit": 1000, "after": page["next"]}
                    ).json()
    stored = set(Gallery.open(folder / "gallery").ids.tolist())
    return {
        "seconds": duration,
        "added": len(done),
        "searches": len(seconds),
        **percentiles(seconds),
        "errors": len(errors),
        "missing_in_answers": len(set(done) - found),
        "missing_on_disk": len(set(done) - stored),
        "memory_growth_mb": round(grown / 1e6, 1),
        "added_rows_mb": round(rows / 1e6, 1),
        "target_growth_beyond_rows_mb": 100,
    }


def measure_kills(folder: Path, features: np.ndarray, kills: int) -> dict[str, Any]:
    """Part ``kills``."""
    done: list[int] = []
    starts: list[float] = []
    rng = random.Random(0)
    for _ in range(kills):
        with serving(folder / "gallery", folder / "log") as (process, address, seconds):
            starts.append(seconds)
            args = (address, features)
            threads = [
                threading.Thread(target=writer, args=(*args, number, lambda: False, done))
                for number in range(WRITERS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.1, 1.0))
            process.kill()
            for thread in threads:
                thread.join()
    stored = Gallery.open(folder / "gallery").ids.tolist()
    return {
        "kills": kills,
        "acknowledged": len(done),
        "missing": len(set(done) - set(stored)),
        "start_seconds_median": round(float(np.median(starts)), 2) if starts else None,
        "start_seconds_max": round(max(starts), 2) if starts else None,
        "target_start_seconds": 5,
    }


def main() -> None:
    """Run the parts and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo/model/last.ckpt")
    parser.add_argument("--images", default="demo/data/query")
    parser.add_argument("--count", type=int, default=20_000, help="images in the gallery")
    parser.add_argument("--seconds", type=float, default=300, help="duration of the part writers")
    parser.add_argument("--turns", type=int, default=5, help="turns of the searches")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", help="write the result as JSON")
    options = parser.parse_args()
    model = load_embedder(options.checkpoint)
    pictures = Path(options.images).absolute()
    contents = [file.read_bytes() for file in sorted(pictures.iterdir())]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features = build(folder / "gallery", model, contents, options.count)
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "images": options.count,
            "cores": os.cpu_count(),
        }
        result |= measure_searches(folder, model, pictures, options.turns)
        print(json.dumps(result, indent=2), flush=True)
        result["writers"] = measure_writers(folder, features, contents[0], options.seconds)
        print(json.dumps(result["writers"], indent=2), flush=True)
        result["kills"] = measure_kills(folder, features, options.kills)
        print(json.dumps(result["kills"], indent=2), flush=True)
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
