"""Columns of a table of images: their names, types and values.

| column | type |
|---|---|
| ``path`` | text |
| ``pid``, ``camera``, ``track`` | labels: whole numbers, or text |
| ``time`` | timestamps, in UTC |
| any other | text, integers, floating-point numbers, booleans or timestamps |

A schema maps names of columns to types (``TYPES``). ``camid`` means ``camera``. Every value but a path may be null.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError, did_you_mean, short_repr

#: dtypes of pandas by type; a column of type ``null`` has no value yet, and takes the type of the first one
TYPES = {
    "string": "string",
    "integer": "Int64",
    "float": "Float64",
    "boolean": "boolean",
    "timestamp": "datetime64[us, UTC]",
    "null": "string",
}
#: columns that every gallery has, with the types that they have while they are empty
RESERVED = {"path": "string", "pid": "integer", "camera": "integer", "time": "timestamp", "track": "integer"}
LABELS = ("pid", "camera", "track")
CAMERA, CAMERA_ALIAS = "camera", "camid"
#: how tables write an unknown value
UNKNOWN = ("", "NA", "<NA>", "N/A", "NaN", "nan", "NULL", "null", "None")
RESULT_COLUMNS = ("id", "query", "rank", "score")  #: names that the results of a search use

#: types whose columns have no value but valid ones: text may be empty, floating-point numbers may be NaN
_EXACT = ("integer", "boolean", "timestamp")
_WORDS = {
    "string": "text",
    "integer": "whole numbers",
    "float": "numbers",
    "boolean": "true or false",
    "timestamp": "times",
}
# a spreadsheet or data frame writes 3 as "3.0" in a column with empty cells
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_BOOLEAN = re.compile(r"true|false", re.IGNORECASE)
_TIME = re.compile(
    r"(?P<year>[0-9]{4})-?(?P<month>[0-9]{2})-?(?P<day>[0-9]{2})"
    r"(?:[T _-]?(?P<hour>[0-9]{2})[:_-]?(?P<minute>[0-9]{2})(?:[:_-]?(?P<second>[0-9]{2})"
    r"(?:[.,](?P<fraction>[0-9]{1,9}))?)?\s?(?P<zone>[zZ]|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)

_TEXT = pd.StringDtype("pyarrow", na_value=pd.NA)

Schema = Mapping[str, str]
At = Callable[[int], str]  #: names the row of a number, such as ``table: row 3``


def conform(
    table: pd.DataFrame,
    schema: Schema = RESERVED,
    *,
    timezone: str | None = None,
    name: str = "table",
    at: At | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a table in the types of a schema, and the schema with the columns that are new in the table.

    Labels that are all whole numbers, as numbers or as text, are integers; other labels are text. Where the
    schema has integers as labels and the table has text, the schema changes to text; the other way round,
    the table does.

    Args:
        table: n rows. Columns of the schema that it lacks are null; text is parsed if the schema has another type.
        schema: types of the known columns.
        timezone: name of the zone of times without one, such as ``Europe/Berlin``; they are refused by default.
        name: what error messages call the table.
        at: names a row in error messages; ``name: row 3`` by default.

    Returns:
        A new table with the columns of the new schema, in its order, rows numbered from 0; and the new schema.

    Raises:
        InputError: two columns of one name, a name that results use, values of mixed types or of another type
            than the schema's; the message names the column and the first such row.
    """
    columns, types = conform_columns(table, schema, timezone=timezone, name=name, at=at)
    return make_table(columns, types, len(table)), types


def conform_columns(
    table: pd.DataFrame,
    schema: Schema,
    known: Mapping[str, pd.Series] = MappingProxyType({}),
    *,
    timezone: str | None = None,
    name: str = "table",
    at: At | None = None,
) -> tuple[dict[str, pd.Series], dict[str, str]]:
    """Return what ``conform`` returns, as columns. Those in ``known`` are not converted."""
    table = rename_camid(table, name=name)
    at = partial("{}: row {}".format, name) if at is None else at
    types, columns = dict(schema), dict(known)
    for column in map(str, table.columns):
        if column in RESULT_COLUMNS:
            raise InputError(
                f"{name}: column '{column}': results of searches use this name; rename the column"
            )
        if column not in known:
            values = table[column].reset_index(drop=True)
            types[column], columns[column] = convert(
                values, column, types.get(column), timezone=timezone, at=at
            )
    for column, kind in types.items():
        if column not in columns:
            columns[column] = _nulls(len(table), kind)
    return columns, types


def make_table(columns: Mapping[str, pd.Series], types: Schema, length: int) -> pd.DataFrame:
    """Return columns numbered from 0 as a table, in the order of a schema."""
    # pandas would copy the columns, which takes longer than to convert a few rows
    return pd.DataFrame(
        {column: columns[column] for column in types}, index=pd.RangeIndex(length), copy=False
    )


def rename_camid(table: pd.DataFrame, *, name: str = "table") -> pd.DataFrame:
    """Return a table whose column ``camid``, if it has one, is called ``camera``.

    Raises:
        InputError: two columns of one name, or ``camera`` and ``camid`` with different values.
    """
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise InputError(f"{name}: column '{twice}': there are two columns of this name")
    if CAMERA_ALIAS not in table.columns:
        return table
    if CAMERA not in table.columns:
        return table.rename(columns={CAMERA_ALIAS: CAMERA})
    texts = [table[column].astype("string").fillna("") for column in (CAMERA, CAMERA_ALIAS)]
    if (texts[0] != texts[1]).any():
        raise InputError(
            f"{name}: columns '{CAMERA}' and '{CAMERA_ALIAS}': expected one of them, or equal values"
        )
    return table.drop(columns=CAMERA_ALIAS)


def cast(table: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Return a table of a gallery in the types of a newer schema: labels become text, new columns null.

    Args:
        table: n rows whose values are those of an older schema, numbered from 0.
        schema: types of all columns.
    """
    if list(table.columns) == list(schema) and all(
        column == "path" or table[column].dtype == TYPES[kind] for column, kind in schema.items()
    ):
        return table
    return pd.DataFrame(
        {
            column: table["path"] if column == "path" else values_of(table, column, schema[column])
            for column in schema
        },
        index=table.index,
    )


def join_schemas(schema: Schema, other: Schema, *, name: str = "table") -> dict[str, str]:
    """Return the schema of the rows of two tables together.

    Raises:
        InputError: a column of two types that have no common one.
    """
    joined = dict(schema)
    for column, kind in other.items():
        old = joined.get(column, "null")
        if old == "null" or (kind == "string" and column in LABELS):
            joined[column] = kind
        elif kind not in (old, "null") and not (old == "string" and column in LABELS):
            raise InputError(f"{name}: column '{column}': expected {_WORDS[old]}, found {_WORDS[kind]}")
    return joined


def values_of(table: pd.DataFrame, column: str, kind: str) -> pd.Series:
    """Return a column of a table in a type; null where the table does not have it."""
    if column == CAMERA and CAMERA not in table.columns:
        column = CAMERA_ALIAS
    values = table[column] if column in table.columns else _nulls(len(table), kind).set_axis(table.index)
    if values.dtype == TYPES[kind]:
        return values
    if values.isna().all():
        return _nulls(len(table), kind).set_axis(table.index)
    if kind == "string" and pd.api.types.is_numeric_dtype(values):
        values = values.astype("Int64")  # labels: 7, not 7.0
    elif kind == "string" and values.dtype == object:
        values = values.map(
            lambda value: value if isinstance(value, str) else str(int(value)), na_action="ignore"
        )
    return values.astype(TYPES[kind])


def convert(
    values: pd.Series, column: str, expected: str | None, *, timezone: str | None = None, at: At
) -> tuple[str, pd.Series]:
    """Return the type of a column and its values in that type.

    Args:
        values: values as a user's table has them.
        column: name of the column.
        expected: type in the schema; None for a new column.
        timezone, at: see ``conform``.

    Raises:
        InputError: see ``conform``.
    """
    if expected in _EXACT and values.dtype == TYPES[expected]:
        return expected, values
    kind, plain = _plain(values, column, at)
    if kind == "null":
        kind = expected or "null"
        return kind, _nulls(len(values), kind)
    if column in LABELS:
        kind, found = _labels(kind, plain, column, expected, at)
    elif column == "path":
        found = plain
    elif kind == "naive":
        found = _localize(plain, values, column, timezone, at)
        kind = "timestamp"
    elif kind == "string" and expected not in ("string", "null", None):
        kind, found = expected, parse(plain, column, expected, timezone=timezone, at=at)
    else:
        found = plain
    if expected in (None, "null", kind) or column in LABELS:
        return kind, found
    if (expected, kind) == ("float", "integer"):
        return expected, found.astype("Float64")
    if (expected, kind) == ("integer", "float"):
        return expected, _to_integers(found, column, at, "as in the gallery")
    row = int(found.notna().to_numpy().argmax())
    raise InputError(f"{at(row)}: {column}: expected {_WORDS[str(expected)]}, got {_shown(values.iloc[row])}")


def convert_text(
    cells: pd.Series, column: str, expected: str | None, *, timezone: str | None = None, at: At
) -> pd.Series:
    """Return the values that the cells of a text file stand for, in the type of the first one.

    Args:
        cells: text, null where empty, rows numbered from 0.
        column, expected, timezone, at: see ``convert``.

    Raises:
        InputError: a value of another type than the first one, or than the schema's.
    """
    if column in LABELS or column == "path" or expected == "string" or cells.isna().all():
        return cells
    if expected is not None and expected != "null":
        return parse(cells, column, expected, timezone=timezone, at=at)
    first = int(cells.notna().to_numpy().argmax())
    kind = _guess(cells.iloc[first])
    if kind == "integer":
        numbers = cells[cells.str.fullmatch(_FLOAT.pattern).fillna(False).astype(bool)]
        kind = "integer" if numbers.str.fullmatch(_INTEGER.pattern).all() else "float"
    if kind == "string":
        return cells
    return parse(
        cells, column, kind, timezone=timezone, at=at, hint=f", as in {at(first).rpartition(', ')[2]}"
    )


def parse(
    texts: pd.Series, column: str, kind: str, *, timezone: str | None = None, at: At, hint: str = ""
) -> pd.Series:
    """Parse text as values of a type.

    Args:
        texts: null where unknown.
        column, timezone, at: see ``convert``.
        kind: type.
        hint: end of the expectation in the message.

    Raises:
        InputError: a text that cannot be read as that type, or a time without a zone.
    """
    known = texts.notna()
    if kind == "timestamp":
        return _parse_times(texts, column, timezone, at, hint)
    pattern = {"integer": _WHOLE, "float": _FLOAT, "boolean": _BOOLEAN}[kind]
    matching = texts.str.fullmatch(pattern.pattern, flags=pattern.flags).fillna(False).astype(bool)
    _refuse_first(known & ~matching, texts, column, f"{_WORDS[kind]}{hint}", at)
    if kind == "integer":
        return _whole_numbers(texts)
    if kind == "float":
        return texts.astype("Float64")
    return texts.str.lower().map({"true": True, "false": False}).astype("boolean")


def parse_time(text: str, zone: tzinfo = timezone.utc) -> datetime | None:
    """Return the time that an ISO 8601 text stands for, in UTC; None for another text.

    Args:
        text: date, or date and time, with ``-``, ``:`` and ``T`` or without, to microseconds.
        zone: zone of a text without one.
    """
    if (found := _read_time(text)) is None:
        return None
    local, offset = found
    try:
        if offset is None:
            return local.replace(tzinfo=zone).astimezone(timezone.utc)
        return local.replace(tzinfo=timezone.utc) - offset
    except OverflowError:
        return None


def find_columns(names: Sequence[str], schema: Schema, source: str) -> list[str]:
    """Return the columns of these names, without duplicates.

    Args:
        names: ``camid`` means ``camera``.
        schema: known columns.
        source: what messages call the names, such as ``--columns``.

    Raises:
        InputError: an unknown column; the message has the nearest names.
    """
    found = [CAMERA if name == CAMERA_ALIAS else name for name in names]
    for name in found:
        if name not in schema:
            hint = did_you_mean(name, schema, most=3)
            raise InputError(
                f"{source}: unknown column {short_repr(name)}; expected one of {', '.join(schema)}{hint}"
            )
    return list(dict.fromkeys(found))


def show_time(time: datetime) -> str:
    """Return a time in UTC for people to read, such as ``2026-11-20 09:15:00``, with milliseconds if it has any."""
    utc = time.astimezone(timezone.utc).replace(tzinfo=None)
    return utc.isoformat(" ", "milliseconds" if utc.microsecond else "seconds")


def plain_records(table: pd.DataFrame, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a table as values of JSON: null is None, times are ISO 8601 in UTC.

    Args:
        table: n rows.
        columns: the columns of the result, in their order; all by default.
    """
    names = list(table.columns if columns is None else columns)
    # by columns: conversions of whole tables by pandas take milliseconds even for a few rows
    values = [_plain_values(table[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _plain_values(column: pd.Series) -> list[Any]:
    values: list[Any] = column.tolist()
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        values = [value if value is pd.NaT else value.isoformat() for value in values]
    elif column.dtype == object:
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
    return [None if unknown else value for unknown, value in zip(column.array.isna(), values, strict=True)]


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """Return a time zone by its name, such as ``Europe/Berlin``.

    Raises:
        InputError: an unknown zone; the message suggests the nearest.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        hint = did_you_mean(name, zoneinfo.available_timezones())
        raise InputError(
            f"--timezone: expected a zone such as Europe/Berlin or UTC, got {short_repr(name)}{hint}"
        ) from None


def label_value(value: Any, kind: str, name: str) -> int | str:
    """Return a label in the type of its column: 7 and "7" are equal, "007" is 7 among integers.

    Args:
        value: whole number or text.
        kind: ``integer`` or ``string``.
        name: what messages call it.

    Raises:
        InputError: neither, or text among integers.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer | str):
        raise InputError(f"{name}: expected a whole number or text, got {short_repr(value)}")
    if kind == "string":
        return str(value)
    match = _WHOLE.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise InputError(
            f"{name}: expected a whole number, as all others in the gallery, got {short_repr(value)}"
        )
    number = int(value if match is None else match[1])
    if not -(2**63) <= number < 2**63:
        raise InputError(f"{name}: expected a number of at most 64 bits, got {short_repr(value)}")
    return number


def is_whole(text: str) -> bool:
    """Return whether a label is a whole number."""
    return _WHOLE.fullmatch(text) is not None


def _nulls(count: int, kind: str) -> pd.Series:
    """Return a column of a type without any value."""
    return pd.Series(index=pd.RangeIndex(count), dtype=TYPES[kind])


def _plain(values: pd.Series, column: str, at: At) -> tuple[str, pd.Series]:
    """Return the type of some values, and the values in its dtype; ``naive`` for times without a zone."""
    values = values.reset_index(drop=True)
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _plain(values.astype(dtype.categories.dtype), column, at)
    if values.isna().all():
        return "null", values
    if dtype == _TEXT:  # as in a gallery
        return "string", values
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("datetime64", "datetime"):
        return _plain_times(values)
    if (
        kind == "mixed-integer"
        and column in LABELS
        and all(isinstance(value, int | np.integer | str) for value in values.dropna())
    ):
        kind, values = "string", values.map(str, na_action="ignore")
    names = {"string": "string", "integer": "integer", "boolean": "boolean"}
    names |= dict.fromkeys(("floating", "mixed-integer-float", "decimal"), "float")
    if kind not in names:
        _refuse_mixed(values, column, at)
    try:
        if names[kind] == "float":
            values = values.astype("Float64")
            unknown = np.isnan(values.to_numpy(float, na_value=np.nan))
            values = values.mask(unknown) if unknown.any() else values
        return names[kind], values.astype(TYPES[names[kind]])
    except UnicodeError:
        raise InputError(f"{at(0)}: {column}: contains text that is not Unicode") from None
    except (TypeError, ValueError, OverflowError):
        wrong = pd.Series([not pd.isna(value) and not -(2**63) <= value < 2**63 for value in values])
        _refuse_first(wrong, values, column, f"{_WORDS[names[kind]]} of at most 64 bits", at)
        raise InputError(f"{at(0)}: {column}: expected {_WORDS[names[kind]]}") from None


def _plain_times(values: pd.Series) -> tuple[str, pd.Series]:
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return "timestamp", values.dt.tz_convert("UTC").astype(TYPES["timestamp"])
    if values.dtype.kind == "M":
        return "naive", values.astype("datetime64[us]")
    has_zone = values.map(lambda value: value.tzinfo is not None, na_action="ignore").dropna()
    if has_zone.all():
        return "timestamp", pd.to_datetime(values, utc=True).astype(TYPES["timestamp"])
    naive = values.map(lambda value: value if value.tzinfo is None else pd.NaT, na_action="ignore")
    return "naive", pd.to_datetime(naive).astype("datetime64[us]")


def _refuse_mixed(values: pd.Series, column: str, at: At) -> None:
    """Refuse the first value of another type than the first one, or a first one of no known type."""
    known = values.dropna()
    groups = (bool | np.bool_, int | float | np.number, str, datetime)
    first = next((group for group in groups if isinstance(known.iloc[0], group)), None)
    for row, value in known.items():
        if (
            first is None
            or not isinstance(value, first)
            or isinstance(value, bool) != isinstance(known.iloc[0], bool)
        ):
            expected = "text, numbers, booleans or times"
            if first is not None:
                expected = f"values like {_shown(known.iloc[0])} in all rows"
            raise InputError(f"{at(int(str(row)))}: {column}: expected {expected}, got {_shown(value)}")
    raise InputError(f"{at(0)}: {column}: expected text, numbers, booleans or times")


def _labels(kind: str, values: pd.Series, column: str, expected: str | None, at: At) -> tuple[str, pd.Series]:
    if kind == "float":
        kind, values = "integer", _to_integers(values, column, at, "or text")
    if kind == "string":
        empty = values == ""  # a cell without a value
        values = values.mask(empty) if empty.any() else values
        if expected == "string" or not values.dropna().str.fullmatch(_WHOLE.pattern).all():
            return "string", values
        return "integer", _whole_numbers(values)
    if kind != "integer":
        raise InputError(
            f"{at(0)}: {column}: expected whole numbers or text, found {_WORDS.get(kind, 'times')}"
        )
    return (str(expected), values.astype("string")) if expected == "string" else (kind, values)


def _to_integers(values: pd.Series, column: str, at: At, more: str) -> pd.Series:
    exact = values.to_numpy(float, na_value=0.0)
    _refuse_first(pd.Series((exact != np.floor(exact)) | (np.abs(exact) >= 2**63)), values, column,
                  f"whole numbers {more}", at)  # fmt: skip
    return values.astype("Int64")


def _whole_numbers(texts: pd.Series) -> pd.Series:
    """Return Int64 of texts that ``_WHOLE`` matches; nulls stay."""
    numbers = texts.str.partition(".")[0]
    known = numbers.notna().to_numpy(bool)
    found = np.zeros(len(texts), np.int64)
    found[known] = numbers[known].astype("int64")
    return pd.Series(pd.arrays.IntegerArray(found, ~known))


def _guess(text: str) -> str:
    """Return the type of a cell; a date alone is text."""
    time = _TIME.fullmatch(text)
    if time is not None and time["minute"] is not None and "-" in text[:5]:
        return "timestamp"
    for kind, pattern in (("integer", _INTEGER), ("float", _FLOAT), ("boolean", _BOOLEAN)):
        if pattern.fullmatch(text):
            return kind
    return "string"


def _parse_times(texts: pd.Series, column: str, timezone: str | None, at: At, hint: str) -> pd.Series:
    read = [None if pd.isna(text) else _read_time(text) for text in texts]
    wrong = texts.notna() & pd.Series([found is None for found in read])
    expected = f"a time such as 2026-11-20T10:15:00+01:00{hint} (convert other forms in a table)"
    if wrong.any() and _TIME.fullmatch(texts[wrong].iloc[0].strip()):
        expected = "a date and time that exist"
    _refuse_first(wrong, texts, column, expected, at)
    local = pd.Series([None if found is None else found[0] for found in read], dtype="datetime64[us]")
    offsets = pd.Series([None if found is None else found[1] for found in read], dtype="timedelta64[us]")
    result = (local - offsets.fillna(pd.Timedelta(0))).dt.tz_localize("UTC")
    naive = local.notna() & offsets.isna()
    if naive.any():
        result = result.where(~naive, _localize(local.where(naive), texts, column, timezone, at))
    return result.astype(TYPES["timestamp"])


def _read_time(text: str) -> tuple[datetime, timedelta | None] | None:
    """Return the time that a text gives and how far its zone is ahead of UTC, if it has one; None for another text."""
    if (match := _TIME.fullmatch(text.strip())) is None:
        return None
    *numbers, fraction, zone = match.groups("")
    year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
    try:
        local = datetime(year, month, day, hour, minute, second, int(fraction.ljust(6, "0")[:6]))
    except ValueError:
        return None
    return local, _offset(zone) if zone else None


def _localize(naive: pd.Series, shown: pd.Series, column: str, timezone: str | None, at: At) -> pd.Series:
    """Return times without a zone as UTC; refuse them if the zone is unknown."""
    if timezone is None:
        row = int(naive.notna().to_numpy().argmax())
        raise InputError(
            f"{at(row)}: {column}: {str(shown.iloc[row])!r} has no time zone; add it, as in "
            "2026-11-20T10:15:00+01:00, or name it on the command line, as in --timezone Europe/Berlin"
        )
    # of an hour that occurs twice the first is meant; a time that does not exist is moved forward
    local = naive.dt.tz_localize(
        find_zone(timezone), ambiguous=np.ones(len(naive), dtype=bool), nonexistent="shift_forward"
    )
    return local.dt.tz_convert("UTC").astype(TYPES["timestamp"])


@lru_cache
def _offset(zone: str) -> timedelta:
    """Return how far a zone such as +01:00 is ahead of UTC."""
    if zone[0] not in "+-":
        return timedelta(0)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    ahead = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -ahead if zone[0] == "-" else ahead


def _shown(value: Any) -> str:
    return short_repr(value.item() if isinstance(value, np.generic) else value)


def _refuse_first(wrong: pd.Series, values: pd.Series, column: str, expected: str, at: At) -> None:
    if wrong.any():
        row = int(wrong.to_numpy(bool).argmax())
        raise InputError(f"{at(row)}: {column}: expected {expected}, got {_shown(values.iloc[row])}")
