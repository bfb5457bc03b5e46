"""Every public name says what it is and what it takes; the site is built of that, without a warning."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sphinx.util.inventory import InventoryFile

from rga_reid.errors import InputError

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("attention", "data", "data.synthetic", "evaluation", "models", "retrieval", "training")
MANY = 3  # parameters; a docstring that explains more of them has a list


def public() -> Iterator[tuple[str, Any]]:
    """Names and values that packages export, and the methods and properties of classes among them."""
    for package in PACKAGES:
        module = importlib.import_module(f"rga_reid.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{package}.{name}", value
            if inspect.isclass(value):
                for inner, raw in vars(value).items():
                    if not inner.startswith("_") and _is_code(raw):
                        yield f"{package}.{name}.{inner}", raw


def _is_code(raw: Any) -> bool:
    return inspect.isfunction(raw) or isinstance(raw, property | classmethod | staticmethod)


CODE = {name: value for name, value in public() if inspect.isclass(value) or _is_code(value)}


def _function(value: Any) -> Any:
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


def _docstring(name: str, value: Any) -> str:
    """Its own, or that of the method that it overrides."""
    own = _function(value).__doc__
    if own is None and "." in name:
        owner = CODE.get(name.rpartition(".")[0])
        own = inspect.getdoc(getattr(owner, name.rpartition(".")[2])) if owner is not None else None
    return inspect.cleandoc(own or "")


def _parameters(value: Any) -> list[str]:
    if isinstance(value, property):
        return []
    names = list(inspect.signature(_function(value)).parameters)
    return [name for name in names if name not in ("self", "cls")]


def _listed(docstring: str) -> set[str]:
    """The parameters that the section Args explains: ``a, b: ...``, over several lines too."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return set()
    entries = re.split(r"^    (?=\S)", section[1], flags=re.MULTILINE)
    heads = (re.match(r"[\w\s,*]+?(?=:)", entry) for entry in entries)
    return {name.strip(" *\n") for head in heads if head for name in head[0].split(",")}


def _commented_fields(value: type) -> set[str]:
    """Fields whose line ends in a comment ``#:``, or that one stands above."""
    source = inspect.getsource(value)
    beside = re.findall(r"^    (\w+): .*#: ", source, re.MULTILINE)
    below = re.findall(r"^    #: .*\n(?:    #.*\n)*    (\w+): ", source, re.MULTILINE)
    return {*beside, *below}


@pytest.mark.parametrize("name", CODE)
def test_every_public_name_has_a_docstring(name: str) -> None:
    docstring = _docstring(name, CODE[name])
    assert docstring
    assert not docstring.startswith(f"{name.rpartition('.')[2]}("), "what dataclass makes up is no docstring"


@pytest.mark.parametrize("name", CODE)
def test_every_parameter_is_named_in_its_docstring(name: str) -> None:
    value = CODE[name]
    if _function(value).__doc__ is None:
        return  # explained where the method is declared, which is public as well or another library's
    docstring, parameters = _docstring(name, value), _parameters(value)
    known = _listed(docstring) | (_commented_fields(value) if inspect.isclass(value) else set())
    if known:
        known |= set(re.findall(r"``(\w+)", docstring))
        assert [name for name in parameters if name not in known] == []
    else:
        assert len(parameters) <= MANY, f"a section Args for {', '.join(parameters)}"


def _with_its_class(name: str) -> str:
    """The docstring and that of the class, which speaks for all methods, with the comments of its fields."""
    owner = CODE.get(name.rpartition(".")[0], CODE[name])
    fields = inspect.getsource(owner) if inspect.isclass(owner) else ""
    comments = " ".join(re.findall(r"#: .*", fields))
    return f"{_docstring(name, CODE[name])} {inspect.getdoc(owner)} {comments}"


@pytest.mark.parametrize("name", CODE)
def test_every_array_has_a_shape(name: str) -> None:
    value = CODE[name]
    if _function(value).__doc__ is None:
        return
    signature = inspect.signature(_function(value))
    kinds = [parameter.annotation for parameter in signature.parameters.values()]
    if any(re.search(r"\b(Tensor|ndarray)\b", str(kind)) for kind in (*kinds, signature.return_annotation)):
        assert re.search(r"\(\w+,( [^()]+)?\)|any shape", _with_its_class(name)), "such as (n, d)"


def _written_code(value: Any) -> str:
    """The source of a function, or of what makes a class's objects, where dataclass did not write it."""
    makers = ("__init__", "__post_init__") if inspect.isclass(value) else ()
    codes = [vars(value).get(name) for name in makers] if makers else [_function(value)]
    ours = [code for code in codes if code and code.__code__.co_filename != "<string>"]
    return "".join(map(inspect.getsource, ours))


@pytest.mark.parametrize("name", CODE)
def test_every_error_is_told(name: str) -> None:
    """Of what raises one itself, or checks a value by the helpers that do."""
    value = CODE[name]
    if _function(value).__doc__ is None:
        return
    checks = r"^ +raise [A-Z]|\b(check_int|one_of|check_\w+|require_\w+|refuse_\w+)\("
    if re.search(checks, _written_code(value), re.MULTILINE):
        assert re.search(r"Raises:|\w+Error``", _with_its_class(name)), "a section Raises"


def test_bad_input_is_among_what_is_raised() -> None:
    """Functions that refuse input say so: a sample of those whose errors users meet first."""
    for name in (
        "data.read_table",
        "models.load_model",
        "evaluation.evaluate_ranking",
        "retrieval.Gallery.open",
    ):
        assert "Raises:\n    InputError: " in _docstring(name, CODE[name])
    assert issubclass(InputError, ValueError)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-b", "html"]
    words += ["-d", str(out / "doctrees"), ".", str(out / "html")]
    done = subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_has_every_public_name(site: Path) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    missing = []
    for name, value in public():
        if name in CODE:  # but for methods that are explained where they are declared
            found = f"rga_reid.{name}" in described or _function(value).__doc__ is None
        else:  # a value, whose comment stands in the module that it comes from
            room, last = name.split(".")[0], name.rpartition(".")[2]
            home = re.compile(rf"rga_reid\.{room}\.(\w+\.)?{last}")
            found = any(map(home.fullmatch, described))
        missing += [] if found else [name]
    assert missing == []


def guides() -> list[str]:
    """Every document, by its path from the top without the suffix."""
    pages = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "datasets" / "README.md"]
    return sorted(str(page.relative_to(CHECKOUT))[: -len(".md")] for page in pages)


def test_every_guide_has_its_place_in_the_contents_of_the_site() -> None:
    contents = (CHECKOUT / "docs" / "index.rst").read_text(encoding="utf-8")
    entries = set(re.findall(r"^   (/?[\w/.-]+)$", contents, re.MULTILINE))
    missing = [name for name in guides() if not {f"/{name}", name.removeprefix("docs/")} & entries]
    assert not missing, "add them to docs/index.rst"


@pytest.mark.slow
def test_every_guide_is_on_the_site(site: Path) -> None:
    assert [name for name in guides() if not (site / f"{name}.html").is_file()] == []
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_equations_keep_their_columns(site: Path) -> None:
    page = (site / "docs" / "api" / "attention.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert "G[i, j] = θ(xᵢ)ᵀ φ(xⱼ)                  relation from i to j" in text
