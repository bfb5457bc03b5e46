"""The application: routes under ``/v1``, the page, and their description."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import rga_reid
from rga_reid.data.columns import plain_records
from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.inference.verify import Threshold
from rga_reid.inputs import truncate
from rga_reid.serving import answers, bodies
from rga_reid.serving.audit import AuditLog
from rga_reid.serving.auth import ANYBODY, Caller, RateLimit, Tokens
from rga_reid.serving.bodies import MAX_LISTED, Id, read_body
from rga_reid.serving.description import add_bodies, describe_page
from rga_reid.serving.engine import Addition, Engine, SearchSettings
from rga_reid.serving.explanation import Explainer
from rga_reid.serving.metrics import Metrics
from rga_reid.serving.middleware import Guard
from rga_reid.serving.problems import Problem, problem_of, problem_response
from rga_reid.serving.uploads import Picture, thumbnail

PAGE = Path(__file__).parent / "page"  #: files of the page, served under ``/static``
MAX_BYTES = 64 << 20  #: of a request
RATE = 100.0  #: requests per second of a token
#: pages that are made here have their style inside, and no script
PLAIN_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"

log = logging.getLogger("rga_reid.serving")
T = TypeVar("T")
_bearer = HTTPBearer(auto_error=False, description="only on servers with tokens")


@dataclass
class Settings:
    """Settings of a server.

    Args:
        tokens: accepted tokens; None for a server that only this machine can reach.
        threshold: least score of the same person.
        read_only: refuse changes.
        max_bytes: largest body of a request.
        rate: requests per second of a token; 0 for no limit.
        origins: origins of other sites whose pages may send requests (CORS).
        audit: log of what was done.
        metrics: metrics of the engine.
    """

    tokens: Tokens | None = None
    threshold: Threshold | None = None
    read_only: bool = False
    max_bytes: int = MAX_BYTES
    rate: float = RATE
    origins: Sequence[str] = ()
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    metrics: Metrics = field(default_factory=Metrics)


def _role(name: str, *, changes: bool) -> Any:
    """Return the dependency of operations that need a role, and of those that change the gallery: the caller."""

    async def check(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> Caller:
        settings: Settings = request.app.state.settings
        caller = ANYBODY
        if settings.tokens is not None:
            caller = settings.tokens.authenticate(request.headers.get("authorization"))
            request.app.state.limit.check(caller)
        request.state.caller = caller
        caller.require(name)
        if changes and settings.read_only:
            raise Problem(403, "this server is read-only")
        return caller

    return Depends(check)


# at the level of the module, where FastAPI finds the names of annotations
Reader = Annotated[Caller, _role("read", changes=False)]
Checker = Annotated[Caller, _role("write", changes=False)]
Writer = Annotated[Caller, _role("write", changes=True)]
Eraser = Annotated[Caller, _role("erase", changes=True)]


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """Return the ASGI application of a gallery.

    Args:
        engine: serves the gallery; closed when the application stops.
        settings: settings of the server.
    """
    settings = Settings() if settings is None else settings
    audit = settings.audit
    explainer = Explainer(engine.embedder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)
        audit.close()

    app = FastAPI(
        title="rga-reid",
        version=rga_reid.__version__,
        summary="Search a gallery of people by appearance.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.settings, app.state.limit = settings, RateLimit(settings.rate)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(
        Guard,
        max_bytes=settings.max_bytes,
        local_only=settings.tokens is None,
        origins=settings.origins,
        metrics=settings.metrics,
    )
    _handle_errors(app)

    # ---------- pictures ----------

    async def decode(images: Sequence[bytes]) -> list[Picture]:
        futures = [engine.decode(image, f"image {number}") for number, image in enumerate(images)]
        return [await asyncio.wrap_future(future) for future in futures]

    async def start_embedding(images: Sequence[bytes]) -> tuple[Future[np.ndarray], list[Picture]]:
        if not images:
            raise Problem(422, "image: expected at least one picture")
        with engine.expect_images():
            pictures = await decode(images)
            return engine.embed(np.stack([picture.pixels for picture in pictures])), pictures

    async def embed(images: Sequence[bytes]) -> tuple[np.ndarray, list[Picture]]:
        future, pictures = await start_embedding(images)
        return await asyncio.wrap_future(future), pictures

    async def features_of(body: Any, images: Sequence[bytes]) -> tuple[np.ndarray, list[Picture]]:
        """Return the features of a body that has either pictures or features."""
        given = getattr(body, "features", None)
        if given is None:
            return await embed(images)
        if images:
            raise Problem(422, "features, images: expected one of them, found both")
        return await run_in_threadpool(engine.normalize, given), []

    # ---------- search ----------

    @app.post("/v1/search", response_model=answers.SearchAnswer, summary="Find people")
    async def search_gallery(request: Request, caller: Reader) -> Response:
        body, images = await read_body(request, bodies.SearchBody)
        queries: np.ndarray | Future[np.ndarray]
        if body.features is None and not body.ids and not body.multi:
            queries, _ = await start_embedding(images)
        else:
            queries = np.empty((0, engine.dimension), np.float32)
            if body.features is not None or images or not body.ids:
                queries, _ = await features_of(body, images)
            if body.ids:
                queries = np.concatenate([queries, await run_in_threadpool(engine.features, body.ids)])
            if body.multi:
                queries = queries.mean(axis=0, keepdims=True)
        wanted = SearchSettings(
            body.top_k,
            body.where,
            _re_ranking(body.rerank),
            body.shortlist,
            body.exclude_camera,
            body.group_by,
            body.per_group,
            body.threshold,
            left_out=(*body.ids, *body.not_ids),
            rejected=(*body.not_ids,),
        )
        found = await asyncio.wrap_future(engine.search(queries, wanted))
        matches = sum(len(query["matches"]) for query in found)
        audit.write(caller, "search", body.where, queries=len(found), matches=matches)
        return answers.json_response({"queries": found})

    @app.post("/v1/verify", response_model=answers.VerifyAnswer, summary="Compare two pictures")
    async def verify(request: Request, caller: Reader) -> Response:
        body, images = await read_body(request, bodies.VerifyBody)
        if len(images) != 2:
            raise Problem(422, f"image: expected two pictures, found {len(images)}")
        features, _ = await embed(images)
        score = float(features[0].astype(np.float64) @ features[1])
        threshold = body.threshold
        if threshold is None and settings.threshold is not None:
            threshold = settings.threshold.value
        audit.write(caller, "verify", images=2)
        same = None if threshold is None else score >= threshold
        return answers.json_response({"score": score, "threshold": threshold, "same": same})

    @app.post("/v1/embed", response_model=answers.EmbedAnswer, summary="Embed pictures")
    async def embed_pictures(request: Request, caller: Reader) -> Response:
        _, images = await read_body(request, bodies.ImagesBody)
        features, _ = await embed(images)
        audit.write(caller, "embed", images=len(images))
        return answers.json_response({"features": features.tolist()})

    @app.post("/v1/explain", response_model=answers.ExplainAnswer, summary="Explain a match")
    async def explain(request: Request, caller: Reader, format: str = "json") -> Response:
        body, images = await read_body(request, bodies.ExplainBody)
        if body.id is not None:
            file = await run_in_threadpool(_picture_file, engine, body.id)
            images = [*images, await run_in_threadpool(file.read_bytes)]
        if len(images) != 2:
            raise Problem(422, f"image: expected two pictures, or one and an id, found {len(images)}")
        await decode(images)  # refuses what is not a picture
        names = ("query", "second picture" if body.id is None else f"image {body.id}")
        audit.write(caller, "explain", images=2)
        if format == "html":
            page = await run_in_threadpool(explainer.page, images, names)
            return Response(page, media_type="text/html", headers={"Content-Security-Policy": PLAIN_POLICY})
        return answers.json_response(await run_in_threadpool(explainer.explain, images, names))

    # ---------- images ----------

    @app.post(
        "/v1/images", response_model=answers.AddAnswer, status_code=201, summary="Add images or features"
    )
    async def add_images(request: Request, caller: Writer) -> Response:
        body, images = await read_body(request, bodies.AddBody)
        features, pictures = await features_of(body, images)
        rows = [{} for _ in features] if body.rows is None else body.rows
        if len(rows) != len(features):
            raise Problem(422, f"rows: expected {len(features)}, one for each image, found {len(rows)}")
        bodies.check_rows(rows)
        added = Addition(features, rows, pictures)
        ids = await asyncio.wrap_future(await run_in_threadpool(engine.add, added))
        audit.write(caller, "add", images=len(ids))
        return answers.json_response({"ids": ids}, 201)

    @app.get("/v1/images", response_model=answers.ImagesAnswer, summary="List images")
    async def list_images(
        caller: Reader,
        where: bodies.Where | None = None,
        exclude_camera: str | None = None,
        after: Annotated[int, Query(ge=-1, lt=2**63, description="list only larger ids")] = -1,
        limit: Annotated[int, Query(ge=0, le=MAX_LISTED)] = 100,
    ) -> Response:
        if limit == 0 and after == -1:
            count = await run_in_threadpool(
                lambda: engine.gallery.count(exclude_camera=exclude_camera, where=where)
            )
            return answers.json_response({"count": count, "images": [], "next": None})
        found = await run_in_threadpool(
            lambda: engine.list_images(after, where=where, exclude_camera=exclude_camera)
        )
        page = _page(found, limit)
        audit.write(caller, "list", where, images=len(page["images"]))
        return answers.json_response(page)

    @app.post("/v1/images/find", response_model=answers.FindAnswer, summary="List images and their features")
    async def find_images(request: Request, caller: Reader) -> Response:
        body, _ = await read_body(request, bodies.FindBody)

        def work() -> dict[str, Any]:
            found = engine.list_images(
                body.after,
                where=body.where,
                pids=body.pids,
                paths=body.paths,
                missing_ok=body.missing_ok,
            )
            page = _page(found, body.limit)
            if body.features:
                page["features"] = engine.features([image["id"] for image in page["images"]]).tolist()
            return page

        page = await run_in_threadpool(work)
        audit.write(caller, "list", body.where, images=len(page["images"]))
        return answers.json_response(page)

    @app.patch("/v1/images", response_model=answers.ChangeAnswer, summary="Label images, or change columns")
    async def change_images(request: Request, caller: Writer) -> Response:
        body, _ = await read_body(request, bodies.ChangeBody)
        if body.rows is not None or "pid" not in body.model_fields_set:  # a pid of null is a change
            _require_one(pid=body.pid, rows=body.rows)
        _require_one(ids=body.ids, where=body.where)
        if body.rows is not None:
            ids, rows = body.ids or [], body.rows
            if len(ids) != len(rows):
                raise Problem(422, f"rows: expected {len(ids)}, one for each of ids, found {len(rows)}")
            bodies.check_rows(rows, same_columns=True)
            changed = await asyncio.wrap_future(engine.update(ids, rows))
            audit.write(caller, "update", images=changed)
            return answers.json_response({"changed": changed})
        changed = await asyncio.wrap_future(engine.label(body.pid, where=body.where, ids=body.ids))
        audit.write(caller, "label", body.where, images=changed, pid=body.pid)
        return answers.json_response({"changed": changed})

    @app.delete("/v1/images", response_model=answers.EraseAnswer, summary="Erase images")
    async def erase_images(
        request: Request, caller: Eraser, where: bodies.Where | None = None, pid: str | None = None
    ) -> Response:
        body = bodies.validate(bodies.EraseBody, {"where": where, "pid": pid})
        if int(request.headers.get("content-length", 0)) or "transfer-encoding" in request.headers:
            if where is not None or pid is not None:
                raise Problem(422, "ids, where, pid: expected in the address or in the body, found both")
            body, _ = await read_body(request, bodies.EraseBody)
        named = [*body.pids, *body.paths] or None
        _require_one(ids=body.ids, where=body.where, pid=body.pid, **{"pids or paths": named})
        future = engine.erase(where=body.where, ids=body.ids, pid=body.pid, pids=body.pids, paths=body.paths)
        deleted = await asyncio.wrap_future(future)
        audit.write(caller, "erase", body.where, images=deleted, pid=body.pids or body.pid)
        return answers.json_response({"deleted": deleted})

    @app.get("/v1/images/{id}", response_model=answers.ImageAnswer, summary="Get an image's columns")
    async def get_image(id: Id, caller: Reader) -> Response:
        found = await run_in_threadpool(engine.find, [id])
        return answers.json_response(plain_records(found)[0])

    @app.get(
        "/v1/images/{id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
        summary="Get an image as a small JPEG",
    )
    async def get_thumbnail(id: Id, caller: Reader) -> Response:
        file = await run_in_threadpool(_picture_file, engine, id)
        try:
            content = await run_in_threadpool(thumbnail, file)
        except InputError:
            raise Problem(404, f"image {id}: its picture cannot be read") from None
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    # ---------- the gallery and the server ----------

    @app.get("/v1/gallery", response_model=answers.GalleryAnswer, summary="Describe the gallery")
    async def describe_gallery(caller: Reader) -> Response:
        described = await run_in_threadpool(engine.describe)
        threshold = settings.threshold
        server = {
            "threshold": None if threshold is None else threshold.value,
            "threshold_gallery_size": None if threshold is None else threshold.gallery_size,
            "threshold_note": None if threshold is None else threshold.gallery_warning(described["count"]),
            "thumbnails": engine.uploads is not None,
            "embeds": engine.embedder is not None,
            "explains": explainer.is_able,
            "read_only": settings.read_only,
            "roles": sorted(caller.roles),
            "version": rga_reid.__version__,
        }
        return answers.json_response(described | server)

    @app.get("/v1/gallery/removals", response_model=answers.RemovalsAnswer, summary="Get the deletion log")
    async def list_removals(caller: Reader) -> Response:
        records = await run_in_threadpool(lambda: engine.gallery.deletion_log)
        return answers.json_response({"removals": [asdict(record) for record in records]})

    @app.get("/v1/gallery/check", response_model=answers.CheckAnswer, summary="Look for damage on the disk")
    async def check_gallery(caller: Checker) -> Response:
        try:
            checked = await asyncio.wrap_future(engine.check())
        except InputError as error:
            raise Problem(503, str(error)) from None
        audit.write(caller, "check")
        return answers.json_response({"checked": checked})

    @app.post("/v1/gallery/compact", response_model=answers.MaintenanceAnswer, summary="Join all segments")
    async def compact_gallery(caller: Writer) -> Response:
        count = await asyncio.wrap_future(engine.compact())
        audit.write(caller, "compact")
        return answers.json_response({"count": count})

    @app.post("/v1/gallery/maintain", response_model=answers.MaintenanceAnswer, summary="Join small segments")
    async def maintain_gallery(caller: Writer) -> Response:
        count = await asyncio.wrap_future(engine.maintain())
        audit.write(caller, "maintain")
        return answers.json_response({"count": count})

    @app.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    async def metrics(caller: Reader) -> Response:
        content = await run_in_threadpool(settings.metrics.text)
        return Response(content, media_type="text/plain; version=0.0.4")

    @app.get("/healthz", response_class=Response, summary="Whether the process answers")
    async def healthz() -> Response:
        return answers.json_response({"status": "ok"})

    @app.get("/readyz", response_class=Response, summary="Whether the gallery can be searched")
    async def readyz() -> Response:
        try:
            await run_in_threadpool(lambda: engine.gallery.count())
        except InputError as error:
            raise Problem(503, str(error)) from None
        return answers.json_response({"status": "ready"})

    # ---------- pages ----------

    files = {file.name: file.read_bytes() for file in PAGE.iterdir() if file.is_file()}

    def send_file(name: str) -> Response:
        if name not in files:
            raise Problem(404, f"{truncate(name, 100)}: no such file")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(files[name], media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return send_file("page.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return send_file(name)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(describe_page(app.openapi()), media_type="text/html")

    add_bodies(app)
    return app


def _picture_file(engine: Engine, id: int) -> Path:
    """Return the file of an image's picture.

    Raises:
        Problem: no such image, or no picture of it.
    """
    file = engine.picture(id)
    if file is None:
        raise Problem(404, f"image {id}: the server has no picture of it")
    return file


def _re_ranking(wanted: bool | bodies.ReRankingBody) -> ReRanking | None:
    if isinstance(wanted, bool):
        return ReRanking() if wanted else None
    return ReRanking(**wanted.model_dump())


def _page(found: pd.DataFrame, limit: int) -> dict[str, Any]:
    """Return the first rows as an answer."""
    images = plain_records(found.head(limit))
    following = images[-1]["id"] if images and len(found) > limit else None
    return {"count": len(found), "images": images, "next": following}


def _require_one(**given: Any) -> None:
    """Refuse a request that does not say in exactly one way which images it means."""
    if sum(value is not None for value in given.values()) != 1:
        raise Problem(422, f"expected one of {', '.join(given)}")


def _handle_errors(app: FastAPI) -> None:
    """Answer errors with problem details."""

    def handler(convert: Callable[[Any], Problem]) -> Callable[[Request, Any], Awaitable[Response]]:
        async def handle(request: Request, error: Any) -> Response:
            return problem_response(convert(error))

        return handle

    def of_validation(error: RequestValidationError) -> Problem:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return Problem(422, truncate(f"{place}: {first['msg']}"))

    def of_http(error: HTTPException) -> Problem:
        return Problem(error.status_code, truncate(error.detail), error.headers)

    def unexpected(error: Exception) -> Problem:
        return Problem(500, "unexpected error; the log of the server has the details")

    app.add_exception_handler(Problem, handler(lambda problem: problem))
    app.add_exception_handler(InputError, handler(problem_of))
    app.add_exception_handler(RequestValidationError, handler(of_validation))
    app.add_exception_handler(HTTPException, handler(of_http))
    app.add_exception_handler(Exception, handler(unexpected))
