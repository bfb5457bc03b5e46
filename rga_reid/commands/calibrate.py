"""``calibrate``: find the score from which two images are accepted as one person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import read_query_and_gallery
from rga_reid.commands._options import FEATURE_FILES, add_feature_files, check_device, label_files, new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError
from rga_reid.files import atomic_file, write_json
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    from rga_reid.evaluation import Calibration

MIN_ERRORS = 30  # for a rate within about 30 % (the rule of 30: Doddington et al., 2000)


def parser() -> ArgumentParser:
    """Options of ``calibrate``."""
    command = new_parser(
        "calibrate",
        "Compare each query with the gallery and find the lowest threshold that accepts no more than the "
        "wanted fraction of impostor pairs, which show two people. Genuine pairs show one person in two "
        f"cameras. Use people that the model was not trained on. {FEATURE_FILES}",
    )
    add_feature_files(command)
    command.add_argument(
        "--false-match-rate",
        type=float,
        default=0.001,
        metavar="RATE",
        help="wanted fraction of impostor pairs that are accepted (default: 0.001)",
    )
    command.add_argument("--device", default="cpu", help="device of the computation, such as cuda")
    command.add_argument(
        "--json", metavar="FILE", help="write the calibration to this file, for verify and query"
    )
    command.add_argument(
        "--plot", metavar="FILE", help="plot both distributions to this file, .png, .svg or .pdf"
    )
    return command


def run(options: Namespace) -> None:
    """Score the pairs, print the threshold and write the requested files."""
    check_outputs(
        options, {"json": (), "plot": (".png", ".svg", ".pdf")}, label_files(options, "query", "gallery")
    )
    if not 0 < options.false_match_rate < 1:
        raise InputError(f"--false-match-rate: expected between 0 and 1, found {options.false_match_rate}")

    from rga_reid.evaluation import calibrate, score_pairs

    check_device(options.device)
    query, gallery = read_query_and_gallery(options.query, options.gallery)
    try:
        with progress_bar("scores") as update:
            scores = score_pairs(query, gallery, device=options.device, progress=update)
        calibration = calibrate(scores.genuine, scores.impostor)
        values = calibration.to_dict(options.false_match_rate)
    except InputError as error:
        raise InputError(f"--query {options.query} --gallery {options.gallery}: {error}") from None
    if options.json is not None:
        write_json(options.json, values)
    if options.plot is not None:
        _draw(options.plot, calibration, values)
    _print(values)


def _draw(file: str, calibration: Calibration, values: dict[str, Any]) -> None:
    from rga_reid.reports.plots import calibration_plot, save_figure

    accepted, rejected = (100 * values[f"false_{which}_rate"] for which in ("match", "non_match"))
    note = (
        f"The threshold accepts {accepted:.3g} % of the impostor pairs and rejects {rejected:.3g} % of the "
        f"genuine pairs.\nEqual-error rate: {100 * calibration.equal_error_rate:.3g} %."
    )
    figure = calibration_plot(*calibration.histograms(), values["threshold"], note)
    with atomic_file(file) as temporary:
        save_figure(figure, temporary, Path(file).suffix[1:])


def _print(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("calibration")
    table.add_column("", justify="right")
    table.add_row("threshold (the same person from this score)", f"{values['threshold']:.6f}")
    table.add_row("false-match rate, wanted", f"{values['wanted_false_match_rate']:.3g}")
    matches, pairs = values["false_matches"], values["impostor_pairs"]
    table.add_row(
        "false-match rate, measured", f"{values['false_match_rate']:.3g} ({matches:,} of {pairs:,})"
    )
    table.add_row("false-non-match rate at the threshold", f"{values['false_non_match_rate']:.4f}")
    table.add_row("equal-error rate", f"{values['equal_error_rate']:.4f}")
    table.add_row("genuine pairs", f"{values['genuine_pairs']:,}")
    console = Console(markup=False, highlight=False)
    console.print(table)
    if matches < MIN_ERRORS:
        console.print(
            f"The rate is a rough estimate: it was measured on {matches} false matches, fewer than {MIN_ERRORS}.",
            soft_wrap=True,
        )
