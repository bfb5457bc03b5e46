"""CUHK03: images inside ``cuhk-03.mat`` (MATLAB 7.3, which is HDF5), and the split in a protocol file.

``cuhk-03.mat`` contains ``labeled`` and ``detected``: a cell per pair of cameras, in it a matrix of cells with
a row per identity and ten columns, five per camera, some empty. Zhong et al. (CVPR 2017, arXiv 1701.08398)
publish the 767/700 split as MATLAB 5 files that number the images of ``filelist`` from 1. Unpacked images get
the names of that list, ``PAIR_IDENTITY_CAMERA_IMAGE.png``.

The archive of a data set is trusted as code is: h5py and SciPy read it, behind limits on file sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rga_reid.data.cards import Card
from rga_reid.data.images import map_in_threads
from rga_reid.data.matlab import read_matlab
from rga_reid.data.records import Scan, list_entries
from rga_reid.errors import InputError
from rga_reid.files import atomic_folder
from rga_reid.inputs import truncate

ARCHIVES = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat")  #: where the archive may be
_VARIABLES = ("filelist", "labels", "train_idx", "query_idx", "gallery_idx")
_IMAGES_PER_CAMERA = 5


def scan_cuhk03(root: Path, card: Card) -> Scan:
    """Read the split of the card's protocol files; images are unpacked on first use.

    The folder of a source is the variable in ``cuhk-03.mat``, and the folder in ``root`` it is unpacked to.

    Raises:
        InputError: a file is missing or not the expected MATLAB file, or ``root`` cannot be written.
    """
    scan = Scan()
    protocols: dict[str, dict[str, np.ndarray]] = {}
    for split, description in card.splits.items():
        for source in description.sources:
            name, kind = str(source.list), source.folder[0]
            if name not in protocols:
                protocols[name] = read_matlab(root / name, _VARIABLES, what="the protocol of CUHK03")
            folder, protocol = unpack(root, kind), protocols[name]
            for number in protocol[f"{split}_idx"].ravel().tolist():
                image, pid = _read_entry(protocol, number, root / name)
                labels = {"pid": pid, **source.labels}
                scan.add_listed(split, folder, image, labels, pattern=card.pattern, where=str(root / name))
    return scan


class _AlreadyUnpacked(Exception):
    """Another process was faster."""


def unpack(root: Path, kind: str) -> Path:
    """Write the images ``kind`` (``labeled`` or ``detected``) of ``cuhk-03.mat`` as PNG files, once.

    Returns:
        Their folder, ``root/kind``. It appears complete or not at all.

    Raises:
        InputError: ``cuhk-03.mat`` is missing, is not HDF5, or does not contain such images.
    """
    folder = root / kind
    if folder.is_dir():
        return folder
    if os.path.lexists(folder) or kind != os.path.basename(kind):  # a link could lead anywhere
        raise InputError(f"{folder}: expected a folder of images, or no file, to unpack {root} there")
    import h5py  # only CUHK03 needs it

    files = [root / name for name in ARCHIVES if (root / name).is_file()]
    if not files:
        raise InputError(
            f"{root}: expected {' or '.join(ARCHIVES)}, or its images unpacked in {kind}/, found "
            f"{list_entries(root)}"
        )
    try:
        archive = h5py.File(files[0], "r")
    except OSError:
        raise InputError(f"{files[0]}: expected the images of CUHK03, a MATLAB 7.3 (HDF5) file") from None
    with archive, suppress(_AlreadyUnpacked), atomic_folder(folder) as temporary:

        def write(cell: tuple[str, Any]) -> bool:
            name, reference = cell
            pixels = archive[reference][()]
            if pixels.ndim != 3:  # an empty cell is stored as its shape
                return False
            # MATLAB stores the first index fastest: (H, W, 3) is read as (3, W, H)
            Image.fromarray(np.ascontiguousarray(pixels.transpose(2, 1, 0))).save(temporary / name)
            return True

        if kind not in archive:
            found = truncate(", ".join(archive)) or "none"
            raise InputError(f"{files[0]}: expected the variable {kind!r}, found {found}")
        try:
            # one thread: HDF5 reads one thing at a time
            written = sum(map_in_threads(write, list(_iter_cells(archive, kind)), 1, f"unpacking {kind}"))
        except Exception as error:  # h5py and Pillow raise many types for other contents
            if isinstance(error, OSError) and error.errno is not None:  # the disk
                raise
            raise InputError(
                f"{files[0]}: {kind!r} is not the cells of cells of CUHK03 ({truncate(error)})"
            ) from None
        if not written:
            raise InputError(f"{files[0]}: no images in {kind!r}")
        if folder.is_dir():  # unpacked by another process of the same training, which reads it already
            raise _AlreadyUnpacked
    return folder


def _iter_cells(archive: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield file name and reference of each cell, empty ones too."""
    for pair, reference in enumerate(archive[kind][()].ravel(), start=1):
        for identity, images in enumerate(archive[reference][()].T, start=1):  # (identities, images)
            for number, image in enumerate(images, start=1):
                camera = 1 if number <= _IMAGES_PER_CAMERA else 2
                yield f"{pair}_{identity:03d}_{camera}_{number:02d}.png", image


def _read_entry(protocol: dict[str, np.ndarray], number: int, file: Path) -> tuple[str, int]:
    """Return name and pid of an image by its number, which counts from 1."""
    names, labels = protocol["filelist"].ravel(), protocol["labels"].ravel()
    if not 1 <= number <= min(len(names), len(labels)):
        raise InputError(f"{file}: image {number} of {min(len(names), len(labels))} images")
    return str(np.asarray(names[number - 1]).item()), int(labels[number - 1])
