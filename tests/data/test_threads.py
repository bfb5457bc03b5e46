"""Work over many files: in order, stopped by the first error, with a bar on a terminal only."""

import sys
import time

import pytest

from rga_reid.data.images import map_in_threads


class Counted:
    """Tells when somebody works on it."""

    def __init__(self, taken):
        self.taken = taken

    def __str__(self):
        self.taken.append(self)
        return ""


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_the_order_of_the_items(threads):
    assert list(map_in_threads(lambda n: n * n, range(500), threads, "squaring")) == [
        n * n for n in range(500)
    ]


def test_the_first_error_drops_the_rest():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.001)
        if number == 3:
            raise ValueError(number)

    with pytest.raises(ValueError, match="3"):
        list(map_in_threads(work, range(4000), 2, "working"))
    assert len(begun) < 2000


def test_items_are_taken_up_as_results_are_taken():
    taken = []
    results = map_in_threads(str, [Counted(taken) for _ in range(900)], 2, "counting")
    next(results)
    assert len(taken) < 100
    assert len([*results]) == 899
    assert len(taken) == 900


@pytest.mark.parametrize(
    ("terminal", "items", "bar"), [(True, 1000, True), (True, 999, False), (False, 1000, False)]
)
def test_a_bar_for_long_work_on_a_terminal(monkeypatch, capsys, terminal, items, bar):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert list(map_in_threads(int, range(items), 2, "counting")) == list(range(items))
    captured = capsys.readouterr()
    assert ("counting" in captured.err) is bar
    assert captured.out == ""
