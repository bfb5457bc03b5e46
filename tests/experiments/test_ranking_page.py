"""The page of a test: which queries it shows, and what it says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from rga_reid.data import read_table
from rga_reid.experiments import evaluate_model as module
from rga_reid.experiments.evaluate_model import (
    embed_test_images,
    example_queries,
    rank_test_images,
    ranking_page,
)
from rga_reid.models import ColourHistogram


def frame(*precisions: float | None) -> pd.DataFrame:
    matches = [0 if one is None else 2 for one in precisions]
    return pd.DataFrame({"query": range(len(precisions)), "AP_step": precisions, "matches": matches})


def test_queries_of_each_kind() -> None:
    told = example_queries(frame(0.5, 0.1, None, 1.0, 0.3, 0.7, 0.9, 0.2, 0.6, 0.4, 0.8), each=2)
    assert [(one.query, one.kind) for one in told] == [
        (1, "lowest"),
        (7, "lowest"),
        (0, "middling"),
        (8, "middling"),
        (6, "highest"),
        (3, "highest"),
    ]
    assert told[0].precision == 0.1
    assert [one.query for one in example_queries(frame(0.5, None, 0.2))] == [2, 0]
    assert [one.query for one in example_queries(frame(0.5))] == [0]
    assert len(example_queries(frame(*[0.5] * 9))) == 9


@pytest.mark.parametrize("points", [2000, 12])
def test_page_of_a_small_set(tiny_market: Path, monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", points)
    features, table = embed_test_images(ColourHistogram(), read_table(tiny_market))
    result = rank_test_images(features, table)
    page = ranking_page(features, table, result, title="<Test>", note="a note")
    assert "&lt;Test&gt;" in page
    assert f"{100 * result.mAP_step:.2f} %" in page
    assert page.count('src="data:image/png') == 1
    # of 4 queries three are shown; 18 test images, one of them junk
    assert len(re.findall(r'aria-label="query \d"', page)) == 3
    assert ("all 17" in page) == (points == 2000)
    assert len(re.findall(r"person 1[1-4], query [123]: 4 images", page)) == 3
    worst = example_queries(result.to_frame())[0]
    assert f"lowest AP: {100 * worst.precision:.1f} %" in page
    assert "junk" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).split("<main>")[1]
