"""Runs of an ablation: none is repeated, lost, or stopped by the failure of another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rga_reid.errors import InputError
from rga_reid.experiments import ablation
from rga_reid.experiments.ablation import (
    Outcome,
    Progress,
    changed_settings,
    collect_outcome,
    list_gpus,
    lock_run,
)
from rga_reid.training.callbacks import LAST
from tests.experiments import session as scripted

SESSION = Path(__file__).with_name("session.py")
ROOT = Path(__file__).parents[2]


def names(outcome: Outcome) -> dict[str, list[str]]:
    return {
        state: [run.name for run in getattr(outcome, state)]
        for state in ("finished", "failed", "locked", "remaining")
        if getattr(outcome, state)
    }


def wait_for(file: Path, text: str) -> None:
    until = time.monotonic() + 500
    while not file.is_file() or text not in file.read_text():
        assert time.monotonic() < until, f"{file} never held {text!r}"
        time.sleep(0.02)


def stop_at(variant: Path, number: int) -> Path:
    """Let runs of the variant wait at that number until the returned file is removed."""
    variant.mkdir(parents=True)
    (variant / "stop").write_text(str(number))
    return variant / "stop"


def start(out: Path, runs: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(SESSION), str(out), runs]
    return subprocess.Popen(words, env=environment, start_new_session=True)


def test_failed_runs_stop_no_other(tmp_path: Path) -> None:
    stop = stop_at(tmp_path / "a", 3)

    def go_on(progress: Progress) -> None:
        if 0 < progress.done < 0.9:  # fractions of a run count
            stop.unlink(missing_ok=True)

    result, seen = scripted.session(tmp_path, "a:0,bad:0,dies:0,odd:0,b:0", go_on)
    assert names(result) == {
        "finished": ["a seed 0", "b seed 0"],
        "failed": ["bad seed 0", "dies seed 0", "odd seed 0"],
    }
    assert [run.failure_reason() for run in result.failed] == [
        "training: exit code 1: no such attention",
        "training: killed by signal 9: epoch 1/5",
        "training: exit code 1: expected a == b",
    ]
    news = [progress.news for progress in seen if progress.news]
    assert news[:2] == ["a seed 0 finished", "bad seed 0 failed: training: exit code 1: no such attention"]
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert (done[-1], seen[-1].total) == (5, 5)

    before = (tmp_path / "a/seed-0/result.json").stat().st_mtime_ns
    again, seen = scripted.session(tmp_path, "a:0,bad:0,b:0")
    assert names(again) == {"finished": ["a seed 0", "b seed 0"], "failed": ["bad seed 0"]}
    assert (tmp_path / "a/seed-0/result.json").stat().st_mtime_ns == before
    assert seen[-1].total == 1  # only the failed one is repeated
    assert (tmp_path / "a/seed-0/train/starts").read_text() == "x"


@pytest.mark.slow
def test_killed_session_continues(tmp_path: Path) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    stop = stop_at(out / "b", 3)
    process = start(out, "a:0,b:0,a:1")
    wait_for(out / "b/seed-0/train/count", "3")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stop.unlink()
    finished = out / "a/seed-0/result.json"
    before = (finished.stat().st_mtime_ns, finished.read_bytes())
    assert collect_outcome(scripted.runs(out)).finished[0].variant == "a"
    result, seen = scripted.session(out)
    assert names(result) == {"finished": ["a seed 0", "b seed 0", "a seed 1"]}
    assert seen[-1].total == 2
    assert (finished.stat().st_mtime_ns, finished.read_bytes()) == before
    assert (out / "b/seed-0/train/starts").read_text() == "xx"  # continued
    scripted.session(whole)
    for run in scripted.runs(Path()):
        file = run.folder / "result.json"
        assert (out / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_session_ends_its_runs(tmp_path: Path, signum: int, code: int) -> None:
    """Ctrl-C reaches the runs, too, as they share the terminal; SIGTERM the session only."""
    stop = stop_at(tmp_path / "b", 2)
    process = start(tmp_path, "a:0,b:0")
    wait_for(tmp_path / "b/seed-0/train/count", "2")
    (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
    assert process.wait() == code
    with lock_run(tmp_path / "b" / "seed-0") as handle:
        assert handle is not None  # the training has ended
    assert (tmp_path / "b/seed-0/train/count").read_text() == "2"
    stop.unlink()
    assert not (tmp_path / "b/seed-0/error.txt").exists()  # stopped, not failed
    result, seen = scripted.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["a seed 0", "b seed 0"]}
    assert seen[-1].total == 1


def test_interrupted_session_continues(tmp_path: Path) -> None:
    """In this process: the run is ended, keeps its count, and is continued."""
    stop = stop_at(tmp_path / "a", 2)

    def interrupt(progress: Progress) -> None:
        count = tmp_path / "a/seed-0/train/count"
        if count.is_file() and count.read_text() == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scripted.session(tmp_path, "a:0", interrupt)
    assert collect_outcome(scripted.runs(tmp_path, "a:0")).remaining[0].state == "interrupted"
    stop.unlink()
    result, seen = scripted.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["a seed 0", "b seed 0"]}
    assert (tmp_path / "a/seed-0/train/starts").read_text() == "xx"
    earlier = 0.95 * 2 / 5  # two of five epochs; the test counts as a twentieth of a run
    assert seen[-1].done == 2
    assert seen[-1].work == pytest.approx(2 - earlier)
    assert min(progress.work for progress in seen) >= 0
    assert all(progress.trains for progress in seen)

    (tmp_path / "a/seed-0/result.json").unlink()
    _, seen = scripted.session(tmp_path, "a:0,c:0")
    assert [one.trains for one in seen] == sorted(one.trains for one in seen)
    assert {one.trains for one in seen if one.news.startswith("a") or "a seed 0 testing" in one.active} == {
        False
    }
    assert seen[-1].trains


@pytest.mark.slow
def test_training_that_outlives_its_session_is_left_alone(tmp_path: Path) -> None:
    stop = stop_at(tmp_path / "a", 1)
    process = start(tmp_path, "a:0")
    wait_for(tmp_path / "a/seed-0/train/count", "1")
    process.kill()  # the session only
    process.wait()
    result, _ = scripted.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["b seed 0"], "locked": ["a seed 0"]}
    assert (tmp_path / "a/seed-0/train/starts").read_text() == "x"
    stop.unlink()
    until = time.monotonic() + 500
    handle = None
    while handle is None:
        with lock_run(tmp_path / "a" / "seed-0") as handle:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert (tmp_path / "a/seed-0/train/count").read_text() == "5"
    result, _ = scripted.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["a seed 0", "b seed 0"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ""),
        (b"no such\tattention\nmore", "no such attention"),
        (b"not \xff\xfe UTF-8", "not �� UTF-8"),
        (b"x" * 1_000_000, "x" * 500),
    ],
)
def test_failure_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (run,) = scripted.runs(tmp_path, "a:0")
    run.folder.mkdir(parents=True)
    (run.folder / "error.txt").write_bytes(content)
    assert run.state == "failed"
    assert run.failure_reason() == reason
    run.prepare()  # as another process does
    assert "another process" in run.failure_reason()


def test_locked_runs_are_left_alone(tmp_path: Path) -> None:
    with lock_run(tmp_path / "a" / "seed-0") as first, lock_run(tmp_path / "a" / "seed-0") as second:
        assert first is not None
        assert second is None
        result, _ = scripted.session(tmp_path, "a:0")
        assert names(result) == {"locked": ["a seed 0"]}
    result, _ = scripted.session(tmp_path, "a:0")
    assert names(result) == {"finished": ["a seed 0"]}


def test_run_that_another_session_has_finished_meanwhile(tmp_path: Path) -> None:
    result_file = tmp_path / "b" / "seed-0" / "result.json"

    def finish(progress: Progress) -> None:
        result_file.parent.mkdir(parents=True, exist_ok=True)
        result_file.write_text("{}")

    result, _ = scripted.session(tmp_path, "a:0,b:0", finish)
    assert names(result) == {"finished": ["a seed 0", "b seed 0"]}
    assert not (result_file.parent / "train").exists()


def test_jobs_share_gpus_or_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    scripted.session(tmp_path / "gpus", "a:0,a:1", jobs=2, devices=["3", "5"])
    scripted.session(tmp_path / "cores", "a:0,a:1", jobs=2)
    seen = [
        (tmp_path / f"{where}/a/seed-{seed}/train/environment").read_text()
        for where in ("gpus", "cores")
        for seed in (0, 1)
    ]
    assert seen[:2] == ["3 None", "5 None"]
    assert [value.split()[1] for value in seen[2:]] == ["4", "4"]


@pytest.mark.parametrize(("visible", "gpus"), [("2, 3", ["2", "3"]), ("GPU-1a,", ["GPU-1a"]), ("", [])])
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list_gpus() == gpus


def test_selected_runs(tmp_path: Path) -> None:
    result, _ = scripted.session(tmp_path, "a:0,b:0", select=lambda run: run.variant == "b")
    assert names(result) == {"finished": ["b seed 0"], "remaining": ["a seed 0"]}


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    (run,) = scripted.runs(tmp_path, "a:0", {"trainer": {}})
    run.prepare()
    run.check()
    (changed,) = scripted.runs(tmp_path, "a:0", {"trainer": {"max_epochs": 9}})
    with pytest.raises(InputError, match=r"recipe\.trainer\.max_epochs was not set, is 9"):
        changed.check()
    (run.folder / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: .* delete .*seed-0"):
        run.check()


@pytest.mark.parametrize("callbacks", [None, {"class_path": "A"}, [{"class_path": "A"}, {"class_path": "B"}]])
def test_timer_joins_the_callbacks(tmp_path: Path, callbacks: Any) -> None:
    (run,) = scripted.runs(tmp_path, "a:0", {"trainer": {"callbacks": callbacks, "max_epochs": 1}})
    run.prepare()
    trainer = yaml.safe_load((run.folder / "recipe.yaml").read_text())["trainer"]
    *others, timer = trainer["callbacks"]
    assert others == ([] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks])
    assert timer["class_path"].endswith(".Timer")
    assert trainer["max_epochs"] == 1


def test_name_of_the_checkpoint() -> None:
    assert ablation.LAST == LAST


def test_differences_name_the_keys() -> None:
    one, two = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert changed_settings(one, two) == ["a.c was [1], is [2]", "d was 2, is not set", "e was not set, is 3"]
    assert changed_settings({"a": None, "b": 1}, {"b": None}) == ["b was 1, is null"]  # a is the same
    assert changed_settings(one, one) == []
    (line,) = changed_settings({"k" * 9999: "a" * 9999}, {})
    assert len(line) < 200
