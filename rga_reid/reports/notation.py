"""Symbols with subscripts, written ``G_s`` in plain text, as pages and figures typeset them."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

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
