"""Clients of ``benchmarks/serving.py``: a separate process that takes little of the cores, which the server needs.

Requests are made beforehand, and sent over plain connections; an HTTP library takes half as long as the server.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

TOP_K = 10
_BOUNDARY = b"0123456789abcdef"


def make_request(host: str, picture: bytes) -> bytes:
    """Return the bytes of a search by a picture."""
    body = b"".join(
        [
            b'--%s\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n%d\r\n' % (_BOUNDARY, TOP_K),
            b'--%s\r\nContent-Disposition: form-data; name="image"; filename="upload"\r\n' % _BOUNDARY,
            b"Content-Type: application/octet-stream\r\n\r\n%s\r\n--%s--\r\n" % (picture, _BOUNDARY),
        ]
    )
    head = (
        f"POST /v1/search HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY.decode()}\r\n\r\n"
    )
    return head.encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    """Search; return the seconds."""
    start = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    answer = await reader.readexactly(length)
    seconds = time.perf_counter() - start
    if b" 200 " not in lines[0] or len(json.loads(answer)["queries"][0]["matches"]) != TOP_K:
        raise RuntimeError(answer.decode())
    return seconds


async def client(address: str, pictures: Path, clients: int, requests: int) -> None:
    """Print the seconds of each request, and of all together, as JSON."""
    place = urlsplit(address)
    contents = [make_request(place.netloc, file.read_bytes()) for file in sorted(pictures.iterdir())]
    seconds: list[float] = []
    errors: list[str] = []
    connections = [await asyncio.open_connection(place.hostname, place.port) for _ in range(clients)]

    async def run(number: int, turns: range, seconds: list[float]) -> None:
        for turn in turns:
            try:
                seconds.append(await ask(*connections[number], contents[(number + turn) % len(contents)]))
            except RuntimeError as error:
                errors.append(str(error))

    await asyncio.gather(*(run(number, range(1), []) for number in range(clients)))
    start = time.perf_counter()
    await asyncio.gather(*(run(number, range(requests), seconds) for number in range(clients)))
    print(json.dumps({"seconds": seconds, "total": time.perf_counter() - start, "errors": errors}))


if __name__ == "__main__":
    asyncio.run(client(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
