"""``gallery group`` as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rga_reid import Gallery
from rga_reid.commands import main
from rga_reid.evaluation import pairwise_agreement
from rga_reid.gallery.grouping import group_gallery
from tests.page_texts import element_texts, visible_text

FIXTURES = Path(__file__).parents[1] / "fixtures"
PIDS = np.append(np.repeat(np.arange(12), 10), 99)


@pytest.fixture
def gallery(tmp_path: Path) -> str:
    """A gallery of 12 unlabelled people with 10 images each, and an image like no other."""
    rng = np.random.default_rng(0)
    centres = np.concatenate([rng.standard_normal((12, 32)), -rng.standard_normal((88, 32))])
    features = centres[PIDS] + 0.2 * rng.standard_normal((121, 32))
    Image.new("RGB", (64, 128), "teal").save(tmp_path / "0.jpg")
    table = pd.DataFrame({"path": [str(tmp_path / f"{number}.jpg") for number in range(121)], "camid": 3})
    Gallery.build(features, table).save(tmp_path / "G")
    return str(tmp_path / "G")


def test_the_persons_of_a_gallery(gallery: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("page.html", "persons.csv", "facts.json")]
    words = ["gallery", "group", "--gallery", gallery, "--threshold", "0.8"]
    words += ["--out", files[0], "--csv", files[1], "--json", files[2], "--lang", "zh"]
    assert main(words) == 0
    assert "120 of 121" in capsys.readouterr().out
    facts = json.loads(Path(files[2]).read_text())
    assert facts == {"persons": 12, "images": 121, "grouped": 120, "ungrouped": 1}
    table = pd.read_csv(files[1])
    assert table["person"].isna().tolist() == (PIDS == 99).tolist()
    assert pairwise_agreement(table["person"].fillna(-1), PIDS).f1 == 1
    page = Path(files[0]).read_text()
    assert page.count("<section ") == 12
    assert page.count("<figure>") == 120
    assert page.count('src="data:image/jpeg') == 1  # the other files do not exist
    lowest = table.groupby("person")["similarity"].min().sort_values()
    assert element_texts(page, "h2") == [f"行人 {int(person)}" for person in lowest.index]


def test_persons_are_written_to_the_gallery(gallery: str) -> None:
    assert main(["gallery", "group", "--gallery", gallery, "--threshold", "0.8", "--write"]) == 0
    person = Gallery.open(gallery).table["person"]
    assert person.isna().tolist() == (PIDS == 99).tolist()
    assert pairwise_agreement(person.fillna(-1), PIDS).f1 == 1


@pytest.mark.parametrize("key", ["id", "path"])
def test_corrected_persons_are_written_to_the_gallery(
    gallery: str, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "persons.csv")
    words = ["gallery", "group", "--gallery", gallery]
    assert main([*words, "--threshold", "0.8", "--csv", file, "--write"]) == 0
    table = pd.read_csv(file, dtype={"person": "Int64"})
    before = table["person"].tolist()
    table.loc[[3, 4], "person"] = 77  # one image of another person, and the one like no other
    table.loc[5, "person"] = pd.NA
    table = table.drop(index=9).sample(frac=1, random_state=0)
    left = table if key == "id" else table.drop(columns="id")
    left.assign(pid="anyone").to_csv(file, index=False)  # other columns do not matter
    Gallery.open(gallery).remove(paths=str(tmp_path / "8.jpg"))
    capsys.readouterr()
    assert main([*words, "--persons", file]) == 0
    printed = capsys.readouterr().out
    assert "changed of 3 images" in printed
    assert "1 rows name images that are not in the gallery" in printed
    changed = Gallery.open(gallery).table
    expected = [77 if row in (3, 4) else None if row == 5 else before[row] for row in range(121) if row != 8]
    assert [None if pd.isna(value) else value for value in changed["person"]] == [
        None if pd.isna(value) else value for value in expected
    ]
    assert changed["pid"].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,persons\n0,1\n", "'person'"),
        ("person\n1\n", "'id'"),
        ("id,person\n0,1\n0,2\n", "line 3: id"),
        ("id,person\n0,1\n1,Anna\n", "line 3"),
        ("id,person\nfirst,1\n", "line 2"),
        ("id,person\n500,1\n", "none of its 1 images"),
        ("id,person\n,1\n", "line 2: id"),
    ],
)
def test_bad_tables_of_persons(
    gallery: str, tmp_path: Path, text: str, message: str, refused: Callable[..., str]
) -> None:
    (tmp_path / "p.csv").write_text(text)
    assert message in refused("gallery", "group", "--gallery", gallery, "--persons", str(tmp_path / "p.csv"))
    assert "person" not in Gallery.open(gallery).columns


def test_old_rows_have_the_columns_of_newer_ones(tmp_path: Path) -> None:
    """Rows of version 1 have a camera called ``camid``, and no track."""
    shutil.copytree(FIXTURES / "v1" / "gallery", tmp_path / "G")
    gallery = Gallery.open(tmp_path / "G")
    before = gallery.table["camera"].astype("string").fillna("").tolist()
    rng = np.random.default_rng(0)
    added = pd.DataFrame({"path": ["x.jpg", "y.jpg"], "camera": "gate", "track": 7})
    gallery.add(rng.standard_normal((2, gallery.dimension)), added)
    found = group_gallery(gallery).table
    assert list(found.columns) == [*gallery.columns, "person", "similarity"]
    assert found["camera"].fillna("").tolist() == [*before, "gate", "gate"]
    assert found["track"].tolist()[-2:] == [7, 7]


def test_settings_change_the_groups(gallery: str, tmp_path: Path) -> None:
    found = {}
    for change in ("", "--eps 0.001", "--min-samples 11", "--threshold 0.9999"):
        words = ["gallery", "group", "--gallery", gallery, "--threshold", "0.8", *change.split()]
        assert main([*words, "--json", str(tmp_path / "facts.json")]) == 0
        found[change.split(" ")[0]] = json.loads((tmp_path / "facts.json").read_text())["persons"]
    assert found == {"": 12, "--eps": 0, "--min-samples": 0, "--threshold": 0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "2"], "eps: "),
        (["--min-samples", "0"], "min_samples: "),
        (["--threshold", "3"], "--threshold: "),
        (["--out", "page.txt"], "--out page.txt: "),
        (["--calibration", "nowhere.json"], "nowhere.json: "),
        (["--persons", "nowhere.csv"], "nowhere.csv: "),
        (["--persons", "p.csv", "--write"], "--write: "),
        (["--wait", "-1"], "--wait: "),
    ],
)
def test_bad_options(gallery: str, refused: Callable[..., str], words: list[str], message: str) -> None:
    assert message in refused("gallery", "group", "--gallery", gallery, *words)


def test_a_page_escapes_names_and_counts_what_it_leaves_out() -> None:
    from rga_reid.reports.groups_page import MAX_IMAGES, MAX_PERSONS, groups_page

    table: Any = pd.DataFrame({"person": pd.array([*range(MAX_PERSONS + 1), *[0] * 20, None], dtype="Int64")})
    table["path"] = "<b>.jpg"
    table["similarity"] = np.linspace(0.5, 1, len(table))
    table["camera"], table["track"], table["time"] = "gate & yard", 7, pd.Timestamp("2026-01-02", tz="UTC")
    page = groups_page(table, title="<i>", gallery="<u>")
    assert "<b>.jpg" not in page
    assert "<i>" not in page
    assert "<u>" not in page
    assert "“<u>”" in visible_text(page)
    assert element_texts(page, "figcaption")[0].startswith("0.500camera gate & yardtrack 72026-01-02")
    assert page.count("<section ") == MAX_PERSONS
    assert f"the {MAX_IMAGES} least similar images are shown" in visible_text(page)
    assert f"{len(table) - 1} of {len(table)} images" in visible_text(page)
    chinese = groups_page(table, lang="zh")
    assert element_texts(chinese, "h1") == element_texts(chinese, "title") == ["待核对的行人"]
    assert element_texts(chinese, "h2")[0].startswith("行人 ")
    assert "摄像头 gate & yard" in element_texts(chinese, "figcaption")[0]
    assert not re.search(r"\b(person|image|camera|track)s?\b", visible_text(chinese))
