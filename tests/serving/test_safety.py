"""Bad input, tokens and roles, hostile uploads, the audit log."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.serving.audit import AuditLog
from rga_reid.serving.auth import Caller, RateLimit, Tokens
from rga_reid.serving.problems import Problem
from tests.serving.conftest import Served, draw


def assert_problem(answer: Any, status: int, *words: str) -> str:
    """Check that an answer is a problem detail with a status, whose text has some words; return the text."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], set(problem)) == (status, {"type", "title", "status", "detail"})
    for word in words:
        assert word in problem["detail"]
    assert "Traceback" not in answer.text
    return str(problem["detail"])


# ---------- bad input ----------

PICTURE = draw(1)
BAD = [
    ("/v1/search", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "JSON"),
    (
        "/v1/search",
        {"content": b'{"where": "\\ud800"}', "headers": {"content-type": "application/json"}},
        400,
        "JSON",
    ),
    ("/v1/search", {"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "multipart"),
    ("/v1/search", {"content": b"a=b", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
    ("/v1/search", {"json": [1]}, 422, "object"),
    ("/v1/search", {"json": {}}, 422, "image"),
    ("/v1/search", {"json": {"features": [[1.0, 2.0]]}}, 422, "features"),
    ("/v1/search", {"json": {"features": [[float(n)] for n in range(2)]}}, 422, "features"),
    ("/v1/search", {"json": {"images": ["%%%"]}}, 422, "base64"),
    ("/v1/search", {"json": {"ids": [0], "topk": 3}}, 422, "topk"),
    ("/v1/search", {"json": {"ids": [0], "top_k": 0}}, 422, "top_k"),
    ("/v1/search", {"json": {"ids": [0], "threshold": 2}}, 422, "threshold"),
    ("/v1/search", {"json": {"ids": [0], "where": "colour = 3"}}, 422, "colour"),
    ("/v1/search", {"json": {"ids": [0], "group_by": "colour"}}, 422, "colour"),
    ("/v1/search", {"json": {"ids": [77]}}, 404, "77"),
    ("/v1/search", {"json": {"ids": [2**63]}}, 422, "ids"),
    ("/v1/search", {"files": {"image": b"no picture"}}, 415, "image 0"),
    ("/v1/search", {"files": {"photo": PICTURE}}, 422, "photo"),
    ("/v1/search", {"files": {"image": PICTURE}, "data": {"top_k": ["1", "2"]}}, 422, "top_k"),
    ("/v1/verify", {"files": {"image": PICTURE}}, 422, "two"),
    ("/v1/embed", {"files": {}}, 415, "none"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": "[{}, {}]"}}, 422, "rows"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": "[{"}}, 400, "rows"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": '[{"zone": 3}]'}}, 422, "zone"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": '[{"time": "noon"}]'}}, 422, "time"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": '[{"upload": "a.png"}]'}}, 422, "upload"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": '[{"id": 3}]'}}, 422, "id"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": '[{"speed": 1e999}]'}}, 422, "speed"),
    ("/v1/images", {"files": {"image": PICTURE}, "data": {"rows": '[{"box": [1, 2]}]'}}, 422, "box"),
]


@pytest.mark.parametrize(("path", "request_", "status", "word"), BAD)
def test_bad_requests_are_problems(
    shared: Served, path: str, request_: dict[str, Any], status: int, word: str
) -> None:
    assert_problem(shared.http.post(path, **request_), status, word)
    assert len(shared.engine.gallery) == 12


def test_unknown_addresses_and_methods_are_problems(shared: Served) -> None:
    assert_problem(shared.http.get("/v1/nothing"), 404)
    assert_problem(shared.http.put("/v1/images"), 405)
    assert_problem(shared.http.get("/v1/images/abc"), 422, "id")
    assert_problem(shared.http.get("/v1/images/12345678901234567890123"), 422, "id")
    assert_problem(shared.http.get("/v1/images", params={"where": "pid ="}), 422, "where")
    assert_problem(shared.http.patch("/v1/images", json={"ids": [1]}), 422, "pid")
    assert_problem(shared.http.patch("/v1/images", json={"pid": 1}), 422, "ids")
    assert_problem(shared.http.patch("/v1/images/find", json={}), 405)


@pytest.mark.parametrize(
    "body",
    [
        {"ids": [1, 2], "rows": [{"zone": "a"}]},
        {"ids": [1, 2], "rows": [{"zone": "a"}, {"height": 1.8}]},
        {"ids": [1], "rows": [{}]},
        {"ids": [], "rows": []},
        {"where": "id = 1", "rows": [{"zone": "a"}]},
        {"ids": [1], "pid": 3, "rows": [{"zone": "a"}]},
    ],
)
def test_rows_have_an_id_and_the_same_columns(shared: Served, body: dict[str, Any]) -> None:
    before = shared.http.get("/v1/images/1").json()
    assert_problem(shared.http.patch("/v1/images", json=body), 422, "rows")
    assert shared.http.get("/v1/images/1").json() == before


def test_an_unexpected_error_shows_no_details(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(served.engine, "describe", fail)
    assert "secret" not in assert_problem(served.http.get("/v1/gallery"), 500)


def test_a_full_disk_is_not_the_fault_of_the_client(served: Served) -> None:
    (served.location.parent / "uploads").rename(served.location.parent / "gone")
    (served.location.parent / "uploads").touch()
    assert served.post("/v1/images", draw(5)).status_code == 503


# ---------- uploads ----------


def huge_png(side: int) -> bytes:
    """Return a small file of many pixels, all of them black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_hostile_pictures_are_refused(serve: Callable[..., Served], people: Path) -> None:
    served = serve(images_root=people.parent, max_pixels=1_000_000)
    jpeg = draw(1, kind="JPEG")
    for picture, status in (
        (huge_png(1024), 413),
        (huge_png(9600), 413),
        (jpeg[:-40], 422),
        (jpeg[:300], 422),
        (b"", 415),
        (b"%PDF-1.7", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    ):
        for path in ("/v1/search", "/v1/images", "/v1/embed"):
            assert_problem(served.post(path, picture), status, "image 0")
    assert len(served.engine.gallery) == 12
    assert {file.name for file in (people.parent / "uploads").iterdir()} <= {"lock"}


def test_names_of_files_are_not_used(served: Served) -> None:
    before = set(served.location.parent.rglob("*"))
    name = "../../../evil\x00\n.png"
    answer = served.http.post("/v1/images", files={"image": (name, draw(6))})
    assert answer.status_code == 201
    new = [file for file in set(served.location.parent.rglob("*")) - before if "uploads" in file.parts]
    assert {file.suffix for file in new if file.is_file()} <= {".png", ""}
    assert (
        served.http.get("/v1/images/12").json()["path"] == served.http.get("/v1/images/12").json()["upload"]
    )


def test_large_requests_are_refused_with_and_without_their_length(serve: Callable[..., Served]) -> None:
    served = serve(max_bytes=10_000)
    assert_problem(served.post("/v1/search", bytes(20_000)), 413, "MiB")
    parts = (bytes(1000) for _ in range(20))
    streamed = served.http.post("/v1/search", content=parts, headers={"content-type": "application/json"})
    assert_problem(streamed, 413)
    assert_problem(served.http.get("/v1/gallery", headers={"content-length": "-1"}), 400)
    assert served.post("/v1/search", draw(1)).status_code == 200


def test_too_many_pictures_are_refused(shared: Served) -> None:
    assert_problem(shared.post("/v1/embed", *[b"x"] * 257), 413)


# ---------- callers ----------

TOKENS = Tokens(
    ["# who may do what", "desk read aaaa", "camera read,write bbbb", "", "officer erase cccc", "dddd"]
)


@pytest.mark.parametrize(
    ("token", "search", "add", "erase"),
    [("aaaa", 200, 403, 403), ("bbbb", 200, 201, 403), ("cccc", 403, 403, 200), ("dddd", 200, 201, 200)],
)
def test_roles_of_tokens(serve: Callable[..., Served], token: str, search: int, add: int, erase: int) -> None:
    served = serve(tokens=TOKENS)
    headers = {"Authorization": f"Bearer {token}"}
    assert served.post("/v1/search", draw(1), headers=headers).status_code == search
    assert served.post("/v1/images", draw(1), headers=headers).status_code == add
    patch = served.http.patch("/v1/images", json={"ids": [0], "pid": 1}, headers=headers)
    change = 200 if add == 201 else 403
    assert patch.status_code == change
    for method, path, status in (
        ("POST", "/v1/gallery/compact", change),
        ("POST", "/v1/gallery/maintain", change),
        ("GET", "/v1/gallery/check", change),
        ("GET", "/v1/gallery/removals", search),
        ("POST", "/v1/images/find", search),
    ):
        content: dict[str, Any] = {"json": {}} if path.endswith("find") else {}
        assert served.http.request(method, path, headers=headers, **content).status_code == status, path
    assert served.http.delete("/v1/images?where=id=0", headers=headers).status_code == erase


def test_servers_with_tokens_refuse_others(serve: Callable[..., Served]) -> None:
    served = serve(tokens=TOKENS)
    described = served.http.get("/openapi.json").json()["paths"]
    for path, operations in described.items():
        for method in operations:
            if path not in ("/healthz", "/readyz"):
                for headers in ({}, {"Authorization": "Bearer aaa"}, {"Authorization": "Basic aaaa"}):
                    answer = served.http.request(method, path.replace("{id}", "1"), headers=headers)
                    assert_problem(answer, 401)
                    assert answer.headers["www-authenticate"] == "Bearer"
    assert served.http.get("/healthz").status_code == served.http.get("/").status_code == 200


def test_token_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "tokens").write_text("desk read,write s3cret\n")
    tokens = Tokens.read(str(file))
    assert tokens is not None
    assert tokens.authenticate("bearer s3cret") == Caller("desk", frozenset({"read", "write"}))
    assert Tokens.read(None) is None
    monkeypatch.setenv("RGA_REID_TOKENS", "one\ntwo")
    from_environment = Tokens.read(None)
    assert from_environment is not None
    assert from_environment.authenticate("Bearer two").name == "token-2"
    for wrong in ("", "a b", "a fly c", "a read x\nb read x", "a read x\na read y", "a/b read x"):
        file.write_text(wrong)
        with pytest.raises(InputError, match=str(file)):
            Tokens.read(str(file))


def test_rate_is_limited_by_token(serve: Callable[..., Served]) -> None:
    now = 0.0
    limit = RateLimit(2.0, lambda: now)
    one, other = Caller("one", frozenset()), Caller("other", frozenset())
    for _ in range(4):
        limit.check(one)
    with pytest.raises(Problem) as refused:
        limit.check(one)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    limit.check(other)
    now = 0.5
    limit.check(one)
    with pytest.raises(Problem):
        limit.check(one)

    served = serve(tokens=TOKENS, rate=0.001)
    headers = {"Authorization": "Bearer aaaa"}
    assert served.http.get("/v1/gallery", headers=headers).status_code == 200
    assert_problem(served.http.get("/v1/gallery", headers=headers), 429, "desk")
    assert served.http.get("/v1/gallery", headers={"Authorization": "Bearer dddd"}).status_code == 200


def test_read_only_servers_change_nothing_and_see_changes(serve: Callable[..., Served], people: Path) -> None:
    from rga_reid.gallery import Gallery

    served = serve(read_only=True, images_root=people.parent)
    assert served.http.get("/v1/images/0/thumbnail").status_code == 200
    assert not (people.parent / "uploads").exists()
    for answer in (
        served.post("/v1/images", draw(5)),
        served.http.patch("/v1/images", json={"ids": [0], "pid": 1}),
        served.http.request("DELETE", "/v1/images", json={"ids": [0]}),
    ):
        assert_problem(answer, 403, "read-only")
    gallery = Gallery.open(people, wait=0)  # not locked
    gallery.remove(where="pid > 0")
    assert served.http.get("/v1/gallery").json()["count"] == 3
    assert len(served.post("/v1/search", draw(1)).json()["queries"][0]["matches"]) == 3


def test_a_gallery_of_another_model_in_its_place_is_refused(
    serve: Callable[..., Served], people: Path
) -> None:
    from rga_reid.gallery import Gallery
    from rga_reid.inference import ModelFingerprint

    old = Gallery.open(people)
    served = serve(read_only=True)
    assert served.post("/v1/search", draw(1)).status_code == 200
    other = ModelFingerprint("other.ckpt", "1" * 64, (64, 32))
    rebuilt = Gallery.build(np.random.default_rng(0).random((3, old.dimension)), old.table[:3], model=other)
    rebuilt.save(people, overwrite=True)
    assert "another model" in served.post("/v1/search", draw(1)).json()["detail"]


def test_the_server_of_a_folder_is_its_only_writer(served: Served) -> None:
    from rga_reid.gallery import Gallery

    other = Gallery.open(served.location, wait=0)
    with pytest.raises(InputError, match="locked"):
        other.remove(where="pid = 1")
    served.engine.close()
    assert other.remove(where="pid = 1").images == 3


def test_pages_of_other_sites_are_refused(serve: Callable[..., Served]) -> None:
    served = serve(origins=["https://desk.example"])
    local, desk, other = "http://localhost", "https://desk.example", "https://evil.example"
    codes = {
        origin: served.post("/v1/search", draw(1), headers={"Origin": origin}).status_code
        for origin in (local, desk, other, "null")
    }
    assert codes == {local: 200, desk: 200, other: 403, "null": 403}
    for origin, allowed in ((desk, desk), (other, None)):
        answer = served.http.get("/v1/gallery", headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed
    assert_problem(served.http.get("/v1/gallery", headers={"Host": "evil.example"}), 403, "localhost")
    assert served.http.get("/v1/gallery", headers={"Host": "[::1]:8000"}).status_code == 200
    with_tokens = serve(read_only=True, tokens=TOKENS)
    headers = {"Host": "people.example", "Authorization": "Bearer aaaa"}
    assert with_tokens.http.get("/v1/gallery", headers=headers).status_code == 200
    assert (
        "access-control-allow-origin"
        not in with_tokens.http.get("/healthz", headers={"Origin": desk}).headers
    )


def test_every_answer_has_headers_that_protect_browsers(shared: Served) -> None:
    for path in ("/", "/v1/gallery", "/nowhere", "/v1/images/0/thumbnail"):
        headers = shared.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


# ---------- audit log ----------


def test_audit_log_has_actions_and_counts_but_no_pictures(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve(tokens=TOKENS, audit=AuditLog(str(tmp_path / "audit.jsonl")))
    headers = {"Authorization": "Bearer dddd"}
    served.post("/v1/search", draw(1), top_k=2, where="pid < 3", headers=headers)
    served.post("/v1/images", draw(1), draw(2), rows='[{"path": "a-name"}, {}]', headers=headers)
    served.http.patch("/v1/images", json={"ids": [0, 1], "pid": 7}, headers=headers)
    served.http.delete("/v1/images?where=pid=7", headers=headers)
    served.post("/v1/search", draw(1), headers={"Authorization": "Bearer no"})
    served.http.request("DELETE", "/v1/images", json={"ids": [0]}, headers=headers)  # erased already
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    shown = [{name: line[name] for name in line if name != "time"} for line in lines]
    assert shown == [
        {"token": "token-6", "action": "search", "where": "pid < 3", "queries": 1, "matches": 2},
        {"token": "token-6", "action": "add", "where": None, "images": 2},
        {"token": "token-6", "action": "label", "where": None, "images": 2, "pid": 7},
        {"token": "token-6", "action": "erase", "where": "pid=7", "images": 2, "pid": None},
    ]
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_audit_log_rotates(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "audit"), max_bytes=1000, kept=2)
    for number in range(50):
        log.write(Caller("desk", frozenset()), "search", queries=number)
    log.close()
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["audit", "audit.1", "audit.2"]
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    assert json.loads((tmp_path / "audit").read_text().splitlines()[-1])["queries"] == 49
    with pytest.raises(InputError, match="nowhere"):
        AuditLog(str(tmp_path / "nowhere" / "audit"))


def test_numbers_that_json_does_not_have_are_null() -> None:
    from rga_reid.serving.answers import json_response

    answer = json_response({"a": [float("nan"), float("inf"), 1.5, np.float64(2)], "b": "é"})
    assert json.loads(answer.body) == {"a": [None, None, 1.5, 2.0], "b": "é"}


def test_pictures_keep_their_format(served: Served) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(draw(1))).save(buffer, "WEBP")
    served.post("/v1/images", buffer.getvalue(), draw(2, kind="BMP"))
    names = {file.suffix for file in served.location.parent.glob("uploads/*/*")}
    assert names == {".webp", ".bmp"}
