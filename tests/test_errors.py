"""Checks of single values and the helpers for error messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.errors import InputError, check_choice, check_int, did_you_mean, sanitize, short_repr
from rga_reid.inputs import is_number

LARGE = 10**400  # valid JSON, too large for a float


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_every_library_become_int(value: Any) -> None:
    assert type(check_int("k", value, 3)) is int
    assert check_int("k", value, 3, 3) == 3


@pytest.mark.parametrize("value", [0, -1, 10, 1.0, True, None, "1", np.float32(1), -LARGE])
def test_other_values_are_refused_in_one_short_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"^k: .* from 1 to 9, got .{1,60}$"):
        check_int("k", value, 1, 9)


def test_choices() -> None:
    check_choice("kind", "a", ("a", "b"))
    for value in ("c", [1]):
        with pytest.raises(InputError, match=r"^kind: expected a or b, got "):
            check_choice("kind", value, ("a", "b"))


def test_numbers() -> None:
    assert all(map(is_number, (0, -1, 0.5, 2**1000)))
    assert not any(map(is_number, (True, None, "1", float("nan"), float("-inf"), LARGE, -LARGE, [])))


def test_texts_in_messages() -> None:
    assert sanitize("a\x1b[2J\x07人") == "a�[2J�人"
    assert short_repr("x" * 100, 20) == "'xxxxxxxxxxxxxxxx..."
    assert short_repr(LARGE * LARGE**20) == "a int"
    assert did_you_mean("marketl501", ["msmt17", "market1501"]) == "; did you mean market1501?"
    assert did_you_mean("zzz", ["msmt17"]) == ""
