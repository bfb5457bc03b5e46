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
from rga_reid.inference.verify import Threshold, read_calibration


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


def test_pairs_of_a_file_with_itself_count_once(files: list[str], tmp_path: Path) -> None:
    file, target = files[1], tmp_path / "calibration.json"
    with np.load(file) as query:
        arrays = {**query, "camids": np.arange(120) % 2}
    np.savez(file, **arrays)
    words = ["calibrate", "--query", file, "--gallery", file, "--false-match-rate", "0.01"]
    assert main([*words, "--json", str(target)]) == 0
    values = json.loads(target.read_text())
    first, second = np.triu_indices(120, 1)
    same = arrays["pids"][first] == arrays["pids"][second]
    other_camera = arrays["camids"][first] != arrays["camids"][second]
    assert values["impostor_pairs"] == (~same).sum()
    assert values["genuine_pairs"] == (same & other_camera).sum()
    assert values["false_matches"] == pytest.approx(0.01 * (~same).sum(), abs=1)


def test_few_false_matches_are_reported(files: list[str], capfd: Any) -> None:
    assert main(["calibrate", *files, "--false-match-rate", "0.0002"]) == 0
    assert "rough estimate: it was measured on 9 false matches" in capfd.readouterr().out


@pytest.mark.parametrize("mode", [[], ["--open-set", "--gallery-size", "60"]])
@pytest.mark.parametrize("given", ["--threshold", "--calibration"])
def test_rates_at_a_threshold_found_elsewhere(
    files: list[str], tmp_path: Path, capfd: Any, mode: list[str], given: str
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    wanted = ["--fpir" if mode else "--false-match-rate", "0.05", "--json", str(first)]
    assert main(["calibrate", *files, *mode, *wanted]) == 0
    found = json.loads(first.read_text())
    value = str(first) if given == "--calibration" else repr(found["threshold"])
    capfd.readouterr()
    assert main(["calibrate", *files, *mode, given, value, "--json", str(second)]) == 0
    wanted_rate = "wanted_fpir" if mode else "wanted_false_match_rate"
    assert json.loads(second.read_text()) == {**found, wanted_rate: None}
    assert "wanted" not in capfd.readouterr().out
    assert main(["calibrate", *files, *mode, "--threshold", "1", "--json", str(second)]) == 0
    values = json.loads(second.read_text())
    rates = ("fpir", "fnir") if mode else ("false_match_rate", "false_non_match_rate")
    assert [values[name] for name in rates] == [0, 1]


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
        (["--fpir", "0.1"], r"--fpir: .*--open-set"),
        (["--gallery-size", "9"], r"--gallery-size: .*--open-set"),
        (["--open-set", "--false-match-rate", "0.1"], r"--false-match-rate: .*--fpir"),
        (["--open-set", "--fpir", "1"], r"--fpir: "),
        (["--open-set", "--fpir", "0.001"], r"fpir: .* 120 searches for strangers"),
        (["--open-set", "--gallery-size", "0"], r"--gallery-size: "),
        (["--plot", "scores.txt"], r"--plot scores\.txt: "),
        (["--gallery", "nowhere.npz"], r"nowhere\.npz: no such file"),
        (["--device", "nowhere"], r"--device 'nowhere': "),
        (["--threshold", "0.5", "--false-match-rate", "0.1"], r"--false-match-rate: .*--threshold"),
        (["--open-set", "--threshold", "0.5", "--fpir", "0.1"], r"--fpir: .*--threshold"),
        (["--threshold", "2"], r"--threshold: "),
    ],
)
def test_bad_options(files: list[str], refused: Callable[..., str], options: list[str], message: str) -> None:
    assert re.search(message, refused("calibrate", *files, *options))


# Open set --------------------------------------------------------------------------------------------------


def scaled_rows(files: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of length 1 and identities of the queries and of the gallery."""
    sides = []
    for file in files[1::2]:
        with np.load(file) as side:
            sides.append((side["features"] / np.linalg.norm(side["features"], axis=1)[:, None], side["pids"]))
    return sides


def test_an_open_set_threshold_keeps_the_rate_of_strangers(
    files: list[str], tmp_path: Path, capfd: Any
) -> None:
    target = tmp_path / "calibration.json"
    words = ["calibrate", *files, "--open-set", "--fpir", "0.1", "--json", str(target)]
    assert main([*words, "--gallery-size", "60"]) == 0
    values = json.loads(target.read_text())
    (queries, pids), (gallery, others) = scaled_rows(files)
    cosines, same = queries @ gallery.T, pids[:, None] == others
    rng = np.random.default_rng(0)
    accepted = [
        (cosines[row, rng.choice(np.flatnonzero(~same[row]), 60, replace=False)] >= values["threshold"]).any()
        for row in range(120)
        for _ in range(50)
    ]
    assert np.mean(accepted) == pytest.approx(values["fpir"], abs=0.015)
    assert 0.09 < values["fpir"] <= 0.1
    missed = (np.where(same, cosines, -1).max(axis=1) < values["threshold"]).mean()
    assert values["fnir"] == pytest.approx(missed, abs=0.01)
    assert (values["kind"], values["gallery_size"], values["estimated"]) == ("open_set", 60, False)
    out, err = capfd.readouterr()
    assert f"{values['threshold']:.6f}" in out
    assert "estimate" in out  # 12 accepted searches
    assert err == ""
    with np.load(files[3]) as side:  # a tenth of the gallery is junk
        junk = np.arange(len(others)) % 10 == 0
        np.savez(files[3], **{**side, "pids": np.where(junk, -1, side["pids"])})
    larger = tmp_path / "larger.json"
    assert main([*words[:-1], str(larger), "--gallery-size", "1000"]) == 0
    assert json.loads(larger.read_text())["estimated"] is True
    assert json.loads(larger.read_text())["threshold"] > values["threshold"]
    left = min((~junk & (others != pid)).sum() for pid in pids)
    printed = capfd.readouterr().out
    assert "estimated" in printed
    assert f"among the {left} images that --gallery has beside" in printed


def test_the_det_curve(files: list[str], tmp_path: Path) -> None:
    for suffix, mark in (("png", b"\x89PNG"), ("svg", b"<svg")):
        target = tmp_path / f"det.{suffix}"
        assert main(["calibrate", *files, "--open-set", "--fpir", "0.1", "--plot", str(target)]) == 0
        assert mark in target.read_bytes()[:2000]


def test_thresholds_say_which_kind_they_are(tmp_path: Path) -> None:
    target = tmp_path / "calibration.json"
    target.write_text(
        json.dumps({"kind": "open_set", "threshold": 0.5, "wanted_fpir": 0.01, "gallery_size": 1000})
    )
    threshold = read_calibration(target)
    assert threshold == Threshold(0.5, "open_set", 0.01, 1000)
    assert str(threshold) == "0.500000 (open set: FPIR 0.01 in a gallery of 1,000 images)"
    for images, warned in ((1000, False), (500, False), (2000, False), (499, True), (2001, True)):
        warning = threshold.gallery_warning(images)
        assert (warning is not None) == warned
        assert warning is None or f"{images:,}" in warning
        assert (warning is not None and f"--gallery-size {images}" in warning) == (images > 2000)
    assert Threshold(0.5).gallery_warning(10**6) is None
    assert str(Threshold(0.5)) == "0.500000"
    pairs = Threshold(0.5, "per_pair", 0.001)
    assert "--open-set" in str(pairs.gallery_warning(100))
    assert str(pairs) == "0.500000 (per pair: false-match rate 0.001)"


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
        f"threshold {threshold:.6f}" + (" (per pair)" if given == "--calibration" else ""),
        "decision: the same person" if same else "decision: different people",
    ]
    unknown = [lines[0], "no decision: it needs a threshold (--calibration FILE or --threshold T)"]
    assert capsys.readouterr().out.splitlines() == (lines if given else unknown)
    assert json.loads(target.read_text()) == {
        "first": pictures[0],
        "second": pictures[1],
        "score": pytest.approx(score, abs=1e-6),
        "threshold": threshold if given else None,
        "threshold_kind": {"--threshold": "given", "--calibration": "per_pair", None: None}[given],
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
        ("{a} {a} --calibration {tmp}/sizeless.json", "sizeless.json: "),
        ("{a} {a} --calibration {tmp}/odd.json", "'odd'"),
        ("{a} {a} --calibration nowhere.json", "nowhere.json: no such file"),
    ],
)
def test_bad_arguments_of_verify(
    pictures: list[str], tiny_checkpoint: Path, tmp_path: Path, refused: Any, words: str, message: str
) -> None:
    (tmp_path / "text.jpg").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "sizeless.json").write_text('{"threshold": 0.5, "kind": "open_set"}')
    (tmp_path / "odd.json").write_text('{"threshold": 0.5, "kind": "odd", "gallery_size": 5}')
    given = words.format(a=pictures[0], tmp=tmp_path).split()
    assert message in refused("verify", "--checkpoint", str(tiny_checkpoint), *given)
