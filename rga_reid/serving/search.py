"""Searches of the API: queries by picture, features or id, rejected images, thresholds and groups."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool

from rga_reid.serving.bodies import SearchBody
from rga_reid.serving.engine import Engine, SearchSettings
from rga_reid.serving.problems import Problem


async def search(engine: Engine, features: np.ndarray, body: SearchBody) -> list[dict[str, Any]]:
    """Search with some features and the images of ``body.ids``.

    Images that are queries, or that are rejected, are left out of the matches, and so is a match that is more like a
    rejected image than like the query.

    Args:
        engine: of the gallery.
        features: unit rows, float32 ``(q, d)``.
        body: settings.

    Returns:
        For each query ``matches`` and ``groups``, as values of JSON.
    """
    if body.ids:
        features = np.concatenate([features, await run_in_threadpool(engine.features, body.ids)])
    if body.multi:
        features = features.mean(axis=0, keepdims=True)
    left_out = {*body.ids, *body.not_ids}
    rejected = await run_in_threadpool(engine.features, body.not_ids) if body.not_ids else None
    most = body.top_k if rejected is None else 2 * body.top_k
    settings = SearchSettings(most + len(left_out), body.where, body.rerank)
    found = await asyncio.wrap_future(engine.search(features, settings))
    return [await _answer(engine, matches, body, left_out, rejected) for matches in found]


async def _answer(
    engine: Engine,
    matches: list[dict[str, Any]],
    body: SearchBody,
    left_out: set[int],
    rejected: np.ndarray | None,
) -> dict[str, Any]:
    kept = [match for match in matches if match["id"] not in left_out]
    if rejected is not None and kept:
        vectors = await run_in_threadpool(engine.features, [match["id"] for match in kept])
        likeness = (vectors @ rejected.T).max(axis=1)
        kept = [match for match, other in zip(kept, likeness, strict=True) if match["score"] >= other]
    if body.threshold is not None:
        kept = [match for match in kept if match["score"] >= body.threshold]
    kept = kept[: body.top_k]
    for rank, match in enumerate(kept, 1):
        match["rank"] = rank
    if body.group_by is not None:
        raise Problem(422, "group_by: not supported yet")
    return {"matches": kept, "groups": []}
