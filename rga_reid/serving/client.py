"""A client of a gallery on a server: the methods of ``Gallery``, over HTTP. It needs no other file of the package."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import pandas as pd

PAGE = 1000  #: rows in an answer to a request for the table

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


class Client:
    """A gallery on a server, with the methods of ``Gallery``.

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
        images: Sequence[Picture] = (),
        ids: Sequence[int] = (),
        not_ids: Sequence[int] = (),
        where: str | None = None,
        group_by: str | None = None,
        per_group: int | None = None,
        threshold: float | None = None,
        rerank: bool = False,
        multi: bool = False,
    ) -> pd.DataFrame:
        """Return the nearest images to each query.

        Args:
            features: numbers ``(q, d)``; or give ``images`` or ``ids``.
            top_k: matches, or groups, per query.
            images: pictures that the server embeds.
            ids: images of the gallery as further queries.
            not_ids: images of other people, see docs/serving.md.
            where, group_by, per_group: see ``Gallery.search``.
            threshold: least score of a match.
            rerank: re-rank each query's shortlist.
            multi: all queries show one person: search with their mean.

        Returns:
            Columns ``query``, ``rank``, ``score``, ``id``, and those of the gallery.

        Raises:
            ServerError: the request was refused.
            httpx.HTTPError: the server does not answer.
        """
        body: dict[str, Any] = {"top_k": top_k, "rerank": rerank, "multi": multi, "ids": list(ids)}
        body |= {"not_ids": list(not_ids), "where": where, "group_by": group_by, "threshold": threshold}
        if per_group is not None:
            body["per_group"] = per_group
        if features is not None:
            body["features"] = np.asarray(features, dtype=float).tolist()
        if images:
            body["images"] = _encode(images)
        found = self._send("POST", "/v1/search", body)["queries"]
        rows = [
            {"query": number, **match} for number, query in enumerate(found) for match in query["matches"]
        ]
        return _table(
            rows, ["query", "rank", "score", "id", "path", "pid", "camera", "camid", "time", "track"]
        )

    def embed(self, images: Sequence[Picture]) -> np.ndarray:
        """Return the features of pictures, float32 ``(n, d)``."""
        found = self._send("POST", "/v1/embed", {"images": _encode(images)})["features"]
        return np.array(found, np.float32)

    def verify(self, first: Picture, second: Picture, threshold: float | None = None) -> dict[str, Any]:
        """Compare two pictures; return ``score``, ``threshold`` and ``same``."""
        body = {"images": _encode([first, second]), "threshold": threshold}
        return dict(self._send("POST", "/v1/verify", body))

    def find(self, where: str | None = None) -> pd.DataFrame:
        """Return the rows that a filter keeps, or all, with their ids."""
        return _table(list(self._rows(where)), ["id", "path", "pid", "camera", "camid", "time", "track"])

    def count(self, where: str | None = None) -> int:
        """Return the number of images, or of those that a filter keeps."""
        parameters = {"limit": 0} if where is None else {"limit": 0, "where": where}
        return int(self._send("GET", "/v1/images", parameters=parameters)["count"])

    def describe(self) -> dict[str, Any]:
        """Return the description of the gallery and the server, see ``Gallery.describe``."""
        return dict(self._send("GET", "/v1/gallery"))

    def thumbnail(self, id: int) -> bytes:
        """Return an image as a small JPEG."""
        return self._request("GET", f"/v1/images/{id}/thumbnail").content

    def __len__(self) -> int:
        return int(self.describe()["count"])

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
        """A number for each row of ``table``."""
        return self.find()["id"].to_numpy(np.int64)

    # ---------- writing ----------

    def add(
        self, features: Any = None, table: pd.DataFrame | None = None, *, images: Sequence[Picture] = ()
    ) -> np.ndarray:
        """Add images, and return their ids. They are durable when this returns.

        Args:
            features: numbers ``(n, d)``; or give ``images``.
            table: n rows, see ``Gallery.add``.
            images: pictures, which the server embeds, and keeps if it has an images root.
        """
        body: dict[str, Any] = {}
        if features is not None:
            body["features"] = np.asarray(features, dtype=float).tolist()
        if images:
            body["images"] = _encode(images)
        if table is not None:
            body["rows"] = [_plain(row) for row in table.to_dict("records")]
        return np.array(self._send("POST", "/v1/images", body)["ids"], np.int64)

    def label(
        self, where: str | None = None, pid: int | str = "", *, ids: Sequence[int] | None = None
    ) -> int:
        """Give the images of a filter, or of some ids, a pid; return how many have changed."""
        body = {"where": where, "ids": None if ids is None else list(ids), "pid": pid}
        return int(self._send("PATCH", "/v1/images", body)["changed"])

    def remove(
        self,
        *,
        pids: int | str | Iterable[int | str] = (),
        ids: Sequence[int] | None = None,
        where: str | None = None,
    ) -> int:
        """Erase the images of some persons, of some ids or of a filter; return their number."""
        persons = [pids] if isinstance(pids, int | str) else list(pids)
        bodies: list[dict[str, Any]] = [{"pid": pid} for pid in persons]
        if ids is not None or where is not None or not bodies:
            bodies.append({"ids": None if ids is None else list(ids), "where": where})
        return sum(int(self._send("DELETE", "/v1/images", body)["deleted"]) for body in bodies)

    # ---------- requests ----------

    def _rows(self, where: str | None) -> Iterator[dict[str, Any]]:
        after: int | None = -1
        while after is not None:
            parameters: dict[str, Any] = {"limit": PAGE, "after": after}
            if where is not None:
                parameters["where"] = where
            page = self._send("GET", "/v1/images", parameters=parameters)
            yield from page["images"]
            after = page["next"]

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


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns))
    if "time" in table:
        table["time"] = pd.to_datetime(table["time"], utc=True, format="ISO8601")
    for column in ("pid", "camera", "camid", "track"):
        if column in table and not table[column].map(lambda value: isinstance(value, str)).any():
            table[column] = table[column].astype("Int64")
    return table
