"""What a gallery holds, and how it changes: functions from one state to the next, on disk or in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cached_property

import numpy as np
import pandas as pd

from rga_reid.retrieval.arrays import gallery_table
from rga_reid.retrieval.indexes import IndexPlan
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.refusals import require_held
from rga_reid.retrieval.segments import Rows, Segment, most_rows, packed
from rga_reid.retrieval.vectors import Vectors

SMALL_ROWS = 4096  #: added images, if fewer, join segments at the end as long as they have no more together
LARGE_ROWS = 65_536  #: the same for as many as that, or more

Put = Callable[[Rows], Segment]  #: stores a new segment, and gives the one to go on with


@dataclass(frozen=True)
class Removal:
    """A line of the log of removals: never a path, never a vector."""

    time: str  #: UTC, ISO 8601
    pid: int | None  #: null: images of unknown pid
    count: int  #: images

    def to_line(self) -> str:
        """As JSON, with its line end."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Removal:
        """The line that ``to_line`` wrote.

        Raises:
            ValueError, TypeError: another text.
        """
        removal = cls(**json.loads(line))
        known = isinstance(removal.time, str), removal.pid is None or type(removal.pid) is int
        if not all(known) or type(removal.count) is not int:
            raise TypeError("expected a time, a pid or null, and a count")
        return removal


@dataclass(frozen=True)
class Contents:
    """A state of a gallery. It never changes: a change makes another one, with the segments that stay."""

    dimension: int
    plan: IndexPlan
    model: ModelRecord | None = None
    segments: tuple[Segment, ...] = ()
    next_id: int = 0
    removals: tuple[Removal, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns ``path, pid, camid``, a row per image, in their order."""
        empty = gallery_table(pd.DataFrame({"path": []}))
        tables = [segment.table for segment in self.segments] or [empty]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def ids(self) -> np.ndarray:
        """int64, one per image, increasing."""
        return np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in self.segments)])


def added(contents: Contents, vectors: np.ndarray, table: pd.DataFrame, put: Put) -> Contents:
    """With more images at the end. What is there is not written again, except small segments at the end.

    Like a counter in binary, a segment at the end is joined if it is no larger than what is added to it: so
    images that come one by one leave few segments, and each is written again a few times only. What one image
    may cause to be written again is bounded by ``SMALL_ROWS``; ``compacted`` joins the rest.

    Args:
        contents: the state before.
        vectors: unit rows, float32 ``(n, d)``.
        table: n rows, as ``gallery_table`` gives.
        put: stores a segment.
    """
    ids = np.arange(contents.next_id, contents.next_id + len(vectors))
    stay, tail, rows = list(contents.segments), [Segment(ids, vectors, table)], len(vectors)
    most = SMALL_ROWS if rows < SMALL_ROWS else LARGE_ROWS
    while stay and len(stay[-1]) <= rows and len(stay[-1]) + rows <= most:
        tail.insert(0, stay.pop())
        rows += len(tail[0])
    new = [put(segment) for segment in packed(tail, contents.plan)]
    return replace(contents, segments=(*stay, *new), next_id=contents.next_id + len(vectors))


def removed(contents: Contents, pids: Sequence[int], paths: Sequence[str], put: Put) -> Contents:
    """Without the images of some persons or paths, and a line in the log for each person.

    A segment that holds one of them is made again from the others, its index too: an index cannot forget,
    and what it learned of the removed vectors (centroids, codebooks) would stay.

    Raises:
        InputError: a pid or a path of which there is no image; nothing is removed then.
    """
    table = contents.table
    for column, wanted in (("pid", pids), ("path", paths)):
        require_held(column, wanted, table[column].dropna())
    goes = (table["pid"].isin(pids) | table["path"].isin(paths)).to_numpy(dtype=bool)
    segments: list[Segment] = []
    start = 0
    for segment in contents.segments:
        keep = ~goes[start : start + len(segment)]
        start += len(segment)
        if keep.all():
            segments.append(segment)
        elif keep.any():
            rest = segment.table[keep].reset_index(drop=True)
            vectors = Vectors([segment.vectors])
            segments.append(put(Rows(segment.ids[keep], vectors, rest, contents.plan, keep)))
    removals = (*contents.removals, *logged(table["pid"][goes]))
    return replace(contents, segments=tuple(segments), removals=removals)


def logged(pids: pd.Series) -> list[Removal]:
    """Lines of the log for images that are removed now: one for each person.

    Args:
        pids: of the images, Int64, null where unknown.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    counts = pids.value_counts(dropna=False, sort=False)
    return [Removal(now, None if pid is pd.NA else int(pid), int(count)) for pid, count in counts.items()]


def compacted(contents: Contents, put: Put) -> Contents:
    """With as few segments as can be. Full ones at the beginning stay; the same state if all is well."""
    stay = 0
    most = most_rows(contents.plan, contents.dimension)
    while stay < len(contents.segments) and len(contents.segments[stay]) == most:
        stay += 1
    if len(contents.segments) - stay <= 1:
        return contents
    new = [put(segment) for segment in packed(contents.segments[stay:], contents.plan)]
    return replace(contents, segments=(*contents.segments[:stay], *new))
