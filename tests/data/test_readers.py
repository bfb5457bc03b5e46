"""Every layout read into the same table; every wrong one refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rga_reid.data import load_card, read_table, read_training
from rga_reid.data.cards import Card, Source, Split
from rga_reid.errors import InputError
from tests.folders import touch

MARKET = {
    "bounding_box_train": [
        "0007_c3s1_000001_00.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000451_01.jpg.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": ["0001_c6s1_001051_00.jpg", "0000_c1s1_000001_01.jpg", "-1_c4s1_000401_03.jpg"],
}


@pytest.fixture
def market(tmp_path: Path) -> Path:
    names = [f"{folder}/{name}" for folder, names in MARKET.items() for name in names]
    return touch(tmp_path / "market", *names)


def rows(table: pd.DataFrame, root: Path) -> list[tuple[Any, ...]]:
    """Return the table as plain tuples, paths relative to root, null as None."""
    return [
        (os.path.relpath(path, root), *(None if pd.isna(label) else label for label in (pid, camid)), split)
        for path, pid, camid, split in table.itertuples(index=False)
    ]


# --- Market-1501 ---------------------------------------------------------------------------------------


def test_market(market: Path) -> None:
    table = read_table(market)
    assert rows(table, market) == [
        ("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"),
        ("bounding_box_train/0002_c2s1_000451_01.jpg.jpg", 2, 2, "train"),
        ("bounding_box_train/0007_c3s1_000001_00.jpg", 7, 3, "train"),
        ("query/0001_c1s1_001051_00.jpg", 1, 1, "query"),
        ("bounding_box_test/-1_c4s1_000401_03.jpg", -1, 4, "gallery"),
        ("bounding_box_test/0000_c1s1_000001_01.jpg", 0, 1, "gallery"),
        ("bounding_box_test/0001_c6s1_001051_00.jpg", 1, 6, "gallery"),
    ]
    assert list(table.columns) == ["path", "pid", "camid", "split"]
    assert str(table.pid.dtype) == str(table.camid.dtype) == "Int64"
    touch(market, "query/Thumbs.db", "query/.DS_Store", "query/desktop.ini", "query/@eaDir/a.jpg")
    touch(market, "gt_query/0001_c1s1_001051_00_good.mat", "readme.txt")
    pd.testing.assert_frame_equal(table, read_table(str(market), load_card("market1501")))


def test_the_first_odd_names_are_listed(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(market.parent)
    assert read_table("market").path[0] == "market/bounding_box_train/0002_c1s1_000451_03.jpg"
    odd = ["0001_c1s1_001051_00.jpg.part", "0001_c1s1_001051.jpg", "notes.txt", "odd1.jpg", "odd2.jpg"]
    touch(market, *[f"query/{name}" for name in odd])
    with pytest.raises(InputError, match="5 in all") as error:
        read_table(market)
    assert [name in str(error.value) for name in odd] == [True] * 3 + [False] * 2


def test_entries_that_are_not_images(market: Path) -> None:
    (market / "query" / "0009_c1s1_001051_00.jpg").mkdir()
    (market / "query" / "0009_c2s1_001051_00.jpg").symlink_to("nowhere")
    with open(os.fsencode(market) + b"/query/0009_c3s1_\xff.jpg", "wb"):
        pass
    with pytest.raises(InputError, match=r"0009_c1.*not a file; .*0009_c2.*not a file; .*c3s1_\\xff\.jpg"):
        read_table(market)


def test_wrong_roots_say_what_was_found(market: Path, tmp_path: Path) -> None:
    touch(tmp_path, "other/pictures/a.jpg", "folders/train/1/a.jpg")
    (tmp_path / "empty").mkdir()
    for root, words in (
        (tmp_path / "none", r"none: .*Market-1501.*no such folder"),
        (market / "query" / MARKET["query"][0], "found a file"),
        (tmp_path / "empty", "bounding_box_train/ .*empty"),
        (tmp_path / "other", "bounding_box_train/ .*pictures/"),
        (tmp_path / "folders", "'folders'"),
        (market.parent, r"did you mean .*market\?"),
    ):
        with pytest.raises(InputError, match=words):
            read_table(root)
    (market / "query" / MARKET["query"][0]).unlink()
    with pytest.raises(InputError, match=r"query: .*empty"):
        read_table(market)


def test_groups_of_a_pattern_are_integers_if_all_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/007_cam3.jpg", "train/00-1_cam11.jpg")
    pattern = r"(?P<pid>[\w-]+)_(?P<camid>\w+)\.jpg"
    card = Card("c", "C", "names", {"train": Split((Source(("train",)),))}, pattern=pattern)
    table = read_table(tmp_path, card)
    assert (table.pid.tolist(), table.camid.tolist()) == ([-1, 7], ["cam11", "cam3"])
    touch(tmp_path, "train/Anna_cam3.jpg")
    table = read_table(tmp_path, card)
    assert table.pid.tolist() == ["-1", "007", "Anna"]


# --- list files ----------------------------------------------------------------------------------------

TRAIN = ("train", "train_v2")
LISTS = Card(
    "lists",
    "Two versions",
    "lists",
    {
        "train": Split((Source(TRAIN, "list_train.txt"), Source(TRAIN, "val.txt"))),
        "gallery": Split((Source(("test", "test_v2"), "list_gallery.txt"),)),
    },
    pattern=r"\d+_\d+_(?P<camid>\d+)_\w+\.jpg",
)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    images = ["0000/0000_000_01_a.jpg", "0001/0001_002_15_b.jpg"]
    touch(tmp_path, *[f"train_v2/{name}" for name in images])
    touch(tmp_path, "test_v2/0000/0000_000_05_c.jpg")
    (tmp_path / "list_train.txt").write_text(f"{images[1]} 1\n")
    (tmp_path / "val.txt").write_text(f"\n{images[0]}\t0\r\n\n")
    (tmp_path / "list_gallery.txt").write_text("0000/0000_000_05_c.jpg  3059")
    return tmp_path


def test_lists(listed: Path) -> None:
    assert rows(read_table(listed, LISTS), listed) == [
        ("train_v2/0000/0000_000_01_a.jpg", 0, 1, "train"),
        ("train_v2/0001/0001_002_15_b.jpg", 1, 15, "train"),
        ("test_v2/0000/0000_000_05_c.jpg", 3059, 5, "gallery"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"0000/0000_000_01_a.jpg", ", line 1: .*'path pid'"),
        (b"\n0000/0000_000_01_a.jpg x\ny", ", line 3: .*'path pid'"),
        (b"0000/none_a.jpg 1", ", line 1: .*does not fit"),
        (b"0000/0000_000_01_z.jpg 1", ", line 1: no such image file: .*0000_000_01_z.jpg"),
        (b"../list_train.txt 1", ", line 1: .*outside"),
        (b"/etc/0000_000_01_a.jpg 1", ", line 1: .*outside"),
        (b"\n", ": .*empty"),
        (b"\xff\xfe 1\n", ": .*UTF-8"),
        (None, ": .*expected this list file"),
    ],
)
def test_bad_list_files(listed: Path, content: bytes | None, words: str) -> None:
    (listed / "val.txt").unlink()
    if content is not None:
        (listed / "val.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"val\.txt{words}"):
        read_table(listed, LISTS)


# --- one folder per identity ---------------------------------------------------------------------------


def test_identity_folders_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/0012/b.jpg", "train/0012/a.PNG", "train/3/x.jpg", "query/5/0005_c2_x.jpg")
    touch(tmp_path, "gallery/05/0005_c11s1.jpg", "gallery/5/.hidden.jpg", "query/5/n.txt")
    touch(tmp_path, "gallery/00-1/j.jpg", "gallery/0000/d.jpg")  # MARS writes junk and distractors so
    touch(tmp_path, "gallery/@eaDir/05.jpg/x.jpg", "__MACOSX/train/3/x.jpg", "train/#recycle/x.jpg")
    assert rows(read_table(tmp_path, "folders"), tmp_path) == [
        ("train/0012/a.PNG", 12, None, "train"),
        ("train/0012/b.jpg", 12, None, "train"),
        ("train/3/x.jpg", 3, None, "train"),
        ("query/5/0005_c2_x.jpg", 5, 2, "query"),
        ("gallery/00-1/j.jpg", -1, None, "gallery"),
        ("gallery/0000/d.jpg", 0, None, "gallery"),
        ("gallery/05/0005_c11s1.jpg", 5, 11, "gallery"),
    ]
    alone = touch(tmp_path / "alone", "7/a.jpg", "11/b.jpg")
    assert rows(read_table(alone, "folders"), alone) == [
        ("11/b.jpg", 11, None, "train"),
        ("7/a.jpg", 7, None, "train"),
    ]


@pytest.mark.parametrize("special", [(-1,), (-1, "crowd")])
def test_named_folders_keep_their_names(tmp_path: Path, special: tuple[int | str, ...]) -> None:
    touch(tmp_path, "train/zoe/1.jpg", "query/bob/1.jpg", "gallery/bob/2.jpg", "gallery/007/2.jpg")
    touch(tmp_path, "gallery/00-1/j.jpg", "gallery/crowd/2.jpg")
    card = load_card("folders")
    table = read_table(tmp_path, Card("own", "Own", "identities", card.splits, None, special))
    pids = dict(zip(table.path.str.split("/").str[-2], table.pid, strict=True))
    assert pids == {"00-1": "-1", **{name: name for name in ("007", "bob", "zoe", "crowd")}}


def test_a_special_folder_among_numbered_ones(tmp_path: Path) -> None:
    touch(tmp_path, "train/12/1.jpg", "train/0013/1.jpg", "gallery/crowd/2.jpg")
    card = Card("own", "Own", "identities", load_card("folders").splits, None, ("crowd",))
    assert read_table(tmp_path, card).pid.tolist() == ["13", "12", "crowd"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/5/a.jpg", "train/6/a.jpg", "train/backup/a.jpg", "train/-1/a.jpg"], "train/backup: "),
        (["train/5/a.jpg", "train/005/a.jpg"], "'005' and '5'"),
        (["train/5/a.jpg", "train/a.jpg"], "train/a.jpg: .*/train/IDENTITY/a.jpg"),
        (["train/5/deep/a.jpg"], "train/5/deep/a.jpg: .*/train/IDENTITY/a.jpg"),
    ],
)
def test_identity_folders_that_are_refused(tmp_path: Path, files: list[str], words: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path, "folders")


def test_skipped_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/5/a.jpg", "train/5/b.heic", "train/6/c.HEIC", "train/6/d", "train/6/e.jfif")
    assert len(read_table(tmp_path, "folders")) == 2
    assert "skipped 3 files (.heic, no suffix)" in caplog.text


# --- CSV -----------------------------------------------------------------------------------------------

HEADER = "path,pid,camid,split\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    touch(tmp_path, "own/crops/a.jpg", "own/crops/b c.jpg", "own/d.jpg", "else/e.jpg")
    return tmp_path / "own"


def csv(folder: Path, text: str) -> Path:
    path = folder / "own.csv"
    path.write_text(HEADER + text, encoding="utf-8")
    return path


def test_csv(own: Path) -> None:
    elsewhere = own.parent / "else" / "e.jpg"
    text = f'crops/b c.jpg,0012,,gallery\n"d.jpg",-1,3,query\n\n{elsewhere},7,1.0,train\n'
    text += "../else/e.jpg, 8 ,2,gallery\nd.jpg,-1,3,gallery\n"
    table = read_table(csv(own, text))
    assert rows(table, own) == [
        ("../else/e.jpg", 7, 1, "train"),
        ("d.jpg", -1, 3, "query"),
        ("../else/e.jpg", 8, 2, "gallery"),
        ("crops/b c.jpg", 12, None, "gallery"),
        ("d.jpg", -1, 3, "gallery"),
    ]
    assert str(table.pid.dtype) == str(table.camid.dtype) == "Int64"


def test_csv_with_other_columns_in_other_order_and_a_byte_order_mark(own: Path) -> None:
    path = own / "OWN.CSV"
    path.write_text("split,note,camid,pid,path\ntrain,x,,1,d.jpg\n", encoding="utf-8-sig")
    assert rows(read_table(path), own) == [("d.jpg", 1, None, "train")]


def test_labels_of_a_csv_file_are_text_unless_all_are_whole_numbers(own: Path) -> None:
    lines = "crops/a.jpg,007,cam1,train\nd.jpg,,02,query\ncrops/a.jpg,3.0,NA,gallery\n"
    assert rows(read_table(csv(own, lines)), own) == [
        ("crops/a.jpg", 7, "cam1", "train"),
        ("d.jpg", None, "02", "query"),
        ("crops/a.jpg", 3, None, "gallery"),
    ]
    named = rows(read_table(csv(own, lines + "d.jpg,Zoë,1,gallery\n")), own)
    assert [pid for _, pid, _, _ in named] == ["007", None, "3.0", "Zoë"]


def test_training_numbers_text_and_leaves_out_the_unknown(own: Path) -> None:
    lines = "crops/a.jpg,zoe,b,train\nd.jpg,Anna,,train\nd.jpg,-1,a,train\nd.jpg,,a,train\n"
    file = csv(own, lines.replace("d.jpg,-1", "./d.jpg,-1").replace("d.jpg,,", "crops/../d.jpg,,"))
    table = read_training([str(file)], ["market1501"])
    assert dict(zip(table.path.map(os.path.basename), table.pid, strict=True)) == {"d.jpg": 0, "a.jpg": 1}
    assert table.pid.dtype == table.camid.dtype == "Int64"
    assert table.camid.isna().sum() == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("none.jpg,1,1,train", "path: .*none.jpg"),
        ("crops,1,1,train", "path: "),
        (",1,1,train", "path: "),
        ("d.jpg,1,1,test", "split: .*'test'"),
        ("d.jpg,1,1", "the number of cells"),
        ("d.jpg,1,1,train,x", "the number of cells"),
        ("crops/a.jpg,1,1,train", "path: .* already"),
        ('"d.jpg,1,1,train', "not valid CSV"),
    ],
)
def test_a_bad_row_is_named(own: Path, row: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"own\.csv, line 3: {words}"):
        read_table(csv(own, f"crops/a.jpg,1,1,train\n{row}"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER.encode(), "no rows"),
        (b"", "empty file"),
        (HEADER.encode() + b"\xff.jpg,1,1,train\n", "UTF-8"),
        (b"path,pid,split\na,b,c\n", "camid; .*found path,pid,split"),
        (b"pid,camid,split\na,b,c\n", "path; .*found pid,camid,split"),
    ],
)
def test_csv_files_without_rows_text_or_columns(own: Path, content: bytes, words: str) -> None:
    (own / "own.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"own\.csv: .*{words}"):
        read_table(own / "own.csv")


def test_limits_on_rows_and_problems(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rga_reid.data.records.MAX_ROWS", 2)
    monkeypatch.setattr("rga_reid.data.records.MAX_PROBLEMS", 2)
    good = "d.jpg,1,1,query\nd.jpg,1,1,gallery\n"
    assert len(read_table(csv(own, good))) == 2
    with pytest.raises(InputError, match=r"a\.jpg: .*at most 2"):
        read_table(csv(own, good + "crops/a.jpg,1,1,train\n"))
    with pytest.raises(InputError, match="more than 2 problems"):
        read_table(csv(own, "d.jpg,1,1,x\n" * 3))
