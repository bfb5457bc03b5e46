"""CUHK03: the pictures inside ``cuhk-03.mat`` (MATLAB 7.3, which is HDF5), the split in a protocol file.

``cuhk-03.mat`` holds ``labeled`` and ``detected``: a cell per pair of cameras, in it a matrix of cells, a row
per identity and ten columns, five of each camera, some empty. Zhong et al. (CVPR 2017, arXiv 1701.08398)
publish the 767/700 split as MATLAB 5 files that number the images of ``filelist`` from 1. Those names,
``PAIR_IDENTITY_CAMERA_IMAGE.png``, are how the pictures are called once they are unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rga_reid.data.cards import Card
from rga_reid.data.survey import Survey, contents, numbers_in
from rga_reid.data.threads import in_threads
from rga_reid.errors import InputError
from rga_reid.files import atomic_folder

PICTURES = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat")  #: where the pictures' file may lie
_VARIABLES = ("filelist", "labels", "train_idx", "query_idx", "gallery_idx")
_FIRST_CAMERA = 5  # images of an identity that are the first camera's; the others are the second's


def survey_cuhk03(root: Path, card: Card) -> Survey:
    """Read the split that the card's protocol files tell; the pictures are unpacked on first use.

    The folder of a source is the variable in ``cuhk-03.mat``, and the folder in ``root`` it is unpacked to.

    Raises:
        InputError: a file is missing, or not the MATLAB file that it should be; ``root`` cannot be written.
    """
    survey = Survey()
    protocols: dict[str, dict[str, np.ndarray]] = {}
    for split, described in card.splits.items():
        for source in described.sources:
            name, kind = str(source.list), source.folder[0]
            if name not in protocols:
                protocols[name] = _read_protocol(root, name)
                unpack(root, kind)
            protocol = protocols[name]
            for number in protocol[f"{split}_idx"].ravel():
                image, pid = _entry(protocol, int(number), root / name)
                path = os.path.join(root, kind, image)
                numbers = numbers_in(card.pattern, image)
                if numbers is None:
                    survey.add_problem("name", root / name, f"{image!r} does not fit the card's pattern")
                elif not os.path.isfile(path):
                    survey.add_problem("missing", root / name, f"no such image file: {path}")
                else:
                    survey.add(split, image, path, pid, numbers.get("camid"))
    return survey


def unpack(root: Path, kind: str) -> Path:
    """Write the pictures ``kind`` (``labeled`` or ``detected``) of ``cuhk-03.mat`` as PNG files, once.

    Returns:
        Their folder, ``root/kind``. It appears whole or not at all.

    Raises:
        InputError: there is no ``cuhk-03.mat``, it is not HDF5, or does not hold such pictures.
    """
    folder = root / kind
    if folder.is_dir():
        return folder
    import h5py  # here: only CUHK03 needs it

    files = [root / name for name in PICTURES if (root / name).is_file()]
    if not files:
        raise InputError(
            f"{root}: expected {' or '.join(PICTURES)}, or its pictures unpacked in {kind}/, found "
            f"{contents(root)}"
        )
    try:
        archive = h5py.File(files[0], "r")
    except OSError:
        raise InputError(
            f"{files[0]}: expected the pictures of CUHK03, a MATLAB 7.3 (HDF5) file; this is of another kind"
        ) from None
    with archive, atomic_folder(folder) as temporary:
        if kind not in archive:
            raise InputError(f"{files[0]}: expected the variable {kind!r}, found {', '.join(archive)}")
        try:
            cells = list(_cells(archive, kind))
        except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise InputError(f"{files[0]}: {kind!r} is not the cells of cells of CUHK03 ({error})") from None
        written = 0

        def write(cell: tuple[str, Any]) -> int:
            name, reference = cell
            pixels = np.asarray(archive[reference])
            if pixels.ndim != 3:  # an empty cell is stored as its shape
                return 0
            # MATLAB counts the first index fastest: (H, W, 3) is read as (3, W, H)
            Image.fromarray(np.ascontiguousarray(pixels.transpose(2, 1, 0))).save(temporary / name)
            return 1

        # one thread: HDF5 reads one thing at a time
        for count in in_threads(write, cells, 1, f"unpacking {kind}"):
            written += count
        if not written:
            raise InputError(f"{files[0]}: no picture in {kind!r}")
    return folder


def _cells(archive: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """File name and reference of each cell, empty ones among them."""
    for pair, reference in enumerate(np.asarray(archive[kind]).ravel(), start=1):
        people = np.asarray(archive[reference]).T  # (identities, images)
        for identity, images in enumerate(people, start=1):
            for number, image in enumerate(images, start=1):
                camera = 1 if number <= _FIRST_CAMERA else 2
                yield f"{pair}_{identity:03d}_{camera}_{number:02d}.png", image


def _read_protocol(root: Path, name: str) -> dict[str, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    file = root / name
    if not file.is_file():
        raise InputError(f"{file}: expected this protocol file, found {contents(root)}")
    try:
        content = loadmat(file)
    except NotImplementedError:
        raise InputError(
            f"{file}: expected the protocol of CUHK03, a MATLAB 5 file; this is MATLAB 7.3 (HDF5)"
        ) from None
    except (MatReadError, ValueError, TypeError, OSError, EOFError) as error:
        raise InputError(f"{file}: expected the protocol of CUHK03, a MATLAB 5 file ({error})") from None
    missing = [variable for variable in _VARIABLES if variable not in content]
    if missing:
        found = ", ".join(key for key in content if not key.startswith("__")) or "none"
        raise InputError(
            f"{file}: a MATLAB file of another kind: expected the variable {', '.join(missing)}, "
            f"found {found}"
        )
    return {variable: content[variable] for variable in _VARIABLES}


def _entry(protocol: dict[str, np.ndarray], number: int, file: Path) -> tuple[str, int]:
    """Name and pid of an image by its number, from 1."""
    names, labels = protocol["filelist"].ravel(), protocol["labels"].ravel()
    if not 1 <= number <= min(len(names), len(labels)):
        raise InputError(f"{file}: image {number} of {min(len(names), len(labels))} images")
    return str(np.asarray(names[number - 1]).ravel()[0]), int(labels[number - 1])
