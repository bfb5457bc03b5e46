"""A client of Milvus in terms of collections and rows. No other module uses pymilvus."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.files import size_of
from rga_reid.gallery.filters import Filter
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.validation import gallery_table

SCHEME = "milvus://"
IMAGES = "__images_"  #: in the names of collections that belong to a gallery; no gallery has it in its name
LIMIT = 16_384  #: maximum number of rows that Milvus returns at a time
LABELS = ["path", "pid", "camid"]
TRAINED_ROWS = 65_536  #: index settings are those for this many rows: Milvus has an index for each segment

_MESSAGE_BYTES = 1 << 24  # of vectors in a message; servers accept 64 MiB
_MAX_TEXT = 65_535  # bytes
_MAX_VALUES = 256  # in a list of an expression
_TIMEOUT = 600.0  # seconds; loading or compacting a large collection is slow
_KINDS = {"flat": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT", "ivfpq": "IVF_PQ"}


@dataclass(frozen=True)
class MilvusURI:
    """A collection in Milvus.

    Args:
        uri: address of the server, or path of an embedded one.
        collection: its name.
        embedded: whether the data are files of this machine.
    """

    uri: str
    collection: str
    embedded: bool

    def __str__(self) -> str:
        return self.uri if self.embedded else f"{self.uri.replace('http://', SCHEME)}/{self.collection}"


@dataclass(frozen=True)
class Candidates:
    """Rows that Milvus found for a query, in any order.

    Args:
        ids: int64 ``(n,)``.
        table: n rows ``path, pid, camid``.
        vectors: float32 ``(n, d)``.
        lowest: lowest product that Milvus returned; infinite if there are no other rows.
    """

    ids: np.ndarray
    table: pd.DataFrame
    vectors: np.ndarray
    lowest: float


class MilvusServer:
    """A connection to Milvus, embedded or on a server.

    Args:
        location: only its ``uri`` matters here.
        create: create an embedded one if it does not exist.

    Raises:
        InputError: pymilvus is not installed, the server does not answer, or there is no such file.
    """

    def __init__(self, location: MilvusURI, *, create: bool = False) -> None:
        self.location = location
        try:
            import pymilvus
        except ImportError:
            raise InputError(f"{location}: needs pymilvus: pip install pymilvus milvus-lite") from None
        # their errors arrive as exceptions, reported once
        for library in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._library: Any = pymilvus
        if location.embedded:
            self._check_folder(create)
        try:
            self._client = pymilvus.MilvusClient(location.uri, timeout=10)
        except (pymilvus.MilvusException, OSError) as error:
            why = "does not answer"
            if location.embedded:
                why = "cannot be opened: another program has it open, or it is not of this Milvus Lite"
            raise InputError(f"{location}: {why} ({_first_line(error)})") from None

    def _check_folder(self, create: bool) -> None:
        path = Path(self.location.uri)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: expected a folder of Milvus Lite 3, found a file")
        if create and not path.parent.is_dir():
            raise InputError(f"{path}: cannot write there: its folder does not exist")
        if not create and not path.exists():
            raise InputError(f"{path}: expected a gallery, found nothing")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Report errors of Milvus in one line."""
        try:
            yield
        except (self._library.MilvusException, OSError) as error:
            raise InputError(f"{self.location}: Milvus: {_first_line(error)}") from None

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        with self._errors():
            return list(self._client.list_collections(timeout=_TIMEOUT))

    def create_notes(self, name: str) -> None:
        """Create a collection of numbered texts, if it is missing. Texts 0 and 1 are empty at first."""
        if name not in self.collections():
            kinds = self._library.DataType
            with self._errors():
                schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", kinds.INT64, is_primary=True)
                schema.add_field("text", kinds.VARCHAR, max_length=_MAX_TEXT)
                schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # every collection needs a vector
                self._create(name, schema, "FLAT", {})
        if not self.notes(name):
            self.write_notes(name, {0: "", 1: ""})

    def has_notes(self, name: str) -> bool:
        """Return whether a collection is like those of ``create_notes``."""
        if name not in self.collections():
            return False
        with self._errors():
            fields = self._client.describe_collection(name, timeout=_TIMEOUT)["fields"]
        sizes = [field["params"].get("dim") for field in fields if field["name"] == "vector"]
        return [field["name"] for field in fields] == ["id", "text", "vector"] and sizes == [2]

    def write_notes(self, name: str, texts: Mapping[int, str]) -> None:
        """Write or replace texts by their numbers, all at once."""
        with self._errors():
            rows = [{"id": number, "text": text, "vector": [1.0, 0.0]} for number, text in texts.items()]
            self._client.upsert(name, rows, timeout=_TIMEOUT)
            self._client.flush(name, timeout=_TIMEOUT)

    def notes(self, name: str) -> dict[int, str]:
        """Return all texts by their numbers; none if there is no such collection."""
        if not self.has_notes(name):
            return {}
        self.load(name)
        parts = self.rows(name, self.count(name), ["text"])  # numbered without gaps
        return {int(row.id): row.text for part in parts for row in part.itertuples()}

    def create_images(self, name: str, dimension: int, config: IndexConfig) -> None:
        """Create a collection of vectors and their labels."""
        kinds = self._library.DataType
        resolved = {} if config.kind == "flat" else config.resolve(TRAINED_ROWS, dimension)
        names = {"hnsw_m": "M", "ef_construction": "efConstruction", "nlist": "nlist"}
        names |= {"pq_m": "m", "pq_bits": "nbits"}
        settings = {names[key]: value for key, value in resolved.items() if key in names}
        with self._errors():
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", kinds.INT64, is_primary=True)
            schema.add_field("path", kinds.VARCHAR, max_length=_MAX_TEXT)
            schema.add_field("pid", kinds.INT64, nullable=True)
            schema.add_field("camid", kinds.INT64, nullable=True)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
            self._create(name, schema, _KINDS[config.kind], settings)

    def _create(self, name: str, schema: Any, index: str, settings: dict[str, int]) -> None:
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=settings)
        self._client.create_collection(
            name, schema=schema, index_params=indexes, consistency_level="Strong", timeout=_TIMEOUT
        )

    def insert(self, name: str, ids: np.ndarray, vectors: np.ndarray, table: pd.DataFrame) -> None:
        """Add rows, in messages of a size that Milvus accepts.

        Raises:
            InputError: a path is too long; Milvus refused the rows.
        """
        for path in table["path"]:
            if len(path.encode()) > _MAX_TEXT:
                raise InputError(f"{path[:100]}...: Milvus accepts paths of at most {_MAX_TEXT:,} bytes")
        labels = table[LABELS].astype(object).where(table[LABELS].notna(), None).to_dict("records")
        step = _rows_per_message(vectors.shape[1])
        for start in range(0, len(ids), step):
            rows = [
                {"id": int(number), "vector": vector, **label}
                for number, vector, label in zip(
                    ids[start : start + step],
                    vectors[start : start + step],
                    labels[start : start + step],
                    strict=True,
                )
            ]
            with self._errors():
                self._client.insert(name, rows, timeout=_TIMEOUT)

    def load(self, name: str) -> None:
        """Load a collection, so that it can be searched."""
        with self._errors():
            self._client.load_collection(name, timeout=_TIMEOUT)

    def count(self, name: str, where: str = "") -> int:
        """Return the number of rows that an expression keeps."""
        with self._errors():
            (row,) = self._client.query(name, where, output_fields=["count(*)"], timeout=_TIMEOUT)
        return int(row["count(*)"])

    def rows(
        self, name: str, stop: int, columns: Sequence[str], dimension: int = 0
    ) -> Iterator[pd.DataFrame]:
        """Yield all rows below an id, a block at a time, by increasing id.

        Args:
            name: name of the collection.
            stop: larger than all ids.
            columns: in addition to ``id``.
            dimension: length of the vectors, if they are among the columns.
        """
        step = _rows_per_message(dimension) if dimension else LIMIT // 2
        for start in range(0, stop, step):
            where = f"id >= {start} and id < {min(start + step, stop)}"
            with self._errors():
                found = self._client.query(
                    name, where, output_fields=["id", *columns], limit=step, timeout=_TIMEOUT
                )
            if found:
                yield _frame(found, ["id", *columns]).sort_values("id", ignore_index=True)

    def find(
        self, name: str, column: str, values: Sequence[Any], columns: Sequence[str], stop: int
    ) -> pd.DataFrame:
        """Return the rows below an id whose column has one of some values: ``id`` and ``columns``."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(values), _MAX_VALUES):
            where = f"{column} in {literal(list(values[start : start + _MAX_VALUES]))}"
            spans = [(0, stop)]
            while spans:  # halved until Milvus can return all rows of each
                low, high = spans.pop()
                here = f"{where} and id >= {low} and id < {high}"
                if self.count(name, here) > LIMIT:
                    middle = (low + high) // 2
                    spans += [(low, middle), (middle, high)]
                    continue
                with self._errors():
                    rows += self._client.query(
                        name, here, output_fields=["id", *columns], limit=LIMIT, timeout=_TIMEOUT
                    )
        return _frame(rows, ["id", *columns])

    def search(
        self, name: str, queries: np.ndarray, limit: int, where: str, settings: dict[str, int]
    ) -> Iterator[Candidates]:
        """Yield the rows whose product with each query is largest, query by query."""
        step = max(1, _rows_per_message(queries.shape[1]) // limit)
        for start in range(0, len(queries), step):
            with self._errors():
                answers = self._client.search(
                    name,
                    queries[start : start + step].tolist(),
                    filter=where,
                    limit=limit,
                    anns_field="vector",
                    output_fields=[*LABELS, "vector"],
                    search_params={"metric_type": "IP", "params": settings},
                    timeout=_TIMEOUT,
                )
            for hits in answers:
                ids = np.array([hit["id"] for hit in hits], np.int64)
                labels = [{key: hit["entity"].get(key) for key in LABELS} for hit in hits]
                vectors = np.array([hit["entity"]["vector"] for hit in hits], np.float32)
                vectors = vectors.reshape(len(hits), queries.shape[1])
                lowest = min((hit["distance"] for hit in hits), default=np.inf)
                table = gallery_table(_frame(labels, LABELS))
                lowest = lowest if len(hits) == limit else np.inf
                yield Candidates(ids, table, vectors, lowest)

    def delete(self, name: str, ids: Sequence[int]) -> None:
        """Mark rows as deleted, and request a compaction."""
        with self._errors():
            for start in range(0, len(ids), LIMIT):
                self._client.delete(name, ids=list(map(int, ids[start : start + LIMIT])), timeout=_TIMEOUT)
            self._client.flush(name, timeout=_TIMEOUT)
        self.compact(name)

    def compact(self, name: str) -> None:
        """Request that segments are joined without deleted rows."""
        with self._errors():
            self._client.compact(name, timeout=_TIMEOUT)

    def flush(self, name: str) -> None:
        """Wait until everything is on the disk."""
        with self._errors():
            self._client.flush(name, timeout=_TIMEOUT)

    def drop(self, name: str) -> None:
        """Delete a collection and its files."""
        with self._errors():
            self._client.drop_collection(name, timeout=_TIMEOUT)

    def size(self) -> int | None:
        """Return the bytes of the files of an embedded one."""
        return size_of(Path(self.location.uri)) if self.location.embedded else None


def _rows_per_message(dimension: int) -> int:
    return int(np.clip(_MESSAGE_BYTES // (4 * max(1, dimension)), 1, LIMIT // 2))


def _first_line(error: Exception) -> str:
    return (str(getattr(error, "message", "") or error)).strip().split("\n")[0]


def _frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table. Whole numbers stay so: with a null among them they would become floats."""
    table = pd.DataFrame(list(rows), columns=list(columns), dtype=object)
    return table.astype({"id": np.int64}) if "id" in columns else table


_ALL, _NONE = "id >= 0", "id < 0"
_OPPOSITE = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True)
class Expression:
    """A condition in three-valued logic, unknown where neither expression holds."""

    true: str
    false: str

    def __and__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} and {other.true})", f"({self.false} or {other.false})")

    def __or__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} or {other.true})", f"({self.false} and {other.false})")

    def __invert__(self) -> Expression:
        return Expression(self.false, self.true)


class _MilvusBackend:
    """States filters as expressions of Milvus."""

    def known(self, column: str) -> Expression:
        if column == "path":
            return Expression(_ALL, _NONE)
        return Expression(f"{column} is not null", f"{column} is null")

    def equal(self, column: str, value: int | str) -> Expression:
        return self._where_known(column, f"{column} == {literal(value)}", f"{column} != {literal(value)}")

    def ordered(self, column: str, sign: str, value: int) -> Expression:
        return self._where_known(column, f"{column} {sign} {value}", f"{column} {_OPPOSITE[sign]} {value}")

    def one_of(self, column: str, values: Sequence[int | str]) -> Expression:
        if not values:
            return self._where_known(column, _NONE, _ALL)
        return self._where_known(
            column, f"{column} in {literal(values)}", f"{column} not in {literal(values)}"
        )

    def contains(self, part: str) -> Expression:
        escaped = "".join(f"\\{letter}" if letter in "\\%_" else letter for letter in part)
        like = f"path like {literal(f'%{escaped}%')}"
        if "\\" in part:
            # Milvus Lite reads backslashes as escapes only if the pattern has a `_` or a `%` inside
            followed, preceded = literal(f"%{escaped}_%"), literal(f"%_{escaped}")
            like = f"(path like {followed} or path like {preceded} or path == {literal(part)})"
        return Expression(like, f"not ({like})")

    def _where_known(self, column: str, true: str, false: str) -> Expression:
        known = self.known(column).true
        return Expression(f"({known} and {true})", f"({known} and {false})")


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def literal(value: int | str | Sequence[int | str]) -> str:
    """Return a value, or a list of values, as Milvus writes it. Milvus knows few escapes, and needs no others."""
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return str(value) if isinstance(value, int) else f"[{', '.join(map(literal, value))}]"


def expression(where: Filter | None) -> str:
    """Return a filter as Milvus reads it; an empty string keeps all rows."""
    return "" if where is None else where.build(_MilvusBackend()).true
