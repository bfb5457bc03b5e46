"""What the pages share: where their templates lie, how names in them are made harmless, pictures in them."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from rga_reid.data import read_image
from rga_reid.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


def page_environment() -> Environment:
    """Templates that escape every value and refuse an undefined one."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["symbols"] = as_html
    return environment


def thumbnail(path: str, box: tuple[int, int], quality: int = 85) -> str | None:
    """The picture of a file, made to fit into ``box`` (width, height), as a JPEG inside the page.

    None if the file cannot be shown.
    """
    try:
        image = read_image(path)
    except (InputError, ValueError):  # ValueError: a name that no file can have, such as one with a zero byte
        return None
    image.thumbnail(box, Image.Resampling.LANCZOS)
    return data_uri(image, quality)


def data_uri(image: Image.Image, quality: int = 85) -> str:
    """A picture as a JPEG inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return _uri("jpeg", buffer.getvalue())


def figure_uri(figure: Figure, dpi: int = 200) -> str:
    """A figure as a PNG inside the page."""

    buffer = io.BytesIO()
    save_figure(figure, buffer, "png", dpi)
    return _uri("png", buffer.getvalue())


def svg_uri(picture: bytes) -> str:
    """An SVG file inside the page."""
    return _uri("svg+xml", picture)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def script_hash(script: str) -> str:
    """The source expression of a content security policy that lets this script run, and no other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


_SUBSCRIPT = re.compile(r"(?<![A-Za-z])([A-Za-zΑ-ω]|softmax|max)_([A-Za-z0-9])(?![A-Za-z0-9])")


def as_html(text: str) -> Markup:
    """``G_s`` as ``G<sub>s</sub>``; everything else is escaped. Markdown takes it, too."""
    return Markup(_SUBSCRIPT.sub(r"\1<sub>\2</sub>", str(escape(text))))


def literal(text: str) -> str:
    """Text, such as a file name, that matplotlib draws as it is."""
    return text.replace("$", r"\$")


def as_mathtext(text: str) -> str:
    """``G_s`` with the subscript as matplotlib draws it."""
    return _SUBSCRIPT.sub(r"\1$_\\mathrm{\2}$", text)


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
