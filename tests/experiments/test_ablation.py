"""Runs of an ablation: none twice, none lost, none that drags others along."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rga_reid.errors import InputError
from rga_reid.experiments import ablation
from rga_reid.experiments import ablation as ablation_run
from rga_reid.experiments.ablation import Outcome, Progress, changed_settings, gpus, lock_run, outcome

SESSION = Path(__file__).with_name("session.py")
ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("session", SESSION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["session"] = module
    spec.loader.exec_module(module)
    return module


SCRIPTED = load()


def names(outcome: Outcome) -> dict[str, list[str]]:
    return {
        state: [run.name for run in getattr(outcome, state)]
        for state in ("finished", "failed", "elsewhere", "left")
        if getattr(outcome, state)
    }


def wait_for(file: Path, text: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not file.is_file() or text not in file.read_text():
        assert time.monotonic() < until, f"{file} never held {text!r}"
        time.sleep(0.02)


def wait_for_lock(folder: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        with lock_run(folder) as handle:
            if handle is not None:
                return
        assert time.monotonic() < until, f"{folder} is held"
        time.sleep(0.02)


def stop_at(variant: Path, number: int) -> Path:
    """Let runs of the variant wait at that number, until the file is gone that is returned."""
    variant.mkdir(parents=True)
    (variant / "stop").write_text(str(number))
    return variant / "stop"


def start(out: Path, runs: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(SESSION), str(out), runs]
    return subprocess.Popen(words, env=environment, start_new_session=True)


def test_finished_runs_are_kept_and_a_failed_one_stops_nobody(tmp_path: Path) -> None:
    stop = stop_at(tmp_path / "a", 3)

    def go_on(progress: Progress) -> None:
        if 0 < progress.done < 0.9:  # epochs count
            stop.unlink(missing_ok=True)

    result, told = SCRIPTED.session(tmp_path, "a:0,bad:0,b:0", go_on)
    assert names(result) == {"finished": ["a seed 0", "b seed 0"], "failed": ["bad seed 0"]}
    assert result.failed[0].why() == "training: exit code 1: no such attention"
    news = [progress.news for progress in told if progress.news]
    assert news == [
        "a seed 0 finished",
        "bad seed 0 failed: training: exit code 1: no such attention",
        "b seed 0 finished",
    ]
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert (done[-1], told[-1].total) == (3, 3)

    before = (tmp_path / "a/seed-0/result.json").stat().st_mtime_ns
    again, told = SCRIPTED.session(tmp_path, "a:0,bad:0,b:0")
    assert names(again) == names(result)
    assert (tmp_path / "a/seed-0/result.json").stat().st_mtime_ns == before
    assert told[-1].total == 1  # the failed one is tried again
    assert (tmp_path / "a/seed-0/train/starts").read_text() == "x"


def test_a_session_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    stop = stop_at(out / "b", 3)
    process = start(out, "a:0,b:0,a:1")
    wait_for(out / "b/seed-0/train/count", "3")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=120)
    stop.unlink()
    finished = out / "a/seed-0/result.json"
    before = (finished.stat().st_mtime_ns, finished.read_bytes())
    assert outcome(SCRIPTED.runs(out)).finished[0].variant == "a"
    result, told = SCRIPTED.session(out)
    assert names(result) == {"finished": ["a seed 0", "b seed 0", "a seed 1"]}
    assert told[-1].total == 2
    assert (finished.stat().st_mtime_ns, finished.read_bytes()) == before
    assert (out / "b/seed-0/train/starts").read_text() == "xx"  # once more, from where it was
    SCRIPTED.session(whole)
    for run in SCRIPTED.runs(Path()):
        file = run.folder / "result.json"
        assert (out / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_session_that_is_stopped_ends_its_runs(tmp_path: Path, signum: int, code: int) -> None:
    """Ctrl-C reaches the runs too, as they share its terminal; SIGTERM the session alone."""
    stop = stop_at(tmp_path / "b", 2)
    process = start(tmp_path, "a:0,b:0")
    wait_for(tmp_path / "b/seed-0/train/count", "2")
    (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
    assert process.wait(timeout=120) == code
    with lock_run(tmp_path / "b" / "seed-0") as handle:
        assert handle is not None  # nobody trains any more
    assert (tmp_path / "b/seed-0/train/count").read_text() == "2"
    stop.unlink()
    assert not (tmp_path / "b/seed-0/error.txt").exists()  # stopped, not failed
    result, told = SCRIPTED.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["a seed 0", "b seed 0"]}
    assert told[-1].total == 1


def test_a_run_that_dies_is_recorded_and_stops_no_other(tmp_path: Path) -> None:
    """As when the kernel is short of memory."""
    result, _ = SCRIPTED.session(tmp_path, "dies:0,b:0")
    assert names(result) == {"finished": ["b seed 0"], "failed": ["dies seed 0"]}
    assert result.failed[0].why() == "training: killed by signal 9: epoch 1/5"


def test_an_error_is_told_whole_whatever_signs_are_in_it(tmp_path: Path) -> None:
    result, _ = SCRIPTED.session(tmp_path, "odd:0")
    assert result.failed[0].why() == "training: exit code 1: expected a == b"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", ""),
        (b"no such\tattention\nmore", "no such attention"),
        (b"not \xff\xfe UTF-8", "not �� UTF-8"),
        (b"x" * 10_000_000, "x" * 500),
    ],
)
def test_an_error_is_told_whatever_its_file_holds(tmp_path: Path, content: bytes, told: str) -> None:
    (run,) = SCRIPTED.runs(tmp_path, "a:0")
    run.folder.mkdir(parents=True)
    (run.folder / "error.txt").write_bytes(content)
    assert run.state == "failed"
    assert run.why() == told


def test_a_training_that_outlives_its_session_is_left_alone(tmp_path: Path) -> None:
    stop = stop_at(tmp_path / "a", 1)
    process = start(tmp_path, "a:0")
    wait_for(tmp_path / "a/seed-0/train/count", "1")
    process.kill()  # the session alone
    process.wait(timeout=120)
    result, _ = SCRIPTED.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["b seed 0"], "elsewhere": ["a seed 0"]}
    assert (tmp_path / "a/seed-0/train/starts").read_text() == "x"
    stop.unlink()
    wait_for_lock(tmp_path / "a" / "seed-0")
    assert (tmp_path / "a/seed-0/train/count").read_text() == "5"
    result, _ = SCRIPTED.session(tmp_path, "a:0,b:0")
    assert names(result) == {"finished": ["a seed 0", "b seed 0"]}


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with lock_run(tmp_path) as first, lock_run(tmp_path) as second:
        assert first is not None
        assert second is None
    with lock_run(tmp_path) as again:
        assert again is not None


def test_jobs_get_a_gpu_each_or_their_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    SCRIPTED.session(tmp_path / "gpus", "a:0,a:1", jobs=2, devices=["3", "5"])
    SCRIPTED.session(tmp_path / "cores", "a:0,a:1", jobs=2)
    seen = [
        (tmp_path / f"{where}/a/seed-{seed}/train/environment").read_text()
        for where in ("gpus", "cores")
        for seed in (0, 1)
    ]
    assert seen[:2] == ["3 None", "5 None"]
    assert [value.split()[1] for value in seen[2:]] == ["4", "4"]


@pytest.mark.parametrize(("chosen", "names"), [("2, 3", ["2", "3"]), ("GPU-1a,", ["GPU-1a"]), ("", [])])
def test_gpus_are_those_that_cuda_may_see(
    monkeypatch: pytest.MonkeyPatch, chosen: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus() == names


def test_only_what_is_wanted_is_made(tmp_path: Path) -> None:
    result, _ = SCRIPTED.session(tmp_path, "a:0,b:0", wanted=lambda run: run.variant == "b")
    assert names(result) == {"finished": ["b seed 0"], "left": ["a seed 0"]}


def test_changed_settings_are_refused_with_what_changed(tmp_path: Path) -> None:
    SCRIPTED.session(tmp_path, "a:0")
    (run,) = SCRIPTED.runs(tmp_path, "a:0")
    run.check()
    (changed,) = SCRIPTED.runs(tmp_path, "a:0", {"trainer": {"max_epochs": 9}})
    with pytest.raises(InputError, match=r"recipe.trainer.max_epochs was null, is 9.*delete this folder"):
        changed.check()
    (tmp_path / "a/seed-0/run.json").write_text("{")
    with pytest.raises(
        InputError, match=r"run\.json: expected a JSON file .*; delete .*seed-0 to make this run again"
    ):
        run.check()


@pytest.mark.parametrize("callbacks", [None, {"class_path": "A"}, [{"class_path": "A"}, {"class_path": "B"}]])
def test_the_timer_joins_the_callbacks_of_a_recipe(tmp_path: Path, callbacks: Any) -> None:
    (run,) = SCRIPTED.runs(tmp_path, "a:0", {"trainer": {"callbacks": callbacks, "max_epochs": 1}})
    run.begin()
    trainer = yaml.safe_load((run.folder / "recipe.yaml").read_text())["trainer"]
    *others, timer = trainer["callbacks"]
    assert others == ([] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks])
    assert timer["class_path"].endswith(".Timer")
    assert trainer["max_epochs"] == 1


def test_an_error_that_another_process_has_taken_away(tmp_path: Path) -> None:
    (run,) = SCRIPTED.runs(tmp_path, "a:0")
    run.begin()
    run.fail("lost")
    assert run.why() == "lost"
    run.begin()
    assert run.why() == "it is being tried again by another process"


def test_the_checkpoint_is_what_training_leaves() -> None:
    from rga_reid.training.trainer import LAST

    assert ablation_run.LAST == LAST


def test_differences_name_the_keys() -> None:
    one, two = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert changed_settings(one, two) == ["a.c was [1], is [2]", "d was 2, is null", "e was null, is 3"]
    assert changed_settings(one, one) == []
    (line,) = changed_settings({"k" * 9999: "a" * 9999}, {})
    assert len(line) < 200
    assert line.endswith("aaa..., is null")


def test_a_run_that_another_session_has_finished_since_is_not_made_again(tmp_path: Path) -> None:
    SCRIPTED.session(tmp_path, "a:0")
    (run,) = SCRIPTED.runs(tmp_path, "a:0")
    before = (run.folder / "result.json").stat()
    job = ablation._Job(run, {}, 1)
    assert not job.start()
    with lock_run(run.folder) as handle:  # it has let go
        assert handle is not None
    assert (run.folder / "result.json").stat().st_mtime_ns == before.st_mtime_ns
    assert names(outcome([run], [run])) == {"finished": ["a seed 0"]}
