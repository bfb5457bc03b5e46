"""What a gallery asks of Milvus, in terms of collections and rows. The one module that knows pymilvus."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.files import size_of
from rga_reid.gallery.filters import parse_filter
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.location import IMAGES, MilvusURI
from rga_reid.gallery.manifest import FORMAT, METRIC
from rga_reid.gallery.segments import DeletionRecord
from rga_reid.gallery.validation import gallery_table
from rga_reid.inputs import truncate
from rga_reid.models.checkpoints import ModelFingerprint, is_same_model

LIMIT = 16_384  #: rows that Milvus gives at a time at most
LABELS = ["path", "pid", "camid"]
TRAINED_ROWS = 65_536  #: settings are those of an index of so many rows: Milvus has one for each segment

_MESSAGE_BYTES = 1 << 24  # of vectors in a message; servers take 64 MiB
_LONGEST_TEXT = 65_535
_VALUES = 256  # in a list of an expression
_TIMEOUT = 600.0  # seconds; a load or a compaction of a large collection takes its time
_KINDS = {"flat": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT", "ivfpq": "IVF_PQ"}


@dataclass(frozen=True)
class Answer:
    """What Milvus found for a query, in no order.

    Args:
        ids: int64 ``(n,)``.
        table: n rows ``path, pid, camid``.
        vectors: float32 ``(n, d)``.
        lowest: the lowest product of those that Milvus gave; infinite if there are no more rows than these.
        scores: float64 ``(n,)``, exact ones; NaN as long as nobody has taken them.
    """

    ids: np.ndarray
    table: pd.DataFrame
    vectors: np.ndarray
    lowest: float
    scores: np.ndarray


class MilvusServer:
    """A connection to Milvus, embedded or a cluster.

    Args:
        place: the uri is what counts.
        create: start an embedded one without data, if there is none.

    Raises:
        InputError: pymilvus is not installed, nobody answers, or there is no such file.
    """

    def __init__(self, place: MilvusURI, *, create: bool = False) -> None:
        self.place = place
        try:
            import pymilvus
        except ImportError:
            raise InputError(f"{place}: needs pymilvus: pip install pymilvus milvus-lite") from None
        # what they would log arrives as an exception, told once
        for library in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._library: Any = pymilvus
        if place.embedded:
            self._check_folder(create)
        try:
            self._client = pymilvus.MilvusClient(place.uri, timeout=10)
        except (pymilvus.MilvusException, OSError) as error:
            why = "does not answer"
            if place.embedded:
                why = "cannot be opened: another program has it open, or it is not of this Milvus Lite"
            raise InputError(f"{place}: {why} ({_first_line(error)})") from None

    def _check_folder(self, create: bool) -> None:
        path = Path(self.place.uri)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: expected a folder of Milvus Lite 3, found a file")
        if create and not path.parent.is_dir():
            raise InputError(f"{path}: cannot write there: its folder does not exist")
        if not create and not path.exists():
            raise InputError(f"{path}: expected a gallery, found nothing")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (self._library.MilvusException, OSError) as error:
            raise InputError(f"{self.place}: Milvus: {_first_line(error)}") from None

    def collections(self) -> list[str]:
        """Names of all collections."""
        with self._told():
            return list(self._client.list_collections(timeout=_TIMEOUT))

    def create_notes(self, name: str) -> None:
        """Make a collection of texts, of which the numbers 0 and 1 are empty, or what is missing of it."""
        if name not in self.collections():
            kinds = self._library.DataType
            with self._told():
                schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", kinds.INT64, is_primary=True)
                schema.add_field("text", kinds.VARCHAR, max_length=_LONGEST_TEXT)
                schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # Milvus wants one
                self._create(name, schema, "FLAT", {})
        if not self.notes(name):
            self.write_notes(name, {0: "", 1: ""})

    def has_notes(self, name: str) -> bool:
        """Whether there is a collection like those of ``create_notes``."""
        if name not in self.collections():
            return False
        with self._told():
            fields = self._client.describe_collection(name, timeout=_TIMEOUT)["fields"]
        sizes = [field["params"].get("dim") for field in fields if field["name"] == "vector"]
        return [field["name"] for field in fields] == ["id", "text", "vector"] and sizes == [2]

    def write_notes(self, name: str, texts: Mapping[int, str]) -> None:
        """Put texts in place by their numbers, or replace them, all at once."""
        with self._told():
            rows = [{"id": number, "text": text, "vector": [1.0, 0.0]} for number, text in texts.items()]
            self._client.upsert(name, rows, timeout=_TIMEOUT)
            self._client.flush(name, timeout=_TIMEOUT)

    def notes(self, name: str) -> dict[int, str]:
        """All texts by their numbers; none if there is no such collection."""
        if not self.has_notes(name):
            return {}
        self.load(name)
        parts = self.rows(name, self.count(name), ["text"])  # numbered from 0 without gaps
        return {int(row.id): row.text for part in parts for row in part.itertuples()}

    def create_images(self, name: str, dimension: int, plan: IndexConfig) -> None:
        """Make a collection of vectors and their labels."""
        kinds = self._library.DataType
        chosen = {} if plan.kind == "flat" else plan.chosen(TRAINED_ROWS, dimension)
        names = {"hnsw_m": "M", "ef_construction": "efConstruction", "nlist": "nlist"}
        names |= {"pq_m": "m", "pq_bits": "nbits"}
        settings = {names[key]: value for key, value in chosen.items() if key in names}
        with self._told():
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", kinds.INT64, is_primary=True)
            schema.add_field("path", kinds.VARCHAR, max_length=_LONGEST_TEXT)
            schema.add_field("pid", kinds.INT64, nullable=True)
            schema.add_field("camid", kinds.INT64, nullable=True)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
            self._create(name, schema, _KINDS[plan.kind], settings)

    def _create(self, name: str, schema: Any, index: str, settings: dict[str, int]) -> None:
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=settings)
        self._client.create_collection(
            name, schema=schema, index_params=indexes, consistency_level="Strong", timeout=_TIMEOUT
        )

    def insert(self, name: str, ids: np.ndarray, vectors: np.ndarray, table: pd.DataFrame) -> None:
        """Add rows, in messages that Milvus takes.

        Raises:
            InputError: a path is longer than Milvus takes; Milvus refused them.
        """
        for path in table["path"]:
            if len(path.encode()) > _LONGEST_TEXT:
                raise InputError(f"{path[:100]}...: Milvus takes paths of at most {_LONGEST_TEXT:,} bytes")
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
            with self._told():
                self._client.insert(name, rows, timeout=_TIMEOUT)

    def load(self, name: str) -> None:
        """Make a collection ready to be asked."""
        with self._told():
            self._client.load_collection(name, timeout=_TIMEOUT)

    def count(self, name: str, where: str = "") -> int:
        """Number of rows, of those that an expression keeps."""
        with self._told():
            (row,) = self._client.query(name, where, output_fields=["count(*)"], timeout=_TIMEOUT)
        return int(row["count(*)"])

    def rows(
        self, name: str, stop: int, columns: Sequence[str], dimension: int = 0
    ) -> Iterator[pd.DataFrame]:
        """All rows below an id, some at a time, by rising ids.

        Args:
            name: of the collection.
            stop: no id is as high.
            columns: beside ``id``.
            dimension: of the vectors, where they are asked for.
        """
        step = _rows_per_message(dimension) if dimension else LIMIT // 2
        for start in range(0, stop, step):
            where = f"id >= {start} and id < {min(start + step, stop)}"
            with self._told():
                found = self._client.query(
                    name, where, output_fields=["id", *columns], limit=step, timeout=_TIMEOUT
                )
            if found:
                yield _frame(found, ["id", *columns]).sort_values("id", ignore_index=True)

    def found(
        self, name: str, column: str, values: Sequence[Any], columns: Sequence[str], stop: int
    ) -> pd.DataFrame:
        """The rows below an id whose column has one of some values; columns ``id`` and those asked for."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(values), _VALUES):
            where = f"{column} in {literal(list(values[start : start + _VALUES]))}"
            spans = [(0, stop)]
            while spans:  # until each has no more rows than Milvus gives
                low, high = spans.pop()
                here = f"{where} and id >= {low} and id < {high}"
                if self.count(name, here) > LIMIT:
                    middle = (low + high) // 2
                    spans += [(low, middle), (middle, high)]
                    continue
                with self._told():
                    rows += self._client.query(
                        name, here, output_fields=["id", *columns], limit=LIMIT, timeout=_TIMEOUT
                    )
        return _frame(rows, ["id", *columns])

    def search(
        self, name: str, queries: np.ndarray, limit: int, where: str, settings: dict[str, int]
    ) -> Iterator[Answer]:
        """The rows whose product with each query is largest, query by query."""
        step = max(1, _rows_per_message(queries.shape[1]) // limit)
        for start in range(0, len(queries), step):
            with self._told():
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
                yield Answer(ids, table, vectors, lowest, np.full(len(ids), np.nan))

    def delete(self, name: str, ids: Sequence[int]) -> None:
        """Mark rows as deleted, and ask for their compaction."""
        with self._told():
            for start in range(0, len(ids), LIMIT):
                self._client.delete(name, ids=list(map(int, ids[start : start + LIMIT])), timeout=_TIMEOUT)
            self._client.flush(name, timeout=_TIMEOUT)
        self.compact(name)

    def compact(self, name: str) -> None:
        """Have segments joined, and what is deleted left out."""
        with self._told():
            self._client.compact(name, timeout=_TIMEOUT)

    def flush(self, name: str) -> None:
        """Have everything written to the disk."""
        with self._told():
            self._client.flush(name, timeout=_TIMEOUT)

    def drop(self, name: str) -> None:
        """Delete a collection with its files."""
        with self._told():
            self._client.drop_collection(name, timeout=_TIMEOUT)

    def size(self) -> int | None:
        """Bytes of the files of an embedded one."""
        return size_of(Path(self.place.uri)) if self.place.embedded else None


def _rows_per_message(dimension: int) -> int:
    return int(np.clip(_MESSAGE_BYTES // (4 * max(1, dimension)), 1, LIMIT // 2))


def _first_line(error: Exception) -> str:
    return (str(getattr(error, "message", "") or error)).strip().split("\n")[0]


def _frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a table. Numbers stay as they are: with a null among them they would become floating."""
    table = pd.DataFrame(list(rows), columns=list(columns), dtype=object)
    return table.astype({"id": np.int64}) if "id" in columns else table


VERSION = 2  #: raised when an older program could no longer read the collections
CURRENT, UNFINISHED, FIRST_REMOVAL = 0, 1, 2  #: numbers of notes


@dataclass(frozen=True)
class State:
    """What note 0 says of a gallery.

    Args:
        generation: number of the collection of its images.
        dimension, plan, model, next_id: as in ``Snapshot``.
    """

    generation: int
    dimension: int
    plan: IndexConfig
    model: ModelFingerprint | None
    next_id: int = 0

    def is_like(self, other: State) -> bool:
        """Whether features of one model fit both."""
        return is_same_model(self.model, other.model) and self.dimension == other.dimension

    def to_text(self) -> str:
        """As JSON."""
        plan = {"kind": self.plan.kind, "settings": dict(self.plan.settings)}
        model = None if self.model is None else self.model.to_json()
        known = {"format": FORMAT, "version": VERSION, "metric": METRIC}
        return json.dumps({**known, **asdict(self), "plan": plan, "model": model})

    @classmethod
    def from_text(cls, text: str, place: MilvusURI) -> State:
        """What ``to_text`` wrote.

        Raises:
            InputError: another text.
        """
        try:
            value = json.loads(text)
            if (value["format"], value["version"], value["metric"]) != (FORMAT, VERSION, METRIC):
                raise ValueError(f"version {value['version']}; this program reads {VERSION}")
            return cls(
                int(value["generation"]),
                int(value["dimension"]),
                IndexConfig(value["plan"]["kind"], value["plan"]["settings"]),
                None if value["model"] is None else ModelFingerprint.from_json(value["model"]),
                int(value["next_id"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{place}: not a gallery of this program ({truncate(error)})") from None


def images_name(name: str, generation: int) -> str:
    """The collection of a gallery's images."""
    return f"{name}{IMAGES}{generation}"


def collect_garbage(server: MilvusServer, state: State) -> None:
    """Delete the collections of images that a gallery's state does not name: of writes that were killed."""
    name = server.place.collection
    if server.notes(name).get(UNFINISHED):
        server.write_notes(name, {UNFINISHED: ""})
    ours = re.compile(rf"{re.escape(name + IMAGES)}[0-9]+")  # a name that no gallery can have
    for other in server.collections():
        if ours.fullmatch(other) and other != images_name(name, state.generation):
            server.drop(other)


def log_notes(server: MilvusServer, name: str, removals: Iterable[DeletionRecord]) -> dict[int, str]:
    """Notes that carry on the log of removals."""
    first = max([FIRST_REMOVAL - 1, *server.notes(name)]) + 1
    return {number: removal.to_line() for number, removal in enumerate(removals, first)}


def read_log(notes: Mapping[int, str], place: MilvusURI) -> tuple[DeletionRecord, ...]:
    """The log of removals.

    Raises:
        InputError: a note that ``log_notes`` did not write.
    """
    try:
        return tuple(DeletionRecord.from_line(notes[key]) for key in sorted(notes) if key >= FIRST_REMOVAL)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{place}: damaged: not a log of removals ({truncate(error)})") from None


def unused_generation(server: MilvusServer, name: str) -> int:
    """A number that no collection of a gallery's images has."""
    prefix = name + IMAGES
    numbers = [other.removeprefix(prefix) for other in server.collections() if other.startswith(prefix)]
    return max([0, *(int(number) for number in numbers if number.isdecimal())]) + 1


_ALL, _NONE = "id >= 0", "id < 0"
_OPPOSITE = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True)
class Expression:
    """A condition of three values: where neither holds, it is unknown."""

    true: str
    false: str

    def __and__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} and {other.true})", f"({self.false} or {other.false})")

    def __or__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} or {other.true})", f"({self.false} and {other.false})")

    def __invert__(self) -> Expression:
        return Expression(self.false, self.true)


class _Leaves:
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
        return Expression(like, f"not ({like})")

    def _where_known(self, column: str, true: str, false: str) -> Expression:
        known = self.known(column).true
        return Expression(f"({known} and {true})", f"({known} and {false})")


def literal(value: int | str | Sequence[int | str]) -> str:
    """A value, or a list of values, in an expression of Milvus."""
    return json.dumps(value, ensure_ascii=False)


def expression(where: str) -> str:
    """A filter as Milvus reads it.

    Raises:
        InputError: not such a filter, see ``filters``.
    """
    stated: Expression = parse_filter(where, _Leaves())
    return stated.true
