"""Text files that somebody else may have made: read in bounded memory, and never run.

Every function refuses what is no regular file (a pipe would be waited for, a device may have no end) and what
is larger than its kind has reason to be.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeGuard

from rga_reid.errors import InputError, quoted

if TYPE_CHECKING:
    import pandas as pd

MOST_TEXT = 64 << 20  #: bytes of a JSON file
MOST_YAML = 1 << 20  #: bytes of a YAML file
LONGEST_LINE = 1 << 20  #: characters
MOST_ROWS = 5_000_000  #: of a table
MOST_TABLE = 1 << 30  #: bytes of a table in memory

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def read_json(path: str | os.PathLike[str], *, expected: str = "a JSON file") -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        expected: what it should be, for the message.

    Raises:
        InputError: no such file, not JSON in UTF-8, or larger than ``MOST_TEXT``.
    """
    name = os.fspath(path)
    content = read_file(path, MOST_TEXT)
    try:
        return parsed_json(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected {expected} ({shortened(error)})") from None


def parsed_json(content: bytes) -> Any:
    """The value that a JSON text in UTF-8 stands for.

    Raises:
        ValueError: it is none, or ``refuse_halves`` does.
        RecursionError: lists within lists without end.
    """
    value = json.loads(content.decode("utf-8"))
    refuse_halves(value, content)
    return value


def refuse_halves(value: Any, content: bytes) -> None:
    """Refuse what a JSON text stands for if it holds half a character, which nothing could write again.

    Raises:
        ValueError: it does (a lone surrogate).
    """
    if _HALF.search(content):
        json.dumps(value, ensure_ascii=False).encode()


def read_yaml(path: str | os.PathLike[str], *, what: str) -> Any:
    """The value in a YAML file, of plain types: no tag makes an object.

    Args:
        path: of the file.
        what: it should be, such as ``recipe``: the messages begin with it.

    Raises:
        InputError: no such file, not YAML in UTF-8, more than ``MOST_YAML`` bytes, or more than
            ``parsed_yaml`` takes.
    """
    from rga_reid.bounded_yaml import parsed_yaml

    name = f"{what} {os.fspath(path)}"
    content = read_file(path, MOST_YAML, name=name)
    try:
        return parsed_yaml(content.decode("utf-8"), name)
    except InputError:
        raise
    except Exception as error:  # PyYAML raises nearly anything on a damaged number, date or tag
        raise InputError(f"{name}: not valid YAML ({shortened(error)})") from None


def read_parquet(path: str | os.PathLike[str], *, rows: int | None = None) -> pd.DataFrame:
    """A table in a Parquet file, as pandas writes it.

    What the file promises is looked at before it is unpacked: a few bytes can stand for any number of rows,
    and for a text in each of them.

    Args:
        path: of the file.
        rows: that it must have; by default at most ``MOST_ROWS``.

    Raises:
        InputError: no such file, a damaged one, another number of rows, packed in another way than by pandas,
            or of more than ``MOST_TABLE`` bytes.
    """
    import pyarrow as arrow
    from pyarrow import compute, parquet

    name = os.fspath(path)
    with opened_bytes(path) as file:
        try:
            opened = parquet.ParquetFile(file)
            facts = opened.metadata
            if rows is not None and facts.num_rows != rows:
                raise InputError(f"{name}: expected {rows} rows, found {facts.num_rows}")
            if facts.num_rows > MOST_ROWS:
                raise InputError(f"{name}: expected at most {MOST_ROWS:,} rows, found {facts.num_rows:,}")
            groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
            chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
            packed = {chunk.compression for chunk in chunks} - {"SNAPPY", "UNCOMPRESSED"}
            if packed:
                raise InputError(f"{name}: packed by {', '.join(sorted(packed))}, expected SNAPPY")
            kinds = {
                field.name: field.type.value_type if arrow.types.is_dictionary(field.type) else field.type
                for field in opened.schema_arrow
            }
            if len(kinds) != len(opened.schema_arrow):
                raise InputError(f"{name}: two columns of one name")
            texts = [key for key, kind in kinds.items() if kind in (arrow.string(), arrow.large_string())]
            opened = parquet.ParquetFile(file, read_dictionary=texts)
            # a few bytes may stand for a number in each row, too
            wide = sum(_width(kind, f"{name}: column {quoted(key)}") for key, kind in kinds.items())
            size = max(sum(chunk.total_uncompressed_size for chunk in chunks), facts.num_rows * wide)
            table = opened.read() if size <= MOST_TABLE else None
            if table is not None:  # a dictionary holds each text once, pandas holds one for each row
                for column in (table.column(text) for text in texts):
                    for chunk in column.chunks:
                        lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
                        size += compute.sum(lengths).as_py() or 0
            if table is None or size > MOST_TABLE:
                raise InputError(f"{name}: a table of {size:,} bytes, refused: more than {MOST_TABLE:,}")
            for text in texts:
                place = table.column_names.index(text)
                table = table.set_column(place, text, table.column(text).cast(kinds[text]))
            return table.to_pandas()
        except InputError:
            raise
        except Exception as error:  # Arrow and pandas raise nearly anything on a damaged file
            raise InputError(f"{name}: damaged: not a Parquet table ({shortened(error)})") from None


@contextmanager
def opened_bytes(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file, opened.

    Raises:
        InputError: no such file, no regular one, or one that cannot be read.
    """
    name = os.fspath(path)
    with _explained(name):
        _require_regular(path, name)
        with open(path, "rb") as file:
            yield file


@contextmanager
def opened_text(path: str | os.PathLike[str]) -> Iterator[Iterator[str]]:
    """The lines of a text file in UTF-8 (a byte order mark is left out), with their ends as they are.

    Raises:
        InputError: no such file, not UTF-8, or a line of more than ``LONGEST_LINE`` characters.
    """
    name = os.fspath(path)
    with _explained(name):
        _require_regular(path, name)
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield _lines(file, name)


def is_number(value: object) -> TypeGuard[int | float]:
    """A finite number that a float can hold, as JSON and YAML write it: ``true`` is none, nor is 10⁴⁰⁰."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def shortened(text: object, most: int = 300) -> str:
    """What a library or a file says, on one line of at most so many characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def read_file(path: str | os.PathLike[str], most: int = MOST_TEXT, *, name: str | None = None) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        most: bytes that it may have.
        name: what the messages begin with; by default the path.

    Raises:
        InputError: no such file, no regular one, one that cannot be read or is larger.
    """
    name = name or os.fspath(path)
    with _explained(name):
        _require_regular(path, name)
        with open(path, "rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{name}: larger than {most / 2**20:.0f} MiB, which no such file needs")
    return content


def _lines(file: TextIO, name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(("\n", "\r")):
            raise InputError(f"{name}, line {number}: more than {LONGEST_LINE:,} characters in one line")
        yield line


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Tell in one line why a file cannot be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot read this file ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text (byte {error.start})") from None


def _require_regular(path: str | os.PathLike[str], name: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a zero byte in the name
        raise InputError(f"{name}: no such file") from None
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{name}: expected a file, found {found}")


def _width(kind: Any, name: str) -> int:
    """Bytes of a value of a column in pandas, those of its text not counted: nulls make wider ones."""
    import pyarrow as arrow

    if kind in (arrow.string(), arrow.large_string()) or arrow.types.is_null(kind):
        return 8
    if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind)):
        raise InputError(f"{name}: of type {shortened(kind)}, expected numbers, texts or truth values")
    return max(8, int(kind.bit_width) // 8)
