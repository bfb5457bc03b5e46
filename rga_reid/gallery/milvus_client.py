"""A client of Milvus in terms of collections and rows. No other module uses pymilvus."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError, UnavailableError
from rga_reid.files import size_of
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.milvus_fields import MAX_TEXT, Fields, literal
from rga_reid.gallery.milvus_uri import TOKEN, MilvusURI
from rga_reid.inputs import truncate

OLDEST = (2, 3)  #: oldest version of Milvus with everything that is used here
LIMIT = 16_384  #: maximum number of rows that Milvus returns at a time
NOTES_TIMEOUT = 8.0  #: seconds in which notes are written
TRAINED_ROWS = 65_536  #: index settings are those for this many rows: Milvus has an index for each segment

_MESSAGE_BYTES = 1 << 24  # of vectors in a message; servers accept 64 MiB
_MAX_VALUES = 256  # in a list of an expression
_CONNECT_TIMEOUT = 10.0  # seconds
_START_TIMEOUT = 60.0  # for a server that has just been started
_TIMEOUT = 120.0
_LONG_TIMEOUT = 600.0  # loading or flushing a large collection is slow
_KINDS = {"flat": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT", "ivfpq": "IVF_PQ"}


@dataclass(frozen=True)
class Candidates:
    """Rows that Milvus found for a query, in any order.

    Args:
        ids: int64 ``(n,)``.
        table: n rows of the gallery's columns.
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
        location: its ``collection`` does not matter here.
        create: create an embedded one if it does not exist.

    Raises:
        InputError: pymilvus is not installed, the server does not answer, refuses the user or is too old; a file is
            missing.
    """

    def __init__(self, location: MilvusURI, *, create: bool = False) -> None:
        self.location = location
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors arrive as exceptions, reported once
        try:
            import pymilvus
            from grpc import RpcError
        except ImportError:
            raise InputError(f"{location}: needs pymilvus: pip install pymilvus milvus-lite") from None
        for library in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._library: Any = pymilvus
        self._call_error: Any = RpcError
        self._failures: tuple[type[Exception], ...] = (pymilvus.MilvusException, RpcError, OSError)
        if location.embedded:
            self._check_folder(create)
        self._secrets = [location.password, location.read_token()]
        self._secrets += self._secrets[1].split(":", 1)[1:]
        self._client = self._connect()
        #: version of the server, such as (2, 3, 5); None if it does not say
        self.version = None if location.embedded else self._read_version()
        if self.version is not None and self.version < OLDEST:
            raise InputError(
                f"{location}: expected Milvus {_dotted(OLDEST)} or newer, found {_dotted(self.version)}"
            )

    def _check_folder(self, create: bool) -> None:
        path = Path(self.location.uri)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: expected a folder of Milvus Lite 3, found a file")
        if create and not path.parent.is_dir():
            raise InputError(f"{path}: cannot write there: its folder does not exist")
        if not create and not path.exists():
            raise InputError(f"{path}: expected a gallery, found nothing")

    def _connect(self) -> Any:
        location, settings = self.location, {}
        for name in ("server_pem_path", "ca_pem_path", "client_pem_path", "client_key_path"):
            path = getattr(location, name)
            if path and not Path(path).is_file():
                raise InputError(f"{location}: {name} {path}: no such file")
        if not location.embedded:
            settings = {
                "token": location.read_token(),
                "db_name": location.db_name,
                "secure": location.secure,
                "server_name": location.server_name,
                "server_pem_path": location.server_pem_path,
                "ca_pem_path": location.ca_pem_path,
                "client_pem_path": location.client_pem_path,
                "client_key_path": location.client_key_path,
            }
            if (
                location.ca_pem_path and not location.client_pem_path
            ):  # pymilvus reads it with a client's only
                settings["server_pem_path"] = location.server_pem_path or location.ca_pem_path
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                client = self._library.MilvusClient(location.uri, timeout=_CONNECT_TIMEOUT, **settings)
                client.list_collections(timeout=_CONNECT_TIMEOUT)
                return client
            except self._failures as error:
                line = self._first_line(error)
                if not re.search("not ready|not healthy|Abnormal", line) or time.monotonic() > deadline:
                    raise InputError(f"{location}: {self._explain(error, line)}") from None
                time.sleep(0.5)

    def _explain(self, error: Exception, line: str) -> str:
        """Return why a connection failed."""
        if self.location.embedded:
            return f"cannot be opened: another program has it open, or it is not of this Milvus Lite ({line})"
        cause: Any = error if isinstance(error, self._call_error) else error.__cause__
        if not isinstance(cause, self._call_error):
            return f"cannot be opened ({line})"
        details = self._first_line(cause)
        if cause.code().name in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            how = "the user, password or token is wrong" if any(self._secrets) else f"give a user, or {TOKEN}"
            return f"access refused: {how} ({details})"
        return f"does not answer ({details})"

    def _read_version(self) -> tuple[int, ...] | None:
        with self._errors():
            text = str(self._client.get_server_version(timeout=_TIMEOUT))
        numbers = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
        return None if numbers is None else tuple(int(number or 0) for number in numbers.groups())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Report errors of Milvus in one line."""
        try:
            yield
        except self._failures as error:
            raise UnavailableError(f"{self.location}: Milvus: {self._first_line(error)}") from None

    def _first_line(self, error: Exception) -> str:
        """Return the line of an error that says what happened, without passwords."""
        text = (
            error.details() if isinstance(error, self._call_error) else getattr(error, "message", "") or error
        )
        lines = [line for line in str(text).strip().splitlines() if line.strip()] or [type(error).__name__]
        line = lines[-1] if lines[0].startswith("stack trace") else lines[0]
        return truncate(self._hide(line.strip(": \t")))

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***") if secret else text
        return text

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        with self._errors():
            return list(self._client.list_collections(timeout=_TIMEOUT))

    def create_notes(self, name: str) -> None:
        """Create a collection of numbered texts, if it is missing."""
        if name not in self.collections():
            kinds = self._library.DataType
            with self._errors():
                schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", kinds.INT64, is_primary=True)
                schema.add_field("text", kinds.VARCHAR, max_length=MAX_TEXT)
                schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # every collection needs a vector
                self._create(name, schema, "FLAT", {})

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
            timeout = _TIMEOUT if self.location.embedded else NOTES_TIMEOUT
            self._client.upsert(name, rows, timeout=timeout)
        self.persist(name)

    def delete_notes(self, name: str, numbers: Sequence[int]) -> None:
        """Delete texts by their numbers."""
        with self._errors():
            self._client.delete(name, ids=list(numbers), timeout=NOTES_TIMEOUT)

    def notes(self, name: str) -> dict[int, str]:
        """Return the texts of numbers from 0, without gaps; none if there is no such collection."""
        if not self.has_notes(name):
            return {}
        self.load(name)
        texts: dict[int, str] = {}
        for start in itertools.count(0, LIMIT // 2):
            found = self._texts(name, f"id >= {start} and id < {start + LIMIT // 2}")
            texts |= found
            if len(found) < LIMIT // 2:
                return texts
        raise AssertionError  # not reached

    def marks(self, name: str) -> dict[int, str]:
        """Return the texts of negative numbers."""
        return self._texts(name, "id < 0")

    def _texts(self, name: str, where: str) -> dict[int, str]:
        with self._errors():
            found = self._client.query(
                name, where, output_fields=["id", "text"], limit=LIMIT, timeout=_TIMEOUT
            )
        return {int(row["id"]): row["text"] for row in sorted(found, key=lambda row: row["id"])}

    def create_images(self, name: str, dimension: int, config: IndexConfig, layout: Fields) -> None:
        """Create a collection of vectors and their columns."""
        kinds = self._library.DataType
        resolved = {} if config.kind == "flat" else config.resolve(TRAINED_ROWS, dimension)
        names = {"hnsw_m": "M", "ef_construction": "efConstruction", "nlist": "nlist"}
        names |= {"pq_m": "m", "pq_bits": "nbits"}
        settings = {names[key]: value for key, value in resolved.items() if key in names}
        with self._errors():
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", kinds.INT64, is_primary=True)
            for field, kind in layout.types():
                length = {"max_length": MAX_TEXT} if kind == "VARCHAR" else {}
                schema.add_field(field, getattr(kinds, kind), **length)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
            self._create(name, schema, _KINDS[config.kind], settings)

    def _create(self, name: str, schema: Any, index: str, settings: dict[str, int]) -> None:
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=settings)
        self._client.create_collection(
            name, schema=schema, index_params=indexes, consistency_level="Strong", timeout=_LONG_TIMEOUT
        )

    def insert(
        self,
        name: str,
        ids: np.ndarray,
        vectors: np.ndarray,
        table: pd.DataFrame,
        layout: Fields,
        *,
        replace: bool = False,
    ) -> None:
        """Add rows, or replace those of the same ids, in messages of a size that Milvus accepts.

        Raises:
            InputError: a text is too long; Milvus refused the rows.
        """
        labels, send = layout.records(table), self._client.upsert if replace else self._client.insert
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
                send(name, rows, timeout=_TIMEOUT)

    def load(self, name: str) -> None:
        """Load a collection, so that it can be searched."""
        with self._errors():
            self._client.load_collection(name, timeout=_LONG_TIMEOUT)

    def count(self, name: str, where: str = "") -> int:
        """Return the number of rows that an expression keeps."""
        with self._errors():
            (row,) = self._client.query(name, where, output_fields=["count(*)"], timeout=_TIMEOUT)
        return int(row["count(*)"])

    def rows(
        self, name: str, stop: int, fields: Sequence[str], dimension: int = 0
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield rows below an id, a block at a time, by increasing id.

        Args:
            name: name of the collection.
            stop: larger than all ids.
            fields: in addition to ``id``.
            dimension: length of the vectors, if they are among the fields.
        """
        step = _rows_per_message(dimension) if dimension else LIMIT // 2
        for start in range(0, stop, step):
            with self._errors():
                found = self._client.query(
                    name,
                    f"id >= {start} and id < {min(start + step, stop)}",
                    output_fields=["id", *fields],
                    limit=step,
                    timeout=_TIMEOUT,
                )
            if found:
                yield sorted(found, key=lambda row: row["id"])

    def find(
        self, name: str, where: str, fields: Sequence[str], stop: int, dimension: int = 0
    ) -> list[dict[str, Any]]:
        """Return the rows below an id that an expression keeps: ``id`` and ``fields``, by increasing id.

        Args:
            name, fields, stop, dimension: see ``rows``.
            where: expression that keeps rows.
        """
        limit = _rows_per_message(dimension) if dimension else LIMIT
        rows: list[dict[str, Any]] = []
        spans = [(0, stop)]
        while spans:  # halved until Milvus can return all rows of each
            low, high = spans.pop()
            here = f"({where}) and id >= {low} and id < {high}"
            if self.count(name, here) > limit:
                middle = (low + high) // 2
                spans += [(middle, high), (low, middle)]
                continue
            with self._errors():
                rows += self._client.query(
                    name, here, output_fields=["id", *fields], limit=limit, timeout=_TIMEOUT
                )
        return sorted(rows, key=lambda row: row["id"])

    def search(
        self,
        name: str,
        queries: np.ndarray,
        limit: int,
        where: str,
        settings: dict[str, int],
        layout: Fields,
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
                    output_fields=[*layout.names, "vector"],
                    search_params={"metric_type": "IP", "params": settings},
                    consistency_level=self.location.consistency_level,
                    timeout=_TIMEOUT,
                )
            for hits in answers:
                ids = np.array([hit["id"] for hit in hits], np.int64)
                table = layout.table(hit["entity"] for hit in hits)
                vectors = np.array([hit["entity"]["vector"] for hit in hits], np.float32)
                vectors = vectors.reshape(len(hits), queries.shape[1])
                lowest = min((hit["distance"] for hit in hits), default=np.inf)
                lowest = lowest if len(hits) == limit else np.inf
                yield Candidates(ids, table, vectors, lowest)

    def delete(self, name: str, ids: Sequence[int]) -> None:
        """Mark rows as deleted, and request a compaction."""
        with self._errors():
            for start in range(0, len(ids), LIMIT):
                self._client.delete(name, ids=list(map(int, ids[start : start + LIMIT])), timeout=_TIMEOUT)
        self.flush(name)
        self.compact(name)

    def compact(self, name: str) -> None:
        """Request that segments are joined without deleted rows."""
        with self._errors():
            self._client.compact(name, timeout=_TIMEOUT)

    def persist(self, name: str) -> None:
        """Wait until everything is on the disk. What a server has acknowledged is in its log."""
        if self.location.embedded:
            self.flush(name)

    def flush(self, name: str) -> None:
        """Write what is in memory to segments, which get an index, and are compacted."""
        with self._errors():
            self._client.flush(name, timeout=_LONG_TIMEOUT)

    def drop(self, name: str) -> None:
        """Delete a collection and its files."""
        with self._errors():
            self._client.drop_collection(name, timeout=_TIMEOUT)

    def size(self) -> int | None:
        """Return the bytes of the files of an embedded one."""
        return size_of(Path(self.location.uri)) if self.location.embedded else None


def among(field: str, values: Sequence[Any]) -> Iterator[str]:
    """Yield expressions that keep the rows whose field has one of some values, together."""
    for start in range(0, len(values), _MAX_VALUES):
        yield f"{field} in {literal(list(values[start : start + _MAX_VALUES]))}"


def _rows_per_message(dimension: int) -> int:
    return int(np.clip(_MESSAGE_BYTES // (4 * max(1, dimension)), 1, LIMIT // 2))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
