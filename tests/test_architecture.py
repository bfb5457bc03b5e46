"""Architecture: packages import from below only, no import cycles, short modules, cheap imports."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "rga_reid"
MAX_LINES = 600

#: From top to bottom. A package or module imports only from the lines below its own.
LAYERS = (
    {"retrieval"},
    {"commands"},
    {"serving"},
    {"experiments"},
    {"reports"},
    {"training"},
    {"gallery"},
    {"inference"},
    {"models"},
    {"evaluation"},
    {"data", "attention"},
    {"devices", "resources", "runtime"},
    {"inputs"},
    {"files"},
    {"process"},
    {"_deprecated"},
    {"errors"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def name_of(file: Path) -> str:
    return ".".join(("rga_reid", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def iter_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Iterate over all nodes except those that only type checkers see."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from iter_nodes(child)


TREES = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def find_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, including those imported in functions."""
    names = set()
    for node in iter_nodes(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys() or {node.module}
    return {name for name in names if name in MODULES}


IMPORTS = {module: find_imports(module) for module in MODULES}


def top(module: str) -> str:
    """Return the package or module directly below ``rga_reid``."""
    return [*module.split("."), ""][1]


def test_every_package_has_a_layer() -> None:
    assert {top(module) for module in MODULES} - set(LAYER) == {""}


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_below(module: str) -> None:
    if module == "rga_reid":
        return  # its names load lazily
    upward = {other for other in IMPORTS[module] if top(other) != top(module) and top(other)}
    upward = {other for other in upward if LAYER[top(other)] <= LAYER[top(module)]}
    assert not upward


def test_no_import_cycles() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()


def test_modules_are_short() -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js")]
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


HEAVY = ("torch", "pandas", "numpy", "faiss", "matplotlib", "pytorch_lightning", "PIL")


@pytest.mark.parametrize(
    "statement", ["import rga_reid", "from rga_reid.commands import main; main(['--help'])"]
)
def test_importing_and_help_load_nothing_heavy(statement: str) -> None:
    script = f"{statement}\nimport sys\nprint({{*{HEAVY}}} & {{*sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "set()"


def test_public_names_exist() -> None:
    import rga_reid

    for name in rga_reid.__all__:
        assert getattr(rga_reid, name) is not None
    with pytest.raises(AttributeError):
        _ = rga_reid.no_such_name
