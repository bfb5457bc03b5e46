"""The dispatcher: exit codes, one-line errors, help."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rga_reid import __version__
from rga_reid.commands import COMMANDS, main

CHECKOUT = Path(__file__).parent.parent.parent


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_no_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rga-reid {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"rga-reid {name}" in told
    assert not re.search(r", ,|\(, |, \)", told)
    assert " at 0x" not in told  # the address of something that has no name
    assert "default: null" not in told


def test_names_that_are_not_utf_8(refused: Callable[..., str]) -> None:
    name = os.fsdecode(b"\xff.jpg")
    assert "'\\udcff.jpg': not valid UTF-8" in refused("verify", name, name, "--checkpoint", "m.ckpt")


def test_unknown_command_suggests_the_nearest(refused: Callable[..., str]) -> None:
    assert "did you mean query?" in refused("qurey")


@pytest.mark.parametrize("name", ["test", "features", "evaluate", "calibrate", "query"])
def test_mistyped_option_suggests_the_nearest(name: str, refused: Callable[..., str]) -> None:
    option = "--gallry" if name in ("evaluate", "calibrate", "query") else "--checkpont"
    assert "did you mean --" in refused(name, option, "x")


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module("rga_reid.commands.evaluate")

    def interrupted(_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert main(["evaluate", "--query", "q.npz", "--gallery", "g.npz"]) == 130
    assert capsys.readouterr().err == "rga-reid: interrupted\n"


def test_cli_py_is_the_same_program() -> None:
    words = [sys.executable, "cli.py", "tset"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("rga-reid: error: unknown command 'tset'; did you mean test?")


def test_choices_that_help_knows_are_those_of_the_library() -> None:
    """They stand twice, since what the library has would bring torch and FAISS along with --help."""
    from rga_reid.commands import evaluate, export, gallery
    from rga_reid.evaluation import PROTOCOLS
    from rga_reid.gallery.index import SETTINGS
    from rga_reid.models.export import FORMATS

    assert tuple(PROTOCOLS) == evaluate.PROTOCOLS
    assert set(gallery.SETTINGS) == {name for names in SETTINGS.values() for name in names}
    (choices,) = [action.choices for action in export.parser()._actions if action.dest == "format"]
    assert choices == list(FORMATS)
