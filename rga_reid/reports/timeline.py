"""Timeline of sightings: a row for each camera, a dot for each picture. Templates draw it as SVG."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np

MAX_TICKS = 5  #: as many labels fit on a phone
_MARGIN = 0.04  # of the time shown, at both ends
_RADIUS = (4.0, 9.0)  # of dots, in pixels, by score
_OPACITY = (0.35, 0.9)


@dataclass(frozen=True)
class Sighting:
    """A picture with a time.

    Args:
        camera: None if unknown.
        time: with a zone.
        score: similarity to the query.
        title: text of the tooltip.
        link: id of the picture on the page.
        below: does not reach the threshold.
    """

    camera: int | str | None
    time: datetime
    score: float
    title: str
    link: str
    below: bool = False


@dataclass(frozen=True)
class Dot:
    """A sighting with its place: ``x`` from 0 to 1, radius in pixels, opacity from 0 to 1."""

    sighting: Sighting
    x: float
    radius: float
    opacity: float


@dataclass(frozen=True)
class Timeline:
    """Rows of dots above an axis.

    Args:
        rows: names of the cameras, None if unknown, and their dots, the dots of highest score last.
        ticks: places from 0 to 1 and labels.
        dates: first and last day in UTC, or the only one.
    """

    rows: tuple[tuple[str | None, tuple[Dot, ...]], ...]
    ticks: tuple[tuple[float, str], ...]
    dates: str


def make_timeline(sightings: Sequence[Sighting]) -> Timeline | None:
    """Place sightings on a timeline; None without any."""
    if not sightings:
        return None
    times = [one.time.astimezone(timezone.utc) for one in sightings]
    first, last = min(times), max(times)
    margin = (last - first) * _MARGIN or timedelta(minutes=1)
    start, length = first - margin, last - first + 2 * margin
    scores = np.array([one.score for one in sightings])
    spread = np.ptp(scores)
    weights = (scores - scores.min()) / spread if spread else np.ones(len(scores))
    dots: dict[int | str | None, list[Dot]] = {}
    for place in np.argsort(scores, kind="stable"):
        one, weight = sightings[place], float(weights[place])
        x = (times[place] - start) / length
        dot = Dot(
            one, x, float(np.interp(weight, (0, 1), _RADIUS)), float(np.interp(weight, (0, 1), _OPACITY))
        )
        dots.setdefault(one.camera, []).append(dot)
    cameras = sorted(dots, key=natural_key)
    rows = tuple((None if one is None else str(one), tuple(dots[one])) for one in cameras)
    dates = dict.fromkeys(f"{time:%Y-%m-%d}" for time in (first, last))
    return Timeline(rows, _ticks(start, length), " – ".join(dates))


def natural_key(camera: int | str | None) -> tuple[bool, list[tuple[int, str]]]:
    """Order cam2 before cam10, and an unknown camera last."""
    parts = re.findall(r"[0-9]+|[^0-9]+", str(camera))
    return camera is None, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _ticks(start: datetime, length: timedelta) -> tuple[tuple[float, str], ...]:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, num2date

    locator = AutoDateLocator(tz=timezone.utc, minticks=3, maxticks=MAX_TICKS)
    with warnings.catch_warnings():  # between two of its intervals it takes the larger one, with a warning
        warnings.simplefilter("ignore", UserWarning)
        values = locator.tick_values(start, start + length)
    places = [(num2date(value, timezone.utc) - start) / length for value in values]
    # for steps of years, months, days, hours, minutes and seconds; then for round values of these
    formats = ["%Y", "%b", "%d %b", "%H:%M", "%H:%M", "%H:%M:%S.%f"]
    zero_formats = ["", "%Y", "%d %b", "%d %b", "%H:%M", "%H:%M"]
    formatter = ConciseDateFormatter(locator, timezone.utc, formats, zero_formats=zero_formats)
    labels = formatter.format_ticks(values)
    return tuple((x, label) for x, label in zip(places, labels, strict=True) if 0 <= x <= 1)
