"""Public names have complete docstrings, and the documentation site builds without warnings."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sphinx.util.inventory import InventoryFile

from rga_reid.commands import COMMANDS

CHECKOUT = Path(__file__).parent.parent
PACKAGES = (
    "attention",
    "data",
    "data.synthetic",
    "evaluation",
    "gallery",
    "inference",
    "models",
    "training",
)
MAX_UNLISTED = 3  # parameters that a docstring may describe without an Args section


def iter_public() -> Iterator[tuple[str, Any]]:
    """Iterate over exported names and values, and over the methods and properties of classes among them."""
    for package in PACKAGES:
        module = importlib.import_module(f"rga_reid.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{package}.{name}", value
            if inspect.isclass(value):
                for inner, raw in vars(value).items():
                    if not inner.startswith("_") and is_code(raw):
                        yield f"{package}.{name}.{inner}", raw


def is_code(raw: Any) -> bool:
    return inspect.isfunction(raw) or isinstance(raw, property | classmethod | staticmethod)


def is_protocol(value: Any) -> bool:
    return getattr(value, "_is_protocol", False)  # has no constructor


CODE = {name: value for name, value in iter_public() if inspect.isclass(value) or is_code(value)}


def function_of(value: Any) -> Any:
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


#: Names that have a docstring; overriding methods may inherit one.
OWN = {name: value for name, value in CODE.items() if function_of(value).__doc__ is not None}


def docstring_of(name: str) -> str:
    """Return the docstring of a name, or of the method that it overrides."""
    own = function_of(CODE[name]).__doc__
    if own is None and "." in name:
        owner = CODE.get(name.rpartition(".")[0])
        own = inspect.getdoc(getattr(owner, name.rpartition(".")[2])) if owner is not None else None
    return inspect.cleandoc(own or "")


def docstrings_with_class(name: str) -> str:
    """Return the docstring of a name, that of its class, and the comments of the class's fields."""
    owner = CODE.get(name.rpartition(".")[0], CODE[name])
    source = inspect.getsource(owner) if inspect.isclass(owner) else ""
    fields = re.findall(r".*#: .*(?:\n.*: .*)?", source)
    return f"{docstring_of(name)} {inspect.getdoc(owner)} {' '.join(fields)}"


def parameters_of(value: Any) -> list[str]:
    if isinstance(value, property) or is_protocol(value):
        return []
    return [name for name in inspect.signature(function_of(value)).parameters if name not in ("self", "cls")]


def misses_docstring(name: str) -> bool:
    docstring = docstring_of(name)  # dataclasses generate one that repeats the signature
    return not docstring or docstring.startswith(f"{name.rpartition('.')[2]}(")


def misses_parameter(name: str) -> bool:
    """A parameter is described in a docstring or by the comment of a field, beside it or above it."""
    if name not in OWN or len(parameters_of(OWN[name])) <= MAX_UNLISTED:
        return False
    text = docstrings_with_class(name)
    return not all(re.search(rf"\b{one}\b", text) for one in parameters_of(OWN[name]))


def misses_shape(name: str) -> bool:
    if name not in OWN:
        return False
    signature = inspect.signature(function_of(OWN[name]))
    kinds = [*(one.annotation for one in signature.parameters.values()), signature.return_annotation]
    if not any(re.search(r"\b(Tensor|ndarray)\b", str(kind)) for kind in kinds):
        return False
    return not re.search(r"\(\w+,( [^()]+)?\)|any shape", docstrings_with_class(name))


def misses_error(name: str) -> bool:
    """Return whether the code raises an error, or calls a helper that does, that the docstring omits."""
    if name not in OWN or is_protocol(OWN[name]):
        return False
    value = OWN[name]
    makers = (
        [vars(value).get(maker) for maker in ("__init__", "__post_init__")] if inspect.isclass(value) else []
    )
    codes = [inspect.unwrap(code) for code in (makers or [function_of(value)]) if code is not None]
    source = "".join(inspect.getsource(code) for code in codes if code.__code__.co_filename != "<string>")
    raises = re.search(r"^ +raise [A-Z]|\b(check|require|reject)_\w+\(", source, re.MULTILINE)
    return bool(raises) and not re.search(r"Raises:|\w+Error``", docstrings_with_class(name))


@pytest.mark.parametrize("misses", [misses_docstring, misses_parameter, misses_shape, misses_error])
def test_public_names_are_documented(misses: Callable[[str], bool]) -> None:
    assert [name for name in CODE if misses(name)] == []


def list_guides() -> list[str]:
    """Return the path of every document without its suffix."""
    pages = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "datasets" / "README.md"]
    return sorted(str(page.relative_to(CHECKOUT))[: -len(".md")] for page in pages)


def test_every_guide_is_in_the_table_of_contents() -> None:
    contents = (CHECKOUT / "docs" / "index.rst").read_text(encoding="utf-8")
    entries = set(re.findall(r"^   (/?[\w/.-]+)$", contents, re.MULTILINE))
    missing = [name for name in list_guides() if not {f"/{name}", name.removeprefix("docs/")} & entries]
    assert not missing, "add them to docs/index.rst"


CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def find_anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a Markdown file, as GitHub and the site make them."""
    anchors: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", CODE_BLOCK.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)  # of a link, its text
        anchors.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return {f"{one}-{n}" if (n := anchors[:row].count(one)) else one for row, one in enumerate(anchors)}


def test_every_link_resolves() -> None:
    broken = []
    for name in list_guides():
        page = CHECKOUT / f"{name}.md"
        text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            if not target.exists() or (
                anchor and anchor not in find_anchors(target.read_text(encoding="utf-8"))
            ):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_anchors_of_headings() -> None:
    text = (
        "# A `code`, [link](x.md) (and more)\n## 1. Not twice\n```\n# comment\n```\n## 1. Not twice\n## 公式"
    )
    assert find_anchors(text) == {"a-code-link-and-more", "1-not-twice", "1-not-twice-1", "公式"}


def test_every_guide_named_in_the_code_exists() -> None:
    sources = [
        *CHECKOUT.glob("rga_reid/**/*.py"),
        *CHECKOUT.glob("configs/**/*.yaml"),
        *CHECKOUT.glob("docs/deploy/*"),
    ]
    named = {
        (str(source.relative_to(CHECKOUT)), guide)
        for source in sources
        for guide in re.findall(r"\bdocs/[\w/.]+\.md\b", source.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [one for one in sorted(named) if not (CHECKOUT / one[1]).is_file()] == []


def test_reference_lists_every_command() -> None:
    page = (CHECKOUT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^```{command-help} (\w+)$", page, re.MULTILINE) == re.findall(
        r"^### (\w+)$", page, re.MULTILINE
    )
    assert set(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == set(COMMANDS)
    assert set(re.findall(r"^\| `(\w+)", page, re.MULTILINE)) == set(COMMANDS)


FILE = re.compile(r"`((?:rga_reid|tests|benchmarks|configs|docs)/[\w/.]+\.(?:py|yaml|md|txt|json|html))\b")


def test_every_file_named_in_a_guide_exists() -> None:
    missing = []
    for name in list_guides():
        if name != "CHANGELOG":  # describes older versions too
            named = FILE.findall((CHECKOUT / f"{name}.md").read_text(encoding="utf-8"))
            missing += [f"{name}: {path}" for path in named if not (CHECKOUT / path).exists()]
    assert [path for path in missing if "eca" not in path] == []  # the example of CONTRIBUTING.md


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-b", "html"]
    words += ["-d", str(out / "doctrees"), ".", str(out / "html")]
    done = subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_site_has_every_public_name_and_guide(site: Path) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    for name, _ in iter_public():
        if name in CODE:
            assert f"rga_reid.{name}" in described or name not in OWN
        else:  # a constant, documented in the module that defines it
            home = re.compile(rf"rga_reid\.{name.split('.')[0]}\.(\w+\.)?{name.rpartition('.')[2]}")
            assert any(map(home.fullmatch, described)), name
    assert [name for name in list_guides() if not (site / f"{name}.html").is_file()] == []
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_site_shows_the_options_of_commands(site: Path) -> None:
    page = (site / "docs" / "reference" / "commands.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert text.count("usage: rga-reid ") > len(COMMANDS)  # gallery has several actions
    for option in ("--data.val_fraction", "--skip-known", "--false-match-rate", "--neck-feat"):
        assert option in text


@pytest.mark.slow
def test_equations_keep_their_columns(site: Path) -> None:
    page = (site / "docs" / "api" / "attention.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert re.search(r"G\[i, j\] = θ\(xᵢ\)ᵀ φ\(xⱼ\) {5,}\w", text)
