"""HTML page of the persons that a grouping found, for a person to check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rga_reid.data.columns import rename_camid, show_time
from rga_reid.reports.html import thumbnail
from rga_reid.reports.language import Text, render_page
from rga_reid.runtime import track

MAX_PERSONS = 100  #: persons on a page; those of the least similar images
MAX_IMAGES = 12  #: images of a person on a page; the least similar ones
TITLE = Text("groups_title")
_BOX = (128, 256)  # maximum width and height of thumbnails: twice the size on the page, for sharp screens


def groups_page(
    table: pd.DataFrame, *, title: Text | str = TITLE, gallery: str = "", lang: str | None = None
) -> str:
    """Return one self-contained HTML page of persons, the most doubtful first.

    Args:
        table: columns ``path``, ``person`` (null for none), ``similarity`` (of the image and its person), and
            ``camera`` or ``camid``, ``track`` and ``time`` if known.
        title: heading of the page.
        gallery: name of the gallery, shown below the heading.
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.

    Raises:
        InputError: an unknown language.
    """
    known = rename_camid(table).dropna(subset=["person"])
    lowest = known.groupby("person")["similarity"].min().sort_values(kind="stable")
    persons = lowest.index[:MAX_PERSONS]
    groups = []
    for person in track(persons, "thumbnails", len(persons)):
        rows = known[known["person"] == person].sort_values("similarity", kind="stable")
        groups.append(
            {
                "person": int(person),
                "images": len(rows),
                "cameras": int(rows["camera"].nunique()),
                "tracks": len(rows[["camera", "track"]].dropna().drop_duplicates()) if "track" in rows else 0,
                "shown": [_card(row) for row in rows.head(MAX_IMAGES).to_dict("records")],
            }
        )
    return render_page(
        "groups_page.html",
        ["groups", "labels"],
        lang=lang,
        title=title,
        note="",
        gallery=gallery,
        groups=groups,
        persons=len(lowest),
        images=len(known),
        all=len(table),
    )


def _card(row: dict[str, Any]) -> dict[str, Any]:
    labels = [(name, row.get(name)) for name in ("camera", "track")]
    known: list[Text | str] = [
        Text(name, {"value": str(value)}) for name, value in labels if not pd.isna(value)
    ]
    if not pd.isna(row.get("time")):
        known.append(f"{show_time(row['time'])} UTC")
    return {
        "picture": thumbnail(row["path"], _BOX),
        "name": Path(row["path"]).name,
        "path": row["path"],
        "similarity": f"{row['similarity']:.3f}",
        "labels": known,
    }
