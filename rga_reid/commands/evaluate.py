"""``evaluate``: the metrics of re-identification for features of any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import read_query_and_gallery
from rga_reid.commands._options import (
    FEATURE_FILES,
    add_feature_files,
    check_device,
    label_files,
    new_parser,
    rename_rerank_error,
)
from rga_reid.commands._output import check_outputs, print_ranking
from rga_reid.errors import InputError, check_int
from rga_reid.files import write_json, write_table
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from rga_reid.evaluation import RankingResult, RepeatedResult

#: ``evaluation.PROTOCOLS``, which --help does not import: it brings torch
PROTOCOLS = ("market1501", "multi_query", "cuhk03", "cuhk03_classic", "msmt17", "no_cameras")


def parser() -> ArgumentParser:
    """Options of ``evaluate``."""
    command = new_parser(
        "evaluate",
        "Rank a gallery for each query by their features, and compare with the true identities in the "
        f"protocol of Market-1501. {FEATURE_FILES} Without cameras nothing is removed from the gallery but the "
        "query's own file, known by its path.",
    )
    add_feature_files(command)
    command.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="the protocol of a data set, which needs the camera of every image (default: that of "
        "Market-1501, with cameras as far as they are known)",
    )
    command.add_argument("--rerank", action="store_true", help="re-rank by k-reciprocal neighbours")
    command.add_argument(
        "--query-expansion",
        action="store_true",
        help="first move each query towards its nearest gallery items (alpha query expansion)",
    )
    command.add_argument(
        "--metric", choices=["cosine", "euclidean"], default="cosine", help="how features are compared"
    )
    command.add_argument(
        "--average-precision",
        choices=["step", "trapezoid"],
        default="step",
        help="the rule whose mean stands first in the table (the table and the JSON file have both)",
    )
    command.add_argument("--max-rank", type=int, default=50, help="length of the CMC curve")
    command.add_argument("--device", default="cpu", help="where the products are computed, such as cuda")
    command.add_argument("--json", metavar="FILE", help="write the metrics there as JSON")
    command.add_argument("--per-query", metavar="FILE", help="write a row per query there: .csv or .parquet")
    return command


def run(options: Namespace) -> None:
    """Evaluate, print the metrics and write the files asked for."""
    check_outputs(
        options, {"json": (), "per_query": (".csv", ".parquet")}, label_files(options, "query", "gallery")
    )
    if options.query_expansion and options.metric != "cosine":
        raise InputError("--query-expansion: expected --metric cosine, as expanded queries have length 1")
    if options.protocol == "cuhk03_classic":
        for option in ("rerank", "query_expansion"):
            if options[option]:
                name = option.replace("_", "-")
                raise InputError(f"--{name}: not defined for cuhk03_classic, which draws its galleries")

    check_int("--max-rank", options.max_rank)
    check_device(options.device)
    with rename_rerank_error():
        result = _evaluate(options, read_query_and_gallery(options.query, options.gallery))
    metrics = result.to_dict()
    if options.protocol is not None:
        metrics["protocol"] = options.protocol
    if options.json is not None:
        write_json(options.json, metrics)
    if options.per_query is not None:
        write_table(options.per_query, _per_query(result))
    print_ranking(result)


def _evaluate(options: Namespace, inputs: dict[str, Any]) -> RankingResult | RepeatedResult:
    from rga_reid.evaluation import PROTOCOLS, ReRanking, evaluate_protocol, evaluate_ranking
    from rga_reid.evaluation.rerank import TooFewItemsError

    try:
        if options.query_expansion:
            inputs["query_features"] = _expanded(options, inputs)
        settings = {
            "metric": options.metric,
            "average_precision": options.average_precision,
            "max_rank": options.max_rank,
            "rerank": ReRanking() if options.rerank else None,
            "device": options.device,
        }
        with progress_bar("ranking") as moved:
            if options.protocol is None:
                return evaluate_ranking(**inputs, **settings, progress=moved)
            return evaluate_protocol(PROTOCOLS[options.protocol], **inputs, **settings, progress=moved)
    except TooFewItemsError:
        raise
    except InputError as error:
        raise InputError(f"--query {options.query} --gallery {options.gallery}: {error}") from None


def _expanded(options: Namespace, inputs: dict[str, Any]) -> np.ndarray:
    from rga_reid.evaluation import expand_queries

    junk = (inputs["gallery_pids"] == -1).fillna(False).to_numpy(dtype=bool)
    gallery = inputs["gallery_features"][~junk] if junk.any() else inputs["gallery_features"]
    with progress_bar("query expansion") as moved:
        return expand_queries(inputs["query_features"], gallery, device=options.device, progress=moved)


def _per_query(result: RankingResult | RepeatedResult) -> pd.DataFrame:
    import pandas as pd

    from rga_reid.evaluation import RankingResult

    if isinstance(result, RankingResult):
        return result.to_frame()
    frames = [one.to_frame() for one in result.repeats]
    return pd.concat(frames, keys=range(len(frames)), names=["repeat", None]).reset_index(level="repeat")
