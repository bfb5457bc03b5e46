"""``test`` with its page, and what it refuses before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rga_reid.commands import main
from rga_reid.reports import feature_space


def test_page_beside_the_metrics(
    tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, metrics = tmp_path / "page.html", tmp_path / "metrics.json"
    words = ["--checkpoint", str(tiny_checkpoint), "--data.root", str(tiny_market), "--device", "cpu"]
    assert main(["test", *words, "--html", str(page), "--json", str(metrics)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert f"tiny.safetensors on “{tiny_market.name}”, read as market1501" in text
    assert text.count("<img") > 10
    assert metrics.is_file()


def test_bad_output_and_missing_library_are_refused_first(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["test", "--checkpoint", "gone.ckpt", "--data.root", str(tmp_path), "--html"]
    assert "its folder does not exist" in refused(*words, str(tmp_path / "no" / "page.html"))
    monkeypatch.setattr(feature_space, "find_spec", lambda name: None)
    assert "pip install scikit-learn" in refused(*words, str(tmp_path / "page.html"))
