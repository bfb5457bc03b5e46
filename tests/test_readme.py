"""Every block of README.md runs, and every command in a document is one that exists."""

from __future__ import annotations

import base64
import importlib
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from rga_reid import load_model
from rga_reid.commands import COMMANDS
from rga_reid.commands._options import parse
from rga_reid.gallery import Gallery

CHECKOUT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(CHECKOUT))
    for path in (*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "datasets" / "README.md")
)
NOT_RUN = {  # how a block begins -> why it is not run
    "make demo": "makes an environment of its own, of several GB; what the verbs run is looked up instead, "
    "and the demo itself runs in tests/experiments/test_demo.py",
    "@inproceedings": "no program",
}


def reason(block: Any) -> str | None:
    return next((why for start, why in NOT_RUN.items() if block.text.startswith(start)), None)


ERASED = 129
ASKED = "0129_c1s1_009450_00.jpg"
EXPLAINED = "0130_c1s1_009540_00.jpg"


def found_for_the_erased(folder: Path) -> set[int]:
    """Persons whom the gallery of the demo gives for a picture of the one to be erased, however far down."""
    gallery = Gallery.open(folder / "demo" / "gallery")
    model = load_model(folder / "demo" / "model" / "last.ckpt")
    features = model.embed([folder / "demo" / "data" / "query" / ASKED])
    return set(gallery.search(features, len(gallery)).pid)


def check_what_is_left_after_the_demo(folder: Path, printed: str) -> None:
    """What a reader of the block after ``make demo`` looks at."""
    answer = printed[printed.index(f"query/{ASKED}") :]
    matches = re.findall(r"bounding_box_test/(-1|\d{4})_c", answer)
    assert len(matches) == 10
    assert f"{ERASED:04d}" not in matches
    assert re.search(r"^score -?\d\.\d+$", answer, re.MULTILINE)  # of verify

    session = onnxruntime.InferenceSession(folder / "runs" / "demo.onnx", providers=["CPUExecutionProvider"])
    model = load_model(folder / "demo" / "model" / "last.ckpt")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *model.size), dtype=np.uint8)
    (embeddings,) = session.run(None, {"images": images})
    np.testing.assert_allclose(embeddings, model.embed(torch.from_numpy(images)), atol=1e-4)

    page = (folder / "runs" / "demo.html").read_text(encoding="utf-8")
    (photo,) = re.findall(rf'"name": "{EXPLAINED}".*?"uri": "data:image/jpeg;base64,([^"]+)"', page)
    shown = Image.open(io.BytesIO(base64.b64decode(photo))).convert("RGB")
    drawn = Image.open(folder / "demo" / "data" / "query" / EXPLAINED).convert("RGB").resize(shown.size)
    assert np.abs(np.asarray(shown, float) - np.asarray(drawn, float)).mean() < 8  # of 255: JPEG, and resized

    assert "report: runs/ablation/report.html" in answer
    assert (folder / "runs" / "ablation" / "report.html").is_file()


@pytest.mark.slow
def test_every_block_runs(
    tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    """One after the other in one folder, as somebody does who reads on."""
    for number, name in enumerate(("a.jpg", "b.jpg")):
        noise = np.random.default_rng(number).integers(0, 256, (80, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    run = [block for block in code_blocks("README.md") if reason(block) is None]
    assert [block.language for block in run] == ["bash", "bash", "python"]
    after_demo, *others = run
    demo = after_demo._replace(text="rga-reid demo --out demo --epochs 1")  # in place of make demo
    documented(demo, tmp_path)
    assert ERASED in found_for_the_erased(tmp_path)
    printed = documented(after_demo, tmp_path)
    assert ERASED not in found_for_the_erased(tmp_path)
    check_what_is_left_after_the_demo(tmp_path, printed)
    for block in others:
        documented(block, tmp_path)
    assert "0001_c1s1_001051_00.jpg" in (tmp_path / "runs" / "query.html").read_text(encoding="utf-8")
    assert '"rank-1"' in (tmp_path / "runs" / "cpu" / "test.json").read_text()
    values = run[-1]._replace(text=run[-1].text + "\nprint(features.shape, same)\n")
    shape, same = documented(values, tmp_path).rsplit(" ", 1)
    a, b = load_model(tmp_path / "runs" / "cpu" / "last.ckpt").embed([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert shape == "torch.Size([2, 512])"
    torch.testing.assert_close(float(same), float(a @ b), atol=1e-5, rtol=0)


def test_what_is_not_run_has_a_reason_that_is_needed(code_blocks: Callable[..., list[Any]]) -> None:
    blocks = code_blocks("README.md")
    assert {block.language for block in blocks if reason(block) is None} == {"bash", "python"}
    for start in NOT_RUN:
        assert any(block.text.startswith(start) for block in blocks)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_verbs_of_make_run_what_they_say(document: str, code_blocks: Callable[..., list[Any]]) -> None:
    lines = [line for block in code_blocks(document) for line in block.text.splitlines()]
    verbs = [line.split()[1] for line in lines if line.startswith("make ")]
    runs = {
        "install": "pip install",
        "demo": "cli.py demo --out demo",
        "test": "python -m pytest",
        "test-slow": "pytest -m slow",
        "coverage": "--cov",
        "lint": "mypy",
        "docs": "sphinx -W",
        "package": "-m build",
        "bench": "benchmarks/",
    }
    assert verbs
    for verb in verbs:
        done = subprocess.run(
            ["make", "-n", "VENV=build/none", verb], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
        assert runs[verb] in done.stdout


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
Image.fromarray(rng.integers(0, 256, (80, 40, 3), dtype=np.uint8)).save("person.jpg")
"""
ELSEWHERE = {
    "README.md": "test_every_block_runs",
    "README.zh-CN.md": "test_every_block_runs, its blocks being those of README.md",
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "docs/export.md": "tests/commands/test_export.py",
    "docs/milvus.md": "needs a cluster; the calls are those of tests/retrieval/test_milvus.py",
}


def programs(code_blocks: Callable[..., list[Any]], document: str) -> list[Any]:
    return [block for block in code_blocks(document) if block.language == "python"]


@pytest.mark.parametrize(
    "document",
    [
        "docs/evaluation.md",
        "docs/galleries.md",
        "docs/testing.md",
        pytest.param("docs/explain.md", marks=pytest.mark.slow),
    ],
)
def test_programs_of_guides_run(
    document: str, tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    blocks = programs(code_blocks, document)
    text = "\n".join([PREPARED, *(block.text for block in blocks)])
    documented(blocks[0]._replace(text=text), tmp_path)


def test_every_program_of_a_document_runs_somewhere(code_blocks: Callable[..., list[Any]]) -> None:
    with_programs = {document for document in DOCUMENTS if programs(code_blocks, document)}
    guides = {"docs/evaluation.md", "docs/galleries.md", "docs/testing.md", "docs/explain.md"}
    assert with_programs == guides | set(ELSEWHERE)


def commands_in(document: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of blocks, fenced or indented, that call ``rga-reid``: line number and words."""
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", lambda gap: " " * len(gap[0]), text)  # as long as before
    for found in re.finditer(r"^(?:    )?(?:\S+ +)*?(rga-reid|python cli\.py) (\S.*)$", joined, re.MULTILINE):
        if "`" in found[0]:
            continue  # words in a sentence
        line = re.sub(r"\$\(\(.*?\)\)", "0", found[2])  # what a shell computes
        line = re.sub(r"\$\{.*?\}", "X", line)
        yield text[: found.start()].count("\n") + 1, shlex.split(line, comments=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_can_be_parsed(document: str) -> None:
    """Nothing is run: files need not exist, but commands and options must."""
    for line, (name, *words) in commands_in(document):
        assert name in COMMANDS, f"{document}, line {line}: {name}"
        command = importlib.import_module(f"rga_reid.commands.{name}")
        prepared = getattr(command, "prepare", list)(_with_recipe(words))
        assert parse(command.parser(), prepared) is not None, f"{document}, line {line}"


def _with_recipe(words: list[str]) -> list[str]:
    """A recipe that only the example of CONTRIBUTING.md makes stands for itself."""
    return [word.replace("market1501/eca", "market1501/se") for word in words]


def test_commands_are_found_in_documents() -> None:
    found = {document: len(list(commands_in(document))) for document in DOCUMENTS}
    assert sum(found.values()) > 30
    assert found["README.md"] == 13
