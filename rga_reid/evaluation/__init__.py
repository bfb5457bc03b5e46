"""Evaluation: pure functions on arrays. Knows no model and no file."""

from rga_reid.evaluation.calibration import Calibration, calibrate
from rga_reid.evaluation.expansion import expand_queries
from rga_reid.evaluation.lists import RankedList, ranked_lists
from rga_reid.evaluation.pairs import PairScores, pair_scores
from rga_reid.evaluation.protocols import (
    PROTOCOLS,
    MultiQuery,
    NoCameras,
    SingleQuery,
    SingleShot,
    evaluate_protocol,
)
from rga_reid.evaluation.ranking import evaluate_distances, evaluate_ranking
from rga_reid.evaluation.reranking import ReRanking, re_ranked_distances
from rga_reid.evaluation.result import RankingResult, RepeatedResult

__all__ = [
    "PROTOCOLS",
    "Calibration",
    "MultiQuery",
    "NoCameras",
    "PairScores",
    "RankedList",
    "RankingResult",
    "ReRanking",
    "RepeatedResult",
    "SingleQuery",
    "SingleShot",
    "calibrate",
    "evaluate_distances",
    "evaluate_protocol",
    "evaluate_ranking",
    "expand_queries",
    "pair_scores",
    "ranked_lists",
    "re_ranked_distances",
]
