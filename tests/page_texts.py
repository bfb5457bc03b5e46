"""Texts of a page as a reader sees them."""

from __future__ import annotations

import html
import re


def visible_text(page: str) -> str:
    """Return the text between the tags of a page or a part of it, without styles and scripts."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", body))


def element_texts(page: str, tag: str) -> list[str]:
    """Return the text of each element of a kind that has no other element of this kind inside."""
    return [visible_text(found) for found in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)]
