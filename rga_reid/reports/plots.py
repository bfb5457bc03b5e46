"""Matplotlib plots of score distributions and error rates; saving of figures."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure  # figures without pyplot need no display and leave no global state
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter

from rga_reid.reports.html import SUBSCRIPT

#: Okabe and Ito's colours, which colour-blind readers can distinguish
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a7f00")

#: Fonts with Chinese characters, which matplotlib's own font lacks; the first that is installed is used
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the first font of the file that has all of them
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
)
_CHINESE_FILES = re.compile("cjk|sourcehan|wqy|msyh|simhei|pingfang", re.IGNORECASE)
_CHINESE = re.compile("[\u2e80-\u9fff\uff00-\uffef]")

#: Metadata without a date, by format: the same figure gives the same bytes
NO_DATE: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
}


# ---------- saving and text ----------


def save_figure(figure: Figure, target: Path | BinaryIO, kind: str, dpi: int = 150) -> None:
    """Write a figure.

    Args:
        figure: to be saved.
        target: path or open binary file.
        kind: ``png``, ``svg`` or ``pdf``, independent of the suffix of ``target``.
        dpi: dots per inch of a PNG.
    """
    add_chinese_font(figure)
    # without a salt, the ids in an SVG are random
    with matplotlib.rc_context({"svg.hashsalt": "rga-reid", "svg.fonttype": "path"}):
        figure.savefig(target, format=kind, dpi=dpi, metadata=NO_DATE[kind])


def add_chinese_font(figure: Figure) -> None:
    """Let texts with Chinese characters, such as file names, fall back on an installed font that has them."""
    texts = [text for text in figure.findobj(Text) if _CHINESE.search(text.get_text())]
    if texts and (font := find_chinese_font()):
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), font])


def find_chinese_font() -> str | None:
    """Return the name of an installed font with Chinese characters."""
    manager = font_manager.fontManager

    def find() -> str | None:
        installed = {font.name for font in manager.ttflist}
        return next((font for font in CHINESE_FONTS if font in installed), None)

    if find() is None:  # matplotlib keeps a list, without the fonts that were installed later
        for path in font_manager.findSystemFonts():
            if _CHINESE_FILES.search(Path(path).name):
                manager.addfont(path)
    return find()


def figure_bytes(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """Return a figure as the content of a ``png``, ``svg`` or ``pdf`` file."""
    buffer = io.BytesIO()
    save_figure(figure, buffer, kind, dpi)
    return buffer.getvalue()


def escape_mathtext(text: str) -> str:
    """Escape a text, such as a file name, that matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def symbols_to_mathtext(text: str) -> str:
    """Set ``G_s`` with a subscript."""
    return SUBSCRIPT.sub(r"\1$_\\mathrm{\2}$", text)


# ---------- score distributions ----------


def calibration_plot(
    edges: np.ndarray, genuine: np.ndarray, impostor: np.ndarray, threshold: float, note: str = ""
) -> Figure:
    """Draw the score distributions of genuine and impostor pairs, each as shares of its own pairs.

    Shares are on a logarithmic scale, because impostor pairs are far more numerous and their tail matters.

    Args:
        edges: of the bins, ascending, ``(bins + 1,)``.
        genuine, impostor: numbers of scores per bin, ``(bins,)``.
        threshold: lowest score that is decided as one person.
        note: text above the plot.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for counts, colour, name in ((impostor, COLOURS[1], "two people"), (genuine, COLOURS[0], "one person")):
        label = f"{name} ({counts.sum():,} pairs)"
        axes.stairs(counts / counts.sum(), edges, fill=True, alpha=0.35, color=colour)
        axes.stairs(counts / counts.sum(), edges, color=colour, label=label)
    label = f"threshold {threshold:.4f}: one person from here on"
    axes.axvline(threshold, color="black", linestyle="--", label=label)
    axes.set(
        yscale="log", xlabel="score (cosine similarity)", ylabel=f"share of the pairs, {len(edges) - 1} bins"
    )
    axes.set_title(note, loc="left", size=9)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def det_plot(fpir: np.ndarray, fnir: np.ndarray, chosen: tuple[float, float], note: str = "") -> Figure:
    """Draw a DET curve: false-negative against false-positive identification rates, logarithmic scales.

    Args:
        fpir, fnir: rates of thresholds, as fractions, ``(n,)`` each; rates of 0 are left out. If one of the two is 0
            at every threshold, the plot says so.
        chosen: both rates of the chosen threshold.
        note: text above the plot.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    shown = (fpir > 0) & (fnir > 0)
    axes.set_title(note, loc="left", size=9)
    if not shown.any():
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no curve: at every threshold one of the two rates is 0", ha="center")
        return figure
    axes.plot(fpir[shown], fnir[shown], color=COLOURS[0])
    if chosen[0] > 0:
        axes.axvline(chosen[0], color="black", linestyle="--", linewidth=0.8)
    if min(chosen) > 0:
        axes.plot(*chosen, "o", color="black", label="the chosen threshold")
        axes.legend(frameon=False)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="strangers who get an image (FPIR)",
        ylabel="people in the gallery who are missed (FNIR)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
