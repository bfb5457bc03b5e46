"""CSV files: read into the table of every data set; bad rows refused by file and line."""

import os

import pandas as pd
import pytest

from rga_reid.data import read_table
from rga_reid.errors import InputError

HEADER = "path,pid,camid,split\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("own/crops/a.jpg", "own/crops/b c.jpg", "own/d.jpg", "else/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "own"


def rows(table, folder):
    """The table as plain tuples, paths relative to the folder, null as None."""
    return [
        (os.path.relpath(path, folder), pid, None if pd.isna(camid) else camid, split)
        for path, pid, camid, split in table.itertuples(index=False)
    ]


def csv(folder, text, header=HEADER):
    path = folder / "own.csv"
    path.write_text(header + text, encoding="utf-8")
    return path


def test_csv(folder):
    elsewhere = folder.parent / "else" / "e.jpg"
    text = f'crops/b c.jpg,0012,,gallery\n"d.jpg",-1,3,query\n\n{elsewhere},7,1.0,train\n'
    text += "../else/e.jpg, 8 ,2,gallery\n"
    table = read_table(csv(folder, text))
    assert rows(table, folder) == [
        ("../else/e.jpg", 7, 1, "train"),
        ("d.jpg", -1, 3, "query"),
        ("../else/e.jpg", 8, 2, "gallery"),
        ("crops/b c.jpg", 12, None, "gallery"),
    ]
    assert list(table.columns) == ["path", "pid", "camid", "split"]
    assert str(table.pid.dtype) == str(table.camid.dtype) == "Int64"


def test_csv_with_other_columns_in_other_order_and_a_byte_order_mark(folder):
    path = folder / "OWN.CSV"
    path.write_text("split,note,camid,pid,path\ntrain,x,,1,d.jpg\n", encoding="utf-8-sig")
    assert rows(read_table(path), folder) == [("d.jpg", 1, None, "train")]


@pytest.mark.parametrize("column", ["path", "pid", "camid", "split"])
def test_csv_without_a_column(folder, column):
    header = ",".join(name for name in ("path", "pid", "camid", "split") if name != column)
    path = csv(folder, "a,b,c\n", f"{header}\n")
    with pytest.raises(InputError, match=rf"own\.csv: missing column {column}; .*found {header}"):
        read_table(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("none.jpg,1,1,train", "path: no such image file: .*none.jpg"),
        ("crops,1,1,train", "path: no such image file"),
        (",1,1,train", "path: no such image file"),
        ("d.jpg,,1,train", "pid: expected a whole number, got ''"),
        ("d.jpg,x,1,train", "pid: expected a whole number, got 'x'"),
        ("d.jpg,1.5,1,train", "pid: expected a whole number, got '1.5'"),
        ("d.jpg,1,one,train", "camid: expected a whole number or nothing, got 'one'"),
        ("d.jpg,1,1,test", "split: expected train, query, gallery, got 'test'"),
        ("d.jpg,1,1", "the number of cells differs"),
        ("d.jpg,1,1,train,x", "the number of cells differs"),
        ("crops/a.jpg,1,1,train", "path: 'crops/a.jpg' is in the split train already"),
        ('"d.jpg,1,1,train', "not valid CSV"),
        ("d.jpg," + "9" * 30 + ",1,train", "pid: expected a whole number"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(folder, row, words):
    with pytest.raises(InputError, match=rf"own\.csv, line 3: {words}"):
        read_table(csv(folder, f"crops/a.jpg,1,1,train\n{row}\n"))


def test_many_bad_rows_are_counted(folder):
    with pytest.raises(InputError, match=r"line 2: .*; .*line 3: .*; .*line 4: .* 4 in all, see `data check"):
        read_table(csv(folder, "d.jpg,x,1,train\n" * 4))


def test_an_image_may_be_query_and_gallery(folder):
    assert len(read_table(csv(folder, "d.jpg,1,1,query\nd.jpg,1,1,gallery\n"))) == 2


def test_csv_files_that_are_none(folder):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        read_table(folder / "none.csv")
    with pytest.raises(InputError, match="no rows below the header"):
        read_table(csv(folder, ""))
    with pytest.raises(InputError, match=r"missing column .*found an empty file"):
        read_table(csv(folder, "", header=""))
    (folder / "own.csv").write_bytes(HEADER.encode() + b"\xff.jpg,1,1,train\n")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_table(folder / "own.csv")
    (folder / "dir.csv").mkdir()
    with pytest.raises(InputError, match="expected a file, found a folder"):
        read_table(folder / "dir.csv")
