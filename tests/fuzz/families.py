"""Families of cases: each spoils some kind of input and gives it to the commands that read it."""

from __future__ import annotations

import math
from collections.abc import Callable

from tests.fuzz.data_cases import cards, csv_sets, cuhk03, images
from tests.fuzz.feature_cases import archives, calibrations, galleries, tables
from tests.fuzz.harness import Case
from tests.fuzz.material import Material
from tests.fuzz.model_cases import checkpoints, plans, recipes, reports
from tests.fuzz.mutations import Draw
from tests.fuzz.word_cases import words

Family = Callable[[Draw, Material], Case]

#: Share of the cases that each family gets.
FAMILIES: dict[str, tuple[Family, int]] = {
    "images": (images, 5),
    "csv_sets": (csv_sets, 4),
    "tables": (tables, 4),
    "archives": (archives, 4),
    "cards": (cards, 5),
    "cuhk03": (cuhk03, 2),
    "recipes": (recipes, 4),
    "plans": (plans, 4),
    "checkpoints": (checkpoints, 4),
    "galleries": (galleries, 6),
    "calibrations": (calibrations, 1),
    "reports": (reports, 2),
    "words": (words, 5),
}


def share(family: str, cases: int) -> int:
    """How many of all cases a family gets, rounded up."""
    return math.ceil(cases * FAMILIES[family][1] / sum(weight for _, weight in FAMILIES.values()))
