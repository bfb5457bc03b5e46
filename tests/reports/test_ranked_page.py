"""The page of ranked matches, parsed as HTML. Hostile names are in tests/security/test_pages.py."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.reports.language import Text
from rga_reid.reports.ranked_page import Correctness, Match, Picture, ranked_page, verdict


class Page(HTMLParser):
    """Elements with their attributes, and the text outside ``<style>``."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style and data.strip():
            self.words.append(data.strip())

    def classes(self, *names: str) -> list[str]:
        """Of the ``<figure>`` elements that have one of ``names``, that name, in order."""
        found = [
            str(attributes.get("class", "")).split() for tag, attributes in self.elements if tag == "figure"
        ]
        return [name for classes in found for name in names if name in classes]

    def sources(self) -> list[str]:
        return [str(attributes["src"]) for tag, attributes in self.elements if tag == "img"]


def write_picture(path: Path, size: tuple[int, int] = (64, 128), colour: str = "teal") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("query", "match", "expected"),
    [
        # (pid, camid) of the query and of the match
        ((7, 1), (7, 2), "correct"),
        ((7, 1), (7, 1), "junk"),
        ((7, 1), (8, 1), "wrong"),
        ((7, 1), (0, 2), "wrong"),
        ((7, 1), (-1, 2), "junk"),
        ((None, None), (-1, 2), "junk"),
        ((-1, 1), (-1, 2), "junk"),
        ((-1, 1), (8, 2), "unknown"),
        ((7, None), (7, None), "correct"),
        ((7, 1), (7, None), "correct"),
        ((None, 1), (7, 1), "unknown"),
        ((7, 1), (None, 2), "unknown"),
        ((0, 1), (0, 1), "junk"),
        ((130, 1), ("Anna", 2), "unknown"),
        ((130, 1), ("130", 2), "correct"),
        ((130, 1), ("131", 2), "wrong"),
        (("Ben", 1), ("Anna", 2), "wrong"),
        (("130", 1), ("Anna", 2), "wrong"),
    ],
)
def test_verdict(
    query: tuple[int | str | None, int | None],
    match: tuple[int | str | None, int | None],
    expected: Correctness,
) -> None:
    assert verdict(Picture("q.jpg", *query), Picture("g.jpg", *match)) == expected
    assert verdict(Picture("q.jpg", *query), Picture("q.jpg", *match)) == "junk"  # the query itself


def test_each_match_is_marked_in_words_and_by_a_sign() -> None:
    query = Picture("q.jpg", 7, 1)
    labels = [(7, 2), (8, 1), (7, 1), (None, None), (7, 3)]
    matches = [Match(f"{n}.jpg", *label, rank=n, score=1 - n / 10) for n, label in enumerate(labels, 1)]
    page = Page(ranked_page([query], [matches], note=[Text("note_query", {"name": "Five <b>"})]))
    marks = ["correct", "wrong", "junk", "unknown", "correct"]
    assert page.classes("correct", "wrong", "junk", "unknown") == marks
    words = [word for word in page.words if word in marks]
    assert words[4:] == marks  # after the legend's four
    signs = [str(attributes["href"]) for tag, attributes in page.elements if tag == "use"]
    assert [sign[1:] for sign in signs if sign[1:] in marks][4:] == marks
    assert [word for word in page.words if word.startswith("#")] == ["#1", "#2", "#3", "#4", "#5"]
    texts = {
        "Who is this?",
        "1 query against the gallery “Five <b>”.",
        "0.900",
        "0.500",
        "person 8",
        "camera 3",
    }
    assert not [word for word in page.words if word.endswith((" unknown", "None"))]
    assert texts | {"2 correct of 3 judged"} <= set(page.words)


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ((0.91, 0.5), ["0.910", "0.500"]),
        ((0.99962, 0.99958, 0.9), ["0.99962", "0.99958", "0.90000"]),
        ((0.5, 0.5), ["0.500", "0.500"]),
        ((0.12345678, 0.12345679), ["0.123457", "0.123457"]),
        ((), []),
    ],
)
def test_scores_have_as_many_decimals_as_tell_them_apart(scores: tuple[float, ...], shown: list[str]) -> None:
    matches = [Match(f"{rank}.jpg", rank=rank, score=score) for rank, score in enumerate(scores, 1)]
    page = Page(ranked_page([Picture("q.jpg")], [matches]))
    assert [word for word in page.words if word.startswith("0.")] == shown


def test_file_names_break_between_their_parts() -> None:
    path = "crops/cam07/20261120T101500_trk000008_03.jpg"
    page = ranked_page([Picture("q.jpg")], [[Match(path, rank=1, score=0.5)]])
    assert "…/<wbr>cam07/<wbr>20261120<wbr>T101500_<wbr>trk000008_<wbr>03.jpg<wbr></span>" in page


def test_without_labels_nothing_is_marked() -> None:
    matches = [Match("a.jpg", rank=1, score=0.5), Match("b.jpg", 3, 1, rank=2, score=0.4)]
    page = Page(ranked_page([Picture("q.jpg")], [matches]))
    assert page.classes("correct", "wrong", "junk", "unknown", "marked") == []
    assert not {"correct", "wrong", "junk", "unknown"} & set(page.words)


def test_pictures_are_inside_the_page_and_small(tmp_path: Path) -> None:
    query = Picture(write_picture(tmp_path / "q.png", (1000, 500), "red"))
    match = Match(write_picture(tmp_path / "g.jpg", (64, 128), "blue"), rank=1, score=0.5)
    page = Page(ranked_page([query], [[match]]))
    assert [a["alt"] for tag, a in page.elements if tag == "img"] == ["query 1", "match 1"]
    sources = page.sources()
    sizes, colours = [], []
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        sizes.append(image.size)
        colours.append(max("RGB", key=lambda band, image=image: image.getchannel(band).getextrema()[0]))
    assert sizes == [(192, 96), (64, 128)]
    assert colours == ["R", "B"]


def test_missing_and_unreadable_pictures_have_a_placeholder(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    paths = [str(broken), str(tmp_path / "gone.jpg"), str(tmp_path), "a\0b.jpg", ""]
    matches = [Match(path, rank=rank, score=0.5) for rank, path in enumerate(paths, 1)]
    query = Picture(write_picture(tmp_path / "q.jpg"))
    page = Page(ranked_page([query], [matches]))
    assert len(page.sources()) == 1
    assert page.words.count("file not found or unreadable") == 5


def test_several_queries_and_one_without_matches() -> None:
    matches = [[Match("a.jpg", rank=1, score=0.5)], [], [Match("b.jpg", rank=1, score=0.25)]]
    page = Page(ranked_page([Picture("x.jpg"), Picture("y.jpg"), Picture("z.jpg")], matches))
    texts = ["Query 1", "0.500", "Query 2", "No match in this gallery.", "Query 3", "0.250"]
    assert [word for word in page.words if word in texts] == texts


def test_one_list_of_matches_per_query() -> None:
    with pytest.raises(InputError, match="expected 2 lists, one per query, got 1"):
        ranked_page([Picture("a.jpg"), Picture("b.jpg")], [[]])
