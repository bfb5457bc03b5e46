"""Feature files: round trips, files of other programs, and files that are refused."""

from __future__ import annotations

import io
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
V1 = Path(__file__).parents[1] / "fixtures" / "v1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.npz"


def make_table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.array(values, dtype="Int64") for name, values in columns.items()})


def test_round_trip(path: Path) -> None:
    written = make_table(pid=[7, -1, 7], camid=[1, 2, 3])
    written["path"] = ["a.jpg", "b c.jpg", "ä/日本.jpg"]
    write_features(path, torch.from_numpy(FEATURES).double(), written)
    features, read = read_features(path)
    np.testing.assert_array_equal(features, FEATURES)
    assert features.dtype == np.float32
    pd.testing.assert_frame_equal(read, written[["path", "pid", "camid"]], check_dtype=False)
    assert list(read.dtypes)[1:] == [pd.Int64Dtype(), pd.Int64Dtype()]
    with np.load(path, allow_pickle=False) as file:  # any program can read it
        assert {name: file[name].dtype.kind for name in file.files} == {
            "features": "f", "pids": "i", "camids": "i", "paths": "U",
        }  # fmt: skip


def test_unknown_labels_stay_unknown(path: Path) -> None:
    write_features(path, FEATURES, make_table(pid=[7, None, -1], camid=[None, None, None]))
    with np.load(path) as file:
        assert set(file.files) == {"features", "pids", "pids_known"}
    read = read_features(path)[1]
    assert list(read.columns) == ["pid"]
    assert read["pid"].tolist() == [7, pd.NA, -1]
    write_features(path, FEATURES, pd.DataFrame(index=range(3)))
    assert read_features(path)[1].shape == (3, 0)


def test_the_name_is_kept_and_the_file_replaced(tmp_path: Path) -> None:
    target = tmp_path / "features"  # NumPy alone would write features.npz
    for pids in ([1, 2, 3], [4, 5, 6]):
        write_features(target, FEATURES, make_table(pid=pids))
    assert os.listdir(tmp_path) == ["features"]
    assert read_features(target)[1]["pid"].tolist() == [4, 5, 6]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "matrix", [np.asfortranarray(FEATURES), FEATURES.astype(np.float16), FEATURES.astype(">f8")]
)
def test_files_of_other_programs(path: Path, save: Any, matrix: np.ndarray) -> None:
    other = np.array({"name": "theirs"}, dtype=object)
    save(path, features=matrix, pids=np.array([7, 8, 9], np.uint8), camids=np.ones(3, np.int32), model=other)
    features, read = read_features(path)
    np.testing.assert_array_equal(features, matrix)
    assert features.dtype == matrix.dtype
    assert read["pid"].tolist() == [7, 8, 9]
    assert str(read["camid"].dtype) == "Int64"


def test_a_file_of_version_1_opens() -> None:
    features, table = read_features(V1 / "features.npz")
    assert (features.dtype, features.shape) == (np.float32, (4, 3))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert table["path"].tolist() == ["a/1.jpg", "b/2.jpg", "ä/3.jpg", "c/4.jpg"]
    assert table["pid"].tolist() == [7, -1, pd.NA, 9]
    assert table["camid"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({}, "'features'"),
        ({"embeddings": FEATURES}, "embeddings"),
        ({"features": FEATURES[0]}, "'features'"),
        ({"features": FEATURES[:0]}, "'features'"),
        ({"features": FEATURES.astype(int)}, "int64"),
        ({"features": FEATURES.astype(object)}, "'features' is pickled"),
        ({"features": FEATURES, "pids": np.array([1, None, 2])}, "'pids' is pickled"),
        ({"features": FEATURES, "pids": np.array(["a", "b", "c"], object)}, r"'pids'.*astype\(str\)"),
        ({"features": FEATURES, "pids": np.ones(3)}, "'pids'"),
        ({"features": FEATURES, "camids": np.ones(2, int)}, "'camids'"),
        ({"features": FEATURES, "paths": np.ones(3)}, "'paths'"),
        ({"features": FEATURES, "pids": np.array([1, 2, 2**63], np.uint64)}, "'pids'"),
        ({"features": FEATURES, "pids": np.ones(3, int), "pids_known": np.ones(3, int)}, "'pids_known'"),
    ],
)
def test_bad_arrays_are_named(path: Path, arrays: dict[str, Any], named: str) -> None:
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=named) as caught:
        read_features(path)
    assert str(caught.value).startswith(str(path))


def npz(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("features.npy", content)
    return buffer.getvalue()


def header(shape: str) -> bytes:
    """Return the header of an ``.npy`` file that promises a shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.encode().ljust(117) + b"\n"


#: a header of 1 MB, in a version of the format that allows 4 GB
LONG_HEADER = b"\x93NUMPY\x02\x00" + (1 << 20).to_bytes(4, "little") + b" " * (1 << 20)


def saved(save: Any, *arrays: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


WHOLE, SINGLE = saved(np.savez, features=FEATURES), saved(np.save, FEATURES)
DAMAGED = {
    "empty": b"",
    "text": b"features, pids\n",
    "cut": WHOLE[: len(WHOLE) // 2],
    "flipped": WHOLE.replace(FEATURES.tobytes(), FEATURES[::-1].tobytes()),
    "single": SINGLE,
    "member": npz(b"not an array"),
    "too-short": npz(header("(1000, 1000)")),
    "too-long": npz(SINGLE + b"more"),
    "huge": npz(header("(1000000000000, 8)")),
    "header": npz(LONG_HEADER),
    "bomb": npz(header("(17000000, 1)") + bytes(68_000_000), zipfile.ZIP_DEFLATED),
    "bzip2": npz(SINGLE, zipfile.ZIP_BZIP2),
    "missing": None,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(path: Path, kind: str) -> None:
    content = DAMAGED[kind]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"features\.npz") as caught:
        read_features(path)
    assert "\n" not in str(caught.value)


def test_an_archive_larger_than_the_free_memory_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(path, features=FEATURES)
    monkeypatch.setattr("rga_reid.inference.feature_files.free_memory", lambda: 100)
    with pytest.raises(InputError, match="memory"):
        read_features(path)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", [0xD800, 0xDFFF, 0x110000, 0xFFFFFFFF])
def test_invalid_unicode_in_paths_is_refused(path: Path, code: int, order: str) -> None:
    texts = np.array(["ab"] * 3)
    texts.view(np.uint32)[1] = code
    swapped = texts.view(np.uint32).astype(f"{order}u4").view(f"{order}U2")
    np.savez(path, features=FEATURES, paths=swapped)
    with pytest.raises(InputError, match=r"features\.npz: array 'paths'"):
        read_features(path)


@pytest.mark.parametrize(
    ("features", "rows", "named"),
    [
        (FEATURES, make_table(pid=[1, 2]), "features"),
        (FEATURES[0], make_table(pid=[1, 2]), "features"),
        (FEATURES, pd.DataFrame({"path": ["a", None, "c"]}), "row 1"),
    ],
)
def test_nothing_is_written_of_a_wrong_table(path: Path, features: Any, rows: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        write_features(path, features, rows)
    assert not path.exists()


def save_npy(folder: Path, text: str, features: Any = FEATURES) -> Path:
    np.save(folder / "other.npy", features)
    (folder / "other.csv").write_text(text, encoding="utf-8")
    return folder / "other.npy"


def test_columns_that_the_file_could_not_tell_apart_are_refused(path: Path) -> None:
    table = pd.DataFrame({"age": [30, None], "age_known": [True, False]})
    with pytest.raises(InputError, match="'age_known': rename it"):
        write_features(path, np.ones((2, 3)), table)
    write_features(path, np.ones((2, 3)), table.drop(columns="age"))
    assert read_features(path)[1]["age_known"].tolist() == [True, False]


def test_npy_with_a_table_beside_it(tmp_path: Path) -> None:
    path = save_npy(tmp_path, "note,pid,path,camid\nx,7,a.jpg,1\nx,,b.jpg,\nx,-1,,3.0\n")
    features, labels = read_features(path)
    assert isinstance(features, np.memmap)
    np.testing.assert_array_equal(features, FEATURES)
    assert labels["pid"].tolist() == [7, pd.NA, -1]
    assert labels["camid"].tolist() == [1, pd.NA, 3]
    assert labels["path"].iloc[:2].tolist() == ["a.jpg", "b.jpg"]
    assert labels["path"].isna().tolist() == [False, False, True]
    assert (labels["pid"].dtype, labels["camid"].dtype) == (pd.Int64Dtype(), pd.Int64Dtype())
    blank = read_features(save_npy(tmp_path, "\ufeffpid\n7\n\n8\n"))[1]
    assert blank["pid"].tolist() == [7, pd.NA, 8]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pid\n1\n2\n", "3 rows"),
        ("pid\n1\n2\n3\n4\n", "3 rows"),
        ("pid,camid\n1,1\n2\n3,3\n", "line 3"),
        ("pid\n1,7\n2,7\n3,7\n", "line 2"),
        ("", "CSV"),
        ('pid\n"1\n2\n3\n', "CSV"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError, match=rf"other\.csv.*{named}") as caught:
        read_features(save_npy(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", DAMAGED["bzip2"], header("(1000000000000, 8)"), LONG_HEADER, None),
        header("(4611686018427387904, 8)"),  # more than 64 bits count
        *(saved(np.save, np.arange(3)), saved(np.save, np.array([{}] * 3))),
    ],
)
def test_bad_npy_files_are_named(
    tmp_path: Path, content: bytes | None, recwarn: pytest.WarningsRecorder
) -> None:
    path = save_npy(tmp_path, "pid\n1\n2\n3\n")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.npy"):
        read_features(path)
    assert not list(recwarn)


def test_an_npy_file_needs_its_table(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", FEATURES)
    with pytest.raises(InputError, match=r"other\.csv"):
        read_features(tmp_path / "other.npy")
