"""Evaluation of re-identification: arrays in, metrics out. It knows no models and reads no files."""

from rga_reid._deprecated import module_getattr
from rga_reid.evaluation.calibration import Calibration, PairScores, calibrate, pair_scores, score_pairs
from rga_reid.evaluation.features import LabelledFeatures
from rga_reid.evaluation.grouping import Grouping, bcubed_agreement, group_images, pairwise_agreement
from rga_reid.evaluation.metrics import RankingResult, RepeatedResult
from rga_reid.evaluation.open_set import OpenSetCalibration, calibrate_open_set
from rga_reid.evaluation.protocols import (
    PROTOCOLS,
    ClothesChange,
    CrossModality,
    IgnoreCameras,
    MultiQuery,
    RandomGalleries,
    SingleQuery,
    SingleShot,
    Tracklets,
    evaluate_protocol,
)
from rga_reid.evaluation.query_expansion import expand_queries
from rga_reid.evaluation.ranking import (
    RankedList,
    evaluate_distances,
    evaluate_features,
    evaluate_ranking,
    ranked_lists,
    top_matches,
)
from rga_reid.evaluation.relevance import MatchRule
from rga_reid.evaluation.rerank import ReRanking, re_ranked_distances
from rga_reid.evaluation.tracklets import pool_tracks

__all__ = [
    "PROTOCOLS",
    "Calibration",
    "ClothesChange",
    "CrossModality",
    "Grouping",
    "IgnoreCameras",
    "LabelledFeatures",
    "MatchRule",
    "MultiQuery",
    "OpenSetCalibration",
    "PairScores",
    "RandomGalleries",
    "RankedList",
    "RankingResult",
    "ReRanking",
    "RepeatedResult",
    "SingleQuery",
    "SingleShot",
    "Tracklets",
    "bcubed_agreement",
    "calibrate",
    "calibrate_open_set",
    "evaluate_distances",
    "evaluate_features",
    "evaluate_protocol",
    "evaluate_ranking",
    "expand_queries",
    "group_images",
    "pair_scores",
    "pairwise_agreement",
    "pool_tracks",
    "ranked_lists",
    "re_ranked_distances",
    "score_pairs",
    "top_matches",
]

__getattr__ = module_getattr(__name__)
