"""Two servers of one gallery on a Milvus server."""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from rga_reid.gallery import Gallery
from tests.gallery.milvus_server import Server
from tests.serving.conftest import EMBEDDER, Start, draw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "linux" and platform.machine() != "x86_64",
        reason="milvus has no wheel for this machine",
    ),
]
FEATURES = np.asarray(EMBEDDER.embed([draw(person) for person in range(20)]))


def add(address: str, numbers: range, ids: list[int]) -> None:
    """Add one image after the other."""
    for number in numbers:
        body = {"features": FEATURES[number : number + 1].tolist(), "rows": [{"pid": number, "zone": "east"}]}
        answer = httpx.post(f"{address}/v1/images", json=body, timeout=600)
        assert answer.status_code == 201, answer.text
        ids.extend(answer.json()["ids"])


def search(address: str, body: dict[str, Any]) -> list[Any]:
    """Return the pid of the best match of each query; none while the server does not know the columns."""
    answer = httpx.post(f"{address}/v1/search", json=body, timeout=600)
    if answer.status_code == 422:
        return []
    assert answer.status_code == 200, answer.text
    return [query["matches"][0]["pid"] for query in answer.json()["queries"] if query["matches"]]


def wait_for(look: Callable[[], Any], wanted: Any) -> None:
    """Look until a server knows what another one has changed, which takes about a second."""
    end = time.monotonic() + 60
    while (found := look()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert found == wanted


def test_each_server_finds_what_the_other_has_changed(start: Start, tmp_path: Path) -> None:
    with Server(tmp_path / "milvus") as server:
        location = f"milvus://127.0.0.1:{server.port}/people"
        Gallery.build(FEATURES[:4], pd.DataFrame({"path": list("abcd")})).save(location)
        root = str(tmp_path / "root")
        one, two = (start("--images-root", root, location=location)[1] for _ in range(2))
        ids: list[int] = []
        writers = [
            threading.Thread(target=add, args=(one, range(4, 12), ids)),
            threading.Thread(target=add, args=(two, range(12, 20), ids)),
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(ids) == list(range(4, 20))
        added = {"features": FEATURES[4:].tolist(), "top_k": 1, "where": "zone = 'east'"}
        for address in (one, two):
            wait_for(partial(search, address, added), list(range(4, 20)))
            assert httpx.get(f"{address}/readyz", timeout=600).status_code == 200

        first = {"features": FEATURES[4:5].tolist(), "top_k": 1}
        for address, other, old, new in ((one, two, "4", 104), (two, one, "104", "Anna")):
            body = {"where": f"pid = {old}", "pid": new}
            labelled = httpx.patch(f"{address}/v1/images", json=body, timeout=600)
            assert labelled.json() == {"changed": 1}
            wait_for(partial(search, other, first), [new])

        for address, other, pid in ((one, two, "Anna"), (two, one, "5")):
            parameters = {"where": f"pid = '{pid}'"}
            erased = httpx.delete(f"{address}/v1/images", params=parameters, timeout=600)
            assert erased.json() == {"deleted": 1}
            listed = httpx.get(f"{other}/v1/images", params=parameters, timeout=600)
            assert listed.json()["count"] == 0
