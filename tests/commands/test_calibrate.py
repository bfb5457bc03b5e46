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
def test_the_plot_is_the_same_on_every_day(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, mark: bytes
) -> None:
    target, written = tmp_path / f"scores.{suffix}", []
    for day in ("1000000000", "1700000000"):  # the current time for matplotlib
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)
        assert main(["calibrate", *files, "--plot", str(target)]) == 0
        written.append(target.read_bytes())
    assert mark in written[0][:2000]
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


@pytest.mark.parametrize("given", ["--threshold", "--calibration", None])
@pytest.mark.parametrize("same", [True, False])
def test_verify_decides_by_the_threshold(
    pictures: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: Any, given: str | None, same: bool
) -> None:
    first, second = load_model(tiny_checkpoint).embed(pictures).double().numpy()
    score = float(first @ second / np.sqrt((first @ first) * (second @ second)))
    threshold = score - 1e-4 if same else score + 1e-4
    calibration, target = tmp_path / "calibration.json", tmp_path / "result.json"
    calibration.write_text(json.dumps({"threshold": threshold}))
    value = {"--threshold": [str(threshold)], "--calibration": [str(calibration)]}.get(str(given), [])
    words = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--json", str(target)]
    assert main(["verify", *pictures, *words, *filter(None, [given]), *value]) == 0
    lines = [
        f"score {score:.6f}",
        f"threshold {threshold:.6f}",
        "decision: the same person" if same else "decision: different people",
    ]
    unknown = [lines[0], "no decision: it needs a threshold (--calibration FILE or --threshold T)"]
    assert capsys.readouterr().out.splitlines() == (lines if given else unknown)
    assert json.loads(target.read_text()) == {
        "first": pictures[0],
        "second": pictures[1],
        "score": pytest.approx(score, abs=1e-6),
        "threshold": threshold if given else None,
        "same": same if given else None,
    }


def test_a_score_at_the_threshold_is_a_match(pictures: list[str], tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint)
    score = verify(model, *pictures).score
    assert verify(model, *pictures, threshold=score).same is True
    assert verify(model, *pictures, threshold=np.nextafter(score, 2)).same is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{a} nowhere.jpg", "nowhere.jpg: no such image file"),
        ("{a} {tmp}/text.jpg", "text.jpg"),
        ("{a} {a} --threshold 0.5 --calibration c.json", "expected one of them, found both"),
        ("{a} {a} --threshold nan", "--threshold: expected float, got nan"),
        ("{a} {a} --checkpoint nowhere.ckpt", "nowhere.ckpt"),
        ("{a} {a} --calibration {tmp}/text.jpg", "text.jpg: expected the JSON of rga-reid calibrate"),
        ("{a} {a} --calibration {tmp}/empty.json", "empty.json: expected the JSON of rga-reid calibrate"),
        ("{a} {a} --calibration nowhere.json", "nowhere.json: no such file"),
    ],
)
def test_bad_arguments_of_verify(
    pictures: list[str], tiny_checkpoint: Path, tmp_path: Path, refused: Any, words: str, message: str
) -> None:
    (tmp_path / "text.jpg").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.json").write_text("{}")
    given = words.format(a=pictures[0], tmp=tmp_path).split()
    assert message in refused("verify", "--checkpoint", str(tiny_checkpoint), *given)
