"""HTML page of pictures: each query with its ranked gallery matches, marked as correct or wrong."""

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

JUNK_PIDS = (-1, "-1")  #: labels of a detection without a clear person, also where labels are text
_DECIMALS = (3, 4, 5, 6)  # of scores: the fewest that distinguish the scores of a query
_BOX = (192, 384)  # maximum width and height of thumbnails: twice the size on the page, for sharp screens


@dataclass(frozen=True)
class Picture:
    """An image of a person.

    Args:
        path: image file; a missing or unreadable one is shown as a placeholder.
        pid, camid: identity and camera; None if unknown.
    """

    path: str
    pid: int | str | None = None
    camid: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class Match(Picture):
    """A gallery image in a ranking.

    Args:
        rank: from 1.
        score: similarity to the query; higher is more similar.
    """

    rank: int
    score: float


def verdict(query: Picture, match: Picture) -> Correctness:
    """Judge a match by its labels.

    ``junk`` is ignored by evaluations: a pid of −1, the same person from the same camera, or the query file
    itself. ``unknown`` means that labels are missing.
    """
    if match.pid in JUNK_PIDS or match.path == query.path:
        return "junk"
    if query.pid is None or query.pid in JUNK_PIDS or match.pid is None:
        return "unknown"
    if str(query.pid) != str(match.pid):  # one of them may be text
        return "wrong"
    return "junk" if match.camid is not None and str(match.camid) == str(query.camid) else "correct"


def ranked_page(
    queries: Sequence[Picture],
    matches: Sequence[Sequence[Match]],
    *,
    title: str = "Ranked matches",
    note: str = "",
    captions: Sequence[str] = (),
    others: Sequence[Sequence[str]] = (),
    template: str = "ranked_page.html",
    **more: Any,
) -> str:
    """Return one self-contained HTML page.

    Args:
        queries: query images.
        matches: for each query its matches, best first.
        title: heading of the page.
        note: a sentence below the heading.
        captions: texts below each query; none by default.
        others: for each query the files of further pictures of it, shown small below the first; none by default.
        template: a template that extends ``ranked_page.html``.
        more: further variables of that template.

    Returns:
        The page. It embeds the thumbnails and escapes every name. Without labels, no match is marked.

    Raises:
        InputError: not one list of matches for each query.
    """
    if len(queries) != len(matches):
        raise InputError(f"matches: expected {len(queries)} lists, one per query, got {len(matches)}")
    others = others or [()] * len(queries)
    paths = {picture.path: None for found in (queries, *matches) for picture in found}
    paths |= dict.fromkeys(path for files in others for path in files)
    pictures = {path: thumbnail(path, _BOX) for path in track(paths, "thumbnails", len(paths))}
    captions = captions or [""] * len(queries)
    rows = [_row(*four) for four in zip(queries, matches, captions, others, strict=True)]
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


def _row(query: Picture, matches: Sequence[Match], caption: str, others: Sequence[str]) -> dict[str, Any]:
    cards = [{"match": match, "verdict": verdict(query, match)} for match in matches]
    counts = Counter(card["verdict"] for card in cards)
    scores = {match.score for match in matches}

    def distinguish(decimals: int) -> bool:
        return len({f"{score:.{decimals}f}" for score in scores}) == len(scores)

    return {
        "query": query,
        "caption": caption,
        "others": others,
        "cards": cards,
        "correct": counts["correct"],
        "judged": counts["correct"] + counts["wrong"],
        "decimals": next(filter(distinguish, _DECIMALS), _DECIMALS[-1]),
    }
