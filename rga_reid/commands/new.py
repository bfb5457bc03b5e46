"""``new``: write the files of a new attention module."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError
from rga_reid.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"
#: template -> name of the file, for a module NAME
_FILES = {
    "attention.py.txt": "NAME.py",
    "attention.yaml.txt": "NAME.yaml",
    "test_attention.py.txt": "test_NAME.py",
}
#: variants of the plan, and names that the module imports
_USED = ("baseline", "rga", "relations", "trace", "tensor", "sequence")


def parser() -> ArgumentParser:
    """Options of ``new``."""
    options = new_parser(
        "new",
        "Write a working attention module to change, a plan that compares it with RGA and with a network without "
        "attention on the synthetic data set, and a test.",
    )
    options.add_argument("kind", choices=["attention"], help="what to start: attention")
    options.add_argument(
        "file", metavar="FILE.py", help="file of the module; the others are written beside it"
    )
    return options


def run(options: Namespace) -> None:
    """Write the files, and print what to do next."""
    check_outputs(options, {"file": (".py",)})
    file = Path(options.file)
    name = _module_name(file)
    files = {template: file.with_name(path.replace("NAME", name)) for template, path in _FILES.items()}
    for path in files.values():
        if path.exists():
            raise InputError(f"{path}: exists already; choose another name")
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    names = {"MODULE": name, "CLASS": class_name}
    for template, path in files.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        write_text(path, re.sub("MODULE|CLASS", lambda found: names[found[0]], text))
    module, plan, test = files.values()
    where = "" if file.parent == Path() else f"cd {shlex.quote(os.fspath(file.parent))}; "
    print(f"{module}: the module {class_name}")
    print(f"{test}: {where}python -m pytest {test.name}")
    print(f"{plan}: {where}rga-reid ablate --config {plan.name} --out runs/{name}")
    print(
        f"train: add --import {name} --model.attention {name}.{class_name}; other commands: --import {name}"
    )


def _module_name(file: Path) -> str:
    """Return the name by which Python will import a file.

    Raises:
        InputError: not a name, or that of another module.
    """
    name = file.stem
    if not name.isidentifier() or not name.isascii() or not name.strip("_") or keyword.iskeyword(name):
        raise InputError(
            f"FILE.py {file}: expected a name that Python can import, such as my_attention.py: letters, digits "
            "and _, not first a digit"
        )
    if not file.exists() and (name in sys.modules or importlib.util.find_spec(name) is not None):
        raise InputError(f"FILE.py {file}: another module is called {name} already; choose another name")
    if name in _USED:
        raise InputError(
            f"FILE.py {file}: the files that are written use this name already; choose another one"
        )
    return name
