"""The demo with a small data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonargparse import Namespace

from rga_reid.commands import demo as command
from rga_reid.commands import main, train
from rga_reid.data.synthetic import SyntheticSettings
from rga_reid.errors import InputError
from rga_reid.experiments import demo
from rga_reid.gallery import Gallery
from rga_reid.models import load_model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SyntheticSettings(
        train_identities=4,
        test_identities=3,
        cameras_per_identity=(2, 2),
        images_per_camera=(2, 2),
        distractors=2,
        junk=2,
        size=(64, 32),
    )
    monkeypatch.setattr(demo, "SyntheticSettings", lambda seed: settings)


@pytest.mark.parametrize(("epochs", "starts"), [(12, [0, 9]), (24, [0, 18]), (3, [0, 2]), (1, [0, 0])])
def test_shorter_demo_ends_with_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, starts: list[int]
) -> None:
    seen = []

    def stop(options: Namespace) -> None:
        seen.append(options)
        raise InputError("seen")

    monkeypatch.setattr(demo, "make_data", lambda root, seed: None)
    monkeypatch.setattr(train, "fit_recipe", stop)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--epochs", str(epochs)]) == 2
    (settings,) = seen
    assert settings.trainer.max_epochs == epochs
    sizes = [list(size) for size in settings.model.resolution_schedule]
    assert sizes == [[starts[0], 64, 32], [starts[1], 96, 48]]
    assert max(starts) < epochs


@pytest.mark.usefixtures("small")
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "base: demo\nmodel: {size: [32, 32], stages: [3, 4], resolution_schedule: []}\n"
        "data: {identities_per_batch: 2, images_per_identity: 2}\n"
    )
    assert main(["demo", "--out", str(out), "--config", str(recipe), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    for text in ("colour histogram", *map(str, (out / "query.html", out / "explain.html"))):
        assert text in printed
    assert str(out / "report" / "report.html") in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"colour histogram", "model"}
    assert metrics["model"]["valid_queries"] == 6
    trained_on = load_model(out / "model" / "last.ckpt").trained_on
    assert trained_on is not None
    assert "drawn by code" in str(trained_on["terms"])
    table = Gallery.open(out / "gallery").table
    assert len(table) == metrics["model"]["gallery"] + 2  # with the junk image
    assert table["time"].notna().all()
    assert (table.groupby(["camera", "track"])["pid"].nunique() == 1).all()
    for file, texts in {
        "query.html": ["correct", "<img"],
        "explain.html": ["rga, trained", "rga, untrained"],
        "report/report.html": ["Cumulative match characteristic", "<td style="],
        "report/report.csv": ["colour histogram,1,", f"{recipe},1,", str(metrics["model"]["mAP"])],
    }.items():
        content = (out / file).read_text(encoding="utf-8")
        assert [text for text in texts if text not in content] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "--seed"),
        (["--epochs", "0"], "--epochs"),
        (["--config", "dmeo"], "did you mean demo?"),
        ([], "was not made by a demo"),
    ],
)
def test_refused_demo_removes_nothing(
    tmp_path: Path, refused: Callable[..., str], words: list[str], message: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    assert "--overwrite" in refused("demo", "--out", str(tmp_path), *words)
    assert message in refused("demo", "--out", str(tmp_path), "--overwrite", *words)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "metrics.json"}


def test_overwritten_demo_keeps_other_files(tmp_path: Path) -> None:
    command.clear(tmp_path / "new")
    (tmp_path / "new" / "mine.txt").write_text("keep")
    for name in ("data", "report"):
        (tmp_path / "new" / name).mkdir()
    command.clear(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"mine.txt", command.MARKER}
