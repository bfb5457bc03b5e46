"""The wheel and the source distribution contain everything they need and nothing else."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from rga_reid import __version__

CHECKOUT = Path(__file__).parent.parent
NOT_COPIED = ".git .venv build dist demo runs __pycache__ *.egg-info .*_cache .hypothesis *.pyc"
TOP = ("LICENSE", "MANIFEST.in", "Makefile", "cli.py", "pyproject.toml", "ruff.toml", "setup.cfg")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist and the wheel from a copy of the checkout; return their folder."""
    place = tmp_path_factory.mktemp("package")
    shutil.copytree(CHECKOUT, place / "source", ignore=shutil.ignore_patterns(*NOT_COPIED.split()))
    words = ["-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(place / "source")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "dist"


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert "Unreleased" not in headings[1:]
    assert re.fullmatch(rf"{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", released[0])


def test_environment_without_pip_is_created_again(tmp_path: Path) -> None:
    """Debian and Ubuntu create one without pip if the package python3-venv is missing."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in ("venv/bin/python", "maker"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $@ >> {tmp_path}/log\n")
        (tmp_path / name).chmod(0o755)
    words = ["make", "install", f"VENV={tmp_path / 'venv'}", f"PYTHON={tmp_path / 'maker'}"]
    subprocess.run(words, cwd=CHECKOUT, capture_output=True, check=True)
    made, installed = (tmp_path / "log").read_text().splitlines()
    assert made == f"maker -m venv {tmp_path / 'venv'}"
    assert installed.startswith("venv/bin/python -m pip install")


def list_files(folder: str, *patterns: str) -> set[str]:
    """Return the files of a folder of the checkout, relative to it."""
    top = CHECKOUT / folder
    found = {path for pattern in patterns for path in top.rglob(pattern) if path.is_file()}
    return {str(path.relative_to(top)) for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_wheel_has_the_package_and_its_data(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"rga_reid-{__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    package = list_files("rga_reid", "*.py", "*.yaml", "*.bib", "py.typed", "templates/*", "page/*")
    assert "reports/templates/explorer.html" in package
    wanted = {f"rga_reid/{name}" for name in package}
    wanted |= {f"rga_reid/configs/{name}" for name in list_files("configs", "*.yaml")}
    wanted |= {f"rga_reid/datasets/{name}" for name in list_files("datasets", "*.yaml", "README.md")}
    info = f"rga_reid-{__version__}.dist-info/"
    wanted |= {
        info + name
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    }
    assert names == wanted
    points = configparser.ConfigParser()
    points.read_string(zipfile.ZipFile(wheel).read(info + "entry_points.txt").decode())
    assert dict(points["console_scripts"]) == {"rga-reid": "rga_reid.commands:main"}


@pytest.mark.slow
def test_sdist_has_everything_the_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    prefix = f"rga_reid-{__version__}/"
    with tarfile.open(sdist) as opened:
        names = {one.name.removeprefix(prefix) for one in opened.getmembers() if one.isfile()}
    generated = {name for name in names if name.startswith("rga_reid.egg-info/")} | {"PKG-INFO"}
    wanted = {
        *TOP,
        ".dockerignore",
        ".pre-commit-config.yaml",
        *(path.name for path in CHECKOUT.glob("*.md")),
    }
    for folder in (".ci", "benchmarks", "configs", "datasets", "docs", "rga_reid", "tests"):
        wanted |= {f"{folder}/{name}" for name in list_files(folder, "*")}
    assert names - generated == wanted


@pytest.mark.slow
def test_docker_copies_what_the_wheel_needs(built: Path, tmp_path: Path) -> None:
    """Docker copies only what ``.dockerignore`` excepts, and the same wheel can be built from that."""
    first, *lines = [
        line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    ]
    assert first == "*"
    (tmp_path / "source").mkdir()
    for name in (line[1:] for line in lines if line.startswith("!")):
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / "source" / name)
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tmp_path / "source")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (next(folder.glob("*.whl")) for folder in (built, tmp_path))
    assert zipfile.ZipFile(one).namelist() == zipfile.ZipFile(two).namelist()


@pytest.mark.slow
def test_wheel_works_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    """Commands and recipes are found without the checkout."""
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import rga_reid\n"
        "from rga_reid.commands import main; from rga_reid.resources import find_resource, list_resources\n"
        "recipe = find_resource('configs', 'market1501/rga_sc')\n"
        "print(rga_reid.__file__, recipe, len(list_resources('datasets')))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-I", "-c", script, str(tmp_path / "site"), "--help"]
    done = subprocess.run(words, cwd=tmp_path / "empty", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place, recipe, cards = done.stdout.splitlines()[0].split()
    assert Path(place).is_relative_to(tmp_path / "site")
    assert Path(recipe).is_relative_to(tmp_path / "site" / "rga_reid" / "configs")
    assert int(cards) == len(list_files("datasets", "*.yaml"))
    assert "usage: rga-reid COMMAND" in done.stdout
