"""The bundled cards on miniatures of their data sets, and several sets in one training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rga_reid.data import load_card, read_table, read_training
from rga_reid.errors import InputError
from tests.folders import touch

MSMT17 = {
    "list_train.txt": ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_15_0302noon_1_0_ex.jpg 1"],
    "list_val.txt": ["0000/0000_001_02_0303morning_0020_1.jpg 0"],
    "list_query.txt": ["0000/0000_000_05_0113noon_0001_0.jpg 0"],
    "list_gallery.txt": ["0000/0000_001_14_0113noon_0002_0.jpg 0", "0001/0001_000_03_0113noon_3_0.jpg 1"],
}
NAMES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0007_c3s1_000001_00.jpg"],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": ["0001_c6s1_001051_00.jpg", "0000_c1s1_000001_01.jpg", "-1_c4s1_000401_03.jpg"],
}


def msmt17(root: Path, folders: tuple[str, str]) -> Path:
    for name, lines in MSMT17.items():
        folder = folders[0] if name in ("list_train.txt", "list_val.txt") else folders[1]
        touch(root / folder, *(line.split()[0] for line in lines))
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def market(root: Path, **more: list[str]) -> Path:
    for folder, names in (NAMES | more).items():
        touch(root / folder, *names)
    return root


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17_of_both_versions(tmp_path: Path, folders: tuple[str, str]) -> None:
    table = read_table(msmt17(tmp_path, folders), "msmt17")
    rows = [(row.split, int(row.pid), int(row.camid), Path(row.path).parts[-3]) for row in table.itertuples()]
    assert rows == [
        ("train", 0, 1, folders[0]),
        ("train", 0, 2, folders[0]),
        ("train", 1, 15, folders[0]),
        ("query", 0, 5, folders[1]),
        ("gallery", 0, 14, folders[1]),
        ("gallery", 1, 3, folders[1]),
    ]


@pytest.mark.parametrize("folder", ["distractors_500k", "images"])
def test_market_with_more_distractors_whatever_their_names(tmp_path: Path, folder: str) -> None:
    more = {folder: ["0000_c6s2_111111_00.jpg", "42.jpg", "-1_c1s1_000001_00.jpg"]}
    table = read_table(market(tmp_path, **more), "market1501_500k")
    distractors = table[table.path.str.contains(f"/{folder}/")]
    assert distractors.pid.tolist() == [0, 0, 0]
    assert (distractors.split == "gallery").all()
    assert distractors.camid.fillna(0).tolist() == [1, 6, 0]
    assert len(table) == 9


# --- several sets --------------------------------------------------------------------------------------


def test_identities_and_cameras_of_several_sets_are_kept_apart(tmp_path: Path) -> None:
    roots = [str(market(tmp_path / "a")), str(msmt17(tmp_path / "b", ("train", "test")))]
    table = read_training(roots, ["market1501", "msmt17"])
    rows = [(row.dataset, int(row.pid), int(row.camid)) for row in table.itertuples()]
    assert rows == [(0, 0, 0), (0, 1, 1), (1, 2, 2), (1, 2, 3), (1, 3, 4)]
    assert (table.split == "train").all()


def test_one_set_keeps_its_numbers(tmp_path: Path) -> None:
    table = read_training([str(market(tmp_path))], ["market1501"])
    assert table.pid.tolist() == [2, 7]
    assert table.camid.tolist() == [1, 3]


def test_junk_is_nobody_to_train_on(tmp_path: Path) -> None:
    roots = [touch(tmp_path / name, "1.jpg", "2.jpg", "3.jpg", "4.jpg") / "own.csv" for name in "ab"]
    for csv in roots:
        lines = ["path,pid,camid,split", "1.jpg,5,,train", "2.jpg,5,7,train", "3.jpg,-1,1,train"]
        csv.write_text("\n".join([*lines, "4.jpg,0,,train"]))
    assert read_training([str(roots[0])], ["market1501"]).pid.tolist() == [5, 5, 0]
    both = read_training(list(map(str, roots)), ["market1501"])
    assert both.pid.tolist() == [1, 1, 0, 3, 3, 2]
    assert both.camid.fillna(-1).tolist() == [-1, 0, -1, -1, 1, -1]
    touch(tmp_path / "set" / "train", "3/a.jpg", "7/a.jpg", "-1/a.jpg")
    card = dataclasses.replace(load_card("folders"), junk_pids=(-1, 3))
    assert read_training([str(tmp_path / "set")], [card]).pid.tolist() == [7]


def test_a_set_given_twice_is_refused(tmp_path: Path) -> None:
    root = market(tmp_path / "a")
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(
        InputError, match=r"2 training images are in two data sets, .*/a and .*/link, .*0002_c1"
    ):
        read_training([str(root), str(tmp_path / "link")], ["market1501"])
    with pytest.raises(InputError, match=r"a card \(dataset\) for each root, got 3 for 2"):
        read_training(["a", "b"], ["market1501"] * 3)
