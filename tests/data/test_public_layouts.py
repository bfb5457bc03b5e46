"""Miniatures of public data sets, in the layout in which each is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from rga_reid.data import Card, check_data, load_card, read_table, read_training
from rga_reid.data.cards import RandomSplit, Source, Split
from rga_reid.errors import InputError
from tests.folders import touch


def columns(table: pd.DataFrame, root: Path, *names: str) -> list[tuple[Any, ...]]:
    """Return split, path below root and some columns of each row, null as None."""
    paths = [Path(path).relative_to(root).as_posix() for path in table["path"]]
    rest = [[None if pd.isna(value) else value for value in table[name]] for name in names]
    return list(zip(table["split"], paths, *rest, strict=True))


# --- flat folders --------------------------------------------------------------------------------------

FLAT = {
    "dukemtmc": {
        "bounding_box_train/0001_c2_f0046182.jpg": (1, 2),
        "query/0005_c8_f0051230.jpg": (5, 8),
        "bounding_box_test/0002_c1_f0044158.jpg": (2, 1),
    },
    "occluded_duke": {
        "bounding_box_train/0001_c2_f0046302.jpg": (1, 2),
        "query/0019_c1_f0051350.jpg": (19, 1),
        "bounding_box_test/7140_c5_f0044278.jpg": (7140, 5),
    },
    "veri776": {
        "image_train/0001_c001_00016450_0.jpg": (1, 1),
        "image_query/0002_c020_00030600_0.jpg": (2, 20),
        "image_test/0776_c016_00030640_12.jpg": (776, 16),
    },
}


@pytest.mark.parametrize("name", FLAT)
def test_flat_folders(tmp_path: Path, name: str) -> None:
    touch(tmp_path, *FLAT[name])
    table = read_table(tmp_path, name)
    splits = ("train", "query", "gallery")
    assert columns(table, tmp_path, "pid", "camid") == [
        (split, path, *labels) for split, (path, labels) in zip(splits, FLAT[name].items(), strict=True)
    ]
    touch(tmp_path, f"{next(iter(FLAT[name])).partition('/')[0]}/odd.jpg")
    with pytest.raises(InputError, match=r"odd\.jpg"):
        read_table(tmp_path, name)


# --- clothes -------------------------------------------------------------------------------------------


def test_ltcc(tmp_path: Path) -> None:
    touch(tmp_path, "train/000_1_c2_000001.png", "query/001_3_c4_015833.png", "test/001_1_c12_015700.png")
    touch(tmp_path, "info/cloth-change_id_test.txt")
    table = read_table(tmp_path, "ltcc")
    assert columns(table, tmp_path, "pid", "camid", "clothes") == [
        ("train", "train/000_1_c2_000001.png", 0, 2, 1),
        ("query", "query/001_3_c4_015833.png", 1, 4, 3),
        ("gallery", "test/001_1_c12_015700.png", 1, 12, 1),
    ]
    assert list(table.columns) == ["path", "pid", "camid", "split", "clothes"]


def test_prcc(tmp_path: Path) -> None:
    touch(tmp_path, *(f"rgb/train/001/{camera}_cropped_rgb045.jpg" for camera in "ABC"))
    touch(tmp_path, "rgb/val/001/A_cropped_rgb046.jpg", "sketch/train/001/A_cropped_sketch045.jpg")
    touch(tmp_path, *(f"rgb/test/{camera}/005/cropped_rgb001.jpg" for camera in "ABC"))
    assert columns(read_table(tmp_path, "prcc"), tmp_path, "pid", "camid", "clothes") == [
        ("train", "rgb/train/001/A_cropped_rgb045.jpg", 1, "A", 1),
        ("train", "rgb/train/001/B_cropped_rgb045.jpg", 1, "B", 1),
        ("train", "rgb/train/001/C_cropped_rgb045.jpg", 1, "C", 2),
        ("query", "rgb/test/B/005/cropped_rgb001.jpg", 5, "B", 1),
        ("query", "rgb/test/C/005/cropped_rgb001.jpg", 5, "C", 2),
        ("gallery", "rgb/test/A/005/cropped_rgb001.jpg", 5, "A", 1),
    ]


# --- modalities ----------------------------------------------------------------------------------------


@pytest.fixture
def sysu(tmp_path: Path) -> Path:
    (tmp_path / "exp").mkdir()
    for split, ids in (("train", "1,2"), ("val", "4"), ("test", "6,10\n")):
        (tmp_path / "exp" / f"{split}_id.txt").write_text(ids)
    # 0003 and 0007 are in no list; not every person is in every camera
    pids = {1: (1, 3, 6), 2: (2, 6, 10), 3: (2, 6, 7), 4: (1, 10), 5: (4,), 6: (4, 10)}
    names = [
        f"cam{camera}/{pid:04}/{number:04}.jpg"
        for camera in pids
        for pid in pids[camera]
        for number in (1, 2)
    ]
    return touch(tmp_path, *names)


def test_sysu_mm01(sysu: Path) -> None:
    table = read_table(sysu, "sysu_mm01")
    first = table[table["path"].str.endswith("0001.jpg")]
    assert len(table) == 2 * len(first)
    assert columns(first, sysu, "pid", "camid", "modality") == [
        ("train", "cam1/0001/0001.jpg", 1, 1, "rgb"),
        ("train", "cam4/0001/0001.jpg", 1, 4, "rgb"),
        ("train", "cam2/0002/0001.jpg", 2, 2, "rgb"),
        ("train", "cam3/0002/0001.jpg", 2, 3, "infrared"),
        ("train", "cam5/0004/0001.jpg", 4, 5, "rgb"),
        ("train", "cam6/0004/0001.jpg", 4, 6, "infrared"),
        ("query", "cam3/0006/0001.jpg", 6, 3, "infrared"),
        ("query", "cam6/0010/0001.jpg", 10, 6, "infrared"),
        ("gallery", "cam1/0006/0001.jpg", 6, 1, "rgb"),
        ("gallery", "cam2/0006/0001.jpg", 6, 2, "rgb"),
        ("gallery", "cam2/0010/0001.jpg", 10, 2, "rgb"),
        ("gallery", "cam4/0010/0001.jpg", 10, 4, "rgb"),
    ]


@pytest.mark.parametrize(("content", "words"), [(None, "found"), ("\n", "empty")])
def test_a_wrong_list_of_identities(sysu: Path, content: str | None, words: str) -> None:
    file = sysu / "exp" / "val_id.txt"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=rf"val_id\.txt: .*{words}"):
        read_table(sysu, "sysu_mm01")


# --- random splits -------------------------------------------------------------------------------------


def with_test_identities(name: str, count: int) -> Card:
    card = load_card(name)
    assert card.random_split is not None
    return replace(card, random_split=replace(card.random_split, test_identities=count))


def viper(root: Path, people: int) -> Path:
    for camera, angle in (("cam_a", 45), ("cam_b", 90)):
        touch(root / "VIPeR", *(f"{camera}/{pid:03}_{angle}.bmp" for pid in range(people)))
    return root


def test_viper(tmp_path: Path) -> None:
    root = viper(tmp_path, 7)
    for number in range(3):
        card = replace(with_test_identities("viper", 3), random_split=RandomSplit(3, number))
        table = read_table(root, card)
        pids = {split: set(rows["pid"]) for split, rows in table.groupby("split")}
        assert (len(pids["train"]), len(pids["query"])) == (4, 3)
        assert pids["query"] == pids["gallery"]
        assert not pids["train"] & pids["query"]
        assert table["split"].value_counts().to_dict() == {"train": 8, "query": 6, "gallery": 6}
        assert set(table["camid"][table["path"].str.contains("cam_a")]) == {1}
        assert set(table["camid"][table["path"].str.contains("cam_b")]) == {2}
        pd.testing.assert_frame_equal(table, read_table(root, card))


def test_random_splits_differ_and_draw_everybody(tmp_path: Path) -> None:
    root, card = viper(tmp_path, 7), with_test_identities("viper", 3)
    drawn = []
    for number in range(20):
        table = read_table(root, replace(card, random_split=RandomSplit(3, number)))
        drawn.append(frozenset(table["pid"][table["split"] == "query"]))
    assert len(set(drawn)) > 10
    assert frozenset().union(*drawn) == set(range(7))


def test_everybody_is_for_testing(tmp_path: Path) -> None:
    table = read_table(viper(tmp_path, 4), "viper:all")
    assert table["split"].value_counts().to_dict() == {"query": 8, "gallery": 8}
    with pytest.raises(InputError, match="no training images"):
        read_training([str(tmp_path)], ["viper:all"])
    with pytest.raises(InputError, match=r"more than 316 identities .*found 4"):
        read_table(tmp_path, "viper")
    report = check_data(tmp_path, "viper:all", fast=True)
    assert {problem.kind for problem in report.problems} == {"empty"}  # the images, not the counts
    assert report.matched_queries == 8


def test_cuhk01(tmp_path: Path) -> None:
    touch(tmp_path, *(f"campus/{pid:04}{number:03}.png" for pid in (1, 2, 971) for number in (1, 2, 3, 4)))
    table = read_table(tmp_path, with_test_identities("cuhk01", 2))
    assert table["split"].value_counts().to_dict() == {"train": 4, "query": 8, "gallery": 8}
    cameras = {Path(row.path).stem[4:]: row.camid for row in table.itertuples()}
    assert cameras == {"001": 1, "002": 1, "003": 2, "004": 2}


def test_prid2011(tmp_path: Path) -> None:
    inside = tmp_path / "prid_2011" / "single_shot"
    touch(inside, *(f"cam_a/person_{pid:04}.png" for pid in (1, 99, 100, 200, 201, 385)))
    touch(inside, *(f"cam_b/person_{pid:04}.png" for pid in (1, 99, 100, 200, 201, 749)))
    touch(tmp_path, "prid_2011/multi_shot/cam_a/person_0001/0001.png")
    table = read_table(tmp_path, with_test_identities("prid2011", 3))
    sides = dict(iter(table.groupby("split")))
    assert set(sides["query"]["camid"]) == {1}
    assert set(sides["gallery"]["camid"]) == {2}
    assert sides["train"]["camid"].tolist() == [1, 2]
    assert sides["train"]["pid"].nunique() == 1
    people = set(sides["query"]["pid"])
    assert people < {1, 99, 100, 200}  # 201 of camera A is another person than 201 of camera B
    assert set(sides["gallery"]["pid"]) == people | {201, 749}


def test_a_file_may_have_a_pid_that_is_text(tmp_path: Path) -> None:
    names = [f"{camera}/{name}.jpg" for camera in "ab" for name in ("Anna", "Bo", "Cy")]
    touch(tmp_path, *names)
    sources = tuple(Source((camera,), camid=camera) for camera in "ab")
    splits = {"query": Split(sources), "gallery": Split(sources)}
    card = Card("own", "Own", "names", splits, pattern=r"(?P<pid>\w+)\.jpg", random_split=RandomSplit(2))
    table = read_table(tmp_path, card)
    assert table["pid"].groupby(table["split"]).nunique().to_dict() == {"gallery": 2, "query": 2, "train": 1}
    assert set(table["camid"]) == {"a", "b"}


# --- tracks --------------------------------------------------------------------------------------------

#: tracks by folder: prefix of the image names, and number of images
TRACKS = {
    "bbox_train": {"0001C1T0001": 2, "0001C2T0002": 1, "0003C6T0001": 3},
    "bbox_test": {"00-1C1T0001": 2, "0000C2T0001": 1, "0002C1T0001": 3, "0002C1T0002": 1, "0002C2T0003": 2},
}


@pytest.fixture
def mars(tmp_path: Path) -> Path:
    info = tmp_path / "info"
    info.mkdir()
    for folder, tracks in TRACKS.items():
        short = folder.removeprefix("bbox_")
        names = [
            f"{track}F{number:03}.jpg" for track, count in tracks.items() for number in range(1, count + 1)
        ]
        touch(tmp_path, *(f"{folder}/{name[:4]}/{name}" for name in names))
        (info / f"{short}_name.txt").write_text("\r\n".join(names) + "\r\n")
        rows, last = [], 0
        for track, count in tracks.items():
            rows.append([last + 1, last + count, int(track[:4].replace("00-1", "-1")), int(track[5])])
            last += count
        savemat(info / f"tracks_{short}_info.mat", {f"track_{short}_info": np.array(rows, np.int32)})
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([[3, 5]], np.uint16)})
    return tmp_path


def test_mars(mars: Path) -> None:
    table = read_table(mars, "mars")
    counts = table.groupby(["split", "pid", "camid", "track"], sort=False).size()
    assert {tuple(key): count for key, count in counts.items()} == {
        ("train", 1, 1, "0001C1T0001"): 2,
        ("train", 1, 2, "0001C2T0002"): 1,
        ("train", 3, 6, "0003C6T0001"): 3,
        ("query", 2, 1, "0002C1T0001"): 3,
        ("query", 2, 2, "0002C2T0003"): 2,
        ("gallery", -1, 1, "00-1C1T0001"): 2,
        ("gallery", 0, 2, "0000C2T0001"): 1,
        ("gallery", 2, 1, "0002C1T0001"): 3,
        ("gallery", 2, 1, "0002C1T0002"): 1,
        ("gallery", 2, 2, "0002C2T0003"): 2,
    }
    assert table["path"].iloc[0] == str(mars / "bbox_train" / "0001" / "0001C1T0001F001.jpg")
    report = check_data(mars, "mars", fast=True)
    assert [counts.tracks for counts in report.counts.values()] == [3, 2, 5]
    assert any("tracks, expected 8,298" in problem.detail for problem in report.problems)
    (mars / "bbox_test" / "0002" / "0002C1T0002F001.jpg").unlink()
    with pytest.raises(InputError, match=r"no such image file: .*0002C1T0002F001\.jpg"):
        read_table(mars, "mars")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("query_IDX.mat", None, "query_IDX.mat: expected this file"),
        ("query_IDX.mat", b"x", "query_IDX.mat: .*a MATLAB 5 file"),
        ("query_IDX.mat", {"query_IDX": np.array([[9]])}, "query_IDX.mat: expected numbers from 1 to 5"),
        ("query_IDX.mat", {"other": np.array([[1]])}, "query_IDX.mat: .*variable query_IDX"),
        (
            "tracks_train_info.mat",
            {"track_train_info": np.ones((2, 3))},
            r"tracks_train_info.mat: .*\(n, 4\)",
        ),
        (
            "tracks_train_info.mat",
            {"track_train_info": np.ones((2, 4)) * 9},
            "tracks_train_info.mat: .*1 to 6",
        ),
        ("train_name.txt", None, "train_name.txt: expected this list"),
    ],
)
def test_wrong_files_of_mars(mars: Path, name: str, content: Any, words: str) -> None:
    file = mars / "info" / name
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        savemat(file, content)
    with pytest.raises(InputError, match=words):
        read_table(mars, "mars")


# --- own data ------------------------------------------------------------------------------------------


def test_a_csv_file_has_the_columns_of_protocols(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    file = tmp_path / "own.csv"
    file.write_text(
        "path,pid,camid,split,track,clothes,score\na.jpg,1,1,query,t7,,0.5\nb.jpg,1,2,gallery,t8,2,0.25\n"
    )
    table = read_table(file)
    assert list(table.columns) == ["path", "pid", "camid", "split", "track", "clothes"]
    assert table["track"].tolist() == ["t7", "t8"]
    assert table["clothes"].isna().tolist() == [True, False]
    assert table["clothes"].iloc[1] == 2


def test_columns_of_a_source_and_of_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "day/7_2.jpg", "night/7_3.jpg")
    sources = (
        Source(("day",), camid=1, columns={"modality": "rgb"}),
        Source(("night",), camid=2, columns={"modality": "infrared", "track": 4}),
    )
    pattern = r"(?P<pid>\d+)_(?P<pose>\d+)\.jpg"
    table = read_table(tmp_path, Card("own", "Own", "names", {"query": Split(sources)}, pattern=pattern))
    assert columns(table, tmp_path, "pid", "camid", "modality", "track", "pose") == [
        ("query", "day/7_2.jpg", 7, 1, "rgb", None, 2),
        ("query", "night/7_3.jpg", 7, 2, "infrared", 4, 3),
    ]
