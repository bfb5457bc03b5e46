"""Demo on the synthetic data set: test, gallery, query, explain and report of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rga_reid.data import read_table
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.data.synthetic.dataset import FRAMES_PER_SIGHTING
from rga_reid.evaluation import RankingResult
from rga_reid.experiments.evaluate_model import (
    embed_test_images,
    rank_between_cameras,
    rank_test_images,
    tabulate_top_matches,
)
from rga_reid.experiments.explain import explain
from rga_reid.experiments.heat_maps import LENGTH, default_view, heat_maps
from rga_reid.experiments.results import read_curve
from rga_reid.files import write_json, write_text
from rga_reid.gallery import Gallery
from rga_reid.inference import ModelFingerprint, extract_features
from rga_reid.inference.embed import Embedder
from rga_reid.models import ColourHistogram, EmbeddingModel, load_model
from rga_reid.models.analysis import total_costs
from rga_reid.reports.ablation_page import write_report
from rga_reid.reports.ablation_stats import METRICS, Evaluation
from rga_reid.reports.ablation_tables import AblationReport
from rga_reid.reports.explorer import explorer_page
from rga_reid.reports.heat_maps import heat_map_page
from rga_reid.reports.language import Text
from rga_reid.reports.ranked_page import Match, Picture, ranked_page

PAGE_QUERIES = 12
_START = pd.Timestamp("2026-01-05T08:00:00Z")  # of all cameras, which take one frame per second
_FRAME = r"_(\d{6})_\d\d\.jpg$"


@dataclass(frozen=True)
class DemoResult:
    """Metrics of the demo, and the files it has written."""

    histogram: RankingResult
    model: RankingResult
    data: Path
    checkpoint: Path
    gallery: Path
    page: Path
    relations: Path
    report: Path
    metrics: Path


def make_data(root: Path, seed: int) -> None:
    """Generate the synthetic data set in the new folder ``root``."""
    write_synthetic(root, SyntheticSettings(seed=seed))


def run_demo(
    out: Path,
    root: Path,
    checkpoint: Path,
    seed: int,
    name: str,
    report_step: Callable[[str], None] = lambda step: None,
) -> DemoResult:
    """Test the trained model and a colour histogram, build and query a gallery, write the pages.

    Args:
        out: folder of the demo.
        root: data set made by ``make_data``.
        checkpoint: model trained on it.
        seed: random seed for the choice of queries.
        name: heading of the model in the report.
        report_step: called with the name of each step before it starts.
    """
    table = read_table(root)
    report_step("test: a colour histogram, as a baseline")
    histogram, plain = _evaluate("colour histogram", ColourHistogram(), table)
    report_step("test: the trained model")
    model = load_model(checkpoint)
    result, trained = _evaluate(name, model, table)

    report_step("gallery: build and query")
    features, rows = extract_features(model, table[table.split == "gallery"])
    gallery = Gallery.build(features, _with_tracks(rows), model=ModelFingerprint.of(model, checkpoint))
    gallery.save(out / "gallery")
    queries = table[table.split == "query"].drop_duplicates("pid")
    queries = queries.sample(min(PAGE_QUERIES, len(queries)), random_state=seed).reset_index(drop=True)
    features, _ = extract_features(model, queries)
    page = out / "query.html"
    write_text(page, _query_page(queries, gallery.search(features, 10)))

    report_step("explain: what the model uses in a picture")
    explained = out / "explain.html"
    write_text(explained, _explain(queries.path[0], model))

    report_step("report: comparison of the two tests")
    parameters, macs = total_costs(model.backbone)
    trained = replace(trained, curve=read_curve(checkpoint.parent), parameters=parameters, macs=macs)
    report = AblationReport(
        "A trained model and a colour histogram",
        [plain, trained],
        plain.name,
        conditions=Text("conditions_demo"),
    )
    pages = write_report(report, out / "report")

    metrics = out / "metrics.json"
    write_json(metrics, {"colour histogram": histogram.to_dict(), "model": result.to_dict()})
    return DemoResult(
        histogram, result, root, checkpoint, out / "gallery", page, explained, pages[0], metrics
    )


def _with_tracks(table: pd.DataFrame) -> pd.DataFrame:
    """Add the tracks and times that the frame numbers in the names of synthetic images imply."""
    frames = table["path"].str.extract(_FRAME, expand=False).astype(int)
    return table.assign(track=frames // FRAMES_PER_SIGHTING, time=_START + pd.to_timedelta(frames, unit="s"))


def _explain(image: str, model: EmbeddingModel) -> str:
    """Return the page of the model's attention, or its Grad-CAM if it has none."""
    models = {"trained": model}
    if default_view(models) == "gradcam":
        return heat_map_page(heat_maps([image], checkpoints=models), "gradcam", score=LENGTH)
    exhibits = explain([image], checkpoints=models)
    return explorer_page(exhibits, drawn=True)


def _evaluate(name: str, model: Embedder, table: pd.DataFrame) -> tuple[RankingResult, Evaluation]:
    """Test a model; return the result, also in the form that reports use."""
    features, test_table = embed_test_images(model, table)
    result = rank_test_images(features, test_table)
    metrics = {key: float(value) for key, value in result.to_dict().items() if key in METRICS}
    ranked, cameras = tabulate_top_matches(features, test_table), rank_between_cameras(features, test_table)
    tables = (result.to_frame(), ranked)
    return result, Evaluation(name, None, metrics, tuple(result.cmc), *tables, cameras=cameras)


def _query_page(queries: pd.DataFrame, matches: pd.DataFrame) -> str:
    pictures = [Picture(row.path, int(row.pid), int(row.camid)) for row in queries.itertuples()]
    lists: list[list[Match]] = [[] for _ in pictures]
    for row in matches.itertuples():
        lists[row.query].append(
            Match(row.path, int(row.pid), int(row.camid), rank=int(row.rank), score=float(row.score))
        )
    return ranked_page(pictures, lists, note=[Text("note_demo")])
