"""Galleries on a real Milvus server, see milvus_server.py. The folder is the oracle."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, milvus_lock
from rga_reid.gallery.filters import parse_filter
from rga_reid.gallery.location import parse_location
from rga_reid.gallery.milvus_client import MilvusServer
from rga_reid.gallery.milvus_lock import WriterLock
from rga_reid.gallery.milvus_uri import MilvusURI
from tests.gallery.milvus_server import Server
from tests.gallery.random_filters import FILTERS, NOW, PARTS, ROWS, Case, contains, kept_rows, table_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "linux" and platform.machine() != "x86_64",
        reason="milvus has no wheel for this machine",
    ),
]

PASSWORD = "Sesame-11"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("milvus")) as running:
        yield running


@pytest.fixture
def location(server: Server) -> str:
    return f"milvus://127.0.0.1:{server.port}/g_{uuid.uuid4().hex}"


@pytest.fixture
def rows(crowd: Callable) -> tuple[np.ndarray, pd.DataFrame]:
    """Images with all kinds of columns, null among them."""
    features, table = crowd(300)
    table = table.rename(columns={"camid": "camera"})
    table["camera"] = table["camera"].map({1: "hall", 2: "yard", 3: "ga%te"}).astype("str")
    table["time"] = pd.date_range("2026-11-20", periods=300, freq="13min", tz="UTC")
    table["track"] = pd.array(np.arange(300) // 7, dtype="Int64")
    table["speed"] = np.arange(300) / 8
    table["night"] = pd.array(np.arange(300) % 3 == 0, dtype="boolean")
    for step, column in enumerate(("pid", "camera", "time", "track", "speed", "night"), 5):
        table.loc[::step, column] = None
    return features, table


def add_in_background(location: str, name: str, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.gallery.adder", location, name, str(count)]
    return subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def same(stored: Gallery, expected: Gallery, queries: np.ndarray, **options: Any) -> None:
    """Check that two galleries have the same rows and find the same."""
    pd.testing.assert_frame_equal(stored.table, expected.table)
    assert stored.ids.tolist() == expected.ids.tolist()
    found = stored.search(queries, 5, with_ids=True, **options)
    pd.testing.assert_frame_equal(found, expected.search(queries, 5, with_ids=True, **options))


def test_commands_do_the_same_as_in_a_folder(
    location: str, rows: tuple, tmp_path: Path, crowd: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    features, table = rows
    whole, rest = tmp_path / "whole.npz", tmp_path / "rest.npz"
    Gallery.build(features[:200], table[:200]).export(whole)
    others = table[200:].drop(columns="speed").assign(zone="north").reset_index(drop=True)
    Gallery.build(features[200:], others).export(rest)
    Gallery.build(*crowd(20, seed=5)).save(tmp_path / "other")
    folder, queries = str(tmp_path / "g"), crowd(6, seed=1)[0]
    for words in (
        ["build", "--features", str(whole)],
        ["add", "--features", str(rest)],  # with a new column
        ["remove", "--pid", "3", "4"],
        ["remove", "--where", "time < '2026-11-20T02:00' or camera is null and night"],
        ["label", "--where", "track in (8, 9) or 'people/0/0012' in path", "--pid", "77"],
        ["label", "--where", "camera = 'yard' and speed between 3 and 9", "--pid", "Anna"],
        ["label", "--where", "pid = 'Anna' and speed > 5", "--pid", ""],
        ["check"],
        ["compact"],
        ["export", "--out"],
    ):
        action, *others_ = words
        for place in (folder, location):
            more = [str(tmp_path / f"{len(place)}.npz")] if action == "export" else []
            assert main(["gallery", action, "--gallery", place, *others_, *more]) == 0, capsys.readouterr()
        same(Gallery.open(location), Gallery.open(folder), queries)
    for place in (folder, location):
        assert main(["gallery", "merge", place, str(tmp_path / "other")]) == 0
    stored, expected = Gallery.open(location), Gallery.open(folder)
    same(stored, expected, queries, where="not camera like 'ga\\%%' and (speed > 1 or zone = 'north')")
    same(stored, expected, queries, exclude_camera="hall")
    assert [(line.pid, line.count, line.label) for line in stored.deletion_log] == [
        (line.pid, line.count, line.label) for line in expected.deletion_log
    ]
    exported = [np.load(tmp_path / f"{len(place)}.npz") for place in (folder, location)]
    np.testing.assert_array_equal(exported[0]["features"], exported[1]["features"])
    assert main(["gallery", "check", "--gallery", location]) == 0
    with pytest.raises(InputError, match="exists already"):
        expected.save(location)
    expected.save(location, overwrite=True)
    pd.testing.assert_frame_equal(Gallery.open(location).table, expected.table)


def test_filters_keep_the_rows_of_an_independent_evaluator(location: str) -> None:
    Gallery.build(np.eye(len(ROWS)), table_of(ROWS)).save(location)
    gallery = Gallery.open(location)

    def check(case: Case) -> None:
        found = gallery._store.select(parse_filter(case[0], gallery.columns, now=NOW))
        assert sorted(found["id"]) == kept_rows(case), case[0]

    for part in PARTS:
        check(contains(part, negative=False))
    settings(max_examples=60, deadline=None)(given(FILTERS)(check))()


@pytest.mark.parametrize("index", ["hnsw", "ivf", "ivfpq"])
def test_approximate_indexes_score_exactly(location: str, crowd: Callable, index: str) -> None:
    rows, queries = crowd(1500), crowd(20, seed=1)[0]
    Gallery.build(*rows, index=index).save(location)
    found = Gallery.open(location).search(queries, with_ids=True)
    exact = Gallery.build(*rows).search(queries, with_ids=True)
    both = found.merge(exact, on=["query", "id"])
    assert len(both) > 0.8 * len(exact)
    assert (both["score_x"] == both["score_y"]).all()


def test_programs_that_add_at_once_lose_nothing(location: str, crowd: Callable) -> None:
    """One of them is killed: every row it acknowledged is stored, and the others continue."""
    Gallery.build(*crowd(50)).save(location)
    programs = [add_in_background(location, name, 6) for name in ("a", "bb")]
    killed = add_in_background(location, "killed", 1000)
    assert killed.stdout is not None
    acknowledged = [killed.stdout.readline().strip() for _ in range(4)]
    killed.kill()
    out, err = killed.communicate(timeout=60)
    assert all(acknowledged), err
    acknowledged += out.split()
    for program in programs:
        out, err = program.communicate(timeout=300)
        assert program.returncode == 0, err
        acknowledged += out.split()
    gallery = Gallery.open(location)
    paths = gallery.table["path"].tolist()
    assert len(acknowledged) >= 2 * 18 + 4
    assert set(acknowledged) < set(paths)
    assert len(set(paths)) == len(paths) == len(set(gallery.ids)) == len(gallery) == gallery.check()
    removed = gallery.remove(paths="bb/0_0.jpg")
    assert (removed.images, len(gallery)) == (1, len(paths) - 1)


def test_two_builds_at_once(location: str, crowd: Callable, tmp_path: Path) -> None:
    """One succeeds; the other one is refused, or replaces it."""
    for seed in (1, 2):
        Gallery.build(*crowd(40 * seed, seed=seed)).export(tmp_path / f"{seed}.npz")
    words = [
        sys.executable,
        "-m",
        "rga_reid.commands",
        "gallery",
        "build",
        "--gallery",
        location,
        "--features",
    ]
    programs = [
        subprocess.Popen([*words, tmp_path / f"{seed}.npz"], cwd=CHECKOUT, stderr=subprocess.PIPE)
        for seed in (1, 2)
    ]
    errors = [program.communicate(timeout=300)[1].decode() for program in programs]
    assert sorted(program.returncode for program in programs) == [0, 2], errors
    won = 1 if programs[0].returncode == 0 else 2
    assert len(Gallery.open(location)) == Gallery.open(location).check() == 40 * won


def test_writers_wait_or_are_refused(
    location: str, crowd: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Gallery.build(*crowd(50)).save(location)
    target = parse_location(location).target
    connection = MilvusServer(target)
    remove = ["gallery", "remove", "--gallery", location, "--path", "people/0/00000.jpg", "--wait"]
    with WriterLock(connection, target.collection, 0):
        assert main([*remove, "0"]) == 2
        assert f"{location}: locked" in capsys.readouterr().err
        assert len(Gallery.open(location)) == 50  # readers do not wait
    connection.write_notes(target.collection, {-5: "left by a program that was killed"})
    assert main([*remove, "0"]) == 2
    monkeypatch.setattr(milvus_lock, "LEASE", 3.0)
    assert main([*remove, "60"]) == 0
    assert (len(Gallery.open(location)), connection.marks(target.collection)) == (49, {})


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path, crowd: Callable) -> None:
    server = Server(tmp_path / "milvus")
    acknowledged: list[str] = []
    with server:
        location = f"milvus://127.0.0.1:{server.port}/people"
        Gallery.build(*crowd(50)).save(location)
        for number in range(3):
            program = add_in_background(location, f"p{number}", 1000)
            assert program.stdout is not None
            acknowledged += [program.stdout.readline().strip() for _ in range(3 * number + 1)]
            server.kill()
            time.sleep(1)
            program.kill()
            acknowledged += program.communicate(timeout=60)[0].split()
            server.start()
            gallery = Gallery.open(location, wait=300)
            paths = gallery.table["path"].tolist()
            assert set(acknowledged) < set(paths)
            assert len(set(paths)) == len(paths) == len(set(gallery.ids)) == len(gallery) == gallery.check()
        assert gallery.remove(paths=acknowledged[:2]).images == 2
        gallery.label(f"path = '{acknowledged[2]}'", pid=5)
        server.kill()
        server.start()
        again = Gallery.open(location)
        assert len(again) == again.check() == len(paths) - 2
        assert again.table.set_index("path").loc[acknowledged[2], "pid"] == 5
        assert sum(record.count for record in again.deletion_log if record.label is None) == 2


def test_a_build_on_a_server_that_is_killed(tmp_path: Path, crowd: Callable) -> None:
    Gallery.build(*crowd(2000)).export(tmp_path / "f.npz")
    server = Server(tmp_path / "milvus")
    with server:
        location = f"milvus://127.0.0.1:{server.port}/people"
        words = [sys.executable, "-m", "rga_reid.commands", "gallery", "build", "--gallery", location]
        build = subprocess.Popen(
            [*words, "--features", str(tmp_path / "f.npz")], cwd=CHECKOUT, stderr=subprocess.PIPE
        )
        connection = MilvusServer(parse_location(location).target)
        while build.poll() is None and not any("__images_" in name for name in connection.collections()):
            time.sleep(0.05)
        server.kill()
        time.sleep(1)
        server.start()
        errors = build.communicate(timeout=900)[1].decode()
        if build.returncode:  # or it has waited for the server
            assert (build.returncode, errors.count("\n")) == (2, 1), errors
            Gallery.build(*crowd(2000)).save(location, wait=300)
        assert len(Gallery.open(location)) == Gallery.open(location).check() == 2000


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server with passwords and TLS, and its certificate."""
    folder = tmp_path_factory.mktemp("guarded")
    pem, key = str(folder / "server.pem"), str(folder / "server.key")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*words, "-keyout", key, "-out", pem], check=True, capture_output=True)
    files = {"server_pem_path": pem, "server_key_path": key, "ca_pem_path": pem}
    with Server(folder / "milvus", authorization_enabled=True, tls_mode=1, **files) as running:
        client = MilvusServer(
            MilvusURI(f"https://localhost:{running.port}", "x", token="root:Milvus", server_pem_path=pem)
        )._client
        client.create_database("cameras")
        client.create_user("ann", PASSWORD)
        client.update_password("root", "Milvus", PASSWORD)
        yield running, pem


def test_connections_with_password_and_tls(
    guarded: tuple[Server, str], tmp_path: Path, crowd: Callable
) -> None:
    """The password is in no output and in no file."""
    server, pem = guarded
    Gallery.build(*crowd(40)).save(tmp_path / "folder")
    Gallery.open(tmp_path / "folder").export(tmp_path / "f.npz")
    uri = f"https://localhost:{server.port}"
    name = ["--gallery", "people", "--json", "facts.json"]
    plain = ["--milvus-uri", uri, "--milvus-server-pem-path", pem]
    database = [*plain, "--milvus-db-name", "cameras"]
    level = [*database, "--milvus-consistency-level", "Bounded"]
    known = {"MILVUS_PASSWORD": PASSWORD}
    in_uri = ["--milvus-uri", uri.replace("//", f"//root:{PASSWORD}@"), "--milvus-ca-pem-path", pem]
    build = ["build", *name, "--features", "f.npz"]
    for code, words, variables in (
        (0, [*build, *database], known),
        (0, ["check", *name, *database], {"MILVUS_TOKEN": f"root:{PASSWORD}"}),
        (0, ["info", *name, *database, "--milvus-token", f"root:{PASSWORD}"], {}),
        (0, ["remove", *name, *level, "--path", "people/0/00001.jpg"], known),
        (0, ["merge", "people", "folder", *database, "--skip-known"], known),
        (2, ["info", *name, *plain], known),  # in another database
        (2, ["info", *name, *plain, "--milvus-db-name", "nowhere"], known),
        (2, ["info", *name, *database], {}),
        (2, ["info", *name, *database], {"MILVUS_PASSWORD": f"{PASSWORD}x"}),
        (2, ["info", *name, *database], {"MILVUS_TOKEN": f"other:{PASSWORD}"}),
        (2, ["info", *name, *database, "--milvus-user", "ann"], known),  # may read nothing there
        (0, [*build, *in_uri], {}),
        (2, ["info", *name, "--milvus-uri", f"http://root:{PASSWORD}@localhost:{server.port}"], {}),
        (2, ["info", *name, "--milvus-uri", f"https://root:{PASSWORD}@localhost:{server.port}"], {}),
        (2, ["info", "--gallery", f"milvus://root:{PASSWORD}@127.0.0.1:9/people"], {}),
        (2, ["info", "--gallery", f"milvus://root:{PASSWORD}@127.0.0.1/people"], {}),
    ):
        if "merge" in words:
            words = [
                f"milvus://localhost:{server.port}/people" if word == "people" else word for word in words
            ]
            words = [*words[:3], *words[5:]]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MILVUS_")}
        done = subprocess.run(
            [sys.executable, "-m", "rga_reid.commands", "gallery", *words],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(CHECKOUT)} | variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert PASSWORD not in done.stdout + done.stderr
        if code:
            assert done.stderr.count("\n") == 1, done.stderr
            assert "Traceback" not in done.stderr
            assert "localhost" in done.stderr or "127.0.0.1" in done.stderr
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or PASSWORD.encode() not in file.read_bytes()
    location = MilvusURI(uri, "people", password=PASSWORD, server_pem_path=pem, db_name="cameras")
    stored = Gallery.open(location)
    assert len(stored) == 40
    notes = MilvusServer(location).notes("people")
    assert PASSWORD not in str(notes) + repr(location)
