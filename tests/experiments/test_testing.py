"""A model on the test images of a data set, re-ranked or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rga_reid.data import read_table
from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.experiments.testing import evaluate_model
from rga_reid.models import ColourHistogram


def test_re_ranking_is_passed_on(tiny_market: Path) -> None:
    table = read_table(tiny_market)
    plain, reranked = (
        evaluate_model(ColourHistogram(), table, rerank=rerank) for rerank in (None, ReRanking(4, 2))
    )
    assert (plain.to_dict()["reranked"], reranked.to_dict()["reranked"]) == (False, True)
    assert reranked.settings["k1"] == 4
    with pytest.raises(InputError, match="k1: expected at most 16, for 17 queries and gallery items"):
        evaluate_model(ColourHistogram(), table, rerank=ReRanking())
