"""Evaluate a checkpoint on the test images of a data set."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_embedder
from rga_reid.commands._inputs import print_unreadable
from rga_reid.commands._options import (
    add_checkpoint_options,
    add_dataset_option,
    add_device_option,
    add_import_option,
    add_lang_option,
    add_pooling_option,
    add_skip_option,
    check_embedder,
    new_parser,
    rename_rerank_error,
)
from rga_reid.commands._output import check_outputs, print_ranking
from rga_reid.commands.evaluate import COMBINED, PROTOCOL_HELP, PROTOCOLS, check_protocol
from rga_reid.errors import InputError, check_int, sanitize
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    from rga_reid.data import ImageError
    from rga_reid.inference import Embedder
    from rga_reid.reports.language import Text


def parser() -> ArgumentParser:
    """Options of ``test``."""
    options = new_parser(
        "test", "Embed the query and gallery images of a data set and rank the gallery for each query."
    )
    add_checkpoint_options(options, required=True)
    options.add_argument(
        "--data.root", metavar="DIR", required=True, help="folder of a data set, or its CSV file"
    )
    add_dataset_option(options)
    options.add_argument(
        "--flip", action="store_true", help="average the features of each image and its mirror image"
    )
    options.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help=f"{PROTOCOL_HELP} (default: that of the card, or as market1501, but cameras may be unknown)",
    )
    add_pooling_option(options, "rank tracks")
    options.add_argument("--rerank", action="store_true", help="re-rank by k-reciprocal neighbours")
    options.add_argument("--batch-size", type=int, default=128, help="images per forward pass")
    add_device_option(options)
    add_skip_option(options)
    options.add_argument("--json", metavar="FILE", help="write the metrics as JSON")
    options.add_argument(
        "--html",
        metavar="FILE",
        help="write a page with curves, rank-1 between cameras, a map of the features, and the worst, median and best "
        "queries",
    )
    add_lang_option(options)
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """Embed and rank the test images, and print the metrics."""
    from rga_reid.data import load_card, read_table
    from rga_reid.devices import choose_device
    from rga_reid.evaluation import RankingResult, ReRanking, evaluate_features
    from rga_reid.experiments.evaluate_model import (
        card_protocol,
        describe_identical_files,
        embed_test_images,
        find_protocol,
        split_sides,
    )
    from rga_reid.files import write_json, write_text
    from rga_reid.models import FlipTTA

    check_outputs(options, {"json": (), "html": ()})
    options.protocol = options.protocol or card_protocol(options.data.root, options.data.dataset)
    check_protocol(options, "rerank")
    if options.html is not None and options.protocol in COMBINED:
        raise InputError(f"--html: not available for {options.protocol}, which ranks no single query images")
    if options.html is not None:
        from rga_reid.reports.feature_map import require_layout

        require_layout()
    check_int("--batch-size", options.batch_size)
    check_embedder(options)
    table = read_table(options.data.root, options.data.dataset)
    protocol = find_protocol(options.protocol)
    device = choose_device(options.device)
    model = read_embedder(options, device)
    everything = table
    unreadable: list[ImageError] = []
    features, table = embed_test_images(
        FlipTTA(model) if options.flip else model,
        table,
        batch_size=options.batch_size,
        device=device,
        refused=unreadable if options.skip_unreadable else None,
        pooling=options.pool_tracks,
        protocol=protocol,
    )
    print_unreadable(unreadable)
    settings: dict[str, Any] = {
        "junk_pids": load_card(options.data.dataset).junk_pids,
        "rerank": ReRanking() if options.rerank else None,
    }
    evaluate = evaluate_features if protocol is None else protocol.evaluate
    with progress_bar("ranking") as progress, rename_rerank_error():
        result = evaluate(*split_sides(features, table), **settings, progress=progress)
    metrics = result.to_dict() | ({} if options.protocol is None else {"protocol": options.protocol})
    if options.json is not None:
        write_json(options.json, metrics)
    if options.html is not None:
        assert isinstance(result, RankingResult)  # checked above
        from rga_reid.experiments.evaluate_model import ranking_page

        page = ranking_page(
            features,
            table,
            result,
            **settings,
            protocol=protocol,
            title=_name(options.checkpoint),
            facts=_facts(options, model),
            lang=options.lang,
        )
        write_text(options.html, page)
    print_ranking(result, options.protocol)
    warning = describe_identical_files(everything, settings["junk_pids"])
    if warning is not None:
        print(sanitize(warning))
    if options.html is not None:
        print(options.html)


def _name(checkpoint: str) -> str:
    """Return the file of a checkpoint with its folder, which names the run."""
    path = Path(checkpoint)
    return str(Path(path.absolute().parent.name) / path.name)


def _facts(options: Namespace, model: Embedder) -> list[tuple[str, Text | str]]:
    from rga_reid.reports.language import Text

    data = {"card": options.data.dataset, "name": Path(options.data.root).resolve().name}
    return [
        ("fact_model", options.checkpoint),
        ("fact_recipe", _recipe(model)),
        ("fact_data", Text("data_read", data)),
        ("fact_protocol", options.protocol or "market1501"),
        ("fact_ranking", Text("ranking_reranked" if options.rerank else "ranking_plain")),
        ("fact_date", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"),
    ]


def _recipe(model: Embedder) -> str:
    """Return the parts of a model that a recipe chooses: backbone, attention with its stages, and sizes."""
    config = getattr(model, "config", None) or {}
    attention = config.get("attention")
    name = attention["class_path"].rpartition(".")[2] if isinstance(attention, dict) else attention
    stages = ", ".join(map(str, config.get("stages") or ()))
    parts = [config.get("backbone"), f"{name} ({stages})" if name and stages else name]
    return " · ".join([*map(str, filter(None, parts)), "{}×{}".format(*model.size), f"{model.dimension}-d"])
