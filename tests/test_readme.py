"""The code blocks of README.md and the guides run, and every command in a document parses."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rga_reid import load_model
from rga_reid.commands import COMMANDS, main
from rga_reid.commands._options import parse
from rga_reid.gallery import Gallery

CHECKOUT = Path(__file__).parent.parent
PAGES = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "datasets" / "README.md"]
DOCUMENTS = sorted(str(path.relative_to(CHECKOUT)) for path in PAGES)

ERASED = 129
ERASED_QUERY = "0129_c1s1_009450_00.jpg"
EXPLAINED = "0130_c1s1_009540_00.jpg"


def find_matches_of_erased(folder: Path) -> set[int]:
    """Return all identities that the demo gallery finds for a picture of the person to be erased."""
    gallery = Gallery.open(folder / "demo" / "gallery")
    model = load_model(folder / "demo" / "model" / "last.ckpt")
    features = model.embed([folder / "demo" / "data" / "query" / ERASED_QUERY])
    return set(gallery.search(features, len(gallery)).pid)


def check_results_of_demo_commands(folder: Path, printed: str) -> None:
    """Check the output and the files of the README's second block."""
    answer = printed[printed.index(f"query/{ERASED_QUERY}") :]
    matches = re.findall(r"bounding_box_test/(-1|\d{4})_c", answer)
    assert len(matches) == 10
    assert f"{ERASED:04d}" not in matches
    assert re.search(r"^score -?\d\.\d+$", answer, re.MULTILINE)  # printed by verify

    assert (folder / "runs" / "demo.onnx").is_file()
    assert EXPLAINED in (folder / "runs" / "demo.html").read_text(encoding="utf-8")
    assert "report: runs/ablation/report.html" in answer
    assert (folder / "runs" / "ablation" / "report.html").is_file()


@pytest.mark.slow
def test_readme_blocks_run(
    tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    """Run the blocks one after the other in one folder, as a reader does."""
    for number, name in enumerate(("a.jpg", "b.jpg")):
        noise = np.random.default_rng(number).integers(0, 256, (80, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    make_demo, after_demo, *others, citation = code_blocks("README.md")
    assert make_demo.text.startswith("make demo")  # would create an environment of several GB
    assert citation.language == "bibtex"
    documented(make_demo._replace(text="rga-reid demo --out demo --epochs 1"), tmp_path)
    assert ERASED in find_matches_of_erased(tmp_path)
    printed = documented(after_demo, tmp_path)
    assert ERASED not in find_matches_of_erased(tmp_path)
    check_results_of_demo_commands(tmp_path, printed)
    for block in others:
        documented(block, tmp_path)
    assert "0001_c1s1_001051_00.jpg" in (tmp_path / "runs" / "query.html").read_text(encoding="utf-8")
    assert '"rank-1"' in (tmp_path / "runs" / "cpu" / "test.json").read_text()
    python = others[-1]._replace(text=others[-1].text + "\nprint(features.shape, same)\n")
    shape, same = documented(python, tmp_path).rsplit(" ", 1)
    a, b = load_model(tmp_path / "runs" / "cpu" / "last.ckpt").embed([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert shape == "torch.Size([2, 512])"
    torch.testing.assert_close(float(same), float(a @ b), atol=1e-5, rtol=0)


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
    names, camids = [f"{number}.jpg" for number in range(count)], np.arange(count) % 3
    table = pd.DataFrame({"path": names, "pid": pids, "camid": camids})
    return rng.standard_normal((20, 8))[pids] + 0.3 * rng.standard_normal((count, 8)), table
features, table = people(60)
more_features, more_table = people(30)
queries, _ = people(5)
q, g, q_pids, g_pids = queries, features, np.arange(5), table.pid
q_camids, g_camids = np.full(5, 7), table.camid
rows = np.arange(10)
for name in ("person.jpg", "a.jpg", "b.jpg"):
    Image.fromarray(rng.integers(0, 256, (80, 40, 3), dtype=np.uint8)).save(name)
def make_checkpoint():
    from rga_reid.models import build_model, save_model
    save_model(build_model(depth=18, attention="rga", stages=(4,), size=(64, 32)), "last.safetensors")
"""
GUIDES = ["docs/evaluation.md", "docs/galleries.md", "docs/testing.md", "docs/explain.md"]
#: Documents whose blocks run in other tests; docs/milvus.md and docs/serving.md need a server.
ELSEWHERE = {
    "docs/serving.md",
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "docs/export.md",
    "docs/milvus.md",
    "docs/trackers.md",
}


def find_programs(code_blocks: Callable[..., list[Any]], document: str) -> list[Any]:
    return [block for block in code_blocks(document) if block.language == "python"]


@pytest.mark.slow
@pytest.mark.parametrize("document", GUIDES)
def test_programs_of_guides_run(
    document: str, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    blocks = find_programs(code_blocks, document)
    prepared = f"{PREPARED}make_checkpoint()\n" if "last.safetensors" in str(blocks) else PREPARED
    text = "\n".join([prepared, *(block.text for block in blocks)])
    documented(blocks[0]._replace(text=text), tmp_path)


EXTENDING = "docs/extending.md"
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
        if "ablate --config my_attention.yaml" in block.text:
            plan = yaml.safe_load((tmp_path / "my_attention.yaml").read_text(encoding="utf-8"))
            (tmp_path / "my_attention.yaml").write_text(yaml.safe_dump({**plan, **SHORT_PLAN}))
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
    assert sum(found.values()) > 30
    assert found["README.md"] >= 13
