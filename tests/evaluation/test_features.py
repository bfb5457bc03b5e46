"""Labelled features: forms of input, bad input, files under several names."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import LabelledFeatures
from rga_reid.evaluation.features import identify_files, row_norms

EYE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "values",
    [
        [7, None, 2**60 + 1],
        np.array([7, None, 2**60 + 1], dtype=object),
        np.ma.MaskedArray([7, 0, 2**60 + 1], mask=[0, 1, 0]),
        pd.Series([7, None, 2**60 + 1], dtype="Int64", index=[9, 8, 7]),
    ],
)
def test_forms_of_labels(values: Any) -> None:
    labelled = LabelledFeatures(EYE, values, values)
    for labels in (labelled.pids, labelled.camids):
        assert labels.tolist() == [7, pd.NA, 2**60 + 1]
        assert labels.index.tolist() == [0, 1, 2]


def test_null_in_floating_point_labels() -> None:
    for values in (np.array([7, np.nan, 8]), torch.tensor([7, torch.nan, 8.0]), [7.0, float("nan"), 8]):
        assert LabelledFeatures(EYE, values).pids.tolist() == [7, pd.NA, 8]
    assert LabelledFeatures(EYE, torch.tensor([1, 2, 3])).pids.tolist() == [1, 2, 3]


def test_features_are_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", EYE)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert np.shares_memory(LabelledFeatures(mapped, [1, 2, 3]).features, mapped)
    tensor = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    assert LabelledFeatures(tensor, [1, 2, 3]).features.dtype == np.float32


def test_rows_can_be_selected() -> None:
    table = pd.DataFrame({"pid": [7, 8, 9], "path": ["a", None, Path("c")], "other": 0}, index=[4, 5, 6])
    labelled = LabelledFeatures.from_table(EYE, table)
    assert labelled.camids is None
    for rows in ([2, 1], np.array([False, True, True])):
        part = labelled.select(rows)
        assert sorted(part.pids) == [8, 9]
        np.testing.assert_array_equal(part.features, EYE[rows])
        assert [path for path in part.paths if not pd.isna(path)] == ["c"]
        assert part.table["camid"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": EYE[0]}, r"q_features: expected a matrix .* \(3,\)"),
        ({"features": EYE[:0]}, r"q_features: expected a matrix .* \(0, 3\)"),
        ({"features": EYE.astype(int)}, r"q_features: .* int64"),
        ({"features": EYE.astype(str)}, r"q_features: .* <U"),
        ({"features": EYE + 1j}, r"q_features: .* complex64"),
        ({"features": torch.ones(3, 2, dtype=torch.bool)}, r"q_features: .* bool"),
        ({"pids": [7]}, r"q_pids: expected 3 values.* 1$"),
        ({"pids": None}, r"q_pids: expected 3 identities"),
        ({"pids": [[7, 8, 9]] * 3}, r"q_pids: expected"),
        ({"pids": [7, 8, 7.5]}, r"q_pids: expected whole numbers"),
        ({"pids": [7, "8", 7.5]}, r"q_pids: expected whole numbers or text.* mixed"),
        ({"pids": [b"7", b"8", b"9"]}, r"q_pids: expected whole numbers or text.* bytes"),
        ({"pids": [True, False, True]}, r"q_pids: expected whole numbers.* boolean"),
        ({"pids": np.array([2**64 - 1, 1, 1], np.uint64)}, r"q_pids: .* 64 bits"),
        ({"camids": [1]}, r"q_camids: expected 3 values.* 1$"),
        ({"camids": [["a"], "b", "c"]}, r"q_camids: expected whole numbers"),
        ({"paths": ["a"]}, r"q_paths: expected 3 values.* 1$"),
        ({"paths": ["a", "b", 5]}, r"q_paths: row 2: .* 5$"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"features": EYE, "pids": [7, 8, 9], "camids": [1, 2, 3], "paths": ["a", "b", "c"]}
    assert len(LabelledFeatures(**good)) == 3
    with pytest.raises(InputError, match=message) as caught:
        LabelledFeatures(**good | change, name="q")
    assert "\n" not in str(caught.value)


def test_a_file_has_one_key_under_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes(b"the same bytes")
    Path("data").mkdir()
    os.symlink(tmp_path / "a.jpg", "link.jpg")
    os.symlink(".", "folder")
    os.link("a.jpg", "data/hard.jpg")
    spellings = ["a.jpg", "./a.jpg", "data/../a.jpg", str(tmp_path / "a.jpg"), "link.jpg", "folder/a.jpg"]
    assert identify_files(pd.Series([*spellings, "data/hard.jpg"], dtype="str")).nunique() == 1
    missing = ["c.jpg", "./c.jpg", str(tmp_path / "c.jpg"), "data//../c.jpg"]
    assert identify_files(pd.Series(missing, dtype="str")).nunique() == 1
    others = identify_files(pd.Series(["a.jpg", "b.jpg", "c.jpg", None, None, "x\0"], dtype="str"))
    assert others.nunique() == 4
    assert others.isna().tolist() == [False, False, False, True, True, False]


def test_signalling_nan_is_an_error_without_a_warning() -> None:
    features = np.ones((3, 4), np.float32)
    features.view(np.uint32)[1, 2] = 0x7F800001
    with warnings.catch_warnings(), pytest.raises(InputError, match="row 1"):
        warnings.simplefilter("error")
        row_norms(features, "features", allow_zero=True)
