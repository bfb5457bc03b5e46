"""The dispatcher: help, exit codes, one-line errors, and what is imported."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from rga_reid import __version__
from rga_reid.commands import COMMANDS, main
from tests.conftest import CHECKOUT

#: slow to import, and needed by neither --help nor query
HEAVY = (
    *("pytorch_lightning", "lightning", "torchvision", "timm", "torch._dynamo", "sympy", "triton"),
    *("matplotlib", "sklearn", "onnx", "onnxruntime", "h5py", "tensorboard"),
)
QUERY = """
from rga_reid.commands import main
main(["query", "--gallery", "none", "--image", "cli.py"])  # imports all before it opens the gallery
import rga_reid.reports.ranked_page
"""


def modules_after(program: str) -> set[str]:
    words = [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rga-reid {__version__}\n"


def test_help_imports_no_library() -> None:
    modules = modules_after("from rga_reid.commands import main; main(['-h'])")
    assert not modules & {"torch", "numpy", "pandas", "jsonargparse", "yaml", *HEAVY}


def test_query_imports_no_heavy_library() -> None:
    modules = modules_after(QUERY)
    assert {"torch", "faiss", "rga_reid.models", "rga_reid.gallery"} <= modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"rga-reid {name}" in text
    assert not re.search(r", ,|\(, |, \)", text)
    assert " at 0x" not in text  # the address of an object without a name
    assert "default: null" not in text


def test_names_that_are_not_utf_8(refused: Callable[..., str]) -> None:
    name = os.fsdecode(b"\xff.jpg")
    assert "'\\udcff.jpg': not valid UTF-8" in refused("verify", name, name, "--checkpoint", "m.ckpt")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("qurey", "did you mean query?"),
        ("test --checkpont x", "did you mean --checkpoint?"),
        ("query --gallry x", "did you mean --gallery?"),
        ("gallery build --gallry x", "did you mean --gallery?"),
        ("evaluate --query q.npz --gallery g.npz --max-rank x", "--max-rank: expected int, got"),
        ("gallery info", "--gallery is required"),
        ("new attention", "FILE.py is required"),
        ("convert", "IN, OUT.safetensors are required"),
        ("verify a.jpg", "B, --checkpoint are required"),
        ("test", "--checkpoint, --data.root are required"),
        ("gallery", "action"),
    ],
)
def test_wrong_options_are_named(words: str, hint: str, refused: Callable[..., str]) -> None:
    assert hint in refused(*words.split())


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module("rga_reid.commands.evaluate")

    def interrupt(_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupt)
    assert main(["evaluate", "--query", "q.npz", "--gallery", "g.npz"]) == 130
    assert capsys.readouterr().err == "rga-reid: interrupted\n"


def test_cli_py_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "cli.py", "tset"], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("rga-reid: error: unknown command 'tset'; did you mean test?")


def test_choices_in_help_are_those_of_the_library() -> None:
    """They are written twice because the library's own would import torch and FAISS for --help."""
    from rga_reid.commands import evaluate, export, gallery
    from rga_reid.evaluation import PROTOCOLS, RandomGalleries
    from rga_reid.gallery.index import SETTINGS
    from rga_reid.models.export import FORMATS

    assert tuple(PROTOCOLS) == evaluate.PROTOCOLS
    drawn = {name for name, protocol in PROTOCOLS.items() if isinstance(protocol, RandomGalleries)}
    assert drawn == set(evaluate.DRAWN)
    assert set(gallery.SETTINGS) == {name for names in SETTINGS.values() for name in names}
    (choices,) = [action.choices for action in export.parser()._actions if action.dest == "format"]
    assert choices == list(FORMATS)
