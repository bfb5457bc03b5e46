"""Bad input at scale: thousands of spoiled files and command lines through ``main``, in one process.

``families.py`` draws cases with hypothesis: a command, and its files, most of them spoiled at a few places.
``harness.py`` runs a case in a folder of its own and holds the program to what it promises:

- exit code 0, or 2 with one line on stderr that is not too long and does not steer the terminal;
- no exception, no hang (30 s), no more than 1 GiB of memory;
- what failed has changed nothing in the folder; what succeeded has changed none of its inputs (but those that
  it works on: a gallery), and left no temporary file;
- what was not spoiled succeeds.

``make test`` runs 200 cases, ``make test-slow`` 5,000. Cases come from a seed, so a run can be made again:
the same releases of Python and hypothesis draw the same. ``FUZZ_SEED=7`` draws others, ``FUZZ_CASES=9000``
more.

**To replay a failure**: the message names its folder, which pytest keeps, and the command. Change into the
folder and run ``rga-reid`` with these words; its files are those of the smallest case that hypothesis found.
Or run the same test again. If the process was killed, the command of its last case is in ``FOLDER.json``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import material as materials
from tests.fuzz.families import FAMILIES, share
from tests.fuzz.harness import Case, check
from tests.fuzz.material import Material

SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES = int(os.environ.get("FUZZ_CASES", "5000"))  #: of the slow test
SOME = 200  #: of the other one


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The valid files."""
    return materials.build(tmp_path_factory.mktemp("material") / "files")


def fuzz(family: str, cases: int, material: Material, folder: Path) -> Counter[str]:
    """Run cases of a family; returns how many there were of each outcome."""
    counted: Counter[str] = Counter()
    before = stamps(material.root)

    @st.composite
    def drawn(draw: st.DrawFn) -> Case:
        return FAMILIES[family][0](draw, material)

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
    @given(drawn())
    def each(case: Case) -> None:
        outcome = check(case, folder)
        counted["valid" if case.valid else "spoiled"] += 1
        counted["accepted" if outcome.code == 0 else "refused"] += 1

    each()
    assert stamps(material.root) == before, "a case changed the valid files"
    return counted


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


@pytest.mark.fuzz
@pytest.mark.parametrize("family", FAMILIES)
def test_some_bad_input(family: str, material: Material, tmp_path: Path) -> None:
    cases = share(family, SOME)
    counted = fuzz(family, cases, material, tmp_path / "case")
    assert counted["valid"] + counted["spoiled"] >= cases
    assert counted["valid"] > 0, "no valid case among them"  # hypothesis begins with the simplest


@pytest.mark.fuzz
@pytest.mark.parametrize("family", FAMILIES)
def test_much_bad_input(family: str, material: Material, tmp_path: Path) -> None:
    cases = share(family, CASES)
    counted = fuzz(family, cases, material, tmp_path / "case")
    assert counted["valid"] + counted["spoiled"] >= cases
    assert counted["valid"] > 0, "no valid case among them"
    assert counted["refused"] > counted["valid"], "what was spoiled was read all the same"
    print(f"{family}: {dict(counted)}")
