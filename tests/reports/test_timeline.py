"""Places of sightings on a timeline."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from rga_reid.reports.ranked_page import Match, Picture, ranked_page, shorten_path
from rga_reid.reports.timeline import MAX_TICKS, Sighting, make_timeline

START = datetime(2026, 11, 20, 9, 15, tzinfo=timezone.utc)


def sighting(seconds: float, camera: int | str | None = "cam1", score: float = 0.5) -> Sighting:
    return Sighting(camera, START + timedelta(seconds=seconds), score, f"{seconds}", f"m{seconds}")


def test_dots_are_in_proportion_to_time_and_score() -> None:
    chart = make_timeline([sighting(100, score=0.9), sighting(0, score=0.1), sighting(50, score=0.5)])
    assert chart is not None
    ((camera, dots),) = chart.rows
    assert camera == "cam1"
    assert [dot.sighting.link for dot in dots] == ["m0", "m50", "m100"]  # the best is drawn last
    places = [dot.x for dot in dots]
    assert 0 < places[0] < 0.1
    assert places[1] == pytest.approx(0.5)
    assert places[2] == pytest.approx(1 - places[0])
    assert dots[0].radius < dots[1].radius < dots[2].radius
    assert dots[0].opacity < dots[1].opacity < dots[2].opacity


def test_a_row_for_each_camera_in_natural_order() -> None:
    cameras = ["cam10", None, "cam2", "hall", "cam2"]
    chart = make_timeline([sighting(row, camera) for row, camera in enumerate(cameras)])
    assert chart is not None
    assert [(camera, len(dots)) for camera, dots in chart.rows] == [
        ("cam2", 2),
        ("cam10", 1),
        ("hall", 1),
        (None, 1),
    ]
    numbers = make_timeline([sighting(0, 10), sighting(0, 9)])
    assert numbers is not None
    assert [camera for camera, _ in numbers.rows] == ["9", "10"]


@pytest.mark.parametrize("seconds", [0, 0.4, 7, 60, 3600, 9500, 20 * 3600, 5 * 86400, 40 * 86400, 4e7, 9e8])
def test_ticks_stand_where_their_labels_say(seconds: float) -> None:
    chart = make_timeline([sighting(0), sighting(seconds)])
    assert chart is not None
    assert 2 <= len(chart.ticks) <= MAX_TICKS
    (first, *_, last) = sorted(dot.x for _, dots in chart.rows for dot in dots)
    for x, label in chart.ticks:
        assert 0 <= x <= 1
        if seconds and re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d+)?)?", label):
            time = START + timedelta(seconds=seconds * (x - first) / (last - first))
            parts = [*map(float, label.split(":")), 0.0]
            shown = parts[0] * 3600 + parts[1] * 60 + parts[2]
            passed = time - time.replace(hour=0, minute=0, second=0, microsecond=0)
            assert passed.total_seconds() == pytest.approx(shown, abs=0.01 * seconds)


def test_dates_and_other_zones() -> None:
    berlin = timezone(timedelta(hours=1))
    late = Sighting("a", datetime(2026, 11, 21, 0, 30, tzinfo=berlin), 0.5, "", "")
    chart = make_timeline([late, sighting(0)])
    assert chart is not None
    assert chart.dates == "2026-11-20"  # 23:30 in UTC
    later = make_timeline([sighting(0), sighting(86400)])
    assert later is not None
    assert later.dates == "2026-11-20 – 2026-11-21"
    assert make_timeline([]) is None


def test_the_page_links_dots_and_pictures() -> None:
    others = (Match("c.jpg", camid="cam2", time=START, rank=1, score=0.4),)
    matches = [
        Match(
            "a.jpg",
            "7",
            "cam1",
            3,
            START + timedelta(hours=1),
            {"zone": "north"},
            rank=1,
            score=0.9,
            others=others,
        ),
        Match("b.jpg", rank=2, score=0.3),
    ]
    page = ranked_page([Picture("q.jpg")] * 2, [matches, matches[1:]], threshold=0.5)
    links = re.findall(r'<a href="#([^"]+)">', page)
    assert sorted(links) == ["query1-match1", "query1-match2"]
    assert all(page.count(f'id="{link}"') == 1 for link in links)
    assert len(re.findall(r'<circle class="below"', page)) == 1  # of the other image of the group
    assert page.count('class="timeline"') == 1
    for text in ("person 7", "camera cam1", "track 3", "2026-11-20 10:15:00 UTC", "zone: north"):
        assert f">{text}</span>" in page
    assert page.count(">threshold 0.5000<") == 2
    assert page.count(">Nobody: ") == 1


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("a.jpg", "a.jpg"),
        ("b/a.jpg", "b/a.jpg"),
        ("/data/cam11/2026-11-20/a.jpg", "…/2026-11-20/a.jpg"),
        ("/data/" + 50 * "b" + "/" + 20 * "a", "…" + 38 * "b" + "/" + 20 * "a"),
        ("", "."),
    ],
)
def test_paths_keep_their_ends(path: str, shown: str) -> None:
    assert shorten_path(path) == shown
    assert len(shorten_path(path)) <= 60
    assert Path(path).name in shorten_path(path)
