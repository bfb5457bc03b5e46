"""Bundled recipes and cards: found by name, from a checkout and from an installed package."""

from pathlib import Path

import pytest
import yaml

from rga_reid import resources
from rga_reid.errors import InputError

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("kind", ["configs", "datasets"])
def test_every_bundled_file_is_listed_and_found(kind):
    files = sorted((CHECKOUT / kind).rglob("*.yaml"))
    names = [path.relative_to(CHECKOUT / kind).as_posix().removesuffix(".yaml") for path in files]
    assert resources.list_resources(kind) == sorted(names)
    for name, path in zip(names, files, strict=True):
        assert resources.find_resource(kind, name) == path
        assert yaml.safe_load(path.read_text()) is not None


def test_an_unknown_name_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(InputError, match=r"data set card 'market1510'; did you mean market1501\?") as error:
        resources.find_resource("datasets", "market1510")
    assert "folders" in str(error.value)


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
