"""``query``: search a gallery for the people in query images; print, save or show the ranked matches."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_gallery_embedder, require_same_model
from rga_reid.commands._inputs import load_threshold, print_unreadable
from rga_reid.commands._milvus import add_milvus_options
from rga_reid.commands._options import (
    LOCATION,
    add_checkpoint_options,
    add_device_option,
    add_import_option,
    add_same_features_option,
    add_skip_option,
    add_threshold_options,
    check_embedder,
    check_images,
    check_threshold,
    label_files,
    new_parser,
)
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError, check_int, sanitize
from rga_reid.files import atomic_file, write_json, write_json_lines, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from rga_reid.data import ImageError
    from rga_reid.gallery import Gallery
    from rga_reid.inference.verify import Threshold

_OUTPUTS: dict[str, tuple[str, ...]] = {"json": (), "csv": (), "html": ()}
MAX_PAGE_QUERIES = 100  # a page of more would have many megabytes
MAX_PRINTED_QUERIES = 20
_PIPE_WIDTH = 10_000  # characters


def parser() -> ArgumentParser:
    """Options of ``query``."""
    command = new_parser(
        "query", "Find the gallery images that look most like the person in each query image."
    )
    command.add_argument("--gallery", metavar="LOCATION", required=True, help=LOCATION)
    command.add_argument("--image", metavar="FILE", nargs="+", help="query images, or one folder of them")
    command.add_argument("--features", metavar="FILE.npz", help="or a feature file, each row a query")
    add_checkpoint_options(
        command, "; the model of the gallery, if its file has moved since the gallery was built"
    )
    add_same_features_option(command)
    command.add_argument("--top-k", type=int, default=10, help="matches per query")
    command.add_argument(
        "--exclude-camera", metavar="CAMERA", type=str, help="leave out images of this camera"
    )
    command.add_argument(
        "--where",
        metavar="FILTER",
        help="search only images that match, such as 'camid == 3 and pid in (1, 2)'",
    )
    command.add_argument(
        "--rerank",
        action="store_true",
        help="re-rank each query's shortlist by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3), computed "
        "within the query and its shortlist",
    )
    command.add_argument(
        "--shortlist",
        metavar="N",
        type=int,
        help="with --rerank: number of nearest images to re-rank (default: 100, or --top-k if larger)",
    )
    add_threshold_options(command, "leave out matches with a lower score")
    command.add_argument(
        "--multi", action="store_true", help="all images show one person: search with their mean feature"
    )
    add_skip_option(command)
    command.add_argument(
        "--json",
        metavar="FILE",
        help="write the matches as JSON, or as JSON lines (one per query) if the name ends in .jsonl",
    )
    command.add_argument("--csv", metavar="FILE", help="write the matches as CSV")
    command.add_argument(
        "--html", metavar="FILE", help=f"write a page of pictures (first {MAX_PAGE_QUERIES} queries)"
    )
    add_device_option(command)
    add_import_option(command)
    add_milvus_options(command)
    return command


def run(options: Namespace) -> None:
    """Search, write the requested files and print the matches."""
    check_int("--top-k", options.top_k)
    check_threshold(options)
    if options.shortlist is not None and not options.rerank:
        raise InputError("--shortlist: goes with --rerank")
    if options.shortlist is not None and options.shortlist < options.top_k:
        raise InputError(f"--shortlist: expected at least --top-k, {options.top_k}, got {options.shortlist}")
    if (options.image is None) == (options.features is None):
        raise InputError("query: expected one of --image FILE and --features FILE.npz")
    if options.features is not None and options.checkpoint is not None:
        raise InputError("query: --checkpoint is for images, but --features was given")
    check_embedder(options)
    check_outputs(options, _OUTPUTS, label_files(options, "features"))
    queries = None if options.image is None else _query_table(options.image)

    from rga_reid.devices import choose_device
    from rga_reid.evaluation import ReRanking
    from rga_reid.gallery import Gallery
    from rga_reid.gallery.gallery import SHORTLIST

    device, threshold = choose_device(options.device), load_threshold(options)
    gallery = Gallery.open(options.gallery)
    if gallery.model is not None:
        check_outputs(options, _OUTPUTS, {"--gallery (its model)": [gallery.model.checkpoint]})
    searched = gallery.count(
        exclude_camera=options.exclude_camera, where=options.where
    )  # or refuses the filter
    warning = None if threshold is None else threshold.gallery_warning(searched)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    if queries is None:
        features, queries = _read_queries(gallery, options)
    else:
        features, queries = _embed_queries(gallery, options, queries, device)
    pictures = [record["path"] for record in _records(queries)] if options.multi else []
    if options.multi:
        features, queries = features.mean(axis=0, keepdims=True), _merge_queries(queries)
    matches = gallery.search(
        features,
        options.top_k,
        exclude_camera=options.exclude_camera,
        where=options.where,
        rerank=ReRanking() if options.rerank else None,
        shortlist=options.shortlist or max(SHORTLIST, options.top_k),
    )
    if threshold is not None:
        matches = matches[matches["score"] >= threshold.value].reset_index(drop=True)
    results = _as_json(queries, matches)
    if options.multi:
        results[0] = {"query": 0, "image": results[0]["image"], "images": pictures} | results[0]
    if options.json is not None:
        (write_json_lines if options.json.endswith(".jsonl") else write_json)(options.json, results)
    if options.csv is not None:
        with atomic_file(options.csv) as temporary:
            _with_images(queries, matches).to_csv(temporary, index=False)
    if options.html is not None:
        gallery_name = Path(options.gallery).absolute().name
        write_text(options.html, _page(queries, results, gallery_name, options.rerank, threshold, pictures))
    _print(results, threshold)


def _query_table(images: Sequence[str]) -> pd.DataFrame:
    """Table of the query images with the columns ``path``, ``pid`` and ``camid``."""
    from rga_reid.data import table_from_files, table_from_images

    if len(images) == 1 and Path(images[0]).is_dir():
        return table_from_images(os.path.abspath(images[0]))
    check_images("--image", *images)
    return table_from_files([os.path.abspath(image) for image in images])


def _embed_queries(
    gallery: Gallery, options: Namespace, queries: pd.DataFrame, device: torch.device
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the features of the query images, and the rows of those that could be read."""
    from rga_reid.inference import extract_features

    model = read_gallery_embedder(gallery, options, device)
    unreadable: list[ImageError] = []
    refused = unreadable if options.skip_unreadable else None
    features, queries = extract_features(model, queries, device=device, refused=refused)
    print_unreadable(unreadable)
    if not len(features):
        raise InputError("--image: none of the images can be read")
    return features, queries


def _read_queries(gallery: Gallery, options: Namespace) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the rows of a feature file and their table, with nulls for what the file does not say."""
    import pandas as pd

    from rga_reid.gallery.validation import normalize_rows
    from rga_reid.inference.feature_files import read_features, read_fingerprint

    source = f"--features {options.features}"
    features, table = read_features(options.features)
    if not len(features):
        raise InputError(f"{source}: has no features")
    require_same_model(gallery, read_fingerprint(options.features), options, source)
    for column, kind in (("path", "str"), ("pid", "Int64"), ("camid", "Int64")):
        if column not in table:
            table[column] = pd.Series([None] * len(table), dtype=kind)
    return normalize_rows(features, name=source), table


def _merge_queries(queries: pd.DataFrame) -> pd.DataFrame:
    """One query for several images: the path of the first, and labels on which all images agree."""
    import pandas as pd

    one = queries.head(1).copy()
    for column in ("pid", "camid"):
        if queries[column].nunique(dropna=False) > 1:
            one[column] = pd.NA
    return one


def _as_json(queries: pd.DataFrame, matches: pd.DataFrame) -> list[dict[str, Any]]:
    """One object per query: number, image and matches, best first; unknown values are null."""
    results: list[dict[str, Any]] = [
        {"query": number, "image": query["path"], "matches": []}
        for number, query in enumerate(_records(queries))
    ]
    for match in _records(matches):
        results[match.pop("query")]["matches"].append(match)
    return results


def _with_images(queries: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """The matches with a column for the path of the query image."""
    table = matches.copy()
    table.insert(1, "image", queries["path"].take(matches["query"]).to_numpy())
    return table


def _page(
    queries: pd.DataFrame,
    results: Sequence[dict[str, Any]],
    gallery: str,
    reranked: bool,
    threshold: Threshold | None,
    pictures: Sequence[str | None],
) -> str:
    """Return the page; ``pictures`` are those whose mean is the only query, if it is a mean."""
    from rga_reid.reports.ranked_page import Match, Picture, ranked_page

    shown = [
        Picture(_name(query["path"], number), query["pid"], query["camid"])
        for number, query in enumerate(_records(queries.head(MAX_PAGE_QUERIES)))
    ]
    shown_fields = [field.name for field in fields(Match)]
    matches = [
        [Match(**{name: match[name] for name in shown_fields}) for match in result["matches"]]
        for result in results[: len(shown)]
    ]
    count = f"{len(queries):,} {'query' if len(queries) == 1 else 'queries'}"
    if len(shown) < len(queries):
        count = f"The first {len(shown)} of {count}"
    order = " Matches are in re-ranked order." if reranked else ""
    note = f"{count} against the gallery “{gallery}”. Scores are cosine similarities; 1 is identical.{order}"
    if threshold is not None:
        note += f" Images below the threshold of {threshold} are left out."
    others = [_name(path, number) for number, path in enumerate(pictures)][1:MAX_PAGE_QUERIES]
    return ranked_page(
        shown,
        matches,
        title="Who is this?",
        note=note,
        captions=[_describe_mean(pictures)] if pictures else (),
        others=[others] if pictures else (),
    )


def _describe_mean(pictures: Sequence[str | None]) -> str:
    return f"mean of {len(pictures):,} picture{'s' * (len(pictures) > 1)}"


def _name(path: str | None, number: int) -> str:
    """The path of a query, or its row in a feature file without paths."""
    return f"row {number} of the features" if path is None else path


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain Python values, with None for null."""
    from rga_reid.data.columns import plain_records

    return plain_records(table)


def _print(results: Sequence[dict[str, Any]], threshold: Threshold | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # in a pipe each match is one line, however long its path
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    nothing = "no match in this gallery"
    if threshold is not None:
        console.print(f"threshold {threshold}", soft_wrap=True)
        nothing = "nobody above the threshold"
    for result in results[:MAX_PRINTED_QUERIES]:
        table = Table("#", "score", "person", "camera", box=SIMPLE_HEAD)
        table.add_column("image", overflow="fold")
        for match in result["matches"]:
            labels = ["unknown" if match[key] is None else str(match[key]) for key in ("pid", "camid")]
            table.add_row(str(match["rank"]), f"{match['score']:.4f}", *labels, sanitize(match["path"]))
        pictures = result.get("images", [])
        if pictures:
            console.print(f"{_describe_mean(pictures)}:")
        for number, path in enumerate(pictures[:MAX_PRINTED_QUERIES]):
            console.print(f"  {sanitize(_name(path, number))}", soft_wrap=True)
        if len(pictures) > MAX_PRINTED_QUERIES:
            console.print(f"  ... and {len(pictures) - MAX_PRINTED_QUERIES:,} more")
        if not pictures:
            console.print(sanitize(_name(result["image"], result["query"])), soft_wrap=True)
        console.print(table if result["matches"] else nothing)
    if len(results) > MAX_PRINTED_QUERIES:
        more = len(results) - MAX_PRINTED_QUERIES
        console.print(f"... and {more:,} more queries; save all of them with --json or --csv")
