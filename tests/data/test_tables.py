"""Every layout, read into the same table; every wrong one, refused by name."""

import os

import pandas as pd
import pytest

from rga_reid.data import load_card, read_table, table_from_images
from rga_reid.data.cards import Card, Source, Split
from rga_reid.errors import InputError

MARKET = {
    "bounding_box_train": [
        "0007_c3s1_000001_00.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000451_01.jpg.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": ["0001_c6s1_001051_00.jpg", "0000_c1s1_000001_01.jpg", "-1_c4s1_000401_03.jpg"],
}


def made(root, files):
    """Empty files: a table never opens an image."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.fixture
def market(tmp_path):
    return made(
        tmp_path / "market", [f"{folder}/{name}" for folder, names in MARKET.items() for name in names]
    )


def rows(table, root):
    """The table as plain tuples, paths relative to root, null as None."""
    return [
        (
            os.path.relpath(row.path, root),
            *(None if pd.isna(value) else value for value in (row.pid, row.camid)),
            row.split,
        )
        for row in table.itertuples()
    ]


# --- Market-1501 ---------------------------------------------------------------------------------------


def test_market(market):
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
    assert list(table.index) == list(range(7))
    assert all(isinstance(path, str) and os.path.isfile(path) for path in table.path)
    pd.testing.assert_frame_equal(table, read_table(str(market), load_card("market1501")))


def test_a_relative_root_stays_relative(market, monkeypatch):
    monkeypatch.chdir(market.parent)
    assert read_table("market").path[0] == "market/bounding_box_train/0002_c1s1_000451_03.jpg"


def test_litter_is_ignored(market):
    before = read_table(market)
    made(
        market, ["query/Thumbs.db", "query/.DS_Store", "query/._0001_c1s1_001051_00.jpg", "query/desktop.ini"]
    )
    made(market, ["gt_query/0001_c1s1_001051_00_good.mat", "readme.txt"])
    pd.testing.assert_frame_equal(read_table(market), before)


def test_odd_names_are_named_a_few_of_them(market):
    made(market, [f"query/odd{number}.jpg" for number in range(5)])
    with pytest.raises(InputError) as error:
        read_table(market)
    text = str(error.value)
    assert [f"odd{number}.jpg" in text for number in range(5)] == [True] * 3 + [False] * 2
    assert "the name does not fit the card's pattern" in text
    assert "5 in all" in text


@pytest.mark.parametrize("name", ["0001_c1s1_001051_00.jpg.part", "0001_c1s1_001051.jpg", "notes.txt"])
def test_one_odd_name(market, name):
    made(market, [f"query/{name}"])
    with pytest.raises(InputError, match=f"query/{name}: the name does not fit"):
        read_table(market)


def test_a_folder_or_a_dead_link_named_as_an_image(market):
    (market / "query" / "0009_c1s1_001051_00.jpg").mkdir()
    (market / "query" / "0009_c2s1_001051_00.jpg").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"0009_c1s1_001051_00.jpg: not a file; .*0009_c2.*: not a file"):
        read_table(market)


def test_missing_root(tmp_path):
    with pytest.raises(InputError, match=r"none: expected the folder of a data set \(Market-1501\), no such"):
        read_table(tmp_path / "none")


def test_a_file_as_root(market):
    with pytest.raises(InputError, match="found a file"):
        read_table(market / "query" / MARKET["query"][0])


def test_empty_root(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder bounding_box_train/ .*nothing: it is empty"):
        read_table(tmp_path)


def test_another_layout_says_what_was_found(tmp_path):
    made(tmp_path, ["pictures/a.jpg", "readme.txt"])
    with pytest.raises(InputError, match=r"expected the folder bounding_box_train/ .*pictures/, readme.txt"):
        read_table(tmp_path)


def test_one_folder_too_high_is_suggested(market):
    with pytest.raises(InputError, match=r"did you mean .*market\?"):
        read_table(market.parent)


def test_folders_of_identities_are_suggested(tmp_path):
    made(tmp_path, ["train/1/a.jpg"])
    with pytest.raises(InputError, match="choose the card 'folders'"):
        read_table(tmp_path)


def test_a_folder_without_images(market):
    for path in (market / "query").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"query: expected images named as .* found nothing: it is empty"):
        read_table(market)


def test_a_group_that_is_not_a_number(tmp_path):
    made(tmp_path, ["train/anna_1.jpg", "train/7_1.jpg"])
    card = Card("c", "C", "names", {"train": Split((Source(("train",)),))}, pattern=r"(?P<pid>\w+)_.\.jpg")
    with pytest.raises(InputError, match=r"anna_1\.jpg: the name does not fit"):
        read_table(tmp_path, card)
    (tmp_path / "train" / "anna_1.jpg").unlink()
    assert rows(read_table(tmp_path, card), tmp_path) == [("train/7_1.jpg", 7, None, "train")]


def test_a_name_that_is_not_unicode(tmp_path):
    made(tmp_path, ["train/7_1.jpg"])
    with open(os.fsencode(tmp_path) + b"/train/8_\xff.jpg", "wb"):
        pass
    card = Card("c", "C", "names", {"train": Split((Source(("train",)),))}, pattern=r"(?P<pid>\d+)_.\.jpg")
    with pytest.raises(InputError, match=r"8_\\xff\.jpg: the name is not valid UTF-8"):
        read_table(tmp_path, card)


# --- list files ----------------------------------------------------------------------------------------

LISTS = Card(
    "lists",
    "Two versions",
    "lists",
    {
        "train": Split(
            (Source(("train", "train_v2"), "list_train.txt"), Source(("train", "train_v2"), "val.txt"))
        ),
        "gallery": Split((Source(("test", "test_v2"), "list_gallery.txt"),)),
    },
    pattern=r"\d+_\d+_(?P<camid>\d+)_\w+\.jpg",
)


@pytest.fixture(params=["", "_v2"])
def listed(request, tmp_path):
    version = request.param
    images = ["0000/0000_000_01_a.jpg", "0001/0001_002_15_b.jpg"]
    made(tmp_path, [f"train{version}/{name}" for name in images] + [f"test{version}/0000/0000_000_05_c.jpg"])
    (tmp_path / "list_train.txt").write_text(f"{images[1]} 1\n")
    (tmp_path / "val.txt").write_text(f"\n{images[0]}\t0\r\n\n")
    (tmp_path / "list_gallery.txt").write_text("0000/0000_000_05_c.jpg  3059")
    return tmp_path


def test_lists(listed):
    version = "_v2" if (listed / "train_v2").exists() else ""
    assert rows(read_table(listed, LISTS), listed) == [
        (f"train{version}/0000/0000_000_01_a.jpg", 0, 1, "train"),
        (f"train{version}/0001/0001_002_15_b.jpg", 1, 15, "train"),
        (f"test{version}/0000/0000_000_05_c.jpg", 3059, 5, "gallery"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0000/0000_000_01_a.jpg", "expected 'path pid', got '0000/0000_000_01_a.jpg'"),
        ("0000/0000_000_01_a.jpg x", "expected 'path pid'"),
        ("0000/none_a.jpg 1", "the name '0000/none_a.jpg' does not fit"),
        ("0000/0000_000_01_z.jpg 1", "no such image file: .*0000_000_01_z.jpg"),
        ("../list_train.txt 1", "'../list_train.txt' leads outside the data set"),
        ("/etc/0000_000_01_a.jpg 1", ".* leads outside the data set"),
    ],
)
def test_a_bad_line_is_named(listed, line, words):
    (listed / "val.txt").write_text(f"0000/0000_000_01_a.jpg 0\n{line}\n")
    with pytest.raises(InputError, match=rf"val\.txt, line 2: {words}"):
        read_table(listed, LISTS)


def test_bad_list_files(listed):
    (listed / "val.txt").write_text("\n")
    with pytest.raises(InputError, match=r"val\.txt: empty"):
        read_table(listed, LISTS)
    (listed / "val.txt").write_bytes(b"\xff\xfe 1\n")
    with pytest.raises(InputError, match=r"val\.txt: not UTF-8 text"):
        read_table(listed, LISTS)
    (listed / "val.txt").unlink()
    with pytest.raises(InputError, match=r"val\.txt: expected this list file .*list_train\.txt"):
        read_table(listed, LISTS)


# --- one folder per identity ---------------------------------------------------------------------------


def test_identity_folders_with_splits(tmp_path):
    made(tmp_path, ["train/0012/b.jpg", "train/0012/a.PNG", "train/3/x.jpg", "query/5/0005_c2_x.jpg"])
    made(
        tmp_path, ["gallery/05/0005_c11s1.jpg", "gallery/-1/j.jpg", "gallery/5/.hidden.jpg", "query/5/n.txt"]
    )
    assert rows(read_table(tmp_path, "folders"), tmp_path) == [
        ("train/0012/a.PNG", 12, None, "train"),
        ("train/0012/b.jpg", 12, None, "train"),
        ("train/3/x.jpg", 3, None, "train"),
        ("query/5/0005_c2_x.jpg", 5, 2, "query"),
        ("gallery/-1/j.jpg", -1, None, "gallery"),
        ("gallery/05/0005_c11s1.jpg", 5, 11, "gallery"),
    ]


def test_identity_folders_alone_are_for_training(tmp_path):
    made(tmp_path, ["7/a.jpg", "11/b.jpg"])
    assert rows(read_table(tmp_path, "folders"), tmp_path) == [
        ("11/b.jpg", 11, None, "train"),
        ("7/a.jpg", 7, None, "train"),
    ]


def test_named_identity_folders_are_numbered_over_all_splits(tmp_path):
    made(tmp_path, ["train/zoe/1.jpg", "query/bob/1.jpg", "gallery/bob/2.jpg", "gallery/7/2.jpg"])
    table = read_table(tmp_path, "folders")
    assert dict(zip(table.path.str.split("/").str[-2], table.pid, strict=True)) == {
        "7": 0,
        "bob": 1,
        "zoe": 2,
    }


def test_two_folders_with_the_same_number(tmp_path):
    made(tmp_path, ["train/5/a.jpg", "train/005/a.jpg"])
    with pytest.raises(InputError, match="'005' and '5' are both pid 5"):
        read_table(tmp_path, "folders")


@pytest.mark.parametrize("name", ["train/a.jpg", "train/5/deep/a.jpg"])
def test_an_image_outside_an_identity_folder(tmp_path, name):
    made(tmp_path, ["train/5/a.jpg", name])
    with pytest.raises(InputError, match=rf"{name}: expected at .*/train/IDENTITY/a.jpg"):
        read_table(tmp_path, "folders")


def test_identity_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="no image found"):
        read_table(tmp_path, "folders")


# --- any folder of images ------------------------------------------------------------------------------


def test_table_from_images(tmp_path):
    names = {
        "0002_c1s1_000451_03.jpg": (2, 1),
        "-1_c6_x.png": (-1, 6),
        "0009_c12.jpg": (9, 12),
        "0031/anything.jpg": (31, None),
        "0031/0007_c2s1.jpg": (7, 2),
        "2024/05/17.jpg": (None, None),
        "anna/a.jpg": (None, None),
        "x0002_c1s1.jpg": (None, None),
        "12.jpg": (None, None),
        "0002_cam.jpg": (None, None),
    }
    made(tmp_path, names)
    table = table_from_images(tmp_path)
    assert list(table.columns) == ["path", "pid", "camid"]
    assert str(table.pid.dtype) == str(table.camid.dtype) == "Int64"
    found = {
        os.path.relpath(row.path, tmp_path): tuple(
            None if pd.isna(value) else value for value in (row.pid, row.camid)
        )
        for row in table.itertuples()
    }
    assert found == names
    assert list(found) == sorted(names)


def test_table_from_images_does_not_read_the_folder_s_own_name(tmp_path):
    made(tmp_path, ["0031/a.jpg"])
    assert table_from_images(tmp_path / "0031").pid.isna().all()


def test_table_from_images_refuses_what_list_images_refuses(tmp_path):
    with pytest.raises(InputError, match="no image found"):
        table_from_images(tmp_path)
