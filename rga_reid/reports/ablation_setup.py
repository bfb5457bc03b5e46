"""Collect what an ablation report compares: data, training, and the options in which the variants differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rga_reid.inputs import truncate
from rga_reid.reports.ablation_stats import Evaluation, by_name
from rga_reid.reports.language import Text

_MAX_VALUE = 120  # characters shown of an option


def list_facts(
    evaluations: Sequence[Evaluation], recipes: Sequence[str] = ()
) -> list[tuple[Text, Text | str]]:
    """Return names and values of what is known about data and training: texts of the section ``report``.

    Args:
        evaluations: those of the report; several values of one fact are shown after each other.
        recipes: names of the recipes.
    """
    data = list(dict.fromkeys((one.dataset, one.drawn) for one in evaluations if one.dataset))
    names: Text | str = _join(name for name, _ in data)
    if data and all(drawn for _, drawn in data):
        names = Text("drawn", {"name": names})
    counts = [one.counts for one in evaluations if one.counts is not None]
    options = [one.options for one in evaluations]
    sizes = [one["model.size"] for one in options if one.get("model.size")]
    facts = {
        "fact_data": names,
        "fact_trained": _join(
            f"{images:,.0f} ({persons:,.0f})"
            for images, persons in (one.trained_on for one in evaluations if one.trained_on is not None)
        ),
        "fact_queries": _join(f"{queries:,.0f}" for queries, _ in counts),
        "fact_gallery": _join(f"{gallery:,.0f}" for _, gallery in counts),
        "fact_recipe": _join(recipes),
        "fact_backbone": _join(_show(one["model.backbone"]) for one in options if "model.backbone" in one),
        "fact_size": _join(
            "×".join(map(str, size)) if isinstance(size, list) else str(size) for size in sizes
        ),
        "fact_epochs": _join(
            str(one["trainer.max_epochs"]) for one in options if one.get("trainer.max_epochs")
        ),
        "fact_seeds": _join(map(str, sorted({one.seed for one in evaluations if one.seed is not None}))),
    }
    return [(Text(key), value) for key, value in facts.items() if value]


def list_changes(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """Return the name of each variant and the values of its options that are not the same in all variants.

    Variants whose options are unknown are left out. Empty if fewer than two are known, or none differ.
    """
    known = {name: group[0].options for name, group in by_name(evaluations).items() if group[0].options}
    if len(known) < 2:
        return []
    first, *others = known.values()
    shared = [key for key in first if all(key in one for one in others)]  # releases differ in their options
    changed = [found for key in shared for found in _varied(key, [one[key] for one in known.values()])]
    lines = ["; ".join(f"{key}: {_show(values[n])}" for key, values in changed) for n in range(len(known))]
    return list(zip(known, lines, strict=True)) if changed else []


def _varied(key: str, values: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
    """Return the options at and below a key whose values differ; those of different classes are not compared."""
    if all(value == values[0] for value in values):
        return []
    if (
        all(isinstance(one, Mapping) for one in values)
        and len({one.get("class_path") for one in values}) == 1
    ):
        keys = dict.fromkeys(inner for one in values for inner in one)
        below = (_varied(f"{key}.{inner}", [one.get(inner) for one in values]) for inner in keys)
        return [found for several in below for found in several]
    return [(key, values)]


def _show(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        given = value.get("init_args") or {}
        arguments = ", ".join(f"{name}={_show(one)}" for name, one in given.items())
        return truncate(value["class_path"] + (f"({arguments})" if arguments else ""), _MAX_VALUE)
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return truncate(shown, _MAX_VALUE)


def _join(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
