"""Clients of ``benchmarks/serving.py``: a separate process that imports little."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import httpx

TOP_K = 10


def ask(http: httpx.Client, picture: bytes) -> float:
    """Search by a picture; return the seconds."""
    start = time.perf_counter()
    answer = http.post("/v1/search", files={"image": picture}, data={"top_k": TOP_K})
    seconds = time.perf_counter() - start
    if answer.status_code != 200 or len(answer.json()["queries"][0]["matches"]) != TOP_K:
        raise RuntimeError(answer.text)
    return seconds


def client(address: str, pictures: Path, clients: int, requests: int) -> None:
    """Print the seconds of each request, and of all together, as JSON."""
    contents = [file.read_bytes() for file in sorted(pictures.iterdir())]
    seconds: list[float] = []
    errors: list[str] = []

    def run(number: int) -> None:
        with httpx.Client(base_url=address, timeout=600) as http:
            ask(http, contents[number % len(contents)])
            ready.wait()
            for turn in range(requests):
                try:
                    seconds.append(ask(http, contents[(number + turn) % len(contents)]))
                except (RuntimeError, httpx.HTTPError) as error:
                    errors.append(str(error))

    ready = threading.Barrier(clients + 1)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": seconds, "total": time.perf_counter() - start, "errors": errors}))


if __name__ == "__main__":
    client(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
