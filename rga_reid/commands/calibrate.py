"""``calibrate``: from which score on are two pictures taken for one person?"""

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

_ENOUGH = 30  # errors for a rate that is true to about 30 % (the rule of 30: Doddington et al., 2000)


def parser() -> ArgumentParser:
    """Options of ``calibrate``."""
    command = new_parser(
        "calibrate",
        "Compare each query with the gallery and find the lowest threshold that lets no more than the wanted "
        "fraction of pairs of two people pass. Genuine pairs are those of one person in two cameras. Use "
        f"people that the model was not trained on. {FEATURE_FILES}",
    )
    add_feature_files(command)
    command.add_argument(
        "--false-match-rate",
        type=float,
        default=0.001,
        metavar="RATE",
        help="wanted fraction of pairs of two people that pass (default: 0.001)",
    )
    command.add_argument("--device", default="cpu", help="where the products are computed, such as cuda")
    command.add_argument("--json", metavar="FILE", help="write the calibration there, for verify")
    command.add_argument("--plot", metavar="FILE", help="draw both distributions there: .png, .svg or .pdf")
    return command


def run(options: Namespace) -> None:
    """Collect the scores, print the threshold and write the files asked for."""
    check_outputs(
        options, {"json": (), "plot": (".png", ".svg", ".pdf")}, label_files(options, "query", "gallery")
    )
    if not 0 < options.false_match_rate < 1:
        raise InputError(f"--false-match-rate: expected between 0 and 1, found {options.false_match_rate}")

    from rga_reid.evaluation import calibrate, pair_scores

    check_device(options.device)
    inputs = read_query_and_gallery(options.query, options.gallery)
    try:
        with progress_bar("scores") as moved:
            scores = pair_scores(**inputs, device=options.device, progress=moved)
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

    passing, missed = (100 * values[f"false_{which}_rate"] for which in ("match", "non_match"))
    note = (
        f"At the threshold {passing:.3g} % of the pairs of two people pass, and {missed:.3g} % of those of "
        f"one person do not.\nEqual-error rate: {100 * calibration.equal_error_rate:.3g} %."
    )
    figure = calibration_plot(*calibration.histograms(), values["threshold"], note)
    with atomic_file(file) as temporary:
        save_figure(figure, temporary, Path(file).suffix[1:])


def _print(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("calibration")
    table.add_column("", justify="right")
    table.add_row("threshold (same person from this score on)", f"{values['threshold']:.6f}")
    table.add_row("false-match rate, wanted", f"{values['wanted_false_match_rate']:.3g}")
    matches, pairs = values["false_matches"], values["impostor_pairs"]
    table.add_row(
        "false-match rate, measured", f"{values['false_match_rate']:.3g} ({matches:,} of {pairs:,})"
    )
    table.add_row("false-non-match rate there", f"{values['false_non_match_rate']:.4f}")
    table.add_row("equal-error rate", f"{values['equal_error_rate']:.4f}")
    table.add_row("genuine pairs", f"{values['genuine_pairs']:,}")
    console = Console(markup=False, highlight=False)
    console.print(table)
    if matches < _ENOUGH:
        console.print(
            f"The rate rests on {matches} false matches; below {_ENOUGH} it is a rough estimate.",
            soft_wrap=True,
        )
