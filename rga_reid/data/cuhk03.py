"""CUHK03: the pictures inside ``cuhk-03.mat`` (MATLAB 7.3, which is HDF5), the split in a protocol file.

``cuhk-03.mat`` holds ``labeled`` and ``detected``: a cell per pair of cameras, in it a matrix of cells, a row
per identity and ten columns, five of each camera, some empty. Zhong et al. (CVPR 2017, arXiv 1701.08398)
publish the 767/700 split as MATLAB 5 files that number the images of ``filelist`` from 1. Those names,
``PAIR_IDENTITY_CAMERA_IMAGE.png``, are how the pictures are called once they are unpacked.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rga_reid.data.cards import Card
from rga_reid.data.images import MAX_PIXELS, map_in_threads
from rga_reid.data.records import Scan, list_entries
from rga_reid.errors import InputError
from rga_reid.files import atomic_folder
from rga_reid.inputs import read_file, truncate

PICTURES = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat")  #: where the pictures' file may lie
_VARIABLES = ("filelist", "labels", "train_idx", "query_idx", "gallery_idx")
_MOST_CELLS = 100_000  # of all pairs together, and of the pairs; CUHK03 has 14,675
_MOST_CHUNKS = 10_000  # of a data set: HDF5 notes all of them before it reads the first
_MOST_BYTES = 16 << 30  # of all pictures: a megabyte for each of CUHK03's 14,097
_FIRST_CAMERA = 5  # images of an identity that are the first camera's; the others are the second's


def scan_cuhk03(root: Path, card: Card) -> Scan:
    """Read the split that the card's protocol files tell; the pictures are unpacked on first use.

    The folder of a source is the variable in ``cuhk-03.mat``, and the folder in ``root`` it is unpacked to.

    Raises:
        InputError: a file is missing, or not the MATLAB file that it should be; ``root`` cannot be written.
    """
    survey = Scan()
    protocols: dict[str, dict[str, np.ndarray]] = {}
    for split, described in card.splits.items():
        for source in described.sources:
            name, kind = str(source.list), source.folder[0]
            if name not in protocols:
                protocols[name] = _read_protocol(root, name)
            folder, protocol = unpack(root, kind), protocols[name]
            for number in protocol[f"{split}_idx"].ravel().tolist():
                image, pid = _entry(protocol, number, root / name)
                survey.add_listed(split, folder, image, pid, pattern=card.pattern, where=str(root / name))
    return survey


class _Unpacked(Exception):
    """Another process was faster."""


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
    if os.path.lexists(folder) or kind != os.path.basename(kind):
        # a link may lead anywhere, and a longer name through one
        raise InputError(f"{folder}: expected a folder of pictures, or no file, to unpack {root} there")
    import h5py  # here: only CUHK03 needs it

    files = [root / name for name in PICTURES if (root / name).is_file()]
    if not files:
        raise InputError(
            f"{root}: expected {' or '.join(PICTURES)}, or its pictures unpacked in {kind}/, found "
            f"{list_entries(root)}"
        )
    try:
        archive = h5py.File(files[0], "r")
    except OSError:
        raise InputError(
            f"{files[0]}: expected the pictures of CUHK03, a MATLAB 7.3 (HDF5) file; this is of another kind"
        ) from None
    with suppress(_Unpacked), archive, atomic_folder(folder) as temporary:
        left = _MOST_BYTES

        def write(cell: tuple[str, Any]) -> int:
            nonlocal left
            name, reference = cell
            stored = _stored(archive[reference])
            if stored.ndim != 3:  # an empty cell is stored as its shape
                return 0
            if stored.dtype != np.uint8 or stored.shape[0] != 3 or 0 in stored.shape:
                raise ValueError(f"a picture of {stored.dtype} {stored.shape}")
            left -= stored.size  # many cells can lead to one picture
            if left < 0:
                raise ValueError(f"pictures of more than {_MOST_BYTES:,} bytes")
            pixels = _values(stored, 3 * MAX_PIXELS)
            # MATLAB counts the first index fastest: (H, W, 3) is read as (3, W, H)
            Image.fromarray(np.ascontiguousarray(pixels.transpose(2, 1, 0))).save(temporary / name)
            return 1

        try:
            if not isinstance(archive.get(kind, getlink=True), h5py.HardLink):  # others lead to other files
                found = truncate(", ".join(archive)) or "none"
                raise InputError(f"{files[0]}: expected the variable {kind!r}, found {found}")
            # one thread: HDF5 reads one thing at a time
            written = sum(map_in_threads(write, list(_cells(archive, kind)), 1, f"unpacking {kind}"))
        except InputError:
            raise
        except Exception as error:  # h5py raises nearly anything on a damaged file
            raise InputError(
                f"{files[0]}: {kind!r} is not the cells of cells of CUHK03 ({truncate(error)})"
            ) from None
        if not written:
            raise InputError(f"{files[0]}: no picture in {kind!r}")
        if folder.is_dir():  # of another process of the same training, which reads there already
            raise _Unpacked
    return folder


def _stored(found: Any) -> Any:
    """What is in a place of an archive: a data set of whole numbers or references, whose values are there.

    Raises:
        ValueError: something else. A few bytes can promise the values of any other file.
    """
    import h5py

    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"expected values, found a {type(found).__name__}")
    if found.dtype.kind not in "ui" and h5py.check_ref_dtype(found.dtype) is not h5py.Reference:
        raise ValueError(f"values of {found.dtype}")
    if found.external or found.is_virtual:
        raise ValueError("its values are in another file")
    return found


def _values(stored: Any, most: int) -> np.ndarray:
    """The values of a data set, of at most so many bytes.

    Raises:
        ValueError: there are more, or its chunks may take more. A few bytes can promise any number of values.
    """
    size = None if stored.size is None else stored.size * stored.dtype.itemsize
    if size is None or size > most:
        raise ValueError(f"expected at most {most:,} bytes, found {size}")
    if stored.chunks is not None:
        _check_chunks(stored, 2 * max(size, 1 << 20))
    return np.asarray(stored)


def _check_chunks(stored: Any, most: int) -> None:
    """Refuse chunks that take much more memory than the values: HDF5 unpacks each to whatever it holds.

    Raises:
        ValueError: more than ``_MOST_CHUNKS``, packed ones of more than ``most`` bytes, one that holds more
            than it should, or is packed in another way than MATLAB's.
    """
    from h5py import h5z

    count = math.prod(-(-length // step) for length, step in zip(stored.shape, stored.chunks, strict=True))
    if count > _MOST_CHUNKS:
        raise ValueError(f"{count:,} chunks, expected at most {_MOST_CHUNKS:,}")
    plan = stored.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if filters not in ([], [h5z.FILTER_DEFLATE], [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]):
        raise ValueError("chunks that are packed in another way than MATLAB's")
    size = math.prod(stored.chunks) * stored.dtype.itemsize
    if filters and size > most:  # the others are read in place
        raise ValueError(f"chunks of {size:,} bytes, expected at most {most:,}")
    found: list[Any] = []

    def note(chunk: Any) -> bool | None:
        found.append(chunk)
        return len(found) > count or None  # anything but None ends it

    stored.id.chunk_iter(note)
    if len(found) > count or any(chunk.size > most for chunk in found):
        raise ValueError("more in its chunks than there may be")
    if not filters:
        return
    for chunk in found:
        left_out, packed = stored.id.read_direct_chunk(chunk.chunk_offset)
        deflated = not left_out >> filters.index(h5z.FILTER_DEFLATE) & 1
        if deflated and len(zlib.decompressobj().decompress(packed, size + 1)) > size:
            raise ValueError(f"a chunk that unpacks to more than its {size:,} bytes")


def _cells(archive: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """File name and reference of each cell, empty ones among them.

    Raises:
        ValueError: no cells, or more than ``_MOST_CELLS``: many pairs can lead to the same people.
    """
    left = _MOST_CELLS

    def references(found: Any) -> np.ndarray:
        nonlocal left
        stored = _stored(found)
        if stored.dtype.kind != "O":
            raise ValueError(f"values of {stored.dtype}, expected cells")
        left -= stored.size or 0
        if left < 0:
            raise ValueError(f"more than {_MOST_CELLS:,} cells")
        return _values(stored, _MOST_CELLS * stored.dtype.itemsize)

    for pair, reference in enumerate(references(archive[kind]).ravel(), start=1):
        people = references(archive[reference]).T  # (identities, images)
        for identity, images in enumerate(people, start=1):
            for number, image in enumerate(images, start=1):
                camera = 1 if number <= _FIRST_CAMERA else 2
                yield f"{pair}_{identity:03d}_{camera}_{number:02d}.png", image


def _read_protocol(root: Path, name: str) -> dict[str, np.ndarray]:
    file = root / name
    if not file.is_file():
        raise InputError(f"{file}: expected this protocol file, found {list_entries(root)}")
    try:
        content = read_mat(file, _VARIABLES)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: expected the protocol of CUHK03, a MATLAB 5 file; {error}") from None
    missing = [variable for variable in _VARIABLES if variable not in content]
    if missing:
        found = ", ".join(content) or "none of them"
        raise InputError(
            f"{file}: a MATLAB file of another kind: expected the variable {', '.join(missing)}, "
            f"found {found}"
        )
    for variable, values in content.items():
        if values.dtype.kind not in ("OU" if variable == "filelist" else "iuf"):
            raise InputError(f"{file}: variable {variable}: found {values.dtype} {values.shape}")
    return content


def _entry(protocol: dict[str, np.ndarray], number: float, file: Path) -> tuple[str, int]:
    """Name and pid of an image by its number, from 1."""
    names, labels = protocol["filelist"].ravel(), protocol["labels"].ravel()
    if not (1 <= number <= min(len(names), len(labels)) and number == int(number)):
        raise InputError(f"{file}: image {number} of {min(len(names), len(labels))} images")
    name, label = np.asarray(names[int(number) - 1]).ravel(), float(labels[int(number) - 1])
    if not len(name) or not isinstance(name[0], str) or not label.is_integer():
        raise InputError(f"{file}: image {number}: expected a name and a whole number")
    return str(name[0]), int(label)


#: Bytes of all variables: a protocol of CUHK03 has 2 MiB, and SciPy makes up to ten times as much of texts.
MAX_UNPACKED = 8 << 20

_HEADER = 128  # bytes, of which the last two tell the order of bytes in numbers
_COMPRESSED, _MATRIX = 15, 14  # types of elements
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)  # classes of arrays
_DEEPEST = 4  # cells inside each other
_SMALLEST = 48  # bytes of a cell that tells its kind, shape and name: eight can stand for an empty one


def read_mat(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Some variables of a MATLAB 5 file: numbers, texts and cells of them.

    Returns:
        Arrays by their names; those that are not there are left out.

    Raises:
        InputError: no such file, or a larger one than any of the kind.
        ValueError: another format, or a damaged file; the text tells what was found.
    """
    from scipy.io import loadmat  # here: only CUHK03 needs it

    content = read_file(file, MAX_UNPACKED)
    try:
        _look_through(content, names)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # SciPy's, such as of two variables of one name
            found = loadmat(file, appendmat=False, variable_names=list(names))
    except InputError:
        raise
    except Exception as error:  # SciPy raises nearly anything on a damaged file
        raise ValueError(truncate(error) or type(error).__name__) from None
    return {name: found[name] for name in names if name in found}


def _look_through(content: bytes, names: Sequence[str]) -> None:
    """Refuse what would not fit into memory; ``ValueError`` or ``struct.error`` for what cannot be read."""
    if content.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise ValueError("this is MATLAB 7.3 (HDF5)")
    mark = content[_HEADER - 2 : _HEADER]
    if mark not in (b"IM", b"MI"):
        raise ValueError("it has no header of that format")
    order = "<" if mark == b"IM" else ">"
    left = MAX_UNPACKED
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, left)
            if unpacker.unconsumed_tail:
                raise ValueError(f"more than {MAX_UNPACKED:,} bytes in its variables")
            kind, data = next(_elements(data, order), (0, b""))
        left -= len(data)
        if kind != _MATRIX or left <= 0:
            raise ValueError("an element that is no variable" if left > 0 else "too large")
        _check_matrix(data, order, names, 0)


def _check_matrix(data: bytes, order: str, names: Sequence[str], depth: int) -> None:
    """An array may have no more values than bytes, and a cell array no more than whole cells take."""
    parts = _elements(data, order)
    (_, flags), (_, dimensions), (_, name) = next(parts), next(parts), next(parts)
    if depth == 0 and name.decode("latin-1") not in names:
        return
    kind = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    size = math.prod(struct.unpack(f"{order}{len(dimensions) // 4}I", dimensions))
    if kind != _CELL and kind != _CHAR and kind not in _NUMBERS:
        raise ValueError(
            f"variable {name.decode('latin-1')!r} of class {kind}: expected numbers, texts or cells"
        )
    if size > len(data) // (_SMALLEST if kind == _CELL else 1) or depth > _DEEPEST:
        raise ValueError(f"an array of {size:,} values in {len(data):,} bytes")
    if kind == _CELL:
        for part, inner in parts:
            if part == _MATRIX and inner:
                _check_matrix(inner, order, names, depth + 1)


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, place)
        if kind >> 16:  # both in four bytes, the content in the four after them
            kind, size, start, step = kind & 0xFFFF, kind >> 16, place + 4, 8
        else:
            start, step = place + 8, 8 + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError(f"an element of {size:,} bytes where {len(data) - start:,} are left")
        yield kind, data[start : start + size]
        place += step
