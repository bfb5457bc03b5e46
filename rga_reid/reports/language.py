"""Texts of the pages, in one table per language: ``strings/en.yaml`` and ``strings/zh.yaml``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from rga_reid.errors import check_choice
from rga_reid.reports.html import TEMPLATES, page_environment, script_hash, text_to_html

LANGUAGES = ("en", "zh")
STRINGS = Path(__file__).with_name("strings")


@dataclass(frozen=True)
class Text:
    """A text of the tables, to be written in the language of the page and shown without markup.

    Args:
        key: in one of the sections of the page.
        values: replace ``{name}`` in the text, and may be texts themselves. Names of files, people and runs may have
            any characters.
    """

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)


@cache
def load_strings(lang: str) -> dict[str, dict[str, Any]]:
    """Return the texts of a language by section and key."""
    tables: dict[str, dict[str, Any]] = yaml.safe_load((STRINGS / f"{lang}.yaml").read_text(encoding="utf-8"))
    return tables


def translate(lang: str, section: str, key: str, **values: Any) -> str:
    """Return a text with ``{name}`` replaced by the values."""
    text = str(load_strings(lang)[section][key])
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def fill_text(lang: str, sections: Sequence[str], text: Text | str) -> str:
    """Return a text in a language without markup; a string is returned unchanged.

    Args:
        lang: ``en`` or ``zh``.
        sections: sections of the tables, of which the first that has the key is used.
        text: to be written.
    """
    if isinstance(text, str):
        return text
    section = next(name for name in sections if text.key in load_strings(lang)[name])
    values = {
        name: fill_text(lang, sections, one) if isinstance(one, Text) else one
        for name, one in text.values.items()
    }
    return translate(lang, section, text.key, **values)


def translate_meaning(lang: str, text: str) -> str:
    """Return the description of a tensor or a matrix, which modules give in English, in a language.

    A text that is in no table is returned unchanged.
    """
    return str(load_strings(lang).get("flow", {}).get(text, text))


def translate_formula(lang: str, text: str) -> str:
    """Return a formula with the English words in it translated."""
    for english, other in load_strings(lang).get("formula", {}).items():
        text = text.replace(english, other)
    return text


def render_page(
    template: str,
    sections: Sequence[str],
    *,
    data: dict[str, Any] | None = None,
    scripts: Sequence[str] = (),
    lang: str | None = None,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **context: Any,
) -> str:
    """Render a page in English that can be switched to the other languages.

    Templates write texts as ``{{ t("key", name=value) }}`` or ``{{ t(Text(...)) }}``, an element with a ``Text`` or a
    name as ``{{ element("b", value) }}``, and texts of attributes as ``{{ attribute("title", "key") }}``. Keys are
    looked up in ``sections``, in order.

    Args:
        template: name of the template.
        sections: sections of the tables that the page needs; it always has ``page``.
        data: further values for the scripts.
        scripts: further scripts, after ``page.js``.
        lang: language in which the page opens; by default that of the reader's browser.
        filters: further filters of the template.
        context: variables of the template. The ``title`` is a ``Text`` or a name.

    Raises:
        InputError: an unknown language.
    """
    if lang is not None:
        check_choice("lang", lang, LANGUAGES)
    shown = lang or LANGUAGES[0]
    names = ("page", *sections)
    tables = {
        one: {key: text for name in names for key, text in load_strings(one)[name].items()}
        for one in LANGUAGES
    }

    def fill(text: Text | str) -> str:
        return fill_text(shown, names, text)

    def values_of(text: Text) -> Markup:
        if not text.values:
            return Markup()
        values = json.dumps(
            dict(text.values), ensure_ascii=False, default=vars
        )  # a Text as its key and values
        return Markup(' data-v="{}"').format(values)

    def t(text: str | Text, /, **values: Any) -> Markup:
        if isinstance(text, Text):
            return element("span", text)
        one = Text(text, values)
        return Markup('<span data-t="{}"{}>{}</span>').format(text, values_of(one), text_to_html(fill(one)))

    def element(tag: str, text: Text | str, /, **attributes: Any) -> Markup:
        marks = Markup().join(Markup(' {}="{}"').format(*one) for one in attributes.items())
        if isinstance(text, Text):
            marks += Markup(' data-t="{}"{} data-plain').format(text.key, values_of(text))
        return Markup("<{}{}>{}</{}>").format(tag, marks, fill(text), tag)

    def attribute(name: str, key: str, /, **values: Any) -> Markup:
        text = Text(key, values)
        return Markup('{}="{}" data-t-{}="{}"{}').format(name, fill(text), name, key, values_of(text))

    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", *scripts))
    environment = page_environment()
    gap = Markup('<span class="gap"> </span>')  # between two texts of a paragraph
    environment.globals.update(t=t, element=element, attribute=attribute, gap=gap, Text=Text)
    environment.filters |= filters or {}
    return environment.get_template(template).render(
        lang=shown,
        data={**(data or {}), "strings": tables, "lang": lang},
        script=script,
        script_hash=script_hash(script),
        **context,
    )
