"""Programs and commands written for version 1.0 still work: names, arguments and command lines."""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from rga_reid._deprecated import ALIASES, rename_arguments, renamed_method, renamed_property
from rga_reid.commands import COMMANDS
from rga_reid.commands._options import parse

FIXTURES = Path(__file__).parent / "fixtures" / "v1"
#: package -> name -> function -> its parameters; the function "" of a class is its constructor
API: dict[str, dict[str, dict[str, Any]]] = json.loads((FIXTURES / "api.json").read_text(encoding="utf-8"))
NAMES = [(package, name) for package, names in API.items() for name in names]
LINES = [
    line
    for line in (FIXTURES / "readme_commands.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def find(package: str, name: str) -> Any:
    """Return the value of a 1.0 name; names that have moved warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(importlib.import_module(package), name)


def accepted_arguments(function: Any) -> set[str]:
    """Return the names of the arguments that a function accepts, including their old names."""
    inner = function
    if inspect.isclass(function):
        inner = function.__new__ if issubclass(function, tuple) else function.__init__
    renamed = getattr(inner, "renamed_arguments", {}) or getattr(function, "renamed_arguments", {})
    builder = getattr(inner, "accepts_arguments_of", None)
    if builder is not None:
        return accepted_arguments(getattr(sys.modules[inner.__module__], builder))
    return {*inspect.signature(function).parameters, *renamed}


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_names_keep_their_arguments(package: str, name: str) -> None:
    value, recorded = find(package, name), API[package][name]
    for inner, parameters in recorded.items():
        if inner == "attributes":
            fields = {*getattr(value, "__dataclass_fields__", ()), *getattr(value, "_fields", ())}
            assert [field for field in parameters if field not in fields and not hasattr(value, field)] == []
        elif parameters:
            function = getattr(value, inner) if inner else value
            function = getattr(value, getattr(function, "renamed_to", ""), function)
            accepted = accepted_arguments(function)
            assert [one for one in parameters if one not in accepted] == [], inner


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in ALIASES for name in ALIASES[package]]
)
def test_old_names_warn(package: str, name: str) -> None:
    target = ALIASES[package][name]
    module, _, attribute = target.rpartition(".")
    with pytest.warns(DeprecationWarning, match=target.replace(".", r"\.")):
        value = getattr(importlib.import_module(package), name)
    assert value is getattr(importlib.import_module(module), attribute)


def test_unknown_names_are_attribute_errors() -> None:
    for package in ALIASES:
        with pytest.raises(AttributeError, match="no_such_name"):
            importlib.import_module(package).no_such_name  # noqa: B018


def test_renamed_arguments_warn() -> None:
    @rename_arguments(old="new")
    def function(new: int = 0) -> int:
        return new

    assert function(new=3) == 3
    with pytest.warns(DeprecationWarning, match="'old' is now 'new'"):
        assert function(old=3) == 3
    with pytest.raises(TypeError, match="both"):
        function(old=3, new=4)


def test_renamed_members_warn() -> None:
    class Class:
        size = 3
        old_size = renamed_property("Class.old_size", "size")
        old_add = renamed_method("Class.old_add", "add")

        def add(self, number: int) -> int:
            return self.size + number

    with pytest.warns(DeprecationWarning, match="is now size"):
        assert Class().old_size == 3
    with pytest.warns(DeprecationWarning, match="is now add"):
        assert Class().old_add(number=1) == 4


@pytest.mark.parametrize("line", LINES)
def test_command_lines_parse(line: str) -> None:
    """Nothing is run: files need not exist, but commands, options and recipes must."""
    name, *words = shlex.split(line)
    assert name in COMMANDS
    command = importlib.import_module(f"rga_reid.commands.{name}")
    assert parse(command.parser(), getattr(command, "prepare", list)(words)) is not None
