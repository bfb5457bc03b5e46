"""YAML makes no objects, and does not grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harness import run
from tests.security.hostile import refusal

TAG = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]"


def test_no_yaml_makes_objects(tmp_path: Path, tiny_market: Path, mark: Path) -> None:
    tag = TAG.format(mark)
    for text in (
        tag,
        f"model: {tag}",
        f"name: {tag}\n",
        f"base: demo\n? {tag}\n: 1\n",
        f"title: {tag}\nrecipe: demo",
    ):
        (tmp_path / "x.yaml").write_text(text)
        for words in (
            ["train", "--config", "x.yaml"],
            ["ablate", "--config", "x.yaml", "--out", "out"],
            ["data", "check", str(tiny_market), "--dataset", "x.yaml"],
        ):
            assert "x.yaml: not valid YAML" in refusal(run(words, tmp_path))
    words = [
        "train",
        "--data.root",
        str(tiny_market),
        "--out",
        "out",
        "--model.weights",
        "null",
        "--model.attention",
        tag,
    ]
    refusal(run(words, tmp_path))
    assert not mark.exists()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "[" * 5000,
        "- " * 5000,
        "{a: " * 5000,
        "x: " + "9" * 5000,
    ],
)
def test_yaml_that_grows(tmp_path: Path, tiny_market: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    for words in (
        ["train", "--config", "x.yaml"],
        ["ablate", "--config", "x.yaml", "--out", "out"],
        ["data", "check", str(tiny_market), "--dataset", "x.yaml"],
    ):
        assert "x.yaml: " in refusal(run(words, tmp_path))
