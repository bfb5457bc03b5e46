"""MARS: images in one folder per identity, and tracks in MATLAB files (Zheng et al., ECCV 2016).

``info`` is that of https://github.com/liangzheng06/MARS-evaluation: ``train_name.txt`` and ``test_name.txt`` list the
image names; ``tracks_train_info.mat`` and ``tracks_test_info.mat`` have a row for each track, with the numbers of its
first and last image in that list (from 1), identity and camera; ``query_IDX.mat`` numbers the test tracks that are
queries, from 1. As in the evaluation code there, the gallery has all test tracks, also those of the queries.

A track's label is the part that its image names have in common, such as ``0001C1T0001``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rga_reid.data.cards import Card
from rga_reid.data.matlab import read_matlab
from rga_reid.data.records import Scan, list_entries
from rga_reid.errors import InputError
from rga_reid.inputs import open_text

_TRAIN = ("tracks_train_info.mat", "track_train_info", "train_name.txt")
_TEST = ("tracks_test_info.mat", "track_test_info", "test_name.txt")
_QUERY = ("query_IDX.mat", "query_IDX")


def scan_mars(root: Path, card: Card) -> Scan:
    """Read the images of all tracks.

    The list of a source is one of the three MATLAB files of ``info``.

    Raises:
        InputError: a folder or file is missing, or a file does not have the expected content.
    """
    scan = Scan()
    for split, description in card.splits.items():
        for source in description.sources:
            file = root / str(source.list)
            info, variable, listed = _TRAIN if file.name == _TRAIN[0] else _TEST
            tracks = _read_numbers(file.with_name(info), variable)
            if tracks.ndim != 2 or tracks.shape[1] != 4:
                raise InputError(f"{file.with_name(info)}: expected tracks (n, 4), found {tracks.shape}")
            rows = np.arange(len(tracks))
            if file.name == _QUERY[0]:
                rows = _read_numbers(file, _QUERY[1]).ravel() - 1
                _check_range(rows, len(tracks), file)
            names = _read_names(file.with_name(listed))
            _check_range(tracks[:, :2] - 1, len(names), file.with_name(info))
            folder = _find_folder(root, source.folder, card)
            for row in rows.tolist():
                first, last, pid, camid = tracks[row].tolist()
                track = names[first - 1].rpartition("F")[0]
                labels = {"pid": pid, "camid": camid, "track": track, **source.labels}
                for name in names[first - 1 : last]:
                    path = f"{name[:4]}/{name}"
                    scan.add_listed(split, folder, path, labels, pattern=card.pattern, where=str(file))
    return scan


def _find_folder(root: Path, names: tuple[str, ...], card: Card) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = list_entries(root) if root.is_dir() else "no such folder"
    raise InputError(f"{root}: expected the folder {names[0]}/ (card {card.name}), found {found}")


def _read_names(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(f"{file}: expected this list of image names, found {list_entries(file.parent)}")
    with open_text(file) as lines:
        return [line.strip() for line in lines if line.strip()]


def _read_numbers(file: Path, name: str) -> np.ndarray:
    values = read_matlab(file, [name], what="a file of MARS-evaluation")[name]
    if values.dtype.kind not in "iuf":
        raise InputError(f"{file}: expected numbers in the variable {name}")
    return values.astype(np.int64)


def _check_range(numbers: np.ndarray, count: int, file: Path) -> None:
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < count:
        raise InputError(f"{file}: expected numbers from 1 to {count}, found one outside")
