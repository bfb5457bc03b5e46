"""The house plan: each room imports from the floors below it only; importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rga_reid"
FLOORS = [
    {"errors", "signals"},
    {"bounded_yaml", "locks"},
    {"checks", "files", "inputs", "memory", "progress", "resources"},
    {"devices", "program"},
    {"attention", "data", "evaluation"},
    {"models"},
    {"training", "retrieval", "reports"},
    {"experiments"},
    {"commands"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(file: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from rga_reid import attention` imports a room too
            names |= (
                {f"{node.module}.{a.name}" for a in node.names}
                if node.module == "rga_reid"
                else {node.module}
            )
    return {name for name in names if name.startswith("rga_reid.")}


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_rooms_import_from_below(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # its names load lazily
    for module in imported(file):
        other = room_of(module)
        if other in FLOOR and other != room:
            assert FLOOR[other] < FLOOR[room], f"{room} imports {module}"


def test_every_room_has_a_floor() -> None:
    rooms = {
        p.name.removesuffix(".py")
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set(FLOOR)


def test_no_module_is_over_400_lines() -> None:
    long = {
        p.name: n
        for p in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js")]
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize(
    "statement", ["import rga_reid", "from rga_reid.commands import main; main(['--help'])"]
)
def test_importing_and_help_load_nothing_heavy(statement: str) -> None:
    heavy = ("torch", "pandas", "numpy", "faiss", "matplotlib", "pytorch_lightning", "PIL")
    script = (
        f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_public_names_exist() -> None:
    import rga_reid

    for name in rga_reid.__all__:
        assert getattr(rga_reid, name) is not None
    with pytest.raises(AttributeError):
        _ = rga_reid.no_such_name
