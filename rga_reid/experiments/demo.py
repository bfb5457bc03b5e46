"""The whole story on the synthetic set: draw, train, test, index, ask, explain, report; pages to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rga_reid.data import read_table
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.evaluation import RankingResult
from rga_reid.experiments.evaluate_model import embed_test_images, rank_test_images, tabulate_top_matches
from rga_reid.experiments.explain import explain
from rga_reid.experiments.results import read_curve
from rga_reid.files import write_json, write_text
from rga_reid.gallery import Gallery
from rga_reid.inference import ModelFingerprint, extract_features
from rga_reid.inference.embed import Embedder
from rga_reid.models import ColourHistogram, load_model
from rga_reid.models.analysis import total_costs
from rga_reid.reports.ablation_page import write_report
from rga_reid.reports.ablation_stats import METRICS, Evaluation
from rga_reid.reports.ablation_tables import AblationReport
from rga_reid.reports.explorer import explorer_page
from rga_reid.reports.ranked_page import Match, Picture, ranked_page

PAGE_QUERIES = 12
MODEL = "ResNet-18 + RGA-SC"
_CONDITIONS = "Parameters and multiply-accumulates are the backbone's, for one image."


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, and where it left what can be opened."""

    histogram: RankingResult
    model: RankingResult
    data: Path
    checkpoint: Path
    gallery: Path
    page: Path
    relations: Path
    report: Path
    metrics: Path


def draw(root: Path, seed: int) -> None:
    """Draw the synthetic data set into the new folder ``root``."""
    write_synthetic(root, SyntheticSettings(seed=seed))


def tell(
    out: Path, root: Path, checkpoint: Path, seed: int, say: Callable[[str], None] = lambda step: None
) -> DemoResult:
    """Test the trained model beside a colour histogram, build a gallery, query it, write the pages.

    Args:
        out: folder of the demo.
        root: data set of ``draw``.
        checkpoint: what was trained on it.
        seed: of the choice of queries.
        say: told each step before it begins.
    """
    table = read_table(root)
    say("test: a colour histogram, for comparison")
    histogram, plain = _tested("colour histogram", ColourHistogram(), table)
    say("test: the trained model")
    model = load_model(checkpoint)
    result, trained = _tested(MODEL, model, table)

    say("gallery: build and query")
    gallery = Gallery.build(
        *extract_features(model, table[table.split == "gallery"]),
        model=ModelFingerprint.of(model, checkpoint),
    )
    gallery.save(out / "gallery")
    queries = table[table.split == "query"].drop_duplicates("pid")
    queries = queries.sample(min(PAGE_QUERIES, len(queries)), random_state=seed).reset_index(drop=True)
    features, _ = extract_features(model, queries)
    page = out / "query.html"
    write_text(page, _page(queries, gallery.search(features, 10)))

    say("explain: what its attention relates to what")
    relations = out / "explain.html"
    exhibits = explain([queries.path[0]], checkpoints=[checkpoint])
    note = f"{exhibits[0].model}, trained on the synthetic set. The pedestrian is drawn by code."
    write_text(relations, explorer_page(exhibits, note=note))

    say("report: the two tests side by side")
    parameters, macs = total_costs(model.backbone)
    trained = replace(trained, curve=read_curve(checkpoint.parent), parameters=parameters, macs=macs)
    report = AblationReport(
        "A trained model beside a colour histogram", [plain, trained], plain.name, conditions=_CONDITIONS
    )
    pages = write_report(report, out / "report")

    metrics = out / "metrics.json"
    write_json(metrics, {"colour histogram": histogram.to_dict(), "model": result.to_dict()})
    return DemoResult(
        histogram, result, root, checkpoint, out / "gallery", page, relations, pages[0], metrics
    )


def _tested(name: str, model: Embedder, table: pd.DataFrame) -> tuple[RankingResult, Evaluation]:
    """The test of a model, and the same as a report takes it."""
    features, tested = embed_test_images(model, table)
    result = rank_test_images(features, tested)
    metrics = {key: float(value) for key, value in result.to_dict().items() if key in METRICS}
    ranked = tabulate_top_matches(features, tested)
    return result, Evaluation(name, None, metrics, tuple(result.cmc), result.to_frame(), ranked)


def _page(queries: pd.DataFrame, matches: pd.DataFrame) -> str:
    pictures = [Picture(row.path, int(row.pid), int(row.camid)) for row in queries.itertuples()]
    lists: list[list[Match]] = [[] for _ in pictures]
    for row in matches.itertuples():
        lists[row.query].append(
            Match(row.path, int(row.pid), int(row.camid), rank=int(row.rank), score=float(row.score))
        )
    note = (
        "Synthetic pedestrians, drawn by code. None of these people was seen in training. Person 0 is not "
        "one person: these are passers-by, whom no query asks for."
    )
    return ranked_page(pictures, lists, title="Who is this?", note=note)
