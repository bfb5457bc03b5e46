"""Evaluation: pure functions on arrays. Knows no model and no file."""

from rga_reid._deprecated import module_getattr
from rga_reid.evaluation.calibration import Calibration, PairScores, calibrate, pair_scores
from rga_reid.evaluation.metrics import RankingResult, RepeatedResult
from rga_reid.evaluation.protocols import (
    PROTOCOLS,
    IgnoreCameras,
    MultiQuery,
    SingleQuery,
    SingleShot,
    evaluate_protocol,
)
from rga_reid.evaluation.query_expansion import expand_queries
from rga_reid.evaluation.ranking import RankedList, evaluate_distances, evaluate_ranking, ranked_lists
from rga_reid.evaluation.rerank import ReRanking, re_ranked_distances

__all__ = [
    "PROTOCOLS",
    "Calibration",
    "IgnoreCameras",
    "MultiQuery",
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

__getattr__ = module_getattr(__name__)
