"""Figures as files: the same bytes for the same figure."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import matplotlib
from matplotlib.figure import Figure

NO_DATE: dict[str, dict[str, None]] = {  #: metadata by kind of file; by default they hold when it was made
    "png": {},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
}


def save_figure(figure: Figure, target: Path | BinaryIO, kind: str, dpi: int = 150) -> None:
    """Write a figure.

    Args:
        figure: of matplotlib.
        target: a path or an open binary file.
        kind: ``png``, ``svg`` or ``pdf``, whatever the name says.
        dpi: dots per inch of a PNG.
    """
    # the names of parts of an SVG are drawn by chance without a salt
    with matplotlib.rc_context({"svg.hashsalt": "rga-reid", "svg.fonttype": "path"}):
        figure.savefig(target, format=kind, dpi=dpi, metadata=NO_DATE[kind])
