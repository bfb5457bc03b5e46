"""The evaluation on Market-1501 itself: its ground-truth files, and its rule written out.

The data set is not part of the package: ``MARKET1501=DIR make test-slow`` runs these tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from rga_reid.data import read_table
from rga_reid.evaluation import evaluate_ranking
from rga_reid.evaluation.features import label_table
from rga_reid.evaluation.relevance import Relevance
from rga_reid.inference import extract_features
from rga_reid.models.colour_histogram import ColourHistogram
from tests.oracles import walk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MARKET1501" not in os.environ, reason="needs MARKET1501, the folder of the data set"),
]


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(os.environ["MARKET1501"])


@pytest.fixture(scope="module")
def sides(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = read_table(root)
    return table[table.split == "query"], table[table.split == "gallery"]


@pytest.fixture(scope="module")
def listed(root: Path, sides: tuple[pd.DataFrame, pd.DataFrame]) -> list[tuple[set[int], set[int]]]:
    """Of each query, the rows of the name-sorted gallery that the data set's files call good, and junk."""

    def rows(query: str, kind: str) -> set[int]:
        file = root / "gt_query" / f"{Path(query).name.split('.')[0]}_{kind}.mat"
        numbers = scipy.io.loadmat(file)[f"{kind}_index"].ravel()
        return {int(number) - 1 for number in numbers if number > 0}  # an empty list is written as 0

    return [(rows(path, "good"), rows(path, "junk")) for path in sides[0].path]


def test_good_and_junk_are_those_of_the_data_set(
    sides: tuple[pd.DataFrame, pd.DataFrame], listed: list[tuple[set[int], set[int]]]
) -> None:
    query, gallery = sides
    names = [Path(path).name for path in gallery.path]
    assert names == sorted(names)
    tables = [label_table(len(side), side.pid, side.camid, side.path) for side in sides]
    relevance = Relevance(*tables, (-1,))
    items = relevance.same_identity_items(np.arange(len(query)))
    rows = relevance.gallery_rows[items.column]
    assert len(listed) == 3368
    for number, (good, junk) in enumerate(listed):
        of_query = items.query == number
        assert set(rows[of_query & items.match]) == good
        assert set(rows[of_query & ~items.match]) == junk


def test_average_precision_is_that_of_the_rule_written_out(
    sides: tuple[pd.DataFrame, pd.DataFrame], listed: list[tuple[set[int], set[int]]]
) -> None:
    query, gallery = sides
    features, _ = extract_features(ColourHistogram(), pd.concat([query, gallery]))
    asks, items = features[: len(query)], features[len(query) :]
    result = evaluate_ranking(
        asks, items, query.pid, gallery.pid, query.camid, gallery.camid, average_precision="trapezoid"
    )

    items64 = items.astype(np.float64)
    items64 /= np.linalg.norm(items64, axis=1, keepdims=True)
    ignored = set(np.flatnonzero(gallery.pid == -1))
    found = []
    for row, (good, junk) in zip(asks.astype(np.float64), listed, strict=True):
        order = np.argsort(-(items64 @ (row / np.linalg.norm(row))), kind="stable")
        found.append(walk([item in good for item in order if item not in junk | ignored], 1))

    precisions = [one["trapezoid"] for one in found]
    assert result.mAP_trapezoid == pytest.approx(np.mean(precisions), abs=1e-9)
    np.testing.assert_allclose(result.average_precisions, precisions, atol=1e-7)
    assert result.rank(1) == np.mean([one["first"] == 1 for one in found])
