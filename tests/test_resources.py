"""Bundled recipes and cards: found by name, from a checkout and from an installed package."""

from pathlib import Path

import pytest
import yaml

from rga_reid import resources
from rga_reid.errors import InputError

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("folder", "kinds"), [("configs", ["configs", "plans"]), ("datasets", ["datasets"])])
def test_every_bundled_file_is_listed_and_found(folder, kinds):
    files = sorted((CHECKOUT / folder).rglob("*.yaml"))
    names = [path.relative_to(CHECKOUT / folder).as_posix().removesuffix(".yaml") for path in files]
    listed = [(name, kind) for kind in kinds for name in resources.list_resources(kind)]
    assert sorted(name for name, _ in listed) == sorted(names)
    paths = dict(zip(names, files, strict=True))
    for name, kind in listed:
        path = paths[name]
        assert name.startswith("ablations/") == (kind == "plans")
        assert resources.find_resource(kind, name) == path
        assert yaml.safe_load(path.read_text()) is not None


def test_an_unknown_name_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(InputError, match=r"data set card 'market1510'; did you mean market1501\?") as error:
        resources.find_resource("datasets", "market1510")
    assert "folders" in str(error.value)


def test_plans_and_recipes_are_told_apart():
    with pytest.raises(InputError, match="'market1501_cpu'; did you mean ablations/market1501_cpu") as error:
        resources.find_resource("plans", "market1501_cpu")
    assert str(error.value).startswith("unknown plan ")
    assert "rga" not in str(error.value)
    with pytest.raises(InputError, match="unknown recipe 'ablations/demo', which is a plan ") as error:
        resources.find_resource("configs", "ablations/demo")
    assert str(error.value).count("ablations/") == 1


@pytest.mark.parametrize("name", ["", "../datasets/market1501", "market1501.yaml", "/etc/passwd"])
def test_only_names_are_found_never_paths(name):
    with pytest.raises(InputError):
        resources.find_resource("datasets", name)


def test_an_installed_package_uses_its_own_copy(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "rga_reid"
    (package / "configs" / "set").mkdir(parents=True)
    (package / "configs" / "set" / "recipe.yaml").write_text("a: 1\n")
    other = package.parent / "datasets"  # a well-known package of that name, not ours
    other.mkdir()
    (other / "theirs.yaml").write_text("a: 1\n")
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.list_resources("configs") == ["set/recipe"]
    assert resources.find_resource("configs", "set/recipe") == package / "configs" / "set" / "recipe.yaml"
    assert resources.list_resources("datasets") == []
    with pytest.raises(InputError, match="known: none"):
        resources.find_resource("datasets", "theirs")
