"""Helpers of the HTML pages: templates, images embedded as data URIs, mathematical symbols."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from rga_reid.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"

#: ``G_s``, ``softmax_j``: a symbol with a subscript of one character
SUBSCRIPT = re.compile(r"(?<![A-Za-z])([A-Za-zΑ-ω]|softmax|max)_([A-Za-z0-9])(?![A-Za-z0-9])")


def page_environment() -> Environment:
    """Return a Jinja environment that escapes every value and raises on an undefined one."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["symbols"] = symbols_to_html
    environment.filters["breakable"] = break_after_underscores
    return environment


def break_after_underscores(text: str) -> Markup:
    """Escape a name and let it break after each underscore, rather than within a word."""
    return escape(text).replace("_", Markup("_<wbr>"))


def symbols_to_html(text: str) -> Markup:
    """Escape a text and set ``G_s`` as ``G<sub>s</sub>``, for HTML and Markdown."""
    return Markup(SUBSCRIPT.sub(r"\1<sub>\2</sub>", str(escape(text))))


_MARKUP = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*")


def text_to_html(text: str) -> Markup:
    """Escape a text and set subscripts, ``code`` in backticks and bold between double asterisks."""
    html = _MARKUP.sub(lambda m: f"<code>{m[1]}</code>" if m[1] else f"<b>{m[2]}</b>", symbols_to_html(text))
    return Markup(html)


def thumbnail(path: str, box: tuple[int, int], quality: int = 85) -> str | None:
    """Return an image file as a JPEG data URI that fits into ``box`` (width, height).

    None if the file cannot be read.
    """
    from rga_reid.data import read_image  # loads Pandas, which the languages of options do not need

    try:
        image = read_image(path)
    except (InputError, ValueError):  # ValueError: a path that no file can have, such as one with a zero byte
        return None
    image.thumbnail(box, Image.Resampling.LANCZOS)
    return jpeg_uri(image, quality)


def jpeg_uri(image: Image.Image, quality: int = 85) -> str:
    """Return an image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return data_uri("jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Return an encoded image as a data URI; ``kind`` is the subtype, such as ``png`` or ``svg+xml``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def script_hash(script: str) -> str:
    """Return the source expression of a content security policy that allows this script only."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
