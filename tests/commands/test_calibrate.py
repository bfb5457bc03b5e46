"""``calibrate`` and ``verify`` as a user runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rga_reid import load_model
from rga_reid.commands import main
from rga_reid.inference import verify


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options that name two files of features: 40 people in two cameras, well separated."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((40, 32))
    words = []
    for side, count in (("query", 120), ("gallery", 400)):
        pids = rng.integers(0, 40, count)
        features = (people[pids] + 0.7 * rng.standard_normal((count, 32))).astype(np.float32)
        camids = np.full(count, int(side == "gallery"))
        np.savez(tmp_path / f"{side}.npz", features=features, pids=pids, camids=camids)
        words += [f"--{side}", str(tmp_path / f"{side}.npz")]
    return words


def test_the_threshold_keeps_the_rate(files: list[str], tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "calibration.json"
    assert main(["calibrate", *files, "--false-match-rate", "0.01", "--json", str(target)]) == 0
    values = json.loads(target.read_text())
    with np.load(tmp_path / "query.npz") as query, np.load(tmp_path / "gallery.npz") as gallery:
        unit = [
            side["features"] / np.linalg.norm(side["features"], axis=1)[:, None] for side in (query, gallery)
        ]
        same = query["pids"][:, None] == gallery["pids"]
    cosines = unit[0] @ unit[1].T
    measured = (cosines[~same] >= values["threshold"]).mean()
    assert values["false_match_rate"] == pytest.approx(measured, abs=2e-5)
    assert 0.0099 < measured <= 0.01
    assert (cosines[~same] >= values["threshold"] - 1e-4).mean() > 0.01
    assert values["false_non_match_rate"] == pytest.approx(
        (cosines[same] < values["threshold"]).mean(), abs=1e-3
    )
    assert (values["genuine_pairs"], values["impostor_pairs"]) == (same.sum(), (~same).sum())
    out, err = capfd.readouterr()
    assert re.search(rf"threshold.* +│ +{values['threshold']:.6f}", out)
    assert "rough estimate" not in out
    assert err == ""


def test_few_false_matches_are_reported(files: list[str], capfd: Any) -> None:
    assert main(["calibrate", *files, "--false-match-rate", "0.0002"]) == 0
    assert "rough estimate: it was measured on 9 false matches" in capfd.readouterr().out


@pytest.mark.parametrize(("suffix", "mark"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_the_plot(files: list[str], tmp_path: Path, suffix: str, mark: bytes) -> None:
    target = tmp_path / f"scores.{suffix}"
    assert main(["calibrate", *files, "--plot", str(target)]) == 0
    assert mark in target.read_bytes()[:2000]


def test_the_plot_is_reproducible(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for day in ("1000000000", "1700000000"):  # the current time for matplotlib
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)
        assert main(["calibrate", *files, "--plot", str(tmp_path / "scores.pdf")]) == 0
        written.append((tmp_path / "scores.pdf").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--false-match-rate", "1e-9"], r"1e-09 cannot be measured on [0-9,]+ impostor scores"),
        (["--false-match-rate", "0"], r"--false-match-rate: "),
        (["--plot", "scores.txt"], r"--plot scores\.txt: "),
        (["--gallery", "nowhere.npz"], r"nowhere\.npz: no such file"),
        (["--device", "nowhere"], r"--device 'nowhere': "),
    ],
)
def test_bad_options(files: list[str], refused: Callable[..., str], options: list[str], message: str) -> None:
    assert re.search(message, refused("calibrate", *files, *options))


# verify ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tiny_market: Path) -> list[str]:
    return [str(path) for path in sorted((tiny_market / "query").iterdir())[:2]]


def test_verify_decides_by_the_threshold(
    pictures: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", *pictures, "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    first, second = load_model(tiny_checkpoint).embed(pictures).double().numpy()
    score = float(first @ second / np.sqrt((first @ first) * (second @ second)))
    for threshold, decision, same in (
        (score - 1e-4, "the same person", True),
        (score + 1e-4, "different people", False),
    ):
        target = tmp_path / "result.json"
        assert main([*words, "--threshold", str(threshold), "--json", str(target)]) == 0
        out = capsys.readouterr().out
        assert out == f"score {score:.6f}\nthreshold {threshold:.6f}\ndecision: {decision}\n"
        values = json.loads(target.read_text())
        assert values == {
            "first": pictures[0],
            "second": pictures[1],
            "score": pytest.approx(score, abs=1e-6),
            "threshold": threshold,
            "same": same,
        }


def test_verify_reads_a_calibration(
    files: list[str],
    pictures: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "calibration.json"
    assert main(["calibrate", *files, "--json", str(target)]) == 0
    words = ["verify", *pictures, "--checkpoint", str(tiny_checkpoint)]
    assert main([*words, "--calibration", str(target)]) == 0
    threshold = json.loads(target.read_text())["threshold"]
    assert f"threshold {threshold:.6f}\ndecision: " in capsys.readouterr().out


def test_verify_without_a_threshold_says_so(
    pictures: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    same_file = [pictures[0], pictures[0]]
    assert main(["verify", *same_file, "--checkpoint", str(tiny_checkpoint), "--json", str(target)]) == 0
    assert capsys.readouterr().out == (
        "score 1.000000\nno decision: it needs a threshold (--calibration FILE or --threshold T)\n"
    )
    values = json.loads(target.read_text())
    assert values["threshold"] is values["same"] is None


def test_a_score_at_the_threshold_is_a_match(pictures: list[str], tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint)
    score = verify(model, *pictures).score
    assert verify(model, *pictures, threshold=score).same is True
    assert verify(model, *pictures, threshold=np.nextafter(score, 2)).same is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"calibration\.json: expected the JSON of rga-reid calibrate"),
        (b"\xff\xfe", r"calibration\.json: expected the JSON of rga-reid calibrate"),
        (None, r"calibration\.json: no such file"),
    ],
)
def test_bad_calibrations(
    pictures: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    content: str | bytes | None,
    message: str,
) -> None:
    target = tmp_path / "calibration.json"
    if content is not None:
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    words = ["verify", *pictures, "--checkpoint", str(tiny_checkpoint), "--calibration", str(target)]
    assert re.search(message, refused(*words))


def test_bad_pictures_and_options(
    pictures: list[str], tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    model = ["--checkpoint", str(tiny_checkpoint)]
    assert "nowhere.jpg: no such image file" in refused("verify", pictures[0], "nowhere.jpg", *model)
    (tmp_path / "text.jpg").write_text("no picture")
    assert "text.jpg" in refused("verify", pictures[0], str(tmp_path / "text.jpg"), *model)
    both = ["--threshold", "0.5", "--calibration", "c.json"]
    assert "expected one of them, found both" in refused("verify", *pictures, *model, *both)
    assert "--threshold: expected float, got nan" in refused(
        "verify", *pictures, *model, "--threshold", "nan"
    )
    assert "nowhere.ckpt" in refused("verify", *pictures, "--checkpoint", "nowhere.ckpt")
