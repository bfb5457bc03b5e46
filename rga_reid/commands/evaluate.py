"""``evaluate``: compute re-identification metrics for the features of any model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import read_query_and_gallery
from rga_reid.commands._options import (
    FEATURE_FILES,
    add_feature_files,
    add_pooling_option,
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

    from rga_reid.evaluation import LabelledFeatures, RankingResult, RepeatedResult

#: names of ``evaluation.PROTOCOLS``, which --help does not import because that imports torch
PROTOCOLS = (
    *("market1501", "multi_query", "cuhk03", "cuhk03_classic", "msmt17", "no_cameras"),
    *("viper", "cuhk01", "prid2011", "clothes_changing", "same_clothes", "prcc", "prcc_same_clothes", "mars"),
    *(
        "cross_modality",
        "sysu_mm01",
        "sysu_mm01_indoor",
        "sysu_mm01_multi_shot",
        "sysu_mm01_indoor_multi_shot",
    ),
)
#: those that draw galleries at random
DRAWN = (
    *("cuhk03_classic", "viper", "cuhk01", "prid2011", "prcc", "prcc_same_clothes"),
    *(name for name in PROTOCOLS if name.startswith(("cross_modality", "sysu_mm01"))),
)
#: those whose result has no ranking of single query images
COMBINED = (*DRAWN, "multi_query")
PROTOCOL_HELP = (
    "evaluation protocol, see docs/evaluation.md. All but no_cameras need the camera of every image, some also the "
    "column clothes, modality or track"
)


def parser() -> ArgumentParser:
    """Options of ``evaluate``."""
    command = new_parser(
        "evaluate",
        f"Rank gallery features for each query feature and compute mAP, mINP and CMC. {FEATURE_FILES} Without cameras, "
        "only the query's own file is removed from the gallery; it is recognised by its path.",
    )
    add_feature_files(command)
    command.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help=f"{PROTOCOL_HELP} (default: as market1501, but cameras may be unknown)",
    )
    add_pooling_option(command, "rank tracks")
    command.add_argument("--rerank", action="store_true", help="re-rank by k-reciprocal neighbours")
    command.add_argument(
        "--query-expansion",
        action="store_true",
        help="first move each query towards its 10 nearest gallery items (alpha query expansion)",
    )
    command.add_argument(
        "--metric", choices=["cosine", "euclidean"], default="cosine", help="similarity of features"
    )
    command.add_argument(
        "--average-precision",
        choices=["step", "trapezoid"],
        default="step",
        help="rule of the mAP that the table lists first; the table and the JSON file have both",
    )
    command.add_argument("--max-rank", type=int, default=50, help="length of the CMC curve")
    command.add_argument("--device", default="cpu", help="device of the computation, such as cuda")
    command.add_argument("--json", metavar="FILE", help="write the metrics to this file as JSON")
    command.add_argument(
        "--per-query", metavar="FILE", help="write one row per query to this file, .csv or .parquet"
    )
    return command


def check_protocol(options: Namespace, *names: str) -> None:
    """Refuse options that change the order of a gallery for the protocol that draws random galleries."""
    for name in names:
        if options.protocol in DRAWN and options[name]:
            option = name.replace("_", "-")
            raise InputError(f"--{option}: not defined for {options.protocol}, which draws random galleries")


def run(options: Namespace) -> None:
    """Evaluate, print the metrics and write the requested files."""
    check_outputs(
        options, {"json": (), "per_query": (".csv", ".parquet")}, label_files(options, "query", "gallery")
    )
    if options.query_expansion and options.metric != "cosine":
        raise InputError("--query-expansion: expected --metric cosine, as expanded queries have length 1")
    check_protocol(options, "rerank", "query_expansion")

    check_int("--max-rank", options.max_rank)
    check_device(options.device)
    query, gallery = read_query_and_gallery(options.query, options.gallery)
    with rename_rerank_error():
        result = _evaluate(options, query, gallery)
    metrics = result.to_dict()
    if options.protocol is not None:
        metrics["protocol"] = options.protocol
    if options.json is not None:
        write_json(options.json, metrics)
    if options.per_query is not None:
        write_table(options.per_query, _per_query(result))
    print_ranking(result, options.protocol)


def _evaluate(
    options: Namespace, query: LabelledFeatures, gallery: LabelledFeatures
) -> RankingResult | RepeatedResult:
    from rga_reid.evaluation import PROTOCOLS, ReRanking, evaluate_features, pool_tracks
    from rga_reid.evaluation.rerank import TooFewItemsError

    evaluate = evaluate_features if options.protocol is None else PROTOCOLS[options.protocol].evaluate
    if options.pool_tracks is not None:
        query, gallery = (pool_tracks(side, options.pool_tracks) for side in (query, gallery))
    if options.query_expansion:
        query = _expand(query, _neighbours(gallery), options.device)
    try:
        with progress_bar("ranking") as update:
            return evaluate(
                query,
                gallery,
                metric=options.metric,
                average_precision=options.average_precision,
                max_rank=options.max_rank,
                rerank=ReRanking() if options.rerank else None,
                device=options.device,
                progress=update,
            )
    except TooFewItemsError:
        raise
    except InputError as error:
        raise InputError(f"--query {options.query} --gallery {options.gallery}: {error}") from None


def _neighbours(gallery: LabelledFeatures) -> np.ndarray:
    """Return the gallery features that can join a query: those that are not junk."""
    from rga_reid.data.labels import is_label
    from rga_reid.evaluation.query_expansion import NEIGHBOURS

    junk = is_label(gallery.pids, (-1,)).to_numpy(dtype=bool)
    found = len(gallery) - int(junk.sum())
    if found < NEIGHBOURS:
        raise InputError(
            f"--query-expansion: expected at least {NEIGHBOURS} gallery images without junk, found {found}; "
            "leave out --query-expansion"
        )
    return gallery.features[~junk] if junk.any() else gallery.features


def _expand(query: LabelledFeatures, neighbours: np.ndarray, device: str) -> LabelledFeatures:
    from rga_reid.evaluation import expand_queries

    with progress_bar("query expansion") as update:
        return replace(
            query, features=expand_queries(query.features, neighbours, device=device, progress=update)
        )


def _per_query(result: RankingResult | RepeatedResult) -> pd.DataFrame:
    import pandas as pd

    from rga_reid.evaluation import RankingResult

    if isinstance(result, RankingResult):
        return result.to_frame()
    frames = [one.to_frame() for one in result.repeats]
    return pd.concat(frames, keys=range(len(frames)), names=["repeat", None]).reset_index(level="repeat")
