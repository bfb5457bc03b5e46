"""Processes that measure: they answer, fail or die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from rga_reid.experiments.benchmark import in_fresh_processes
from rga_reid.process import Stopped, handle_signals


def process_id(case: int) -> float:
    return float(os.getpid() * 10 + case)


def die(case: int) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def fail(case: int) -> float:
    raise ArithmeticError(f"case {case}")


def take_long(file: Path) -> float:
    time.sleep(20)
    file.touch()
    return 0.0


def test_each_case_has_a_process() -> None:
    found = in_fresh_processes(process_id, [1, 2])
    assert [value % 10 for value in found] == [1, 2]
    assert len({value // 10 for value in found} | {os.getpid()}) == 3


def test_errors_are_raised_here() -> None:
    with pytest.raises(ArithmeticError, match="case 3"):
        in_fresh_processes(fail, [3])
    with pytest.raises(BrokenProcessPool):
        in_fresh_processes(die, [1])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_nobody_waits_for_a_process_that_is_not_wanted_any_more(signum: int, tmp_path: Path) -> None:
    def stop() -> None:
        until = time.monotonic() + 120
        while not multiprocessing.active_children():
            if time.monotonic() > until:
                return  # a signal would meet another test
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), signum)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped), handle_signals():
        in_fresh_processes(take_long, [tmp_path / "done"])
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "done").exists()
