"""``evaluate``: the metrics of re-identification for features of any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands.output import check_output_file, print_ranking, progress
from rga_reid.commands.parsing import new_parser
from rga_reid.errors import InputError
from rga_reid.files import atomic_file, write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def parser() -> ArgumentParser:
    """Options of ``evaluate``."""
    command = new_parser(
        "evaluate",
        "Rank a gallery for each query by their features, and compare with the true identities in the "
        "protocol of Market-1501. The .npz files hold arrays features (n, d) and pids (n,), optionally "
        "camids and paths. Without camids nothing is removed from the gallery but the query's own file, "
        "known by its path.",
    )
    command.add_argument("--query", metavar="Q.npz", required=True, help="features of the queries")
    command.add_argument("--gallery", metavar="G.npz", required=True, help="features of the gallery")
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
    check_output_file("--json", options.json)
    check_output_file("--per-query", options.per_query)
    if options.per_query is not None and Path(options.per_query).suffix not in (".csv", ".parquet"):
        raise InputError(f"--per-query {options.per_query}: expected a name that ends in .csv or .parquet")

    from rga_reid.evaluation import evaluate_ranking

    query, query_table = _read(options.query)
    gallery, gallery_table = _read(options.gallery)
    if ("camid" in query_table) != ("camid" in gallery_table):
        files = (options.query, options.gallery)
        given, missing = files if "camid" in query_table else files[::-1]
        raise InputError(f"{missing}: has no array 'camids', but {given} has; both need it, or neither")
    try:
        with progress("ranking") as moved:
            result = evaluate_ranking(
                query,
                gallery,
                query_table["pid"],
                gallery_table["pid"],
                query_table.get("camid"),
                gallery_table.get("camid"),
                metric=options.metric,
                average_precision=options.average_precision,
                max_rank=options.max_rank,
                query_paths=query_table.get("path"),
                gallery_paths=gallery_table.get("path"),
                device=options.device,
                progress=moved,
            )
    except InputError as error:
        raise InputError(f"--query {options.query} --gallery {options.gallery}: {error}") from None
    if options.json is not None:
        write_json(options.json, result.to_dict())
    if options.per_query is not None:
        _write_table(options.per_query, result.to_frame())
    print_ranking(result)


def _read(path: str) -> tuple[np.ndarray, pd.DataFrame]:
    from rga_reid.retrieval.feature_files import read_features

    features, table = read_features(path)
    if "pid" not in table:
        raise InputError(f"{path}: expected an array 'pids', the identity of each row of 'features'")
    return features, table


def _write_table(path: str, table: pd.DataFrame) -> None:
    with atomic_file(path) as temporary:
        if Path(path).suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
