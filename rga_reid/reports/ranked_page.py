"""HTML page of pictures: each query with its ranked gallery matches, marked as correct or wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any, Literal

from rga_reid.data.columns import is_whole, show_time
from rga_reid.errors import InputError
from rga_reid.reports.html import thumbnail
from rga_reid.reports.language import Text, render_page
from rga_reid.reports.timeline import Sighting, make_timeline
from rga_reid.runtime import track

Correctness = Literal["correct", "wrong", "junk", "unknown"]

JUNK_PIDS = (-1, "-1")  #: labels of a detection without a clear person, also where labels are text
WHO = Text("who")
_DECIMALS = (3, 4, 5, 6)  # of scores: the fewest that distinguish the scores of a query
_PATH = 60  # characters of a path that are shown
_BOX = (192, 384)  # maximum width and height of thumbnails: twice the size on the page, for sharp screens


@dataclass(frozen=True)
class Picture:
    """An image of a person.

    Args:
        path: image file; a missing or unreadable one is shown as a placeholder.
        pid, camid, track: labels; None if unknown.
        time: when it was taken, with a zone; None if unknown.
        more: further values to show, by their names.
    """

    path: str
    pid: int | str | None = None
    camid: int | str | None = None
    track: int | str | None = None
    time: datetime | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[Text | str]:
        """Return what is known about it; values of ``more`` with their names."""
        found: list[Text | str] = []
        if self.pid is not None:
            found.append(
                Text("nobody") if self.pid in JUNK_PIDS else Text("person", {"value": str(self.pid)})
            )
        known = (("camera", self.camid), ("track", self.track))
        found += [Text(name, {"value": str(value)}) for name, value in known if value is not None]
        if self.time is not None:
            found.append(f"{show_time(self.time)} UTC")
        return found + [f"{name}: {value}" for name, value in self.more.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class Match(Picture):
    """A gallery image in a ranking, or the best image of a group.

    Args:
        rank: from 1.
        score: similarity to the query; higher is more similar.
        others: other images of its group.
    """

    rank: int
    score: float
    others: tuple[Match, ...] = ()


def verdict(query: Picture, match: Picture) -> Correctness:
    """Judge a match by its labels.

    ``junk`` is ignored by evaluations: a pid of −1, the same person from the same camera, or the query file
    itself. ``unknown`` means that labels are missing, or that the query has a number and the match a name.
    """
    if match.pid in JUNK_PIDS or match.path == query.path:
        return "junk"
    if query.pid is None or query.pid in JUNK_PIDS or match.pid is None:
        return "unknown"
    if isinstance(query.pid, int) and not is_whole(str(match.pid)):  # a number of a file name
        return "unknown"
    if str(query.pid) != str(match.pid):  # one of them may be text
        return "wrong"
    return "junk" if match.camid is not None and str(match.camid) == str(query.camid) else "correct"


def ranked_page(
    queries: Sequence[Picture],
    matches: Sequence[Sequence[Match]],
    *,
    title: Text = WHO,
    note: Sequence[Text] = (),
    captions: Sequence[Text] = (),
    others: Sequence[Sequence[str]] = (),
    threshold: float | None = None,
    lang: str | None = None,
    template: str = "ranked_page.html",
    sections: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """Return one self-contained HTML page.

    Args:
        queries: query images.
        matches: for each query its matches, best first.
        title: heading of the page.
        note: sentences below the heading.
        captions: texts below each query; none by default.
        others: for each query the files of further pictures of it, shown small below the first; none by default.
        threshold: matches of lower scores are shown below a line; a query may have no others.
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.
        template: a template that extends ``ranked_page.html``.
        sections, scripts, data: further ones of that template, as for ``render_page``.
        more: further variables of that template.

    Returns:
        The page. It embeds the thumbnails and escapes every name. Without labels, no match is marked; with times,
        there is a timeline for each query. A click enlarges a picture beside its query; images of one track can be
        shown together.

    Raises:
        InputError: not one list of matches for each query.
    """
    if len(queries) != len(matches):
        raise InputError(f"matches: expected {len(queries)} lists, one per query, got {len(matches)}")
    others = others or [()] * len(queries)
    shown = [one for found in matches for match in found for one in (match, *match.others)]
    paths = {picture.path: None for picture in (*queries, *shown)}
    paths |= dict.fromkeys(path for files in others for path in files)
    pictures = {path: thumbnail(path, _BOX) for path in track(paths, "thumbnails", len(paths))}
    below: Sequence[Text | None] = captions or [None] * len(queries)
    rows = [
        _row(number, *four, threshold)
        for number, four in enumerate(zip(queries, matches, below, others, strict=True), 1)
    ]
    seen = {card["verdict"] for row in rows for card in (*row["above"], *row["below"])}
    return render_page(
        template,
        ["ranked", "labels", *sections],
        data=data,
        scripts=[*scripts, "ranked.js"],
        lang=lang,
        filters={"split_path": split_path},
        title=title,
        note="",
        notes=note,
        rows=rows,
        pictures=pictures,
        labelled=bool(seen - {"unknown"}),
        threshold=threshold,
        tracks=any(row["tracks"] for row in rows),
        legend=[name for name in ("correct", "wrong", "junk", "unknown") if name in seen],
        **more,
    )


def _row(
    number: int,
    query: Picture,
    matches: Sequence[Match],
    caption: Text | None,
    others: Sequence[str],
    threshold: float | None,
) -> dict[str, Any]:
    cards = list(_cards(number, query, matches, threshold))
    counts = Counter(card["verdict"] for card in cards)
    tracks = [(match.camid, match.track) for match in matches if match.track is not None and not match.others]
    scores = {match.score for match in matches}

    def distinguish(decimals: int) -> bool:
        return len({f"{score:.{decimals}f}" for score in scores}) == len(scores)

    decimals = next(filter(distinguish, _DECIMALS), _DECIMALS[-1])
    sightings = [
        Sighting(one.camid, one.time, one.score, _title(one, decimals), link, below)
        for card in cards
        for one, link, below in card["images"]
        if one.time is not None
    ]
    return {
        "query": query,
        "caption": caption,
        "others": others,
        "above": [card for card in cards if not card["below"]],
        "below": [card for card in cards if card["below"]],
        "grouped": any(match.others for match in matches),
        "best": max(scores, default=None),
        "correct": counts["correct"],
        "judged": counts["correct"] + counts["wrong"],
        "decimals": decimals,
        "timeline": make_timeline(sightings),
        "tracks": len(set(tracks)) < len(tracks),  # some can be shown together
        "title": lambda one: _title(one, decimals),
    }


def _cards(
    number: int, query: Picture, matches: Sequence[Match], threshold: float | None
) -> Iterator[dict[str, Any]]:
    """Yield a card for each match: its images with their ids on the page and whether they miss the threshold."""
    count = 0
    for match in matches:
        images = []
        for one in (match, *match.others):
            count += 1
            below = threshold is not None and one.score < threshold
            images.append((one, f"query{number}-match{count}", below))
        yield {
            "match": match,
            "images": images,
            "verdict": verdict(query, match),
            "below": all(below for _, _, below in images),
        }


def _title(match: Match, decimals: int) -> str:
    """Return the tooltip of a match, which is the same in every language."""
    when = None if match.time is None else f"{show_time(match.time)} UTC"
    known = [str(one) for one in (match.pid, match.camid, match.track, when) if one is not None]
    return "\n".join([f"#{match.rank}  {match.score:.{decimals}f}", " · ".join(known), match.path])


def shorten_path(path: str) -> str:
    """Return the file and its folder, or the end of a longer path."""
    parts = PurePath(path).parts
    short = str(PurePath(*parts[-2:]))
    start = "…/" if len(parts) > 2 else ""
    return start + short if len(short) <= _PATH else f"…{short[1 - _PATH :]}"


def split_path(path: str) -> list[str]:
    """Return the parts of ``shorten_path`` between which lines may break: after ``/`` and ``_``, in times at ``T``."""
    return re.split(r"(?<=[/_])|(?<=\d)(?=T\d)", shorten_path(path))
