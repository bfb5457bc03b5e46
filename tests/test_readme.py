"""The code blocks of README.md, tutorials and guides run, and every command in a document parses."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from rga_reid import load_model
from rga_reid.commands import COMMANDS, main
from rga_reid.commands._options import parse
from rga_reid.gallery import Gallery
from tests.conftest import Block

CHECKOUT = Path(__file__).parent.parent
PAGES = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "datasets" / "README.md"]
DOCUMENTS = sorted(str(path.relative_to(CHECKOUT)) for path in PAGES)

ERASED = 129
ERASED_QUERY = "0129_c1s1_009450_00.jpg"
EXPLAINED = "0157_c1s1_011610_00.jpg"


def find_matches_of_erased(folder: Path) -> set[int]:
    """Return all identities that the demo gallery finds for a picture of the person to be erased."""
    gallery = Gallery.open(folder / "demo" / "gallery")
    model = load_model(folder / "demo" / "model" / "last.ckpt")
    features = model.embed([folder / "demo" / "data" / "query" / ERASED_QUERY])
    return set(gallery.search(features, len(gallery)).pid)


#: Settings with which the plan of ``rga-reid new`` takes seconds.
SHORT_PLAN = {
    "synthetic": {"train_identities": 4, "test_identities": 2, "distractors": 0, "junk": 0, "size": [64, 32]},
    "overrides": {
        "model.size": [64, 32],
        "model.resolution_schedule": [],
        "data.identities_per_batch": 2,
        "trainer.max_epochs": 1,
    },
}


def shorten_plans(folder: Path) -> None:
    """Shorten the plan that ``rga-reid new`` has written, if there is one."""
    for path in folder.glob("my_attention.yaml"):
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump({**plan, **SHORT_PLAN}))


#: Beginnings of blocks that are not run: they would create an environment of several GB, or serve until they are
#: stopped. tests/serving runs the server.
NOT_RUN = ("make ", "pip ", "rga-reid serve ", "curl ")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, documented: Callable[..., str]) -> Path:
    """A folder with the results of a short ``make demo``; tests copy it."""
    folder = tmp_path_factory.mktemp("demo")
    documented(Block("bash", "rga-reid demo --out demo --epochs 1", 0, ""), folder)
    assert ERASED in find_matches_of_erased(folder)
    return folder


def run_blocks(blocks: list[Any], folder: Path, documented: Callable[..., str]) -> str:
    """Run the blocks one after the other in one folder, as a reader does; return what they print."""
    printed = []
    for block in blocks:
        if block.language in ("bash", "python") and not block.text.startswith(NOT_RUN):
            shorten_plans(folder)
            printed.append(documented(block, folder))
    return "\n".join(printed)


@pytest.mark.slow
def test_readme_blocks_run(
    demo: Path, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    blocks = code_blocks("README.md")
    assert blocks[-1].language == "bibtex"
    printed = run_blocks(blocks, tmp_path, documented)
    assert len(re.findall(r"^\d +0\.\d+ .* 2026-01-05", printed, re.MULTILINE)) == 5  # from the Python block
    assert (tmp_path / "runs" / "ablation" / "report.html").is_file()
    assert '"rank-1"' in (tmp_path / "runs" / "pam" / "test.json").read_text()
    assert EXPLAINED in (tmp_path / "runs" / "query.html").read_text(encoding="utf-8")
    assert EXPLAINED in (tmp_path / "demo" / "explorer.html").read_text(encoding="utf-8")
    assert ERASED not in set(Gallery.open(tmp_path / "runs" / "gallery").table["pid"])


@pytest.mark.slow
def test_tutorial_on_training_runs(
    demo: Path, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    printed = run_blocks(code_blocks("docs/tutorials/train_and_compare.md"), tmp_path, documented)
    for folder in ("report", "ablation", "my_attention"):
        assert f"report: runs/{folder}/report.html" in printed
    assert (tmp_path / "demo" / "test.html").is_file()
    assert '"rank-1"' in (tmp_path / "runs" / "market" / "test.json").read_text()
    shape, similarity = re.findall(r"^torch.Size\((.*?)\) (\S+)$", printed, re.MULTILINE)[-1]
    assert shape == "[2, 512]"
    images = [tmp_path / "demo" / "data" / "query" / name for name in (EXPLAINED, "0157_c3s1_012060_00.jpg")]
    a, b = load_model(tmp_path / "runs" / "plain" / "last.ckpt").embed(images)
    torch.testing.assert_close(float(similarity), float(a @ b), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_tutorial_on_searching_runs(
    demo: Path, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    printed = run_blocks(code_blocks("docs/tutorials/search_your_cameras.md"), tmp_path, documented)
    assert "all 4 images match the pattern" in printed
    assert Gallery.open(tmp_path / "runs" / "crops_gallery").table["pid"].dropna().tolist() == [
        "Anna",
        "Anna",
    ]
    assert "removed 6 images" in printed
    assert ERASED not in find_matches_of_erased(tmp_path)
    assert EXPLAINED in (tmp_path / "demo" / "query.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_tutorial_on_attention_runs(
    demo: Path, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    blocks = code_blocks("docs/tutorials/understand_attention.md")
    printed = run_blocks(blocks, tmp_path, documented)
    assert "demo/explorer.html: 2 views of 1 picture" in printed
    for name in (
        "demo/explorer.html",
        "demo/modules.html",
        "demo/gates.png",
        "demo/gradcam.png",
        "demo/rga.png",
        "demo/mechanisms.html",
    ):
        assert (tmp_path / name).is_file()
    rows = re.search(r"rows of PAM sum to (\S+), rows of RGA to (\S+)", printed)
    assert rows
    assert float(rows[1]) == pytest.approx(1)
    assert float(rows[2]) > 2


MAKE = {
    "install": "pip install",
    "demo": "cli.py demo --out demo",
    "test": "python -m pytest -n 2",
    "test-slow": "pytest -m slow",
    "test-fuzz": "pytest -m fuzz",
    "coverage": "--cov",
    "lint": "mypy",
    "docs": "sphinx -W",
    "package": "-m build",
    "bench": "benchmarks/",
}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_run_what_they_say(document: str, code_blocks: Callable[..., list[Any]]) -> None:
    lines = [line for block in code_blocks(document) for line in block.text.splitlines()]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets
    for target in targets:
        words = ["make", "-n", "VENV=build/none", target]
        done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        assert MAKE[target] in done.stdout


#: Definitions that the blocks of the guides use.
PREPARED = """
import numpy as np
import pandas as pd
from PIL import Image
rng = np.random.default_rng(0)
def people(count):
    pids = np.arange(count) % 20
    table = pd.DataFrame({"path": [f"{number}.jpg" for number in range(count)], "pid": pids})
    table["camid"], table["track"] = np.arange(count) % 3, np.arange(count) // 3
    table["time"] = pd.Timestamp.now("UTC") - pd.to_timedelta(np.arange(count), "min")
    return rng.standard_normal((20, 8))[pids] + 0.3 * rng.standard_normal((count, 8)), table
features, table = people(60)
more_features, more_table = people(30)
queries, _ = people(20)
q, g, q_pids, g_pids = queries, features, np.arange(20), table.pid
q_camids, g_camids, g_paths = np.full(20, 7), table.camid, table.path
q_clothes, g_clothes = np.zeros(20, int), np.arange(60) // 20
pids, cameras, tracks, times = table.pid, table.camid, table.track, table.time
rows = np.arange(10)
for name in ("person.jpg", "a.jpg", "b.jpg"):
    Image.fromarray(rng.integers(0, 256, (80, 40, 3), dtype=np.uint8)).save(name)
def make_checkpoint():
    import torch
    from rga_reid.models import build_model
    from rga_reid.models.weights import CONFIG_KEY
    model = build_model(depth=18, attention="rga", stages=(4,), size=(64, 32))
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, CONFIG_KEY: model.config}, "last.ckpt")
def make_onnx():
    from rga_reid.models import build_model
    from rga_reid.models.export import export_model
    export_model(build_model(backbone="osnet_x0_25", attention=None, size=(256, 128)), "osnet_x1_0.onnx", "onnx")
"""
GUIDES = ["docs/own_data.md", "docs/evaluation.md", "docs/galleries.md", "docs/testing.md", "docs/explain.md"]
#: Documents whose blocks run in other tests; docs/milvus.md and docs/serving.md need a server.
ELSEWHERE = {
    "docs/serving.md",
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "docs/export.md",
    "docs/milvus.md",
    "docs/trackers.md",
    *(f"docs/tutorials/{path.name}" for path in (CHECKOUT / "docs" / "tutorials").iterdir()),
}


def find_programs(code_blocks: Callable[..., list[Any]], document: str) -> list[Any]:
    return [block for block in code_blocks(document) if block.language == "python"]


@pytest.mark.slow
@pytest.mark.parametrize("document", GUIDES)
def test_programs_of_guides_run(
    document: str, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    blocks = find_programs(code_blocks, document)
    prepared = PREPARED
    for file, call in (("last.ckpt", "make_checkpoint()\n"), ("osnet_x1_0.onnx", "make_onnx()\n")):
        prepared += call if file in str(blocks) else ""
    text = "\n".join([prepared, *(block.text for block in blocks)])
    documented(blocks[0]._replace(text=text), tmp_path)


@pytest.mark.slow
def test_retention_deletes_the_files_and_rows_of_old_images(
    tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    days = {"old": 31, "recent": 29, "undated": None}  # all files were written now
    files = [tmp_path / "crops" / name for name in days]
    (tmp_path / "crops").mkdir()
    for file in files:
        file.touch()
    now = pd.Timestamp.now("UTC")
    times = [pd.NaT if age is None else now - pd.Timedelta(days=age) for age in days.values()]
    table = pd.DataFrame({"path": map(str, files), "time": pd.DatetimeIndex(times)})
    Gallery.build(np.eye(3), table).save(tmp_path / "G")
    (block,) = (one for one in code_blocks("docs/galleries.md") if one.text.startswith("OLD="))
    documented(block, tmp_path)
    assert Gallery.open(tmp_path / "G").table["path"].tolist() == [str(tmp_path / "crops" / "recent")]
    assert [file.exists() for file in files] == [False, True, False]


EXTENDING = "docs/extending.md"


def name_file(block: Any) -> str | None:
    """Return the name of the file that a block shows: the line above is that name, such as `my_attn.py`:"""
    above = re.fullmatch(r"`(\w+\.\w+)`:", block.above)
    return above[1] if above else None


@pytest.mark.slow
def test_blocks_of_extending_run(
    tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    """Write the files and run the commands and programs in the order of the page, in one folder."""
    for block in code_blocks(EXTENDING):
        if name := name_file(block):
            (tmp_path / name).write_text(block.text, encoding="utf-8")
            continue
        shorten_plans(tmp_path)
        documented(block, tmp_path)


def test_every_program_runs_in_a_test(code_blocks: Callable[..., list[Any]]) -> None:
    with_programs = {document for document in DOCUMENTS if find_programs(code_blocks, document)}
    assert with_programs == {*GUIDES, *ELSEWHERE, EXTENDING}


def test_imports_in_programs_exist(code_blocks: Callable[..., list[Any]]) -> None:
    for document in DOCUMENTS:
        for block in find_programs(code_blocks, document):
            for node in ast.walk(ast.parse(block.text)):
                ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rga_reid")
                if ours and not node.module.endswith(".eca"):  # the example of CONTRIBUTING.md
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), document


def iter_commands(document: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over the commands in code blocks, fenced or indented: line number and words."""
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", lambda gap: " " * len(gap[0]), text)  # keeps all offsets
    for found in re.finditer(r"^(?:    )?(?:\S+ +)*?(rga-reid|python cli\.py) (\S.*)$", joined, re.MULTILINE):
        if "`" in found[0]:
            continue  # part of a sentence
        line = re.sub(r"\$\(\(.*?\)\)", "0", found[2])  # shell arithmetic
        line = re.sub(r"\$\{.*?\}", "X", line)
        yield text[: found.start()].count("\n") + 1, shlex.split(line, comments=True)


@pytest.fixture
def imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; modules that are imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_documents_parse(
    document: str, code_blocks: Callable[..., list[Any]], imported_from: Path
) -> None:
    """Nothing is run: files need not exist, but commands, options, recipes and modules to import must."""
    for block in code_blocks(document):
        if name := name_file(block):
            (imported_from / name).write_text(block.text, encoding="utf-8")
    for line, (name, *words) in iter_commands(document):
        if name == "new":
            assert main([name, *words]) == 0
        assert name in COMMANDS, f"{document}, line {line}: {name}"
        command = importlib.import_module(f"rga_reid.commands.{name}")
        words = getattr(command, "prepare", list)(words)
        assert parse(command.parser(), words) is not None, f"{document}, line {line}"


def test_documents_contain_commands() -> None:
    found = {document: len(list(iter_commands(document))) for document in DOCUMENTS}
    assert sum(found.values()) > 150
    assert min(found[page] for page in found if page.startswith("docs/tutorials/")) >= 5
    assert found["README.md"] >= 8
