"""Plan of an ablation: variants of a recipe and their seeds, read from a short YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rga_reid._deprecated import rename_options
from rga_reid.attention import ATTENTION_MODULES
from rga_reid.data.synthetic import SyntheticSettings
from rga_reid.errors import MAX_SEED, InputError, check_int, did_you_mean, short_repr
from rga_reid.experiments.recipes import (
    add_imports,
    check_imports,
    check_sections,
    merge,
    read_mapping,
    read_recipe,
    relative_to,
)
from rga_reid.inputs import truncate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # a variant's name is the name of its folder
_VARIANT_KEYS = ("name", "recipe", "overrides", "seeds")
_PLAN_KEYS = (
    "title",
    "imports",
    *_VARIANT_KEYS[1:],
    "baseline",
    "variants",
    "flip",
    "synthetic",
    "published",
)


@dataclass(frozen=True)
class Variant:
    """One of the models that an ablation compares.

    Args:
        name: letters, digits, ``_``, ``.`` and ``-``.
        recipe: complete options of ``train``, nested.
        seeds: random seeds, one run for each.
        recipe_name: recipe that the plan names.
    """

    name: str
    recipe: Mapping[str, Any] = field(repr=False)
    seeds: tuple[int, ...]
    recipe_name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(f"name: expected letters, digits, '_', '.' or '-', got {short_repr(self.name)}")
        for seed in self.seeds:
            check_int("seeds", seed, 0, MAX_SEED)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"seeds: expected different whole numbers from 0, got {short_repr(list(self.seeds))}"
            )


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Args:
        title: heading of the report.
        variants: in the order of the report.
        baseline: name of the variant that the others are compared with.
        flip: test with horizontal-flip augmentation.
        synthetic: settings of the synthetic data set, which is generated unless a data set is given.
        published: data set whose published results are shown beside the measured ones.
    """

    title: str
    variants: tuple[Variant, ...]
    baseline: str
    flip: bool = False
    synthetic: SyntheticSettings | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names:
            raise InputError("variants: expected at least one, got an empty list")
        folders = [name.lower() for name in names]  # some file systems ignore case
        for number, name in enumerate(folders):
            if name in folders[:number]:
                raise InputError(f"variants[{number}].name: {names[number]!r} is not unique")
        if self.baseline not in names:
            known = truncate(", ".join(names))
            raise InputError(f"baseline: expected one of {known}, got {short_repr(self.baseline)}")

    def order(self) -> list[tuple[Variant, int]]:
        """Return the runs in order: the first seed of each variant, then the second of each, and so on."""
        rounds = max(len(variant.seeds) for variant in self.variants)
        return [(v, v.seeds[n]) for n in range(rounds) for v in self.variants if n < len(v.seeds)]


def read_plan(name: str, imports: Iterable[str] = ()) -> Plan:
    """Read a plan by its bundled name (``ablations/demo``) or path; docs/ablation.md describes the keys.

    Args:
        name: bundled name, or path of a YAML file.
        imports: modules that the recipe of every variant imports, after those that the plan names.

    Raises:
        InputError: an unknown name, recipe or key, an invalid value, no variant, or two variants with the
            same name. The message names the file and the key.
    """
    path, content = read_mapping(name, what="plan")
    try:
        _check_keys(content, _PLAN_KEYS, ("variants",))
        content["imports"] = [*check_imports(content.get("imports")), *imports]
        items = _get(content, "variants", list, "a list of variants", [])
        expanded = enumerate(_add_attention(items))
        variants = [_parse_variant(item, number, content, path) for number, item in expanded]
        first = variants[0].name if variants else ""
        return Plan(
            title=str(content.get("title", f"Ablation {path.stem}")),
            variants=tuple(variants),
            baseline=content.get("baseline", first),
            flip=_get(content, "flip", bool, "true or false", False),
            synthetic=_parse_synthetic(content.get("synthetic")),
            published=_get(content, "published", str, "the name of a data set", None),
        )
    except InputError as error:
        raise InputError(f"plan {path}: {error}") from None


def _add_attention(items: Sequence[Any]) -> list[Any]:
    """Replace ``{attention: others, except: [rga]}`` by a variant for every other attention module."""
    names = {item.get("name") for item in items if isinstance(item, dict)}
    expanded: list[Any] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or "attention" not in item:
            expanded.append(item)
            continue
        excluded = item.get("except", [])
        if {**item, "except": []} != {"attention": "others", "except": []} or not isinstance(excluded, list):
            raise InputError(
                f"variants[{number}]: expected attention: others and a list except, got {short_repr(item)}"
            )
        others = [name for name in ATTENTION_MODULES if name not in names and name not in excluded]
        expanded += [{"name": name, "overrides": {"model.attention": name}} for name in others]
    return expanded


def _parse_variant(item: Any, number: int, plan: Mapping[str, Any], path: Path) -> Variant:
    key = f"variants[{number}]"
    if not isinstance(item, dict):
        raise InputError(f"{key}: expected a mapping with a name, got {short_repr(item)}")
    try:
        _check_keys(item, _VARIANT_KEYS, ("name",))
        recipe = _get({**plan, **item}, "recipe", str, "the name of a recipe, here or in the plan", None)
        if recipe is None:
            raise InputError("recipe: expected the name of a recipe, here or in the plan")
        seeds = _get({**plan, **item}, "seeds", list, "a list of whole numbers", [0])
        options = read_recipe(relative_to(path, recipe))
        for overrides in (plan.get("overrides"), item.get("overrides")):
            options = merge(options, _parse_overrides(overrides))
        check_sections(options)
        return Variant(item["name"], add_imports(options, plan["imports"]), tuple(seeds), recipe)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _parse_overrides(overrides: Any) -> dict[str, Any]:
    """Return ``{"trainer.max_epochs": 9}`` as a recipe has it, ``{"trainer": {"max_epochs": 9}}``."""
    if overrides is None:
        return {}
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise InputError(f"overrides: expected a mapping of options, got {short_repr(overrides)}")
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge(nested, rename_options(value))
    return nested


def _parse_synthetic(value: Any) -> SyntheticSettings | None:
    if value is None:
        return None
    try:
        if not isinstance(value, dict):
            raise InputError(f"expected a mapping of settings, got {short_repr(value)}")
        _check_keys(value, tuple(SyntheticSettings.__dataclass_fields__), ())
        pairs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return SyntheticSettings(**pairs)
    except InputError as error:
        raise InputError(f"synthetic: {error}") from None


def _check_keys(value: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    for key in value:
        if key not in known:
            hint = did_you_mean(str(key), known) or f" (known: {', '.join(known)})"
            raise InputError(f"{truncate(key)}: unknown key{hint}")
    for key in needed:
        if key not in value:
            raise InputError(f"{key}: missing key")


def _get(value: Mapping[str, Any], key: str, kind: type, expected: str, default: Any = None) -> Any:
    found = value.get(key, default)
    if found is not default and not isinstance(found, kind):
        raise InputError(f"{key}: expected {expected}, got {short_repr(found)}")
    return found
