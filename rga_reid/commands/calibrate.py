"""``calibrate``: find the score from which two images are accepted as one person."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import load_threshold, read_query_and_gallery
from rga_reid.commands._options import (
    FEATURE_FILES,
    add_feature_files,
    add_threshold_options,
    check_device,
    check_threshold,
    label_files,
    new_parser,
)
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError, check_int
from rga_reid.files import atomic_file, write_json
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    from rga_reid.evaluation import Calibration, LabelledFeatures, OpenSetCalibration
    from rga_reid.inference.verify import Threshold

MIN_ERRORS = 30  # for a rate within about 30 % (the rule of 30: Doddington et al., 2000)
FALSE_MATCH_RATE = 0.001
FPIR = 0.01


def parser() -> ArgumentParser:
    """Options of ``calibrate``."""
    command = new_parser(
        "calibrate",
        "Find the score from which two images count as the same person. By default this is the lowest threshold "
        "that accepts at most the wanted fraction of impostor pairs, a query and a gallery image of two people; "
        "genuine pairs show one person in two cameras. With --open-set it is the lowest threshold at which at most "
        "the wanted fraction of strangers get an image from a gallery of a given size. With --threshold or "
        "--calibration, measure the error rates of that threshold instead. Use people that the model was not trained "
        f"on. {FEATURE_FILES}",
    )
    add_feature_files(command)
    command.add_argument(
        "--false-match-rate",
        type=float,
        metavar="RATE",
        help=f"wanted fraction of impostor pairs that are accepted (default: {FALSE_MATCH_RATE})",
    )
    command.add_argument(
        "--open-set", action="store_true", help="find a threshold for searches in a gallery, not for pairs"
    )
    command.add_argument(
        "--fpir",
        type=float,
        metavar="RATE",
        help="with --open-set: wanted fraction of searches for strangers that return an image, the "
        f"false-positive identification rate (default: {FPIR})",
    )
    command.add_argument(
        "--gallery-size",
        type=int,
        metavar="N",
        help="with --open-set: number of images in the gallery to be searched (default: as many as --gallery has of "
        "other people); rates for a larger gallery are estimates",
    )
    add_threshold_options(command, "measure the error rates of this threshold, a cosine similarity")
    command.add_argument("--device", default="cpu", help="device of the computation, such as cuda")
    command.add_argument(
        "--json",
        metavar="FILE",
        help="write the threshold and its error rates to this file, for --calibration",
    )
    command.add_argument(
        "--plot",
        metavar="FILE",
        help="plot both distributions, or the DET curve of --open-set, to this file, .png, .svg or .pdf",
    )
    return command


def run(options: Namespace) -> None:
    """Score the pairs, print the threshold and write the requested files."""
    check_outputs(
        options, {"json": (), "plot": (".png", ".svg", ".pdf")}, label_files(options, "query", "gallery")
    )
    _check_rates(options)
    check_threshold(options)
    check_device(options.device)
    threshold = load_threshold(options)
    query, gallery = read_query_and_gallery(options.query, options.gallery)
    try:
        (_open_set if options.open_set else _per_pair)(options, query, gallery, threshold)
    except InputError as error:
        raise InputError(f"--query {options.query} --gallery {options.gallery}: {error}") from None


def _check_rates(options: Namespace) -> None:
    if options.open_set and options.false_match_rate is not None:
        raise InputError("--false-match-rate: goes without --open-set, which takes --fpir")
    for key in ("fpir", "gallery_size"):
        if options[key] is not None and not options.open_set:
            raise InputError(f"--{key.replace('_', '-')}: goes with --open-set")
    for key in ("false_match_rate", "fpir"):
        if options[key] is not None and not 0 < options[key] < 1:
            raise InputError(f"--{key.replace('_', '-')}: expected between 0 and 1, found {options[key]}")
        if options[key] is not None and (options.threshold, options.calibration) != (None, None):
            raise InputError(f"--{key.replace('_', '-')}: goes without --threshold and --calibration")
    if options.gallery_size is not None:
        check_int("--gallery-size", options.gallery_size)


def _values(calibration: Any, threshold: Threshold | None, wanted: float) -> dict[str, Any]:
    """Return the rates at the given threshold, or else at the one that has the wanted rate."""
    return (
        calibration.to_dict(wanted) if threshold is None else calibration.to_dict(threshold=threshold.value)
    )


def _per_pair(
    options: Namespace, query: LabelledFeatures, gallery: LabelledFeatures, threshold: Threshold | None
) -> None:
    from rga_reid.evaluation import calibrate, score_pairs

    with progress_bar("scores") as update:
        scores = score_pairs(query, gallery, device=options.device, progress=update)
    calibration = calibrate(scores.genuine, scores.impostor)
    values = _values(calibration, threshold, options.false_match_rate or FALSE_MATCH_RATE)
    if os.path.samefile(options.query, options.gallery):  # each pair was counted in both directions
        values |= {name: values[name] // 2 for name in ("genuine_pairs", "impostor_pairs", "false_matches")}
    if options.json is not None:
        write_json(options.json, values)
    if options.plot is not None:
        _draw(options.plot, calibration, values)
    _print(values)


def _open_set(
    options: Namespace, query: LabelledFeatures, gallery: LabelledFeatures, threshold: Threshold | None
) -> None:
    from rga_reid.evaluation import calibrate_open_set

    with progress_bar("scores") as update:
        calibration = calibrate_open_set(
            query, gallery, options.gallery_size, device=options.device, progress=update
        )
    values = _values(calibration, threshold, options.fpir or FPIR)
    if options.json is not None:
        write_json(options.json, values)
    if options.plot is not None:
        _draw_det(options.plot, calibration, values)
    _print_open_set(values)


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


def _draw_det(file: str, calibration: OpenSetCalibration, values: dict[str, Any]) -> None:
    from rga_reid.reports.plots import det_plot, save_figure

    size = f"{values['gallery_size']:,} images"
    if values["estimated"]:
        size += f" (an estimate, from galleries of {values['measured_gallery_size']:,})"
    note = (
        f"Searches in a gallery of {size}.\nThe threshold {values['threshold']:.4f} accepts "
        f"{100 * values['fpir']:.3g} % of the strangers and misses {100 * values['fnir']:.3g} % of the people "
        "in the gallery."
    )
    _, fpir, fnir = calibration.det()
    figure = det_plot(fpir, fnir, (values["fpir"], values["fnir"]), note)
    with atomic_file(file) as temporary:
        save_figure(figure, temporary, Path(file).suffix[1:])


def _print_open_set(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("open-set calibration")
    table.add_column("", justify="right")
    table.add_row("threshold (a match from this score)", f"{values['threshold']:.6f}")
    table.add_row("images in the gallery", f"{values['gallery_size']:,}")
    if values["wanted_fpir"] is not None:
        table.add_row("strangers who get an image (FPIR), wanted", f"{values['wanted_fpir']:.3g}")
    kind = "estimated" if values["estimated"] else "measured"
    rate = f"{values['fpir']:.3g}" if values["fpir"] else "0, in no search"
    table.add_row(f"strangers who get an image (FPIR), {kind}", rate)
    table.add_row("people who are missed (FNIR) at the threshold", f"{values['fnir']:.4f}")
    table.add_row("searches for strangers", f"{values['non_mate_searches']:,}")
    table.add_row("searches for people in the gallery", f"{values['mate_searches']:,}")
    console = Console(markup=False, highlight=False)
    console.print(table)
    if values["estimated"]:
        console.print(
            f"The rate is an estimate for {values['gallery_size']:,} images: each search was made among "
            f"the {values['measured_gallery_size']:,} images that --gallery has beside the searched person, junk "
            "(-1) and unlabelled images.",
            soft_wrap=True,
        )
    ratio = values["measured_gallery_size"] / values["gallery_size"]
    accepted = (values["wanted_fpir"] or values["fpir"]) * ratio * values["non_mate_searches"]
    if accepted < MIN_ERRORS:
        searches = f"about {accepted:.0f} accepted {'search' if round(accepted) == 1 else 'searches'}"
        measured = f"it was measured on {searches}"
        if values["wanted_fpir"] and not values["fpir"]:
            measured = f"no search was accepted, and the wanted rate would be {searches}"
        console.print(
            f"The rate is a rough estimate: {measured}, fewer than {MIN_ERRORS}.",
            soft_wrap=True,
        )


def _print(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("calibration")
    table.add_column("", justify="right")
    table.add_row("threshold (the same person from this score)", f"{values['threshold']:.6f}")
    if values["wanted_false_match_rate"] is not None:
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
