"""A page of pictures: each query with its ranked gallery matches, right and wrong told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rga_reid.errors import InputError
from rga_reid.reports.html import page_environment, thumbnail
from rga_reid.runtime import track

Correctness = Literal["correct", "wrong", "junk", "unknown"]

JUNK_PID = -1  #: of a detection that shows no one well enough to judge
_DECIMALS = (3, 4, 5, 6)  # of scores: as few as tell those of a query apart
_BOX = (192, 384)  # (width, height) that a thumbnail fits into: twice what the page shows, for sharp screens


@dataclass(frozen=True)
class Picture:
    """An image of a person.

    Args:
        path: the image file; a file that is missing or unreadable is shown as a placeholder.
        pid, camid: identity and camera; None where unknown.
    """

    path: str
    pid: int | None = None
    camid: int | None = None


@dataclass(frozen=True, kw_only=True)
class Match(Picture):
    """A gallery image in a ranking.

    Args:
        rank: from 1.
        score: similarity to the query: higher is more alike.
    """

    rank: int
    score: float


def verdict(query: Picture, match: Picture) -> Correctness:
    """What a match is worth, by its labels.

    ``junk`` is what an evaluation would leave out: a pid of −1, the same person seen by the same camera, or
    the query's own file. ``unknown`` is a pair whose labels do not tell.
    """
    if match.pid == JUNK_PID or match.path == query.path:
        return "junk"
    if query.pid is None or query.pid == JUNK_PID or match.pid is None:
        return "unknown"
    if query.pid != match.pid:
        return "wrong"
    return "junk" if match.camid is not None and match.camid == query.camid else "correct"


def ranked_page(
    queries: Sequence[Picture],
    matches: Sequence[Sequence[Match]],
    *,
    title: str = "Ranked matches",
    note: str = "",
    captions: Sequence[str] = (),
    template: str = "ranked_page.html",
    **more: Any,
) -> str:
    """One HTML page that needs no other file and no network.

    Args:
        queries: q query images.
        matches: for each query its matches, best first.
        title: heading of the page.
        note: a sentence below it.
        captions: words below each query; none by default.
        template: one that extends ``ranked_page.html``.
        more: what that template shows besides.

    Returns:
        The page. Thumbnails are inside it, every name is escaped. Where no label is known, nothing is marked.

    Raises:
        InputError: not one list of matches for each query.
    """
    if len(queries) != len(matches):
        raise InputError(f"matches: expected {len(queries)} lists, one per query, got {len(matches)}")
    paths = _distinct_paths(queries, matches)
    pictures = {path: thumbnail(path, _BOX) for path in track(paths, "thumbnails", len(paths))}
    captions = captions or [""] * len(queries)
    rows = [_row(*three) for three in zip(queries, matches, captions, strict=True)]
    environment = page_environment()
    environment.filters["file_name"] = lambda path: Path(path).name
    seen = {card["verdict"] for row in rows for card in row["cards"]}
    return environment.get_template(template).render(
        title=title,
        note=note,
        rows=rows,
        pictures=pictures,
        labelled=bool(seen - {"unknown"}),
        legend=[name for name in ("correct", "wrong", "junk", "unknown") if name in seen],
        **more,
    )


def _row(query: Picture, found: Sequence[Match], caption: str) -> dict[str, Any]:
    cards = [{"match": match, "verdict": verdict(query, match)} for match in found]
    counts = Counter(card["verdict"] for card in cards)
    scores = [match.score for match in found]
    judged = counts["correct"] + counts["wrong"]
    return {
        "query": query,
        "caption": caption,
        "cards": cards,
        "correct": counts["correct"],
        "judged": judged,
        "decimals": next((d for d in _DECIMALS if _told_apart(scores, d)), _DECIMALS[-1]),
    }


def _told_apart(scores: Sequence[float], decimals: int) -> bool:
    """Whether scores that differ are written differently."""
    return len({f"{score:.{decimals}f}" for score in scores}) == len(set(scores))


def _distinct_paths(queries: Sequence[Picture], matches: Sequence[Sequence[Match]]) -> list[str]:
    paths = [query.path for query in queries] + [match.path for found in matches for match in found]
    return list(dict.fromkeys(paths))
