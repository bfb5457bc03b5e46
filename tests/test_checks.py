"""Checks of single values: what passes, and the words of what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.errors import InputError, check_choice, check_int
from rga_reid.inference.verify import read_threshold
from rga_reid.inputs import is_number

LONG = 10**400  # JSON knows it, a float cannot hold it


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers(value: Any) -> None:
    assert type(check_int("k", value, 3)) is int
    assert check_int("k", value, 3) == 3


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", np.float32(1), LONG * -1])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^k: expected a whole number of at least 1, got .{1,60}$"):
        check_int("k", value)


def test_a_range_of_whole_numbers() -> None:
    assert [check_int("k", value, 0, 9) for value in (0, 9)] == [0, 9]
    for value in (-1, 10, 5.0):
        with pytest.raises(InputError, match=f"^k: expected a whole number from 0 to 9, got {value}$"):
            check_int("k", value, 0, 9)


def test_one_of() -> None:
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(InputError, match=r"^kind: expected a or b, got 'c'$"):
        check_choice("kind", "c", ("a", "b"))
    with pytest.raises(InputError, match=r"^stride: expected 1 or 2, got \[1\]$"):
        check_choice("stride", [1], (1, 2))


def test_numbers() -> None:
    assert all(map(is_number, (0, -1, 0.5, 2**1000)))
    assert not any(map(is_number, (True, None, "1", float("nan"), float("-inf"), LONG, -LONG, [])))


def test_a_threshold_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"threshold": LONG}))
    with pytest.raises(InputError, match="expected the JSON of rga-reid calibrate, with a number"):
        read_threshold(file)
