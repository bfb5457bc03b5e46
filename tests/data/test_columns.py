"""Columns of tables: types, labels, times, and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.data.columns import (
    RESERVED,
    cast,
    conform,
    join_schemas,
    label_value,
    parse_time,
    plain_records,
)
from rga_reid.errors import InputError

UTC = timezone.utc


def table(**columns: Any) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"path": [f"{row}.jpg" for row in range(count)], **columns})


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([7, None, -1], "integer", [7, None, -1]),
        (["007", "8", None], "integer", [7, 8, None]),
        (["3.0", "4."], "integer", [3, 4]),
        ([3.0, np.nan], "integer", [3, None]),
        (["007", "anna"], "string", ["007", "anna"]),
        ([7, "anna", None], "string", ["7", "anna", None]),
        (["", "2"], "integer", [None, 2]),
        (["cam 1", ""], "string", ["cam 1", None]),
        (pd.Categorical(["b", "a"]), "string", ["b", "a"]),
        (pd.Series([2**62 + 1, None], dtype=object), "integer", [2**62 + 1, None]),
    ],
)
@pytest.mark.parametrize("column", ["pid", "camera", "camid", "track"])
def test_labels_are_whole_numbers_or_text(column: str, values: Any, kind: str, expected: list[Any]) -> None:
    found, schema = conform(table(**{column: values}))
    name = "camera" if column == "camid" else column
    assert schema[name] == kind
    assert [record[name] for record in plain_records(found)] == expected


def test_labels_follow_the_schema() -> None:
    text = {**RESERVED, "pid": "string", "camera": "string"}
    found, schema = conform(table(pid=["007", "8"], camera=[7, None]), text)
    assert schema == text
    assert found["pid"].tolist() == ["007", "8"]  # digits in a column of text stay unchanged
    assert plain_records(found)[0]["camera"] == "7"
    _, promoted = conform(table(pid=["anna", "8"]))
    assert cast(conform(table(pid=[7, None]))[0], promoted)["pid"].tolist() == ["7", pd.NA]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "integer"),
        ([1, 2.5], "float"),
        ([True, None], "boolean"),
        (["1", "2"], "string"),
        ([None, None], "null"),
        ([datetime(2026, 1, 1, tzinfo=UTC), None], "timestamp"),
        (pd.to_datetime(["2026-01-01T00:00:00+02:00"] * 2), "timestamp"),
        (np.array([1, 2], np.uint8), "integer"),
        (np.array([1, np.nan], np.float32), "float"),
    ],
)
def test_other_columns_keep_their_type(values: Any, kind: str) -> None:
    found, schema = conform(table(zone=values))
    assert schema == {**RESERVED, "zone": kind}
    assert list(found.columns) == list(schema)
    assert conform(table(zone=[None, None]), schema)[1] == schema


def test_a_column_without_values_takes_the_type_of_the_first() -> None:
    _, empty = conform(table(zone=[None]))
    _, schema = conform(table(zone=[1.5]), empty)
    assert schema["zone"] == "float"
    assert conform(table(zone=[3]), schema)[0]["zone"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20T10:15:00+01:00", datetime(2026, 11, 20, 9, 15, tzinfo=UTC)),
        ("2026-11-20 10:15:00.25Z", datetime(2026, 11, 20, 10, 15, 0, 250_000, tzinfo=UTC)),
        ("20261120T101500-0330", datetime(2026, 11, 20, 13, 45, tzinfo=UTC)),
        ("2026-11-20 10:15 UTC", datetime(2026, 11, 20, 10, 15, tzinfo=UTC)),
        ("20261120_101500", datetime(2026, 11, 20, 10, 15, tzinfo=UTC)),
        ("20261120101503", datetime(2026, 11, 20, 10, 15, 3, tzinfo=UTC)),
        ("2026-11-20_10-15-03", datetime(2026, 11, 20, 10, 15, 3, tzinfo=UTC)),
        ("20261120T10-15-03.250", datetime(2026, 11, 20, 10, 15, 3, 250_000, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-13-20", None),
        ("yesterday", None),
        ("1760000000", None),
        ("1760000000000", None),
        ("28.11.2026", None),
    ],
)
def test_times_of_several_forms(text: str, expected: datetime | None) -> None:
    assert parse_time(text) == expected
    if expected is None:
        wanted = "a date and time that exist" if text == "2026-13-20" else "a time such as .*in a table"
        with pytest.raises(InputError, match=f"row 1: time: expected {wanted}"):
            conform(table(time=[None, text]))
    else:
        found, _ = conform(table(time=[None, text]), timezone="UTC")
        assert plain_records(found)[1]["time"] == expected.isoformat()


def test_times_without_a_zone_need_one() -> None:
    naive = ["2026-07-01 12:00", "2026-12-01 12:00", "2026-12-01 12:00+00:00", None]
    hours = [10, 11, 12]
    for values in (naive, pd.to_datetime(pd.Series(naive).str.removesuffix("+00:00"))):
        with pytest.raises(InputError, match=r"row 0: time: '2026-07-01 12:00.*--timezone"):
            conform(table(time=values))
        found, _ = conform(table(time=values), timezone="Europe/Berlin")
        assert found["time"].dt.hour.tolist()[:2] == hours[:2]
        assert pd.isna(found["time"][3])
    assert conform(table(time=naive), timezone="Europe/Berlin")[0]["time"].dt.hour.tolist()[2] == 12
    with pytest.raises(InputError, match=r"no time zone; add it, .*\+01:00, .*--timezone"):
        conform(table(time=["2026-11-20 10:15"]))
    with pytest.raises(InputError, match=r"--timezone: .*did you mean Europe/Berlin"):
        conform(table(time=naive), timezone="Europe/Berlim")
    twice = conform(table(time=["2026-10-25 02:30"]), timezone="Europe/Berlin")[0]["time"]
    assert twice[0] == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # the first of two


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"zone": [1, "a"]}, "row 1: zone: .*like 1.*'a'"),
        ({"zone": [None, "a", True]}, "row 2: zone: .*like 'a'.*True"),
        ({"zone": [[1], [2]]}, r"row 0: zone: .*\[1\]"),
        ({"zone": [1, 2**70]}, "row 1: zone: .*64 bits"),
        ({"zone": [2, 3.5]}, "row 1: zone: expected whole numbers as in the gallery, got 3.5"),
        ({"zone": ["a"]}, "row 0: zone: expected whole numbers, got 'a'"),
        ({"zone": [True]}, "row 0: zone: expected whole numbers, got True"),
        ({"pid": [1, 2.5]}, "row 1: pid: "),
        ({"pid": [True, False]}, "pid: "),
        ({"time": [1, 2]}, "time: expected times"),
        ({"id": [1]}, "column 'id'"),
        ({"camera": [1], "camid": [2]}, "'camera' and 'camid'"),
    ],
)
def test_what_is_refused(columns: dict[str, Any], message: str) -> None:
    known = columns.get("zone") in ([2, 3.5], ["a"], [True])
    schema = {**RESERVED, "zone": "integer"} if known else RESERVED
    with pytest.raises(InputError, match=message):
        conform(table(**columns), schema)


def test_two_names_of_the_camera() -> None:
    assert conform(table(camera=["a", None], camid=["a", None]))[0]["camera"].tolist() == ["a", pd.NA]
    doubled = (
        table(zone=[1])
        .join(pd.DataFrame({"zone": [2]}), rsuffix="x")
        .set_axis(["path", "zone", "zone"], axis=1)
    )
    with pytest.raises(InputError, match="two columns"):
        conform(doubled)


def test_schemas_are_joined() -> None:
    assert join_schemas({"pid": "integer", "a": "null"}, {"pid": "string", "a": "float", "b": "null"}) == {
        "pid": "string",
        "a": "float",
        "b": "null",
    }
    assert join_schemas({"pid": "string"}, {"pid": "integer"}) == {"pid": "string"}
    with pytest.raises(InputError, match="'a'"):
        join_schemas({"a": "float"}, {"a": "string"})


def test_values_of_labels() -> None:
    assert (label_value("007", "integer", "pid"), label_value(np.int64(7), "string", "pid")) == (7, "7")
    for wrong in ("anna", 1.5, True, None, 2**64):
        with pytest.raises(InputError, match="pid: "):
            label_value(wrong, "integer", "pid")


def test_plain_records_are_values_of_json() -> None:
    (record,) = plain_records(
        conform(table(time=[datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))]))[0]
    )
    assert record == {
        "path": "0.jpg",
        "pid": None,
        "camera": None,
        "time": "2025-12-31T23:00:00+00:00",
        "track": None,
    }


def test_plain_records_of_some_columns() -> None:
    found = pd.DataFrame(
        {
            "flag": pd.array([True, None], "boolean"),
            "speed": pd.array([1.5, None], "Float64"),
            "score": [0.25, np.nan],
            "rank": np.array([3, 4]),
            "other": np.array([np.int64(7), None], object),
        }
    )
    columns = ["other", "rank", "score", "speed", "flag"]
    records = plain_records(found, columns)
    assert [list(record) for record in records] == [columns, columns]
    assert [list(record.values()) for record in records] == [
        [7, 3, 0.25, 1.5, True],
        [None, 4, None, None, None],
    ]
    assert {type(value) for value in records[0].values()} == {int, float, bool}
    assert plain_records(found.head(0)) == []
