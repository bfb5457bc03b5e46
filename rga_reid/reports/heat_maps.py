"""Heat maps over pictures, as an HTML page or a figure: Grad-CAM, activations, gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from rga_reid.errors import InputError, check_choice
from rga_reid.reports.explorer import COLOURS
from rga_reid.reports.html import jpeg_uri
from rga_reid.reports.language import Text, fill_text, render_page

MapView = Literal["gates", "gradcam", "activation"]

OPACITY = 0.7  #: of a map over its photo
_PER_PIXEL = 2  # pixels of a page's picture for one of the photo
_STOPS = 9  # colours of a colour bar; between them the browser interpolates

VIEWS = get_args(MapView)  #: kinds of maps


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A map that a model computes for a picture. Texts are in both languages, strings are shown unchanged.

    Args:
        image: name of the picture, such as its file name.
        pixels: the picture, uint8 ``(H, W, 3)``.
        model: name of the model for the reader.
        what: what is shown, such as "attention 3: spatial".
        values: float ``(h, w)`` over the picture, or ``(C,)``, a weight for each channel.
        from_zero: whether colours start at 0; otherwise at the lowest value.
        notes: short remarks, such as the score.
        network: description of the model, such as "ResNet-50, 256×128 pixels".
        section: heading that the map shares with others; by default the name of the picture.

    Raises:
        InputError: ``values`` has another shape, is empty, or contains NaN or infinite values.
    """

    image: str
    pixels: np.ndarray
    model: Text | str
    what: Text | str
    values: np.ndarray
    from_zero: bool = True
    notes: Sequence[Text | str] = ()
    network: Text | str = ""
    section: Text | str = ""

    def __post_init__(self) -> None:
        if self.values.ndim not in (1, 2) or not self.values.size:
            raise InputError(
                f"{english(self.model)}: expected values (h, w) or (C,), got {self.values.shape}"
            )
        if not np.isfinite(self.values).all():
            raise InputError(
                f"{english(self.model)}: {english(self.what)} of {self.image}: NaN or infinite values"
            )

    @property
    def limits(self) -> tuple[float, float]:
        """Values of the first and the last colour."""
        return (0.0 if self.from_zero else float(self.values.min())), float(self.values.max())

    @property
    def ends(self) -> tuple[str, str]:
        """``limits`` with three digits, or as many as show their difference with two."""
        low, high = self.limits
        size, difference = max(abs(low), abs(high)), high - low
        digits = (
            2 + math.floor(math.log10(size)) - math.floor(math.log10(difference)) if difference > 0 else 3
        )
        low_text, high_text = (f"{value:.{min(7, max(3, digits))}g}" for value in (low, high))
        return low_text, high_text

    @property
    def is_even(self) -> bool:
        """True if all values agree to three digits, those of the colour bar."""
        return f"{self.values.min():.3g}" == f"{self.values.max():.3g}"

    @property
    def scale(self) -> Text:
        """Description of the colours: ``0 to 0.31``, or ``0.5 everywhere: no colours``."""
        if self.is_even:
            return Text("map_even", {"value": f"{self.limits[1]:.3g}"})
        return Text("map_range", dict(zip(("low", "high"), self.ends, strict=True)))


def english(text: Text | str) -> str:
    """Return a text of a map in English, as figures and messages have it."""
    return fill_text("en", ("heat_maps",), text)


def title_of(view: MapView, score: Text | str = "") -> Text:
    """Return the heading of a view, with the score that Grad-CAM explains."""
    name = Text(f"view_{view}")
    return Text("view_scored", {"view": name, "score": score}) if score else name


def heat_map_page(
    maps: Sequence[HeatMap], view: MapView, *, score: Text | str = "", lang: str | None = None
) -> str:
    """Return one self-contained HTML page with the maps of each picture side by side.

    Args:
        maps: to be shown, in order.
        view: kind of the maps.
        score: what Grad-CAM explains, such as "cosine similarity to b.jpg".
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.

    Raises:
        InputError: no maps, an unknown view, or an unknown language.
    """
    check_choice("view", view, VIEWS)
    groups = []
    for heading, shown in _group(maps):
        photos = {(one.image, one.pixels.shape): one for one in shown}
        distinct = {name for name, _ in photos}
        cards = [
            {
                "title": one.image if len(distinct) == len(photos) else f"{one.image}, {_size(one.pixels)}",
                "uri": jpeg_uri(_enlarge(one.pixels), quality=90),
            }
            for one in photos.values()
        ]
        groups.append({"heading": heading, "photos": cards, "maps": [_card(one) for one in shown]})
    return render_page(
        "heat_maps.html",
        ["heat_maps"],
        lang=lang,
        title=title_of(view, score),
        note="",
        networks=_describe_networks(maps),
        view=view,
        groups=groups,
        colours=", ".join(f"rgb({r} {g} {b})" for r, g, b in _colours(np.linspace(0, 1, _STOPS))),
    )


def heat_map_figure(maps: Sequence[HeatMap], view: MapView, *, score: Text | str = "") -> Any:
    """Draw the maps as a matplotlib ``Figure``: a row for each picture, or for each model if it has many maps.

    Its texts are in English.

    Args:
        maps, view, score: as for ``heat_map_page``.

    Raises:
        InputError: no maps, or an unknown view.
    """
    import textwrap

    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from rga_reid.reports.plots import escape_mathtext

    check_choice("view", view, VIEWS)
    rows: list[tuple[str, list[HeatMap]]] = []
    for heading, shown in _group(maps):
        by_model: dict[str, list[HeatMap]] = {}
        for one in shown:
            by_model.setdefault(english(one.model), []).append(one)
        if max(map(len, by_model.values())) > 2:
            rows += [(f"{english(heading)}\n{model}", group) for model, group in by_model.items()]
        else:
            rows.append((english(heading), shown))
    photos = [list({(one.image, one.pixels.shape): one for one in shown}.values()) for _, shown in rows]
    columns = max(len(shown) + len(seen) for (_, shown), seen in zip(rows, photos, strict=True))
    width = max(1.75 * columns + 0.4, 5.5)
    margin = 0.15 / width  # the layout does not count the widths of titles
    layout = ConstrainedLayoutEngine(h_pad=0.15, rect=(margin, 0, 1 - 2 * margin, 1))
    figure = Figure(figsize=(width, 3.5 * len(rows) + 1), layout=layout)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, (heading, shown), seen in zip(grid, rows, photos, strict=True):
        for axes, one in zip(line, seen, strict=False):
            axes.imshow(one.pixels)
            text = heading if one is seen[0] and len(seen) == 1 else one.image
            axes.set_title(_wrap(escape_mathtext(text)), fontsize=8)
        for axes, one in zip(line[len(seen) :], shown, strict=False):
            _draw(axes, one)
    figure.suptitle(escape_mathtext(english(title_of(view, score))), fontsize=11, weight="bold")
    figure.supxlabel(textwrap.fill(english(Text(f"view_{view}_help")), int(13 * width)), fontsize=7.5)
    return figure


def map_card(one: HeatMap) -> dict[str, Any]:
    """Return a picture and its map as data URIs, with the map's remarks in English."""
    card = _card(one)
    photo = jpeg_uri(_enlarge(one.pixels), quality=90)
    return {"photo": photo, "map": card["uri"] or photo, "notes": [english(note) for note in one.notes]}


def _draw(axes: Any, one: HeatMap) -> None:
    from rga_reid.reports.plots import escape_mathtext

    title = "\n".join(_wrap(english(text)) for text in (one.model, one.what) if text)
    axes.set_title(escape_mathtext(title), fontsize=8)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    has_bar = one.values.ndim == 2 and not one.is_even
    notes = "\n".join(_wrap(english(text)) for text in (*([] if has_bar else [one.scale]), *one.notes))
    axes.set_xlabel(escape_mathtext(notes), fontsize=7, labelpad=24 if has_bar else 4)
    if one.values.ndim == 1:
        axes.set_box_aspect(one.pixels.shape[0] / one.pixels.shape[1])
        axes.plot(np.sort(one.values), color="#0072b2")
        if one.is_even:  # without limits, rounding errors would fill the frame
            axes.set_ylim(one.limits[1] - 1, one.limits[1] + 1)
        else:
            axes.set_yticks(one.limits, labels=one.ends)
            axes.tick_params(labelsize=7)
        return
    height, width = one.pixels.shape[:2]
    axes.imshow(one.pixels.mean(axis=2), "gray", vmin=0, vmax=255)
    if has_bar:
        low, high = one.limits
        levels = _enlarge_map(one.values, (height, width))
        shown = axes.imshow(levels, COLOURS["sequential"], vmin=low, vmax=high, alpha=OPACITY)
        place = axes.inset_axes((0.02, -0.06, 0.96, 0.03))
        bar = axes.figure.colorbar(shown, cax=place, orientation="horizontal")
        bar.set_ticks([low, high], labels=one.ends)
        bar.ax.tick_params(labelsize=7)


def _wrap(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.fill(line, 26) for line in text.split("\n"))


def _group(maps: Sequence[HeatMap]) -> list[tuple[Text | str, list[HeatMap]]]:
    """Return the maps under each heading."""
    if not maps:
        raise InputError("maps: expected at least one, got none")
    groups: dict[str, list[HeatMap]] = {}
    for one in maps:
        groups.setdefault(english(one.section or one.image), []).append(one)
    return [(shown[0].section or shown[0].image, shown) for shown in groups.values()]


def _describe_networks(maps: Sequence[HeatMap]) -> list[Text | str]:
    """Return the network of each model, or the one network that all have."""
    networks = {english(one.model): (one.model, one.network) for one in maps if one.network}
    if len({english(network) for _, network in networks.values()}) == 1:
        return [network for _, network in networks.values()][:1]
    return [Text("network_of", {"model": model, "network": network}) for model, network in networks.values()]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]}×{pixels.shape[1]}"


def _card(one: HeatMap) -> dict[str, Any]:
    low, high = one.ends
    strip = one.values.ndim == 1
    return {
        "model": one.model,
        "what": one.what,
        "image": one.image,
        "strip": strip,
        "uri": None
        if strip and one.is_even
        else jpeg_uri(_strip(one) if strip else _overlay(one), quality=90),
        "low": low,
        "high": high,
        "even": one.scale if one.is_even else None,
        "notes": list(one.notes),
    }


def _overlay(one: HeatMap) -> Image.Image:
    """Blend the map with the grey photo; without colours if it is even."""
    photo = _enlarge(one.pixels)
    grey = photo.convert("L").convert("RGB")
    if one.is_even:
        return grey
    low, high = one.limits
    levels = (_enlarge_map(one.values, (grey.height, grey.width)) - low) / (high - low)
    return Image.blend(grey, Image.fromarray(_colours(levels)), OPACITY)


def _strip(one: HeatMap) -> Image.Image:
    """Draw the weights of channels as colours, in ascending order."""
    low, high = one.limits
    levels = np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(one.values)), np.sort(one.values))
    return Image.fromarray(np.broadcast_to(_colours((levels - low) / (high - low)), (16, 256, 3)).copy())


def _enlarge(pixels: np.ndarray) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((_PER_PIXEL * width, _PER_PIXEL * height), Image.Resampling.BICUBIC)


def _enlarge_map(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Interpolate a map bilinearly to ``size`` (H, W)."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _colours(levels: np.ndarray) -> np.ndarray:
    """Return the uint8 colours (..., 3) of levels from 0 to 1."""
    from matplotlib import colormaps

    return np.round(colormaps[COLOURS["sequential"]](levels)[..., :3] * 255).astype(np.uint8)
