"""Bodies of requests: multipart forms with pictures, or JSON."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rga_reid.data.columns import CAMERA_ALIAS, RESULT_COLUMNS
from rga_reid.errors import did_you_mean
from rga_reid.evaluation import ReRanking
from rga_reid.gallery.grouped_search import PER_GROUP
from rga_reid.inputs import parse_json, truncate
from rga_reid.serving.problems import Problem
from rga_reid.serving.uploads import COLUMN

MAX_IMAGES = 256  #: pictures in a request
MAX_ROWS = 4096  #: features, rows or ids in a request
MAX_TOP_K = 1000
MAX_LISTED = 1000  #: images in a page of a list
_MAX_DEPTH = 3  # of JSON: an object, a list of rows, a row
_INT64 = 2**63

Id = Annotated[int, Field(ge=0, lt=_INT64)]
Label = Annotated[int, Field(ge=-_INT64, lt=_INT64, strict=True)] | Annotated[str, Field(max_length=1000)]
Vector = list[float]
Encoded = Annotated[list[str], Field(max_length=MAX_IMAGES, description="pictures in base64")]
Ids = Annotated[list[Id], Field(max_length=MAX_ROWS)]
Labels = Annotated[list[Label], Field(max_length=MAX_ROWS)]
Paths = Annotated[list[str], Field(max_length=MAX_ROWS, description="as in the gallery; no file is opened")]
Rows = Annotated[
    list[dict[str, Any]], Field(max_length=MAX_ROWS, description="one object of columns for each")
]
Vectors = Annotated[list[Vector], Field(max_length=MAX_ROWS)]
Where = Annotated[
    str, Field(max_length=10_000, description="filter, such as `camera == 3 and time >= now - 2h`")
]
Threshold = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Body(BaseModel):
    """A body. Unknown fields are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")


class ReRankingBody(Body):
    """Settings of k-reciprocal re-ranking."""

    k1: int = Field(ReRanking.k1, ge=1, le=MAX_TOP_K)
    k2: int = Field(ReRanking.k2, ge=1, le=MAX_TOP_K)
    lambda_value: float = Field(ReRanking.lambda_value, ge=0, le=1)


class SearchBody(Body):
    """A search. Queries are pictures, features, or images of the gallery by id."""

    features: Vectors | None = None
    images: Encoded | None = None
    ids: Ids = Field([], description="images of the gallery as further queries")
    not_ids: Ids = Field(
        [],
        description="images of other people; they are left out, and matches more like one of them than the query",
    )
    top_k: int = Field(10, ge=1, le=MAX_TOP_K, description="matches per query")
    where: Where | None = None
    group_by: str | None = Field(None, description="column whose values group matches, such as `track`")
    per_group: int = Field(PER_GROUP, ge=1, le=MAX_TOP_K, description="matches of each group")
    threshold: Threshold | None = Field(None, description="matches with a lower score are left out")
    rerank: bool | ReRankingBody = Field(False, description="k-reciprocal re-ranking of the nearest images")
    shortlist: int | None = Field(
        None, ge=1, le=2 * MAX_TOP_K, description="nearest images that are re-ranked, at least `top_k`"
    )
    exclude_camera: Label | None = Field(None, description="search only images of other cameras")
    multi: bool = Field(False, description="all queries show one person: search with their mean")


class ImagesBody(Body):
    """Pictures only."""

    images: Encoded | None = None


class VerifyBody(ImagesBody):
    """Two pictures."""

    threshold: Threshold | None = None


class AddBody(Body):
    """Images to add: pictures or features, with the values of their columns."""

    features: Vectors | None = None
    images: Encoded | None = None
    rows: Rows | None = None


class FindBody(Body):
    """Images to list: those of a filter, or of some persons and paths; all without any of them."""

    where: Where | None = None
    pids: Labels = []
    paths: Paths = []
    missing_ok: bool = Field(False, description="do not refuse pids and paths without an image")
    after: int = Field(-1, ge=-1, lt=_INT64, description="list only larger ids")
    limit: int = Field(100, ge=1, le=MAX_LISTED)
    features: bool = Field(False, description="with the features of the images")


class ChangeBody(Body):
    """Images and the pid that they get, or the values of other columns for each."""

    ids: Ids | None = None
    where: Where | None = None
    pid: Label | None = Field(None, description="null takes the pid off")
    rows: Rows | None = None


class EraseBody(Body):
    """Images to erase."""

    ids: Ids | None = None
    where: Where | None = None
    pid: Label | None = None
    pids: Labels = []
    paths: Paths = []


class ExplainBody(Body):
    """A picture, and the one that it is compared with: a second picture, or an image of the gallery by id."""

    images: Encoded | None = None
    id: Id | None = None


AnyBody = TypeVar("AnyBody", bound=Body)


@dataclass(frozen=True)
class Parsed:
    """Content of a body.

    Args:
        fields: by name; ``images`` are left out.
        images: content of the pictures.
    """

    fields: dict[str, Any]
    images: list[bytes] = field(default_factory=list)


async def read_body(request: Request, body: type[AnyBody]) -> tuple[AnyBody, list[bytes]]:
    """Read and check a body; return it and the content of its pictures.

    Raises:
        Problem: another media type, a damaged body, an unknown field or a wrong value.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parsed = await _read_form(request, body)
    elif kind == "application/json":
        parsed = _read_json(await request.body())
    else:
        raise Problem(
            415, f"expected application/json or multipart/form-data, found {truncate(kind, 100) or 'none'}"
        )
    checked = validate(body, parsed.fields)
    encoded = getattr(checked, "images", None) or []
    return checked, [*parsed.images, *map(_decode_base64, encoded)]


def validate(body: type[AnyBody], values: Any) -> AnyBody:
    """Return a checked body.

    Raises:
        Problem: an unknown field or a wrong value; the message names it.
    """
    try:
        return body.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            known = body.model_fields
            hint = did_you_mean(place, known) or f"; expected one of {', '.join(known)}"
            raise Problem(422, truncate(f"{place}: unknown field{hint}")) from None
        raise Problem(422, truncate(f"{place}: {first['msg']}")) from None


async def _read_form(request: Request, body: type[Body]) -> Parsed:
    length = int(request.headers.get("content-length") or 0)
    try:
        form = await request.form(max_files=MAX_IMAGES, max_fields=1000, max_part_size=max(1 << 20, length))
    except HTTPException as error:
        status = 413 if "Too many files" in str(error.detail) else 400
        raise Problem(status, truncate(f"multipart form: {error.detail}")) from None
    try:
        images = [await _read_part(value) for name, value in form.multi_items() if name == "image"]
        fields = {name: _form_value(form, name, body) for name in form if name != "image"}
    finally:
        await form.close()
    return Parsed(fields, images)


async def _read_part(value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise Problem(422, "image: expected a file, found text")
    return await value.read()


def _form_value(form: FormData, name: str, body: type[Body]) -> Any:
    """Return a field of a form: one text, or a list where the body has one; ``rows`` is JSON."""
    values = form.getlist(name)
    if not all(isinstance(value, str) for value in values):
        raise Problem(422, f"{truncate(name, 100)}: expected text, found a file; pictures are called image")
    texts = [value for value in values if isinstance(value, str)]
    _require_unicode(texts)
    if name in ("rows", "features"):
        return _parse("".join(texts).encode(), name)
    known = body.model_fields.get(name)
    if name in ("ids", "not_ids"):
        return [part for text in texts for part in text.replace(",", " ").split()]
    if known is not None and "list" in str(known.annotation):
        return texts
    if len(texts) > 1:
        raise Problem(422, f"{truncate(name, 100)}: expected one value, found {len(texts)}")
    return texts[0] or None if known is not None and not known.is_required() else texts[0]


def _read_json(content: bytes) -> Parsed:
    value = _parse(content, "body")
    if not isinstance(value, dict):
        raise Problem(422, f"body: expected an object, found {type(value).__name__}")
    return Parsed(value)


def _parse(content: bytes, name: str) -> Any:
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise Problem(400, truncate(f"{name}: not valid JSON in UTF-8 ({error})")) from None


def _decode_base64(text: str) -> bytes:
    """Return the content of a picture in base64, which may be a data URI."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "images: expected base64") from None


def _require_unicode(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Problem(400, "form: expected text in UTF-8") from None


def check_rows(rows: Sequence[dict[str, Any]], *, same_columns: bool = False) -> None:
    """Refuse rows that a gallery cannot keep.

    Args:
        rows: objects of columns.
        same_columns: all of them must have the same ones, at least one.

    Raises:
        Problem: a column that the server sets, or a value that is not null, text, a finite number or a boolean.
    """
    reserved = {COLUMN, *RESULT_COLUMNS} - {CAMERA_ALIAS}
    if same_columns and (len(sets := {frozenset(row) for row in rows}) != 1 or not min(sets)):
        raise Problem(422, "rows: expected the same columns in each, at least one")
    for number, row in enumerate(rows):
        for name, value in row.items():
            place = f"rows.{number}.{truncate(name, 100)}"
            if name in reserved:
                raise Problem(422, f"{place}: the server sets this column")
            if not name or len(name) > 200:
                raise Problem(422, f"{place}: expected a name of 1 to 200 characters")
            if value is not None and not isinstance(value, str | bool | int | float):
                raise Problem(422, f"{place}: expected text, a number, a boolean or null")
            if isinstance(value, int) and not -_INT64 <= value < _INT64:
                raise Problem(422, f"{place}: expected a number of at most 64 bits")
            if isinstance(value, float) and not math.isfinite(value):
                raise Problem(422, f"{place}: expected a finite number")
