"""A client of a gallery on a server: the methods of ``Gallery``, over HTTP.

Only ``export`` needs other files of the package.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import pandas as pd

PAGE = 1000  #: rows in an answer to a request for the table
PAGE_FEATURES = 100  #: rows in an answer to a request for the table with features
SHORTLIST = 100  #: images of each query that are re-ranked
PER_GROUP = 3  #: matches of each group
#: dtypes of the table by the types of columns, as of ``Gallery.table``
DTYPES = {
    "string": "string",
    "integer": "Int64",
    "float": "Float64",
    "boolean": "boolean",
    "timestamp": "datetime64[us, UTC]",
    "null": "string",
}

Picture = str | os.PathLike[str] | bytes  #: an image file, or its content


class ServerError(ValueError):
    """A request was refused.

    Args:
        status: HTTP status.
        detail: reason, in one line.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{detail} (HTTP {status})")
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class RemovalResult:
    """Result of a removal."""

    images: int  #: images removed


@dataclass(frozen=True)
class DeletionRecord:
    """A line of the log of removals and of new labels."""

    time: str  #: UTC, ISO 8601
    pid: int | str | None  #: null for images of unknown pid
    count: int  #: number of images
    #: the pid that the images have since, '' if it was taken off; null if they were removed
    label: int | str | None = None


class Client:
    """A gallery on a server, with the methods of ``Gallery``.

    ``build``, ``open``, ``save`` and ``merge`` work with folders of the server's machine, so a client does not have
    them. ``export`` writes a file of this machine.

    Every method raises ``ServerError`` if the request was refused, and ``httpx.HTTPError`` if the server does not
    answer.

    Args:
        url: address of the server, such as ``http://localhost:8000``.
        token: token, if the server has tokens.
        timeout: seconds to wait for an answer.
        transport: of httpx, for tests.

    Examples:
        >>> from rga_reid.serving import Client
        >>> with Client("http://localhost:8000") as gallery:  # doctest: +SKIP
        ...     matches = gallery.search(images=["a.jpg"], top_k=5, where="camera == 3")
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._types: dict[str, str] = {}  # of the columns, as far as they were needed

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---------- reading ----------

    def search(
        self,
        features: Any = None,
        top_k: int = 10,
        *,
        exclude_camera: int | str | None = None,
        where: str | None = None,
        rerank: Any = None,
        shortlist: int = SHORTLIST,
        with_ids: bool = True,
        group_by: str | None = None,
        per_group: int = PER_GROUP,
        images: Sequence[Picture] = (),
        ids: Sequence[int] = (),
        not_ids: Sequence[int] = (),
        threshold: float | None = None,
        multi: bool = False,
    ) -> pd.DataFrame:
        """Return the nearest images to each query, or the nearest groups of images.

        Args:
            features: numbers ``(q, d)``; or give ``images`` or ``ids``.
            top_k: matches, or groups, per query.
            exclude_camera, where, shortlist, group_by, per_group: see ``Gallery.search``.
            rerank: re-rank each query's shortlist: a ``ReRanking``, or True for the default one.
            with_ids: with the ids of the images as a last column ``id``; unlike ``Gallery.search``, by default.
            images: pictures that the server embeds.
            ids: images of the gallery as further queries.
            not_ids: images of other people, see docs/serving.md.
            threshold: least score of a match.
            multi: all queries show one person: search with their mean.

        Returns:
            Columns ``query``, ``rank``, ``score``, those of the gallery, and ``id``.
        """
        body: dict[str, Any] = {"top_k": top_k, "multi": multi, "ids": list(ids), "not_ids": list(not_ids)}
        body |= {"exclude_camera": exclude_camera, "where": where, "threshold": threshold}
        body |= {"group_by": group_by, "per_group": per_group}
        if rerank:
            names = () if rerank is True else ("k1", "k2", "lambda_value")
            body |= {
                "rerank": {name: getattr(rerank, name) for name in names} or True,
                "shortlist": shortlist,
            }
        if features is not None:
            body["features"] = np.asarray(features, dtype=float).tolist()
        if images:
            body["images"] = _encode(images)
        found = self._send("POST", "/v1/search", body)["queries"]
        rows = [
            {"query": number, **match} for number, query in enumerate(found) for match in query["matches"]
        ]
        table = self._table(rows)
        first = pd.DataFrame(
            {
                "query": np.array([row["query"] for row in rows], np.int64),
                "rank": np.array([row["rank"] for row in rows], np.int64),
                "score": np.array([row["score"] for row in rows], np.float64),
            }
        )
        return pd.concat([first, table if with_ids else table.drop(columns="id")], axis=1)

    def embed(self, images: Sequence[Picture]) -> np.ndarray:
        """Return the features of pictures, float32 ``(n, d)``."""
        found = self._send("POST", "/v1/embed", {"images": _encode(images)})["features"]
        return np.array(found, np.float32)

    def verify(self, first: Picture, second: Picture, threshold: float | None = None) -> dict[str, Any]:
        """Compare two pictures; return ``score``, ``threshold`` and ``same``."""
        body = {"images": _encode([first, second]), "threshold": threshold}
        return dict(self._send("POST", "/v1/verify", body))

    def find(
        self,
        *,
        pids: int | str | Iterable[int | str] = (),
        paths: str | Iterable[str] = (),
        where: str | None = None,
    ) -> pd.DataFrame:
        """Return the rows of some persons and paths, those that a filter keeps, or all.

        Args:
            pids, paths, where: see ``Gallery.find``.

        Returns:
            The columns of ``table``, and ``id``, by increasing id.
        """
        body = {"pids": _listed(pids), "paths": _listed(paths), "where": where}
        return self._table([row for page in self._pages(body) for row in page["images"]])

    def known_paths(self, paths: Iterable[str]) -> set[str]:
        """Return those of some paths of which the gallery has an image."""
        wanted, known = list(paths), set[str]()
        for start in range(0, len(wanted), PAGE):
            body = {"paths": wanted[start : start + PAGE], "missing_ok": True}
            known.update(row["path"] for page in self._pages(body) for row in page["images"])
        return known

    def count(self, *, exclude_camera: int | str | None = None, where: str | None = None) -> int:
        """Return how many images a search with these limits compares."""
        given = {"limit": 0, "exclude_camera": exclude_camera, "where": where}
        parameters = {name: value for name, value in given.items() if value is not None}
        return int(self._send("GET", "/v1/images", parameters=parameters)["count"])

    def describe(self) -> dict[str, Any]:
        """Return the description of the gallery and the server, see ``Gallery.describe``."""
        return dict(self._send("GET", "/v1/gallery"))

    def thumbnail(self, id: int) -> bytes:
        """Return an image as a small JPEG."""
        return self._request("GET", f"/v1/images/{id}/thumbnail").content

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write features and table to an ``.npz`` file, from which a gallery can be built again."""
        from rga_reid.inference.feature_files import write_features
        from rga_reid.models.checkpoints import ModelFingerprint

        pages = list(self._pages({"features": True, "limit": PAGE_FEATURES}))
        vectors = [np.array(page["features"], np.float32) for page in pages if page["images"]]
        table = self._table([row for page in pages for row in page["images"]]).drop(columns=["id", "camid"])
        features = np.concatenate([*vectors, np.empty((0, self.dimension), np.float32)])
        model = self.model
        write_features(path, features, table, None if model is None else ModelFingerprint.from_json(model))

    def check(self) -> int:
        """Check what is on the server's disk now, however long it takes, see ``Gallery.check``."""
        return int(self._request("GET", "/v1/gallery/check", timeout=None).json()["checked"])

    def require_model(self, model: Any) -> None:
        """Refuse features of another model.

        Args:
            model: a ``ModelFingerprint``.

        Raises:
            ValueError: the gallery was built with another model.
        """
        own = self.model
        if own is not None and not type(model).from_json(own).is_same(model):
            raise ValueError(
                f"model {model.checkpoint}: the gallery was built with another model: {own['checkpoint']}"
            )

    def __len__(self) -> int:
        return self.count()

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return int(self.describe()["dimension"])

    @property
    def model(self) -> dict[str, Any] | None:
        """Fingerprint of the model, as JSON; None if unknown."""
        return self.describe()["model"]

    @property
    def columns(self) -> dict[str, str]:
        """Names of the columns of the table, and their types."""
        return dict(self.describe()["columns"])

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table, one row per image."""
        return self.find().drop(columns="id")

    @property
    def ids(self) -> np.ndarray:
        """A number for each row of ``table``, int64 ``(n,)``."""
        return self.find()["id"].to_numpy(np.int64)

    @property
    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        """Time, pid and number of images of each removal."""
        found = self._send("GET", "/v1/gallery/removals")["removals"]
        return tuple(DeletionRecord(**record) for record in found)

    # ---------- writing ----------

    def add(
        self,
        features: Any = None,
        table: pd.DataFrame | None = None,
        *,
        model: Any = None,
        images: Sequence[Picture] = (),
    ) -> np.ndarray:
        """Add images, and return their ids. They are durable when this returns.

        Args:
            features: numbers ``(n, d)``; or give ``images``.
            table: n rows, see ``Gallery.add``.
            model: ``ModelFingerprint`` of the model that embedded them; None if it is known to be the same.
            images: pictures, which the server embeds, and keeps if it has an images root.
        """
        if model is not None:
            self.require_model(model)
        body: dict[str, Any] = {}
        if features is not None:
            body["features"] = np.asarray(features, dtype=float).tolist()
        if images:
            body["images"] = _encode(images)
        if table is not None:
            body["rows"] = [_plain(row) for row in table.to_dict("records")]
        return np.array(self._send("POST", "/v1/images", body)["ids"], np.int64)

    def label(
        self, where: str | None = None, pid: int | str | None = "", *, ids: Sequence[int] | None = None
    ) -> int:
        """Give the images of a filter, or of some ids, a pid, None for unlabelled; return how many have changed."""
        body = {"where": where, "ids": None if ids is None else list(ids), "pid": pid}
        return int(self._send("PATCH", "/v1/images", body)["changed"])

    def update(self, ids: Any, table: pd.DataFrame) -> None:
        """Change columns of some images, or add columns to the gallery.

        Args:
            ids: ids of n images.
            table: n rows of the columns to change, except ``path`` and ``pid`` (see ``label``).
        """
        rows = [_plain(row) for row in table.to_dict("records")]
        self._send("PATCH", "/v1/images", {"ids": np.asarray(ids, np.int64).tolist(), "rows": rows})

    def remove(
        self,
        *,
        pids: int | str | Iterable[int | str] = (),
        paths: str | Iterable[str] = (),
        where: str | None = None,
        ids: Sequence[int] | None = None,
    ) -> RemovalResult:
        """Erase the images of some persons and paths, of a filter, or of some ids.

        Args:
            pids, paths, where: see ``Gallery.remove``.
            ids: ids of images.

        Returns:
            Number of images that were removed.
        """
        body: dict[str, Any] = {"pids": _listed(pids), "paths": _listed(paths), "where": where}
        body["ids"] = None if ids is None else list(ids)
        return RemovalResult(int(self._send("DELETE", "/v1/images", body)["deleted"]))

    def compact(self) -> None:
        """Join segments and rebuild their indexes, however long it takes, see ``Gallery.compact``."""
        self._request("POST", "/v1/gallery/compact", timeout=None)

    def maintain(self) -> None:
        """Join small segments, however long it takes. The server does so by itself as images are added."""
        self._request("POST", "/v1/gallery/maintain", timeout=None)

    # ---------- requests ----------

    def _pages(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        after: int | None = -1
        while after is not None:
            page = self._send("POST", "/v1/images/find", {"limit": PAGE, **body, "after": after})
            yield page
            after = page["next"]

    def _table(self, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """Return the columns of the gallery in their types, and ``id``."""
        if not all(self._has_type(name, value) for row in rows for name, value in row.items()):
            self._types = self.columns
        types = self._types or self.columns
        columns: dict[str, Any] = {}
        for name, kind in types.items():
            values = pd.Series([row.get(name) for row in rows], dtype=object)
            if kind == "timestamp":
                values = pd.to_datetime(values, utc=True, format="ISO8601")
            columns[name] = values.astype("str" if name == "path" else DTYPES[kind])
            if name == "camera":
                columns["camid"] = columns[name]
        return pd.DataFrame(columns | {"id": np.array([row["id"] for row in rows], np.int64)})

    def _has_type(self, name: str, value: Any) -> bool:
        """Return whether a value fits the known type of its column; it may have got another one since."""
        if name in ("query", "rank", "score", "id", "camid"):
            return True
        kind = self._types.get(name)
        if kind is None or kind == "null":
            return kind is not None and value is None
        return isinstance(value, str) == (kind in ("string", "timestamp")) or value is None

    def _send(
        self, method: str, path: str, body: Any = None, parameters: dict[str, Any] | None = None
    ) -> Any:
        return self._request(method, path, json=body, params=parameters).json()

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        answer = self._http.request(method, path, **content)
        if answer.is_success:
            return answer
        try:
            detail = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):  # not of this server, but of a proxy
            detail = answer.reason_phrase
        raise ServerError(answer.status_code, detail)


def _encode(images: Sequence[Picture]) -> list[str]:
    contents = []
    for image in images:
        if not isinstance(image, bytes):
            with open(image, "rb") as file:
                image = file.read()
        contents.append(base64.b64encode(image).decode("ascii"))
    return contents


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON has it."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if name == "camid" and "camera" in row:
            continue
        if pd.isna(value):
            plain[name] = None
        elif isinstance(value, pd.Timestamp):
            plain[name] = value.isoformat()
        else:
            plain[name] = value.item() if isinstance(value, np.generic) else value
    return plain


def _listed(values: Any) -> list[Any]:
    """Return one value, or some, as a list of JSON."""
    one = isinstance(values, str | int | np.integer)
    return [
        value.item() if isinstance(value, np.generic) else value for value in ([values] if one else values)
    ]
