"""Features written and read again, and files that are not what they should be."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.inference.feature_files import read_features, write_features

FEATURES = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.npz"


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.array(values, dtype="Int64") for name, values in columns.items()})


def test_what_is_written_is_read(path: Path) -> None:
    written = table(pid=[7, -1, 7], camid=[1, 2, 3])
    written["path"] = ["a.jpg", "b c.jpg", "ä/日本.jpg"]
    write_features(path, FEATURES, written)
    features, read = read_features(path)
    np.testing.assert_array_equal(features, FEATURES)
    pd.testing.assert_frame_equal(read, written[["path", "pid", "camid"]], check_dtype=False)
    texts = pd.Series(["a"], dtype="str").dtype  # pandas 2 calls it object
    assert list(read.dtypes) == [texts, pd.Int64Dtype(), pd.Int64Dtype()]


def test_the_arrays_are_plain(path: Path) -> None:
    write_features(path, torch.from_numpy(FEATURES).double(), table(pid=[7, 8, 9]).assign(path=list("abc")))
    with np.load(path, allow_pickle=False) as file:
        kinds = {name: file[name].dtype for name in file.files}
    assert kinds == {"features": np.float32, "pids": np.int64, "paths": np.dtype("<U1")}


def test_what_is_unknown_stays_unknown(path: Path) -> None:
    write_features(path, FEATURES, table(pid=[7, None, -1], camid=[None, None, None]))
    with np.load(path) as file:
        assert set(file.files) == {"features", "pids", "pids_known"}
        assert file["pids_known"].tolist() == [True, False, True]
    read = read_features(path)[1]
    assert list(read.columns) == ["pid"]
    assert read["pid"].isna().tolist() == [False, True, False]
    assert read["pid"].dropna().tolist() == [7, -1]


def test_features_alone(path: Path) -> None:
    write_features(path, FEATURES, pd.DataFrame(index=range(3)))
    features, read = read_features(path)
    assert len(features) == len(read) == 3
    assert list(read.columns) == []


def test_the_name_is_kept_and_the_file_replaced(tmp_path: Path) -> None:
    target = tmp_path / "features"  # NumPy alone would write features.npz
    for _ in range(2):
        write_features(target, FEATURES, table(pid=[1, 2, 3]))
    assert os.listdir(tmp_path) == ["features"]
    assert read_features(target)[1]["pid"].tolist() == [1, 2, 3]


def test_features_stay_in_the_file_unless_compressed(path: Path) -> None:
    for matrix in (
        FEATURES,
        np.asfortranarray(FEATURES),
        FEATURES.astype(np.float16),
        FEATURES.astype(">f8"),
    ):
        np.savez(path, other=np.ones(5), features=matrix, pids=np.arange(3))
        stored = read_features(path)[0]
        np.savez_compressed(path.with_name("small.npz"), features=matrix)
        unpacked = read_features(path.with_name("small.npz"))[0]
        assert (isinstance(stored, np.memmap), isinstance(unpacked, np.memmap)) == (True, False)
        assert stored.dtype == matrix.dtype
        np.testing.assert_array_equal(stored, matrix)
        np.testing.assert_array_equal(unpacked, matrix)


def test_files_of_others(path: Path) -> None:
    """Other types of the same content, and arrays that are not ours."""
    np.savez_compressed(
        path,
        features=FEATURES.astype(np.float16),
        pids=np.array([7, 8, 9], np.uint8),
        camids=np.array([1, 2, 3], np.int32),
        model=np.array({"name": "theirs"}, dtype=object),
    )
    features, read = read_features(path)
    assert features.dtype == np.float16
    assert read["pid"].tolist() == [7, 8, 9]
    assert str(read["camid"].dtype) == "Int64"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"expected an array 'features', found none"),
        ({"embeddings": FEATURES}, r"expected an array 'features', found embeddings"),
        (
            {"features": FEATURES[0]},
            r"array 'features': expected floating-point numbers .* found float32 \(2,\)",
        ),
        ({"features": FEATURES[:0]}, r"array 'features': expected floating-point numbers"),
        ({"features": FEATURES.astype(int)}, r"array 'features': .* found int64"),
        ({"features": FEATURES.astype(object)}, r"array 'features' is pickled or damaged"),
        ({"features": FEATURES, "pids": np.array([1, None, 2])}, r"array 'pids' is pickled or damaged"),
        (
            {"features": FEATURES, "pids": np.ones(3)},
            r"array 'pids': expected 3 whole numbers.* float64 \(3,\)",
        ),
        (
            {"features": FEATURES, "camids": np.ones(2, int)},
            r"array 'camids': expected 3 .* found int64 \(2,\)",
        ),
        ({"features": FEATURES, "paths": np.ones(3)}, r"array 'paths': expected 3 texts"),
        ({"features": FEATURES, "pids": np.array([1, 2, 2**63], np.uint64)}, r"array 'pids': .* below 2\^63"),
        (
            {"features": FEATURES, "pids": np.ones(3, int), "pids_known": np.ones(3, int)},
            r"array 'pids_known': expected 3 truth values",
        ),
    ],
)
def test_bad_arrays_are_named(path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_features(path)
    assert str(caught.value).startswith(str(path))


def test_bad_files_are_named(path: Path, tmp_path: Path) -> None:
    write_features(path, FEATURES, table(pid=[1, 2, 3]))
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"features, pids\n",
        "cut": whole[: len(whole) // 2],
        "flipped": whole.replace(FEATURES.tobytes(), FEATURES[::-1].tobytes()),
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"features\.npz") as caught:
            read_features(path)
        assert "\n" not in str(caught.value), name
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, FEATURES)
    with pytest.raises(InputError, match=r"found a single array \(.npy\)"):
        read_features(tmp_path / "single.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", b"not an array")
    with pytest.raises(InputError, match="array 'features'"):
        read_features(path)
    for wrong in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(InputError, match=r"no such file|expected a file, found a folder"):
            read_features(wrong)


@pytest.mark.parametrize(
    ("features", "rows", "message"),
    [
        (FEATURES, table(pid=[1, 2]), r"features: expected a matrix with 2 rows.* got \(3, 2\)"),
        (FEATURES[0], table(pid=[1, 2]), r"features: expected a matrix with 2 rows.* got \(2,\)"),
        (FEATURES, pd.DataFrame({"path": ["a", None, "c"]}), r"table: row 1: expected a path, found none"),
    ],
)
def test_nothing_is_written_of_what_does_not_fit(path: Path, features: Any, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_features(path, features, rows)
    assert not path.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write there"):
        write_features(tmp_path / "missing" / "features.npz", FEATURES, table(pid=[1, 2, 3]))


# Features alone, beside a table ----------------------------------------------------------------------------


def beside(folder: Path, text: str, features: Any = FEATURES) -> Path:
    np.save(folder / "other.npy", features)
    (folder / "other.csv").write_text(text, encoding="utf-8")
    return folder / "other.npy"


def test_npy_with_a_table_beside_it(tmp_path: Path) -> None:
    path = beside(tmp_path, "note,pid,path,camid\nx,7,a.jpg,1\nx,,b.jpg,\nx,-1,,3.0\n")
    features, labels = read_features(path)
    assert isinstance(features, np.memmap)
    np.testing.assert_array_equal(features, FEATURES)
    assert labels["pid"].tolist() == [7, pd.NA, -1]
    assert labels["camid"].tolist() == [1, pd.NA, 3]
    assert labels["path"].iloc[:2].tolist() == ["a.jpg", "b.jpg"]
    assert labels["path"].isna().tolist() == [False, False, True]
    assert (labels["pid"].dtype, labels["camid"].dtype) == (pd.Int64Dtype(), pd.Int64Dtype())
    assert list(read_features(beside(tmp_path, "pid\n7\n\n8\n"))[1].columns) == ["pid"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pid\n1\n2\n", r"other\.csv: expected 3 rows, one for each feature, found 2"),
        ("pid\n1\n2.5\n3\n", r"other\.csv: column 'pid': expected whole numbers, empty where unknown"),
        ("pid,camid\n1,a\n2,b\n3,c\n", r"other\.csv: column 'camid': expected whole numbers"),
        ("", r"other\.csv: not a CSV file in UTF-8"),
        ('pid\n"1\n2\n3\n', r"other\.csv: not a CSV file in UTF-8"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_features(beside(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bad_npy_files_are_named(tmp_path: Path) -> None:
    labels = "pid\n1\n2\n3\n"
    with pytest.raises(
        InputError, match=r"other\.npy: expected floating-point numbers .* found int64 \(3,\)"
    ):
        read_features(beside(tmp_path, labels, np.arange(3)))
    with pytest.raises(InputError, match=r"other\.npy: not an \.npy file of plain numbers"):
        read_features(beside(tmp_path, labels, np.array([{}] * 3)))
    path = beside(tmp_path, labels)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"other\.npy: not an \.npy file"):
        read_features(path)
    with open(path, "wb") as file:
        np.savez(file, features=FEATURES)
    with pytest.raises(InputError, match=r"other\.npy: expected a single array \(\.npy\), found an \.npz"):
        read_features(path)
    path.with_suffix(".csv").unlink()
    np.save(path, FEATURES)
    with pytest.raises(
        InputError, match=r"other\.csv: no such file; the labels of features in an \.npy file"
    ):
        read_features(path)
    with pytest.raises(InputError, match=r"missing\.npy: no such file"):
        read_features(tmp_path / "missing.npy")
