"""Read text files and tables, which may come from strangers, behind limits on their size.

Every function refuses what is not a regular file: reading a pipe would block, and a device may have no end.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeGuard

import yaml

from rga_reid.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MAX_TEXT = 64 << 20  #: bytes of a JSON file
MAX_YAML = 1 << 20  #: bytes of a YAML file
MAX_LINE = 1 << 20  #: characters of a line
MAX_ROWS = 5_000_000  #: rows of a table
MAX_TABLE = 1 << 30  #: uncompressed bytes of a Parquet file
_FEW_ROWS = 65_536  # of a table: one thread has read it before several have started

_MODEL_SUFFIXES = (".ckpt", ".safetensors", ".onnx", ".pt", ".pth", ".bin", ".tar", ".torchscript", ".xml")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def read_json(path: str | os.PathLike[str], *, expected: str = "a JSON file") -> Any:
    """Return the value in a JSON file.

    Args:
        path: path of the file.
        expected: what the file should be, for the error message.

    Raises:
        InputError: no such file, not JSON in UTF-8, or larger than ``MAX_TEXT``.
    """
    content = read_file(path, MAX_TEXT)
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{os.fspath(path)}: expected {expected} ({truncate(error)})") from None


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        ValueError: not JSON, or refused by ``reject_surrogates``.
        RecursionError: too many nested lists or objects.
    """
    value = json.loads(content.decode("utf-8"))
    reject_surrogates(value, content)
    return value


def reject_surrogates(value: Any, content: bytes) -> None:
    """Refuse the value of a JSON text if one of its strings contains a lone surrogate.

    Such a string cannot be written to UTF-8 files or printed.

    Raises:
        ValueError: it contains one.
    """
    if _SURROGATE.search(content):
        json.dumps(value, ensure_ascii=False).encode()


def read_yaml(path: str | os.PathLike[str], *, what: str) -> Any:
    """Return the value in a YAML file; tags make no objects.

    Args:
        path: path of the file.
        what: what the file should be, such as ``recipe``; the error messages begin with it.

    Raises:
        InputError: no such file, not YAML in UTF-8, or larger than ``MAX_YAML``.
    """
    name = f"{what} {os.fspath(path)}"
    content = read_file(path, MAX_YAML, name=name)
    try:
        return yaml.safe_load(content.decode("utf-8"))
    except Exception as error:  # PyYAML raises many types for damaged numbers, dates and tags
        raise InputError(f"{name}: not valid YAML ({truncate(error)})") from None


def read_parquet(
    path: str | os.PathLike[str], *, rows: int | None = None, file: BinaryIO | None = None
) -> pd.DataFrame:
    """Return the table in a Parquet file.

    Args:
        path: path of the file.
        rows: number of rows that it must have; by default at most ``MAX_ROWS``.
        file: the file, if it is open or in memory already.

    Raises:
        InputError: no such file, a damaged or too large one, or another number of rows.
    """
    from pyarrow import parquet

    name = os.fspath(path)
    with open_bytes(path) if file is None else nullcontext(file) as source:
        try:
            opened = parquet.ParquetFile(source)
            metadata = opened.metadata
            size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            if size > MAX_TABLE:
                raise InputError(f"{name}: a table of {size:,} bytes, expected at most {MAX_TABLE:,}")
            found = metadata.num_rows
            if found != rows if rows is not None else found > MAX_ROWS:
                expected = f"{rows:,}" if rows is not None else f"at most {MAX_ROWS:,}"
                raise InputError(f"{name}: expected {expected} rows, found {found:,}")
            threads = found > _FEW_ROWS
            table = opened.read(use_threads=threads)
            return table.to_pandas(integer_object_nulls=True, use_threads=threads)
        except InputError:
            raise
        except Exception as error:  # Arrow and pandas raise many types for a damaged file
            raise InputError(f"{name}: damaged: not a Parquet table ({truncate(error)})") from None


@contextmanager
def open_bytes(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file.

    Raises:
        InputError: no such file, not a regular one, or one that cannot be read.
    """
    name = os.fspath(path)
    with _explain_errors(name):
        _require_regular(path, name)
        with open(path, "rb") as file:
            yield file


@contextmanager
def open_text(path: str | os.PathLike[str]) -> Iterator[Iterator[str]]:
    """Iterate over the lines of a UTF-8 text file, line ends included; a byte order mark is skipped.

    Raises:
        InputError: no such file, not UTF-8, or a line of more than ``MAX_LINE`` characters.
    """
    name = os.fspath(path)
    with _explain_errors(name):
        _require_regular(path, name)
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield _read_lines(file, name)


def is_class_path(name: str) -> bool:
    """Return whether a name such as ``my_module.MyEmbedder`` is that of a class, not of a model's file."""
    parts = name.split(".")
    return (
        len(parts) > 1
        and all(map(str.isidentifier, parts))
        and not name.endswith(_MODEL_SUFFIXES)
        and not os.path.exists(name)
    )


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number that a float can hold; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def truncate(text: object, most: int = 300) -> str:
    """Return a text, such as another library's error, on one line of at most ``most`` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def read_file(path: str | os.PathLike[str], most: int = MAX_TEXT, *, name: str | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: path of the file.
        most: largest size in bytes.
        name: beginning of the error messages; by default the path.

    Raises:
        InputError: no such file, not a regular one, one that cannot be read, or a larger one.
    """
    name = name or os.fspath(path)
    with _explain_errors(name):
        _require_regular(path, name)
        with open(path, "rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{name}: larger than {most / 2**20:.0f} MiB, the limit for such a file")
    return content


def _read_lines(file: TextIO, name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
            raise InputError(f"{name}, line {number}: more than {MAX_LINE:,} characters in one line")
        yield line


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Raise ``InputError`` for a file that cannot be read."""
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
    except ValueError:  # a null byte in the name
        raise InputError(f"{name}: no such file") from None
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{name}: expected a file, found {found}")
