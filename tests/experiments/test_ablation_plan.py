"""Plans of ablations: bundled plans, overrides, invalid plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.commands._options import parse
from rga_reid.commands.train import parser, prepare
from rga_reid.errors import InputError
from rga_reid.experiments.ablation_plan import read_plan
from rga_reid.experiments.recipes import read_recipe
from rga_reid.reports.ablation_tables import load_published
from rga_reid.resources import list_resources

PLANS = list_resources("plans")
VARIANTS = ["baseline", "rga_sc", *(name for name in ATTENTION_MODULES if name != "rga")]


def write(folder: Path, text: str) -> str:
    path = folder / "plan.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", PLANS)
def test_bundled_plans(name: str, tmp_path: Path) -> None:
    plan = read_plan(name)
    assert plan.baseline == "baseline"
    load_published(plan.published)
    first = plan.variants[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(dict(first.recipe)))
    assert parse(parser(), prepare(["--config", str(file)])) is not None


@pytest.mark.parametrize(
    "name", ["ablations/market1501", "ablations/market1501_cpu", "ablations/market1501_pretrained"]
)
def test_market_plans_differ_in_the_attention_only(name: str) -> None:
    plan = read_plan(name)
    assert [variant.name for variant in plan.variants] == VARIANTS
    recipes = [dict(variant.recipe) for variant in plan.variants]
    attention = [repr(recipe["model"].pop("attention")) for recipe in recipes]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert len(set(attention)) == len(VARIANTS)
    assert attention[0] == "None"


def test_the_plan_of_the_guide_changes_the_attention_of_the_bundled_one(
    tmp_path: Path, code_blocks: Callable[..., list[Any]]
) -> None:
    (block,) = [one for one in code_blocks("docs/extending.md") if one.above == "`market_gate.yaml`:"]
    plan, bundled = read_plan(write(tmp_path, block.text)), read_plan("ablations/market1501_pretrained")
    expected = {one.name: dict(one.recipe) for one in bundled.variants}
    found = {one.name: dict(one.recipe) for one in plan.variants}
    assert [*found] == ["baseline", "rga_sc", "se", "gate"]
    assert {one.seeds for one in plan.variants} == {one.seeds for one in bundled.variants}
    for name, recipe in found.items():
        assert recipe.pop("imports") == ["my_attn"]
        if name == "gate":
            assert recipe["model"].pop("attention") == "my_attn.ChannelGate"
            recipe["model"]["attention"] = None
        assert recipe == expected["baseline" if name == "gate" else name]


@pytest.mark.parametrize(
    "item", ["{attention: all}", "{attention: others, name: a}", "{attention: others, except: rga}"]
)
def test_wrong_lists_of_attention_are_named(item: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variants\[1\].*attention"):
        read_plan(write(tmp_path, f"recipe: demo\nvariants:\n  - {{name: a}}\n  - {item}\n"))


def test_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo\ndata: {val_fraction: 0.1}\n")
    with pytest.warns(FutureWarning, match="data.epoch"):
        plan = read_plan(
            write(
                tmp_path,
                "recipe: mine.yaml\n"
                "overrides: {trainer.max_epochs: 3, model: {attention: pam, last_stride: 2}, data.visits: image}\n"
                "seeds: [4, 5]\n"
                "variants:\n"
                "  - {name: a}\n"
                "  - {name: b, seeds: [7], overrides: {model.attention: null, trainer.max_epochs: 2}}\n"
                "  - {name: c, recipe: demo}\n",
            )
        )
    a, b, c = plan.variants
    assert (plan.baseline, a.seeds, b.seeds) == ("a", (4, 5), (7,))
    assert a.recipe["trainer"]["max_epochs"] == 3
    assert a.recipe["trainer"]["precision"] == read_recipe("demo")["trainer"]["precision"]
    assert (a.recipe["model"]["attention"], a.recipe["model"]["last_stride"]) == ("pam", 2)
    assert (b.recipe["model"]["attention"], b.recipe["trainer"]["max_epochs"]) == (None, 2)
    assert a.recipe["data"]["val_fraction"] == 0.1
    assert a.recipe["data"]["epoch"] == "images"
    assert "val_fraction" not in c.recipe["data"]
    assert [(v.name, seed) for v, seed in plan.order()] == [
        ("a", 4),
        ("b", 7),
        ("c", 4),
        ("a", 5),
        ("c", 5),
    ]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("recipe: demo\nvariant: []\n", "variant: unknown key; did you mean variants?"),
        ("recipe: demo\n", "variants: missing key"),
        ("recipe: demo\nvariants: []\n", "variants: expected at least one"),
        ("recipe: demo\nvariants: [{name: a}, {name: a}]\n", "variants[1].name: 'a'"),
        ("recipe: demo\nvariants: [{name: a}, {name: A}]\n", "variants[1].name: 'A'"),
        ("recipe: demo\nvariants: [{name: a, sedes: [1]}]\n", "variants[0]: sedes: unknown key"),
        ("recipe: demo\nvariants: null\n", "variants: expected a list of variants, got None"),
        ("recipe: demo\nvariants: [{name: a, seeds: []}]\n", "variants[0]: seeds: expected different"),
        ("recipe: demo\nvariants: [{name: a, seeds: [1, 1]}]\n", "variants[0]: seeds: expected different"),
        ("recipe: demo\nvariants: [{name: a, seeds: 3}]\n", "variants[0]: seeds: expected a list"),
        ("recipe: demo\nvariants: [{name: a, seeds: [0, 4294967296]}]\n", "from 0 to 4294967295"),
        ("recipe: demo\nvariants: [{name: ../a}]\n", "variants[0]: name: expected letters"),
        ("recipe: demo\nvariants: [{seeds: [1]}]\n", "variants[0]: name: missing key"),
        ("recipe: demo\nvariants: [a]\n", "variants[0]: expected a mapping"),
        ("recipe: demo\nvariants: [{name: a}]\nbaseline: b\n", "baseline: expected one of a, got 'b'"),
        ("recipe: demmo\nvariants: [{name: a}]\n", "unknown recipe 'demmo'"),
        ("variants: [{name: a}]\n", "variants[0]: recipe: expected the name of a recipe"),
        ("recipe: demo\noverrides: [1]\nvariants: [{name: a}]\n", "overrides: expected a mapping"),
        ("recipe: demo\nflip: 1\nvariants: [{name: a}]\n", "flip: expected true or false"),
        ("recipe: demo\nsynthetic: {sise: 1}\nvariants: [{name: a}]\n", "synthetic: sise: unknown key"),
        ("- a\n", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_invalid_plans(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_plan(write(tmp_path, text))
    assert key in str(refused.value)
    assert "plan.yaml" in str(refused.value)


def test_unknown_plan() -> None:
    with pytest.raises(InputError, match="did you mean ablations/demo"):
        read_plan("ablations/dmeo")
    with pytest.raises(InputError, match=r"plan nowhere\.yaml: no such file"):
        read_plan("nowhere.yaml")
