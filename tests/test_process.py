"""Signals that stop the program, and locks between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from rga_reid.process import (
    STOP_SIGNALS,
    LockedError,
    Stopped,
    defer_signals,
    handle_signals,
    hold_lock,
    lock,
)
from rga_reid.runtime import run_main

CHECKOUT = Path(__file__).parent.parent
HOLD = """
import sys
from rga_reid.process import hold_lock
with hold_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_against_others_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match="lock: locked"), hold_lock(path):
            pass
        other.kill()
        other.wait()
    for _ in range(2):
        with hold_lock(path), pytest.raises(LockedError), hold_lock(path):  # the same process
            pass


def test_a_lock_can_be_waited_for_and_released_by_another_thread(tmp_path: Path) -> None:
    lock = hold_lock(tmp_path / "lock")
    lock.__enter__()
    thread = threading.Thread(target=lambda: (time.sleep(0.1), lock.__exit__(None, None, None)))
    thread.start()
    with hold_lock(tmp_path / "lock", wait=600):
        assert not (tmp_path / "lock").read_bytes()
    thread.join()


def test_a_lock_that_a_child_inherits_outlives_its_parent(tmp_path: Path) -> None:
    handle = lock(tmp_path / "lock", create=True)
    assert handle is not None
    assert lock(tmp_path / "lock") is None
    words = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[handle]) as child:
        os.close(handle)  # as if this process had been killed
        assert lock(tmp_path / "lock") is None
        child.kill()
    again = lock(tmp_path / "lock")
    assert again is not None
    os.close(again)


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="link"), hold_lock(tmp_path / "link"):
        pass
    with pytest.raises(OSError, match="link"):
        lock(tmp_path / "link", create=True)
    assert (tmp_path / "mine").read_text() == "keep"


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_runs_the_cleanup_and_sets_the_exit_code(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def work() -> int:
        try:
            signal.raise_signal(signum)
        finally:
            cleaned.append(True)
        return 0

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert run_main(work) == 128 + signum
    assert cleaned == [True]
    assert capsys.readouterr().err.count("\n") == 1
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_only_a_later_signal_is_a_new_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches parent and child; the parent's SIGTERM must not interrupt the cleanup of the child."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with handle_signals():
        for seconds, stops in ((0, True), (1.9, False), (2.1, True)):
            now[0] = 100.0 + seconds
            with pytest.raises(Stopped) if stops else nullcontext():
                signal.raise_signal(signal.SIGTERM)


def test_ignored_signals_stay_ignored() -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with handle_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_other_threads_touch_no_handler() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_main(lambda: 7)), daemon=True)
    thread.start()
    thread.join()
    assert codes == [7]


@pytest.mark.parametrize("handled", [True, False])
def test_a_deferred_signal_is_raised_at_the_end(handled: bool) -> None:
    """With and without the program's handlers: as a library, Ctrl-C is Python's."""
    done = []
    expected = Stopped if handled else KeyboardInterrupt
    with pytest.raises(expected):
        if handled:
            with handle_signals():
                defer_twice(done)
        else:
            defer_twice(done)
        raise AssertionError("the signal was lost")
    assert done == ["inner", "outer"]
    with defer_signals():
        pass


def defer_twice(done: list[str]) -> None:
    with defer_signals():
        with defer_signals():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
