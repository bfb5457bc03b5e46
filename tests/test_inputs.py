"""Files from strangers: read within limits, refused in one line that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rga_reid import inputs
from rga_reid.errors import InputError
from rga_reid.inputs import open_text, read_file, read_json, read_parquet, read_yaml

SPARSE = 64 << 30  #: bytes of a file that takes no room on the disk


def read_lines(path: Path) -> list[str]:
    with open_text(path) as lines:
        return list(lines)


READERS: dict[str, Callable[[Path], Any]] = {
    "json": read_json,
    "yaml": lambda path: read_yaml(path, what="recipe"),
    "parquet": read_parquet,
    "txt": read_lines,
    "bin": read_file,
}


@pytest.mark.parametrize("kind", READERS)
def test_what_is_not_a_readable_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "sparse").write_bytes(b"a: 1\n")
    os.truncate(tmp_path / "sparse", SPARSE)
    for name in ("folder", "pipe", "zero", "sparse", "missing", "pipe/below", "null\0byte"):
        with pytest.raises(InputError, match="^(recipe )?.*" + name.replace("\0", ".")) as error:
            READERS[kind](tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["json", "yaml", "txt"])
def test_texts_must_be_utf8(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"\xef\xbb\xbf\xff\xfe 1")
    with pytest.raises(InputError, match=rf"a\.{kind}: "):
        READERS[kind](path)


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_lines(path) == ["one\r\n", "two"]
    monkeypatch.setattr(inputs, "MAX_LINE", 3)
    with pytest.raises(InputError, match=r"a\.txt, line 1: "):
        read_lines(path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '"\\ud800"', "NaN1", "1" * 5000])
def test_json_that_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json: expected a recipe"):
        read_json(path, expected="a recipe")
    path.write_text('{"a": ["\\ud83d\\ude00"]}')
    assert read_json(path) == {"a": ["😀"]}


@pytest.mark.parametrize(
    "text", ["a: [1", "[" * 500, "x: " + "9" * 5000, "!!python/tuple [1]", "d: 2026-99-99"]
)
def test_yaml_that_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"^card .*a\.yaml: not valid YAML"):
        read_yaml(path, what="card")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tmp_path}/mark']]"
    (tmp_path / "a.yaml").write_text(f"a: {tag}")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "a.yaml", what="recipe")
    assert not (tmp_path / "mark").exists()
    (tmp_path / "a.yaml").write_text("a: &x [1, 2.5]\nb: *x\n")
    assert read_yaml(tmp_path / "a.yaml", what="recipe") == {"a": [1, 2.5], "b": [1, 2.5]}


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pd.DataFrame({"path": ["a", "b"], "pid": pd.array([1, None], "Int64")})
    table.to_parquet(path)
    pd.testing.assert_frame_equal(read_parquet(path, rows=2), table)
    with pytest.raises(InputError, match=r"a\.parquet: expected 3 rows, found 2"):
        read_parquet(path, rows=3)
    monkeypatch.setattr(inputs, "MAX_ROWS", 1)
    with pytest.raises(InputError, match=r"a\.parquet: .* at most 1 rows, found 2"):
        read_parquet(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"a\.parquet: damaged"):
        read_parquet(path)


def test_a_parquet_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_TABLE", 1 << 20)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x" * (1 << 21)]}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1 << 13
    with pytest.raises(InputError, match=r"a\.parquet: a table of "):
        read_parquet(path)
