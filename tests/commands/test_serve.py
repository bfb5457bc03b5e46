"""Options of ``serve``; the server itself is tested in tests/serving."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.gallery import Gallery


@pytest.fixture
def gallery(tmp_path: Path) -> str:
    """A gallery of features."""
    Gallery.build(np.eye(3), pd.DataFrame({"path": ["a", "b", "c"]})).save(tmp_path / "gallery")
    return str(tmp_path / "gallery")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--gallery"),
        (["--demo", "--gallery", "x"], "--demo"),
        (["--gallery", "x", "--port", "70000"], "--port"),
        (["--gallery", "x", "--workers", "0"], "--workers"),
        (["--gallery", "x", "--rate-limit", "-1"], "--rate-limit"),
        (["--gallery", "x", "--threshold", "2"], "--threshold"),
        (["--gallery", "x", "--host", "0.0.0.0"], "--token-file"),
        (["--gallery", "x", "--token-file", "nowhere"], "nowhere"),
        (["--gallery", "x", "--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--gallery", "nowhere", "--port", "0"], "nowhere"),
    ],
)
def test_wrong_options_are_named(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RGA_REID_TOKENS", raising=False)
    assert named in refused("serve", *words)


def test_demo_needs_a_demo(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "rga-reid demo" in refused("serve", "--demo")


def test_a_port_in_use_is_named(refused: Callable[..., str], gallery: str) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = str(used.getsockname()[1])
        assert port in refused("serve", "--gallery", gallery, "--port", port)


def test_missing_libraries_are_named(
    refused: Callable[..., str], gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "uvicorn" else found(name, *rest)
    )
    assert "rga-reid[serve]" in refused("serve", "--gallery", gallery)


@pytest.mark.parametrize("size", [3, 600])
def test_a_threshold_for_another_size_of_gallery_is_named(
    gallery: str,
    tmp_path: Path,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from starlette.testclient import TestClient

    from rga_reid.commands import main

    def serve(app: object, listener: socket.socket) -> None:
        listener.close()
        with TestClient(app):  # type: ignore[arg-type]
            pass  # closes the gallery

    monkeypatch.setattr("rga_reid.serving.server.serve", serve)
    calibration = tmp_path / "c.json"
    calibration.write_text(json.dumps({"threshold": 0.8, "kind": "open_set", "gallery_size": size}))
    assert main(["serve", "--gallery", gallery, "--port", "0", "--calibration", str(calibration)]) == 0
    assert ("calibrated for a gallery of 600 images; among 3 it" in capsys.readouterr().err) == (size == 600)


def test_command_serves(gallery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the network: the application that the command would run."""
    from starlette.testclient import TestClient

    from rga_reid.commands import main

    answers = []

    def serve(app: object, listener: socket.socket) -> None:
        with TestClient(app, base_url="http://localhost") as http:  # type: ignore[arg-type]
            answers.append(http.get("/v1/gallery").json())
        listener.close()

    monkeypatch.setattr("rga_reid.serving.server.serve", serve)
    assert main(["serve", "--gallery", gallery, "--port", "0", "--read-only", "--threshold", "0.5"]) == 0
    assert [answers[0][name] for name in ("count", "read_only", "threshold", "embeds")] == [
        3,
        True,
        0.5,
        False,
    ]
