"""Evaluation: pure functions on arrays. Knows no model and no file."""

from rga_reid.evaluation.expansion import expand_queries
from rga_reid.evaluation.ranking import evaluate_distances, evaluate_ranking
from rga_reid.evaluation.reranking import ReRanking, re_ranked_distances
from rga_reid.evaluation.result import RankingResult

__all__ = [
    "RankingResult",
    "ReRanking",
    "evaluate_distances",
    "evaluate_ranking",
    "expand_queries",
    "re_ranked_distances",
]
