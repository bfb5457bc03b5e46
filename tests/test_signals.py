"""Signals that ask a program to stop."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from rga_reid.process import STOP_SIGNALS, Stopped, defer_signals, handle_signals
from rga_reid.runtime import run_main


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_cleans_up_and_has_its_code(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def work() -> int:
        try:
            signal.raise_signal(signum)
            time.sleep(10)
        finally:
            cleaned.append(True)
        return 0

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert run_main(work) == 128 + signum
    assert cleaned == [True]
    assert capsys.readouterr().err.count("\n") == 1
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_signals_that_come_together_are_one_wish() -> None:
    """Ctrl-C reaches parent and child; the SIGTERM of the parent must not stop the cleaning of the child."""
    cleaned = []
    with pytest.raises(Stopped) as stop, handle_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            cleaned.append(True)
    assert (stop.value.signum, cleaned) == (signal.SIGINT, [True])


def test_a_later_signal_is_a_new_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an interruption was lost on the way, the next one stops the program."""
    now = [100.0]
    monkeypatch.setattr("rga_reid.process.time.monotonic", lambda: now[0])
    with handle_signals():
        for seconds, stops in ((0, True), (1.9, False), (2.1, True)):
            now[0] = 100.0 + seconds
            try:
                signal.raise_signal(signal.SIGTERM)
            except Stopped:
                assert stops
            else:
                assert not stops


def test_signals_that_are_ignored_stay_so() -> None:
    """As under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_in_another_thread_no_signal_is_touched() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_main(lambda: 7)), daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert codes == [7]


def test_cleaning_comes_to_its_end() -> None:
    done = []
    with pytest.raises(Stopped) as stop, handle_signals():
        try:
            with defer_signals():
                with defer_signals():
                    signal.raise_signal(signal.SIGTERM)
                    done.append("inner")
                done.append("outer")
        finally:
            done.append(signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
    assert (done, stop.value.signum) == (["inner", "outer", True], signal.SIGTERM)


def test_cleaning_in_a_program_that_handles_no_signals() -> None:
    """As a library is used: Ctrl-C is Python's."""
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_signals():
            signal.raise_signal(signal.SIGINT)
            done.append(True)
        raise AssertionError("Ctrl-C was lost")
    assert done == [True]
    with defer_signals():
        pass
