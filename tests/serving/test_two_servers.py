"""Two servers of one gallery on a Milvus server."""

from __future__ import annotations

import platform
import sys
import threading
import time
from pathlib import Path

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


def test_each_server_finds_what_the_other_has_added(start: Start, tmp_path: Path) -> None:
    with Server(tmp_path / "milvus") as server:
        location = f"milvus://127.0.0.1:{server.port}/people"
        Gallery.build(FEATURES[:4], pd.DataFrame({"path": list("abcd")})).save(location)
        root = str(tmp_path / "root")
        addresses = [start("--images-root", root, location=location)[1] for _ in range(2)]
        ids: list[int] = []
        writers = [
            threading.Thread(target=add, args=(address, numbers, ids))
            for address, numbers in zip(addresses, (range(4, 12), range(12, 20)), strict=True)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(ids) == list(range(4, 20))
        time.sleep(1.5)  # after which columns of others are known
        for address in addresses:
            body = {"features": FEATURES[4:].tolist(), "top_k": 1, "where": "zone = 'east'"}
            answer = httpx.post(f"{address}/v1/search", json=body, timeout=600)
            assert answer.status_code == 200, answer.text
            found = [query["matches"][0]["pid"] for query in answer.json()["queries"]]
            assert found == list(range(4, 20))
            assert httpx.get(f"{address}/readyz", timeout=600).status_code == 200
        erased = httpx.delete(f"{addresses[0]}/v1/images", params={"where": "pid = 4"}, timeout=600)
        assert erased.json() == {"deleted": 1}
        answer = httpx.get(f"{addresses[1]}/v1/images", params={"where": "pid = 4"}, timeout=600)
        assert answer.json()["count"] == 0
