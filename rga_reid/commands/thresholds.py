"""The options that tell from which score on two pictures are taken for one person."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from rga_reid.errors import InputError


def add_threshold_options(command: ArgumentParser, meaning: str) -> None:
    """``--threshold`` and ``--calibration``; ``meaning`` is the help of the first."""
    command.add_argument("--threshold", metavar="S", type=float, help=meaning)
    command.add_argument(
        "--calibration", metavar="FILE", help="or the JSON of calibrate, which has the threshold"
    )


def check_threshold(options: Namespace) -> None:
    """Refuse both options together, and a threshold that is no cosine; before anything heavy is imported."""
    if options.threshold is not None and options.calibration is not None:
        raise InputError("--threshold, --calibration: expected one of them, found both")
    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise InputError(f"--threshold: expected a cosine from -1 to 1, got {options.threshold}")


def threshold_of(options: Namespace) -> float | None:
    """The threshold that the options name; None if they name none.

    Raises:
        InputError: the calibration cannot be read.
    """
    if options.calibration is None:
        return options.threshold
    from rga_reid.retrieval.verification import read_threshold

    return read_threshold(options.calibration)
