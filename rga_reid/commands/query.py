"""``query``: search a gallery for the people in query images; print, save or show the ranked matches."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_gallery_embedder, require_same_model
from rga_reid.commands._inputs import load_threshold, print_unreadable, warn_of_gallery_size
from rga_reid.commands._milvus import add_milvus_options
from rga_reid.commands._options import (
    LOCATION,
    OWN_MODEL,
    add_checkpoint_options,
    add_device_option,
    add_import_option,
    add_lang_option,
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
    from rich.table import Table

    from rga_reid.data import ImageError
    from rga_reid.gallery import Gallery
    from rga_reid.inference.verify import Threshold
    from rga_reid.reports.language import Text
    from rga_reid.reports.ranked_page import Match

_OUTPUTS: dict[str, tuple[str, ...]] = {"json": (), "csv": (), "html": ()}
MAX_PAGE_QUERIES = 100  # a page of more would have many megabytes
MAX_PRINTED_QUERIES = 20
_PIPE_WIDTH = 10_000  # characters
_SHOWN = ("path", "pid", "camera", "track", "time")  # columns that are shown always


def parser() -> ArgumentParser:
    """Options of ``query``."""
    command = new_parser(
        "query", "Find the gallery images that look most like the person in each query image."
    )
    command.add_argument("--gallery", metavar="LOCATION", required=True, help=LOCATION)
    command.add_argument("--image", metavar="FILE", nargs="+", help="query images, or one folder of them")
    command.add_argument(
        "--features",
        metavar="FILE.npz",
        help="instead of --image: feature file, in which each row is a query",
    )
    add_checkpoint_options(command, OWN_MODEL)
    add_same_features_option(command)
    command.add_argument("--top-k", type=int, default=10, help="matches, or groups, per query")
    command.add_argument(
        "--exclude-camera",
        metavar="CAMERA",
        help='leave out images of this camera; of several with --where, such as "camera not in (1, 2)"',
    )
    command.add_argument(
        "--where",
        metavar="FILTER",
        help="search only images that match, such as 'camera = 3 and time >= now - 2h'",
    )
    command.add_argument(
        "--group-by",
        metavar="COLUMN",
        help="rank groups of images, such as tracks: track, camera, pid or another column of the gallery",
    )
    command.add_argument(
        "--per-group",
        metavar="N",
        type=int,
        help="with --group-by: images of each group to show (default: 3)",
    )
    command.add_argument(
        "--columns",
        metavar="A,B",
        help="further columns of the gallery to show (default: none in the table and the page, all in JSON and CSV)",
    )
    command.add_argument(
        "--rerank",
        action="store_true",
        help="re-rank the shortlist of each query by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3) among the "
        "query and the shortlist",
    )
    command.add_argument(
        "--shortlist",
        metavar="N",
        type=int,
        help="with --rerank: number of nearest images to re-rank (default: 100, or --top-k if larger)",
    )
    add_threshold_options(
        command,
        "least score of a match; images with lower scores are below a line in the table and the page, and left out "
        "of JSON and CSV",
    )
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
    add_lang_option(command)
    add_import_option(command)
    add_milvus_options(command)
    return command


def run(options: Namespace) -> None:
    """Search, write the requested files and print the matches."""
    check_int("--top-k", options.top_k)
    check_threshold(options)
    if options.per_group is not None and options.group_by is None:
        raise InputError("--per-group: goes with --group-by")
    check_int("--per-group", 1 if options.per_group is None else options.per_group)
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

    from rga_reid.data.columns import find_columns
    from rga_reid.devices import choose_device
    from rga_reid.evaluation import ReRanking
    from rga_reid.gallery import Gallery
    from rga_reid.gallery.answers import answers_to_json
    from rga_reid.gallery.gallery import SHORTLIST
    from rga_reid.gallery.grouped_search import PER_GROUP

    device, threshold = choose_device(options.device), load_threshold(options)
    gallery = Gallery.open(options.gallery)
    if gallery.model is not None:
        check_outputs(options, _OUTPUTS, {"--gallery (its model)": [gallery.model.checkpoint]})
    columns = None
    if options.columns is not None:
        names = [name.strip() for name in options.columns.split(",")]
        columns = find_columns(names, gallery.columns, "--columns")
    if options.group_by is not None:
        find_columns([options.group_by], gallery.columns, "--group-by")
    searched = gallery.count(
        exclude_camera=options.exclude_camera, where=options.where
    )  # or refuses the filter
    warn_of_gallery_size(threshold, searched)
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
        with_ids=True,
        group_by=options.group_by,
        per_group=options.per_group or PER_GROUP,
    )
    limit = None if threshold is None else threshold.value
    found, kept = (
        _with_queries(
            queries,
            answers_to_json(
                matches, len(queries), group_by=options.group_by, threshold=least, columns=columns
            ),
            pictures,
        )
        for least in (None, limit)
    )
    if options.json is not None:
        (write_json_lines if options.json.endswith(".jsonl") else write_json)(options.json, kept)
    if options.csv is not None:
        _write_csv(
            options.csv, queries, matches if limit is None else matches[matches["score"] >= limit], columns
        )
    if options.html is not None:
        write_text(options.html, _page(queries, found, options, threshold, columns or []))
    _print(found, threshold, columns or [], _explain_none(gallery, options, searched))


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


def _with_queries(
    queries: pd.DataFrame, answers: Sequence[dict[str, Any]], pictures: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Add number and image of each query to its answer, and all pictures whose mean was the query."""
    mean = {"images": list(pictures)} if pictures else {}
    return [
        {"query": number, "image": query["path"], **mean, **answer}
        for number, (query, answer) in enumerate(zip(_records(queries), answers, strict=True))
    ]


def _write_csv(
    path: str, queries: pd.DataFrame, matches: pd.DataFrame, columns: Sequence[str] | None
) -> None:
    """Write a row for each match, with the number and the image of its query."""
    import pandas as pd

    from rga_reid.gallery.answers import match_table

    table = match_table(matches, columns)
    table.insert(1, "image", queries["path"].take(matches["query"]).to_numpy())
    for column in table.columns:
        if isinstance(table[column].dtype, pd.DatetimeTZDtype):
            table[column] = table[column].map(lambda time: time.isoformat(), na_action="ignore")
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _page(
    queries: pd.DataFrame,
    results: Sequence[dict[str, Any]],
    options: Namespace,
    threshold: Threshold | None,
    columns: Sequence[str],
) -> str:
    """Return the page of the first queries; images of one group are drawn together."""
    from rga_reid.reports.language import Text
    from rga_reid.reports.ranked_page import Picture, ranked_page

    shown = [
        Picture(_name(query["path"], number), query["pid"], query["camid"])
        for number, query in enumerate(_records(queries.head(MAX_PAGE_QUERIES)))
    ]
    results = results[: len(shown)]
    key = "note_first" if len(shown) < len(queries) else "note_query" if len(queries) == 1 else "note_queries"
    name = Path(options.gallery).absolute().name
    note = [Text(key, {"shown": len(shown), "count": f"{len(queries):,}", "name": name}), Text("note_scores")]
    if options.group_by is not None:
        known = options.group_by in ("track", "camera", "pid")
        column = Text(f"column_{options.group_by}") if known else options.group_by
        note.append(Text("note_grouped", {"column": column}))
    if options.rerank:
        note.append(Text("note_reranked"))
    if threshold is not None:
        note.append(_describe_threshold(threshold))
    pictures = results[0].get("images", []) if results else []
    mean = Text("mean_of" if len(pictures) > 1 else "mean_of_one", {"count": f"{len(pictures):,}"})
    others = [_name(path, number) for number, path in enumerate(pictures)][1:MAX_PAGE_QUERIES]
    return ranked_page(
        shown,
        [_page_matches(result, columns) for result in results],
        note=note,
        captions=[mean] if pictures else (),
        others=[others] if pictures else (),
        threshold=None if threshold is None else threshold.value,
        lang=options.lang,
    )


def _describe_threshold(threshold: Threshold) -> Text:
    """Return the threshold and what it was calibrated for."""
    from rga_reid.reports.language import Text

    keys = {
        ("per_pair", False): "threshold_pair",
        ("per_pair", True): "threshold_pair_rate",
        ("open_set", False): "threshold_open",
        ("open_set", True): "threshold_open_rate",
    }
    key = keys.get((threshold.kind, threshold.rate is not None), "threshold_given")
    values = {"value": f"{threshold.value:.6g}", "images": f"{threshold.gallery_size or 0:,}"}
    return Text(key, values | {"rate": f"{threshold.rate or 0:g}"})


def _page_matches(result: Mapping[str, Any], columns: Sequence[str]) -> list[Match]:
    """Return the matches of a query, or the groups, each as its best image with the others."""
    groups = result["groups"] if "groups" in result else [{"matches": [one]} for one in result["matches"]]
    found = []
    for group in groups:
        (best, *others) = group["matches"]
        found.append(_page_match(best, columns, tuple(_page_match(one, columns) for one in others)))
    return found


def _page_match(match: Mapping[str, Any], columns: Sequence[str], others: tuple[Match, ...] = ()) -> Match:
    from rga_reid.reports.ranked_page import Match

    return Match(
        match["path"],
        match["pid"],
        match["camera"],
        match["track"],
        None if match["time"] is None else datetime.fromisoformat(match["time"]),
        {name: match[name] for name in columns if name not in _SHOWN},
        rank=match["rank"],
        score=match["score"],
        others=others,
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


def _explain_none(gallery: Gallery, options: Namespace, searched: int) -> str:
    """Return what to print for a query without matches."""
    if searched:
        return "no match in this gallery"
    times = gallery.describe()["times"] if re.search(r"\btime\b", options.where or "") else None
    hint = f"; times are in UTC; those of the gallery are {' to '.join(times)}" if times else ""
    return f"no match: the filter leaves no image{hint}"


def _print(
    results: Sequence[dict[str, Any]], threshold: Threshold | None, columns: Sequence[str], none: str
) -> None:
    from rich.console import Console

    # in a pipe each match is one line, however long its path
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if threshold is not None:
        console.print(f"threshold {threshold}", soft_wrap=True)
    for result in results[:MAX_PRINTED_QUERIES]:
        pictures, scores = result.get("images", []), [match["score"] for match in result["matches"]]
        if pictures:
            console.print(f"{_describe_mean(pictures)}:")
        for number, path in enumerate(pictures[:MAX_PRINTED_QUERIES]):
            console.print(f"  {sanitize(_name(path, number))}", soft_wrap=True)
        if len(pictures) > MAX_PRINTED_QUERIES:
            console.print(f"  ... and {len(pictures) - MAX_PRINTED_QUERIES:,} more")
        if not pictures:
            console.print(sanitize(_name(result["image"], result["query"])), soft_wrap=True)
        if not scores:
            console.print(none, soft_wrap=True)
            continue
        if threshold is not None and max(scores) < threshold.value:
            console.print(f"nobody: no match reaches the threshold; the best score is {max(scores):.4f}")
        console.print(_table(result["matches"], None if threshold is None else threshold.value, columns))
    if len(results) > MAX_PRINTED_QUERIES:
        more = len(results) - MAX_PRINTED_QUERIES
        console.print(f"... and {more:,} more queries; save all of them with --json or --csv")


def _table(matches: Sequence[dict[str, Any]], threshold: float | None, columns: Sequence[str]) -> Table:
    """Return the matches as a table, those below the threshold after a line; without columns that none knows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    wanted = {"pid": "pid", "camera": "camera", "track": "track", "time": "time (UTC)"}
    wanted |= {column: column for column in columns if column not in _SHOWN}
    known = [column for column in wanted if any(match[column] is not None for match in matches)]
    table = Table("#", "score", *(sanitize(wanted[column]) for column in known), box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    best: dict[int, float] = {}  # groups are above or below as their best images are
    for match in matches:
        best[match["rank"]] = max(match["score"], best.get(match["rank"], match["score"]))
    above = [match for match in matches if threshold is None or best[match["rank"]] >= threshold]
    below = [match for match in matches if threshold is not None and best[match["rank"]] < threshold]
    for part in (above, below):
        if part is below and below:
            table.add_row("", f"{threshold:.4f}", *("" for _ in known), "----- threshold -----")
        for match in part:
            values = [_cell(column, match[column]) for column in known]
            style = "dim" if threshold is not None and match["score"] < threshold else ""
            table.add_row(
                str(match["rank"]), f"{match['score']:.4f}", *values, sanitize(match["path"]), style=style
            )
    return table


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "time":
        from rga_reid.data.columns import show_time

        return show_time(datetime.fromisoformat(value))
    return sanitize(str(value))
