"""Filters of gallery rows: which rows they keep, and what is not a filter."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery.filters import parse_filter
from tests.gallery.random_filters import FILTERS, NOW, ROWS, SCHEMA, Case, kept_rows, table_of

TABLE = pd.DataFrame(
    {
        "path": ["hall/a.jpg", "hall/b.jpg", "yard/a.jpg", "yard/(x).jpg", "yard/c.jpg"],
        "pid": pd.array([1, 2, -1, None, 3], dtype="Int64"),
        "camid": pd.array([1, 2, 3, 1, None], dtype="Int64"),
    }
)


def rows_where(where: str) -> list[int]:
    return np.flatnonzero(parse_filter(where).mask(TABLE)).tolist()


def test_ids_are_a_column_of_every_filter() -> None:
    ids = np.array([4, 7, 8, 9, 12])
    kept = parse_filter("id in (7, 9, 99) or (id > 9 and pid = 3)").mask(TABLE, ids)
    assert ids[kept].tolist() == [7, 9, 12]
    parsed = parse_filter("pid = 1")
    assert parse_filter(parsed) is parsed


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("camid != 1", [1, 2]),  # an unknown camera is neither
        ("not camid == 1", [1, 2]),
        ("camid == 3 or pid in [1, 2]", [0, 1, 2]),
        ("pid not in {1, 2}", [2, 4]),
        ("3 > camid >= 1", [0, 1, 3]),
        ("'(x)' in path", [3]),  # a string, not a pattern
        (" ( pid == 1 or pid is None ) and not 'x' in path ", [0]),
        ("camid == 1 or pid == 3", [0, 3, 4]),  # true or unknown is true
        ("camid == 1 # the hall", [0, 3]),
        ("pid == 9223372036854775807", []),
        ("camera = 3 OR pid IN (1)", [0, 2]),
        ("pid <> 1 and pid == 3.0", [4]),
        ("pid == 2.5 or pid > 1.5", [1, 4]),
        ("not pid == 2.5", [0, 1, 2, 4]),
        ("pid <= -.5", [2]),
        ("pid <= 2.5 and not pid < 1.5", [1]),
        ("pid >= 2.5 or pid < -.5", [2, 4]),
        ("path like 'hall/_.%' and path < 'hall/b'", [0]),
        ("path not like '%a%'", []),
        ("path like r'%\\(x\\)%' or `path` like '%(x)%'", [3]),
        ("time is null and track is null", [0, 1, 2, 3, 4]),
        ("time > now - 2h or not time > now - 1.5d", []),
        ("camera between 2 and 3", [1, 2]),
        ("not camera between 2 and 3", [0, 3]),
    ],
)
def test_filters_keep_rows_where_they_are_true(where: str, kept: list[int]) -> None:
    assert rows_where(where) == kept


@settings(max_examples=100)
@given(FILTERS)
def test_filters_agree_with_an_independent_evaluator(case: Case) -> None:
    found = parse_filter(case[0], SCHEMA, now=NOW).mask(table_of(ROWS))
    assert np.flatnonzero(found).tolist() == kept_rows(case)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("", "''"),
        ("camid =", "'camid ='"),
        ("pid == 1; pid == 2", "pid == 2"),
        ("pid", "'pid'"),
        ("True", "'True'"),
        ("name == 3", "'name'"),
        ("camera = hall", "text needs quotes"),
        ("camra = 3", "did you mean camera?"),
        ("1 == 1", "'1'"),
        ("pid == camid", "'camid'"),
        ("pid == '3'", "\"'3'\""),
        ("pid == True", "'True'"),
        ("pid == None", "'None'"),
        ("pid == 1 + 1", "'+'"),
        ("pid in 3", "'3'"),
        ("pid in (1, 'a')", "\"'a'\""),
        ("pid is 3", "'3'"),
        ("path == 3", "'3'"),
        ("3 in pid", "'3'"),
        ("pid == 9223372036854775808", "64 bits"),
        ("-pid == 3", "'-'"),
        ("__import__('os').system('true') == 0", "__import__"),
        ("pid == len(path)", "'len'"),
        ("pid.real == 1", "'.real"),
        ("[p for p in (1, 2)] == pid", "for p in"),
        ("lambda: pid", "lambda"),
        ("'\\ud800' in path", "\\\\ud800"),
        ("(" * 300 + "pid == 1" + ")" * 300, "(((("),
        ("not " * 300 + "pid == 1", "nested"),
        ("pid == 1" + " or pid == 1" * 2000, "10,000"),
        (3, "string"),
    ],
)
def test_anything_else_is_refused(where: str, shown: str) -> None:
    with pytest.raises(InputError, match="where: ") as caught:
        parse_filter(where)
    assert shown in str(caught.value)
    assert len(str(caught.value)) < 1000


@given(st.text(alphabet="pidcamth=<>!inotrd(), '\"0129-\n\\[]{}:.", max_size=40))
def test_no_text_does_harm(where: str) -> None:
    try:
        assert set(rows_where(where)) <= set(range(5))
    except InputError as error:
        assert str(error).startswith("where: ")  # noqa: PT017 - either is fine


def test_a_search_combines_a_filter_and_an_excluded_camera() -> None:
    gallery = Gallery.build(np.eye(5, dtype=np.float32) + 0.1, TABLE)
    matches = gallery.search(np.ones((1, 5)), where="pid is not None", exclude_camera=1)
    assert sorted(matches["path"]) == ["hall/b.jpg", "yard/a.jpg", "yard/c.jpg"]
    assert gallery.search(np.ones((2, 5)), where="pid == 77").empty
    assert gallery.count(where="pid is not None", exclude_camera=1) == 3
    assert gallery.count() == len(TABLE)
