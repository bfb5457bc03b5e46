"""Commands that are stopped, or whose disk is full, leave their outputs unchanged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from rga_reid import Gallery
from rga_reid.commands import main
from rga_reid.inference.feature_files import read_features
from rga_reid.models import load_model
from tests.conftest import CHECKOUT, limit_file_size

RECIPE = {
    "model": {"depth": 18, "attention": "se", "weights": None, "size": [64, 32]},
    "data": {"identities_per_batch": 2, "images_per_identity": 2},
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False, "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def inputs(tiny_market: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs of all commands."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    pids = np.arange(300) % 50
    rows = (generator.normal(size=(300, 16)) + 3 * generator.normal(size=(50, 16))[pids]).astype(np.float32)
    paths = np.array([f"{row}.jpg" for row in range(300)])
    np.savez(folder / "g.npz", features=rows, pids=pids, camids=pids % 3, paths=paths)
    np.savez(folder / "q.npz", features=rows[:50], pids=pids[:50], camids=pids[:50] % 3 + 1)
    (folder / "market").symlink_to(tiny_market)
    (folder / "images").symlink_to(tiny_market / "query")
    (folder / "a.jpg").symlink_to(min((tiny_market / "query").iterdir()))
    (folder / "model.safetensors").symlink_to(tiny_checkpoint)
    words = ["--images", str(folder / "images"), "--checkpoint", str(folder / "model.safetensors")]
    assert main(["gallery", "build", "--gallery", str(folder / "gallery"), *words]) == 0
    lines = [f"market/{image.parent.name}/{image.name},1,1,query" for image in folder.glob("images/*.jpg")]
    (folder / "set.csv").write_text("\n".join(["path,pid,camid,split", *lines]))
    torch.save(torchvision.models.resnet18().state_dict(), folder / "published.pth")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
    (folder / "metrics.json").write_text('{"mAP": 0.5}')
    return folder


READERS: dict[str, Callable[[Path], object]] = {
    ".html": lambda file: file.read_text(encoding="utf-8").rstrip().endswith("</html>"),
    ".json": lambda file: json.loads(file.read_text()),
    ".csv": lambda file: len(file.read_text().splitlines()) > 10,
    ".npz": read_features,
    ".pt": torch.jit.load,
    ".safetensors": load_model,
    "": lambda folder: Gallery.open(folder).check(),
}
MODEL = "--checkpoint model.safetensors"
#: arguments, with names of inputs; outputs are in OUT
COMMANDS = {
    "data": "data check set.csv --json OUT/d.json",
    "evaluate": "evaluate --query q.npz --gallery g.npz --json OUT/m.json --per-query OUT/q.csv",
    "calibrate": "calibrate --query q.npz --gallery g.npz --json OUT/c.json",
    "verify": f"verify a.jpg a.jpg {MODEL} --json OUT/v.json",
    "features": f"features {MODEL} --images images --out OUT/f.npz --overwrite",
    "query": "query --gallery gallery --image images --html OUT/q.html --json OUT/q.json --csv OUT/q.csv",
    "test": f"test {MODEL} --data.root market --json OUT/m.json --html OUT/m.html",
    "report": "report metrics.json --out OUT/report --overwrite --json OUT/r.json",
    "gallery info": "gallery info --gallery gallery --json OUT/g.json",
    "gallery build": f"gallery build --gallery OUT/g --images images {MODEL}",
    "explain": f"explain {MODEL} --image a.jpg --out OUT/e.html",
    "export": f"export {MODEL} --format torchscript --out OUT/m.pt --overwrite",
    "convert": "convert published.pth OUT/m.safetensors --overwrite",
}
SLOW = ("test", "explain", "export", "convert")
LABELS_FIRST = ("features", "gallery build")  # print the parsed labels before any work


def words_of(command: str, out: Path) -> list[str]:
    return command.replace("OUT", str(out)).split()


def outputs_of(command: str) -> list[str]:
    names = [word.removeprefix("OUT/") for word in command.split() if word.startswith("OUT/")]
    return ["report/report.html" if name == "report" else name for name in names]


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files and folders, except for the lock file of a gallery."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if path.name != "lock"
    }


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in COMMANDS])
def test_outputs_are_unchanged_or_complete(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command, out, replace = COMMANDS[name], tmp_path / "out", os.replace
    monkeypatch.chdir(inputs)
    (out / "report").mkdir(parents=True)
    for output in outputs_of(command):
        if Path(output).suffix:  # a gallery is new
            (out / output).write_bytes(b"old")
    before = contents(out)

    def stop(*_: object) -> None:
        monkeypatch.setattr(os, "replace", replace)
        signal.raise_signal(signal.SIGTERM)

    faults: dict[str, tuple[Any, AbstractContextManager[None], int]] = {
        "terminated": (stop, nullcontext(), 143),
        "cannot write": (replace, limit_file_size(64), 2),
    }
    for message, (function, limit, code) in faults.items():
        monkeypatch.setattr(os, "replace", function)
        with limit:
            assert main(words_of(command, out)) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert message in error
        assert {key: value for key, value in contents(out).items() if not key.startswith("g/")} == {
            **before,
            **({"g": None} if (out / "g").exists() else {}),  # an unfinished gallery, which cannot be opened
        }
        assert not (out / "g" / "manifest.json").exists()

    words = words_of(command, out)
    if name == "gallery build":
        words.append("--resume" if (out / "g" / "unfinished.json").exists() else "--overwrite")
    if name in LABELS_FIRST:
        assert main(words) == 0
    else:  # results are printed after all files are written, so a full disk behind stdout loses no file
        with open("/dev/full", "w", buffering=1) as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main(words) == 2
        assert "output: No space left on device" in capsys.readouterr().err
    for output in outputs_of(command):
        assert READERS[Path(output).suffix](out / output)
    assert not list(out.rglob(".*"))


# ---------- training, and real processes ----------


@pytest.fixture
def train(inputs: Path, tmp_path: Path) -> list[str]:
    words = ["train", "--config", str(inputs / "recipe.yaml"), "--data.root", str(inputs / "market")]
    return [*words, "--out", str(tmp_path / "run")]


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(train: list[str], tmp_path: Path, refused: Any) -> None:
    assert main([*train, "--trainer.max_epochs", "1"]) == 0
    checkpoint = tmp_path / "run" / "last.ckpt"
    kept = checkpoint.read_bytes()
    with limit_file_size(1 << 20):
        assert "last.ckpt: cannot write there" in refused(*train, "--resume")
    assert checkpoint.read_bytes() == kept
    assert main([*train, "--resume"]) == 0
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    size = (tmp_path / "run" / "config.yaml").stat().st_size + 100
    with limit_file_size(size):  # Lightning does not write its logs atomically
        assert "cannot write there" in refused(*train, "--overwrite")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signals_to_real_trainings(train: list[str], tmp_path: Path, signum: signal.Signals) -> None:
    generator = np.random.default_rng(signum)
    words = [sys.executable, str(CHECKOUT / "cli.py"), *train]
    words += ["--trainer.max_epochs", "1000000", "--overwrite"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            while not (tmp_path / "log").read_text() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(generator.uniform(0, 3))
            process.send_signal(signum)
            error = process.communicate()[1]
        finally:
            process.kill()
        if signum == signal.SIGKILL:
            assert process.returncode == -signum
        else:
            assert process.returncode == 128 + signum, error
            assert error.splitlines()[-1] in ("rga-reid: interrupted", "rga-reid: terminated")
            assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".ckpt", ".json", ".yaml")]
        checkpoint = tmp_path / "run" / "last.ckpt"  # not yet there if the signal came early
        assert not checkpoint.exists() or load_model(checkpoint).dimension == 512
