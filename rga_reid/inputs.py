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

import yaml

from rga_reid.errors import InputError, short_repr

if TYPE_CHECKING:
    import pandas as pd

MAX_TEXT = 64 << 20  #: bytes of a JSON file
MAX_YAML = 1 << 20  #: bytes of a YAML file
MAX_LINE = 1 << 20  #: characters
MAX_ROWS = 5_000_000  #: of a table
MAX_TABLE = 1 << 30  #: bytes of a table in memory

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def read_json(path: str | os.PathLike[str], *, expected: str = "a JSON file") -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        expected: what it should be, for the message.

    Raises:
        InputError: no such file, not JSON in UTF-8, or larger than ``MAX_TEXT``.
    """
    name = os.fspath(path)
    content = read_file(path, MAX_TEXT)
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected {expected} ({truncate(error)})") from None


def parse_json(content: bytes) -> Any:
    """The value that a JSON text in UTF-8 stands for.

    Raises:
        ValueError: it is none, or ``reject_surrogates`` does.
        RecursionError: lists within lists without end.
    """
    value = json.loads(content.decode("utf-8"))
    reject_surrogates(value, content)
    return value


def reject_surrogates(value: Any, content: bytes) -> None:
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
        InputError: no such file, not YAML in UTF-8, more than ``MAX_YAML`` bytes, or more than
            ``parse_yaml`` takes.
    """

    name = f"{what} {os.fspath(path)}"
    content = read_file(path, MAX_YAML, name=name)
    try:
        return parse_yaml(content.decode("utf-8"), name)
    except InputError:
        raise
    except Exception as error:  # PyYAML raises nearly anything on a damaged number, date or tag
        raise InputError(f"{name}: not valid YAML ({truncate(error)})") from None


def read_parquet(path: str | os.PathLike[str], *, rows: int | None = None) -> pd.DataFrame:
    """A table in a Parquet file, as pandas writes it.

    What the file promises is looked at before it is unpacked: a few bytes can stand for any number of rows,
    and for a text in each of them.

    Args:
        path: of the file.
        rows: that it must have; by default at most ``MAX_ROWS``.

    Raises:
        InputError: no such file, a damaged one, another number of rows, packed in another way than by pandas,
            or of more than ``MAX_TABLE`` bytes.
    """
    import pyarrow as arrow
    from pyarrow import compute, parquet

    name = os.fspath(path)
    with open_bytes(path) as file:
        try:
            opened = parquet.ParquetFile(file)
            facts = opened.metadata
            if rows is not None and facts.num_rows != rows:
                raise InputError(f"{name}: expected {rows} rows, found {facts.num_rows}")
            if facts.num_rows > MAX_ROWS:
                raise InputError(f"{name}: expected at most {MAX_ROWS:,} rows, found {facts.num_rows:,}")
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
            wide = sum(_width(kind, f"{name}: column {short_repr(key)}") for key, kind in kinds.items())
            size = max(sum(chunk.total_uncompressed_size for chunk in chunks), facts.num_rows * wide)
            table = opened.read() if size <= MAX_TABLE else None
            if table is not None:  # a dictionary holds each text once, pandas holds one for each row
                for column in (table.column(text) for text in texts):
                    for chunk in column.chunks:
                        lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
                        size += compute.sum(lengths).as_py() or 0
            if table is None or size > MAX_TABLE:
                raise InputError(f"{name}: a table of {size:,} bytes, refused: more than {MAX_TABLE:,}")
            for text in texts:
                place = table.column_names.index(text)
                table = table.set_column(place, text, table.column(text).cast(kinds[text]))
            return table.to_pandas()
        except InputError:
            raise
        except Exception as error:  # Arrow and pandas raise nearly anything on a damaged file
            raise InputError(f"{name}: damaged: not a Parquet table ({truncate(error)})") from None


@contextmanager
def open_bytes(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
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
def open_text(path: str | os.PathLike[str]) -> Iterator[Iterator[str]]:
    """The lines of a text file in UTF-8 (a byte order mark is left out), with their ends as they are.

    Raises:
        InputError: no such file, not UTF-8, or a line of more than ``MAX_LINE`` characters.
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


def truncate(text: object, most: int = 300) -> str:
    """What a library or a file says, on one line of at most so many characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def read_file(path: str | os.PathLike[str], most: int = MAX_TEXT, *, name: str | None = None) -> bytes:
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
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
            raise InputError(f"{name}, line {number}: more than {MAX_LINE:,} characters in one line")
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
        raise InputError(f"{name}: of type {truncate(kind)}, expected numbers, texts or truth values")
    return max(8, int(kind.bit_width) // 8)


MAX_VALUES = 100_000  #: values in a text, those of an alias counted each time it stands there
MAX_DEPTH = 100  #: lists and mappings inside each other
MAX_NUMBER_LENGTH = 1000  #: characters of one: base 60 takes the square of their number in time

_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_OF_NUMBERS = "0123456789abcdefABCDEFxX_+-.:"


def parse_yaml(text: str, name: str) -> Any:
    """The value that a YAML text stands for, of plain types: no tag makes an object.

    Args:
        text: YAML.
        name: where it is from; what is refused here begins with it.

    Raises:
        InputError: more than ``MOST_VALUES`` values or ``DEEPEST`` levels (a few aliases of aliases can stand
            for more values than fit into memory), or a number of more than ``LONGEST_NUMBER`` characters.
        Exception: not YAML; PyYAML raises nearly anything on a damaged number, date or tag.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, name, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML tells what a plain scalar is by patterns that take a hundred bytes for each character."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and len(value) > MAX_NUMBER_LENGTH:
            number = value.lstrip("+-.")[:1].isdecimal() and not value.strip(_OF_NUMBERS)
            return _INTEGER if number else self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def _measure(node: yaml.Node, name: str, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Number of values and of levels that a node stands for, before anything is made of it.

    ``known`` keeps them for nodes that aliases name again; None for one that is being measured.
    """
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise InputError(f"{name}: a value that contains itself")
        return measured
    known[id(node)] = None
    if isinstance(node.value, str):
        if len(node.value) > MAX_NUMBER_LENGTH and node.tag in (_INTEGER, _FLOAT):
            raise InputError(f"{name}: a number of {len(node.value):,} characters")
        node.value.encode()  # half a character, which an escape can make
    values, levels = 1, 0
    items: Any = node.value if isinstance(node.value, list) else ()
    for item in items:
        for inner in item if isinstance(item, tuple) else (item,):
            inner_values, inner_levels = _measure(inner, name, known)
            values, levels = values + inner_values, max(levels, inner_levels)
    if values > MAX_VALUES:
        raise InputError(f"{name}: more than {MAX_VALUES:,} values, those of aliases counted each time")
    if levels >= MAX_DEPTH:
        raise InputError(f"{name}: more than {MAX_DEPTH} levels of lists and mappings")
    known[id(node)] = values, levels + 1
    return values, levels + 1
