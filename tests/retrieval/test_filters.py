"""Filters: what they keep, and that they are never more than filters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery.filters import rows_where
from rga_reid.gallery.validation import gallery_table

TABLE = gallery_table(
    pd.DataFrame(
        {
            "path": ["hall/a.jpg", "hall/b.jpg", "yard/a.jpg", "yard/(x).jpg", "yard/c.jpg"],
            "pid": pd.array([1, 2, -1, None, 3], dtype="Int64"),
            "camid": pd.array([1, 2, 3, 1, None], dtype="Int64"),
        }
    )
)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("camid == 1", [0, 3]),
        ("camid != 1", [1, 2]),  # an unknown camera is neither
        ("not camid == 1", [1, 2]),
        ("camid == 3 and pid in (1, 2)", []),
        ("camid == 3 or pid in [1, 2]", [0, 1, 2]),
        ("pid not in {1, 2}", [2, 4]),
        ("pid == -1", [2]),
        ("pid is None", [3]),
        ("pid is not None and camid is not None", [0, 1, 2]),
        ("2 <= camid <= 3", [1, 2]),
        ("1 < camid", [1, 2]),
        ("3 > camid >= 1", [0, 1, 3]),
        ("path == 'yard/a.jpg'", [2]),
        ("path in ('hall/a.jpg', 'yard/c.jpg')", [0, 4]),
        ("'(x)' in path", [3]),  # a text, not a pattern
        ("'hall/' not in path", [2, 3, 4]),
        (" ( pid == 1 or pid is None ) and not 'x' in path ", [0]),
        ("camid == 1 or pid == 3", [0, 3, 4]),  # true or unknown is true
        ("pid in ()", []),
        ("pid == 9223372036854775807", []),
    ],
)
def test_what_is_kept(where: str, kept: list[int]) -> None:
    rows = rows_where(TABLE, where)
    assert rows.dtype == bool
    assert np.flatnonzero(rows).tolist() == kept


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "cannot read ''"),
        ("camid =", "cannot read 'camid ='"),
        ("camid = 3", "cannot read"),
        ("pid == 1; pid == 2", "cannot read"),
        ("pid", "expected a comparison, found 'pid'"),
        ("True", "expected a comparison, found 'True'"),
        ("name == 3", "expected one of the columns pid, camid, path, found 'name'"),
        ("1 == 1", "expected one of the columns pid, camid, path, found '1'"),
        ("pid == camid", "pid is compared with whole numbers, found 'camid'"),
        ("pid == '3'", "pid is compared with whole numbers, found \"'3'\""),
        ("pid == 3.0", "pid is compared with whole numbers, found '3.0'"),
        ("pid == True", "pid is compared with whole numbers, found 'True'"),
        ("pid == None", "pid is compared with whole numbers, found 'None'"),
        ("pid == 1 + 1", r"pid is compared with whole numbers, found '1 \+ 1'"),
        ("pid in 3", r"expected a list such as \(1, 2\), found '3'"),
        ("pid in (1, 'a')", "pid is compared with whole numbers"),
        ("pid is 3", "only None goes with 'is', found '3'"),
        ("path == 3", "path is compared with texts, found '3'"),
        ("path < 'b'", "paths have no order"),
        ("3 in pid", "only path can be searched for a text, found 'pid'"),
        ("pid == 9223372036854775808", "at most 64 bits"),
        ("-pid == 3", "expected one of the columns"),
        ("__import__('os').system('true') == 0", "expected one of the columns"),
        ("pid == len(path)", r"found 'len\(path\)'"),
        ("pid.real == 1", "found 'pid.real'"),
        ("path[0] == 'h'", "expected one of the columns"),
        ("[p for p in (1, 2)] == pid", "pid is compared with"),
        ("lambda: pid", "expected a comparison"),
        ("(" * 300 + "pid == 1" + ")" * 300, "cannot read"),
        ("pid == 1" + " or pid == 1" * 2000, "at most 10,000 characters"),
        (3, "expected a text"),
    ],
)
def test_anything_else_is_refused(where: str, message: str) -> None:
    with pytest.raises(InputError, match=f"where: .*{message}") as caught:
        rows_where(TABLE, where)
    assert len(str(caught.value)) < 1000


@given(st.text(alphabet="pidcamth=<>!inotrd(), '\"0129-\n\\[]{}:.", max_size=40))
def test_no_text_does_harm(where: str) -> None:
    try:
        assert rows_where(TABLE, where).shape == (len(TABLE),)
    except InputError as error:
        assert str(error).startswith("where: ")  # noqa: PT017 - either is fine


def test_a_search_takes_both_filters() -> None:
    gallery = Gallery.build(np.eye(5, dtype=np.float32) + 0.1, TABLE)
    matches = gallery.search(np.ones((1, 5)), where="pid is not None", exclude_camera=1)
    assert sorted(matches["path"]) == ["hall/b.jpg", "yard/a.jpg", "yard/c.jpg"]
    assert gallery.search(np.ones((2, 5)), where="pid == 77").empty
    assert gallery.count(where="pid is not None", exclude_camera=1) == 3
    assert gallery.count() == len(TABLE)
