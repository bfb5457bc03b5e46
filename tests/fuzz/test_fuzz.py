"""Thousands of corrupted files and command lines, run through ``main`` in one process.

A family draws cases: a command and its files, most of them corrupted at a few places. For each case
``harness.py`` checks what the program promises:

- exit code 0, or 2 with one short line on stderr that contains no control characters;
- no exception, no hang, and at most 1 GiB of memory;
- a command that fails changes nothing; one that succeeds changes none of its inputs, except a gallery that it
  works on, and leaves no temporary file;
- valid input is accepted.

Recipes, plans, cards and a data set's own archives are trusted, and are not tested here; see SECURITY.md.

``make test-fuzz`` runs 5,000 cases. ``FUZZ_CASES=9000`` runs more, ``FUZZ_SEED=7`` others; a seed draws the same
cases with the same releases of Python and hypothesis.

**To replay a failure**, change into the folder that the message names, which pytest keeps, and run ``rga-reid``
with the words of the command. Its files are the smallest case that hypothesis found. If the process was killed,
the last command is in FOLDER.txt.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import material as materials
from tests.fuzz.data_cases import csv_sets, images, list_files
from tests.fuzz.feature_cases import archives, calibrations, galleries, reports, tables
from tests.fuzz.harness import Case, check
from tests.fuzz.material import Material
from tests.fuzz.model_cases import checkpoints
from tests.fuzz.mutations import Draw
from tests.fuzz.word_cases import words

SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES = int(os.environ.get("FUZZ_CASES", "5000"))

#: Families with their shares of the cases.
FAMILIES: dict[Callable[[Draw, Material], Case], int] = {
    images: 6,
    csv_sets: 4,
    list_files: 2,
    tables: 5,
    archives: 5,
    checkpoints: 6,
    galleries: 8,
    calibrations: 1,
    reports: 2,
    words: 6,
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return materials.build(tmp_path_factory.mktemp("material") / "files")


def fuzz(
    family: Callable[[Draw, Material], Case],
    cases: int,
    material: Material,
    folder: Path,
    capture: pytest.CaptureFixture[str],
) -> Counter[str]:
    """Run cases of a family; return the number of cases for each outcome."""
    counts: Counter[str] = Counter()
    before = read_stamps(material.root)

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        return family(draw, material)

    @seed(SEED)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(draw_case())
    def run_case(case: Case) -> None:
        outcome = check(case, folder, capture)
        counts["valid" if case.valid else "corrupted"] += 1
        counts["accepted" if outcome.code == 0 else "refused"] += 1

    run_case()
    assert read_stamps(material.root) == before, "a case changed the material"
    return counts


def read_stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of change of everything below a folder."""
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


@pytest.mark.fuzz
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_corrupted_input(
    family: Callable[[Draw, Material], Case],
    material: Material,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cases = -(-CASES * FAMILIES[family] // sum(FAMILIES.values()))
    counts = fuzz(family, cases, material, tmp_path / "case", capfd)
    assert counts.total() >= 2 * cases
    assert counts["valid"] > 0
    if CASES >= 1000:
        assert counts["refused"] > counts["valid"], "corrupted input was accepted"
    print(f"{family.__name__}: {dict(counts)}")


def test_one_family_runs(material: Material, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A few cases of one family, to keep the suite working."""
    counts = fuzz(csv_sets, 3, material, tmp_path / "case", capfd)
    assert counts["valid"] > 0
