"""Files of tensors. Nothing is unpickled: a file from a stranger cannot run code."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate

SHOWN = 10  #: keys that a message names

# What a NumPy number in a checkpoint is pickled with, under the names of old and new releases. None of it can
# run code; torch's own list has it not, and training scripts leave their best score so.
_NUMPY_SCALARS: list[Any] = [
    (np.core.multiarray.scalar if np.__version__ < "2" else np._core.multiarray.scalar, name)  # type: ignore[attr-defined]
    for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]
_NUMPY_SCALARS += [np.dtype, *(type(np.dtype(code)) for code in ("?", "i4", "i8", "f2", "f4", "f8"))]


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state_dict from a ``.safetensors`` or a torch file, bare or under ``state_dict`` or ``model``.

    Nothing is unpickled that could run code.

    Raises:
        InputError: no such file, not a state_dict.
    """
    file = Path(path)
    content = read_safetensors(file)[0] if file.suffix == ".safetensors" else read_torch(file)
    return check_state(file, content.get("state_dict", content.get("model", content)))


def check_state(file: Path, state: Any) -> dict[str, Tensor]:
    """A state_dict, each of whose tensors has numbers of its own for all that its shape says.

    A view that repeats one number may claim any size; a model made to fit it would fill the memory.

    Raises:
        InputError: something else; the message names the file and the first key that is wrong.
    """
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{file}: expected a state_dict of tensors")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{file}: expected a state_dict of tensors, {short_repr(key)} is {type(value).__name__}"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise InputError(f"{file}: {short_repr(key)}: expected a plain tensor of real numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"{file}: {short_repr(key)}: a tensor of {tuple(value.shape)} with fewer numbers than that"
            )
    return state


def diff_state_dicts(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What two state_dicts differ in, in one line with the first ten keys of each kind; empty if nothing."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in sorted(expected.keys() & found.keys())
            if expected[key].shape != found[key].shape
        ],
    }
    return "; ".join(
        f"{len(keys)} keys {kind} ({', '.join(truncate(key, 80) for key in keys[:SHOWN])}"
        f"{', ...' if len(keys) > SHOWN else ''})"
        for kind, keys in kinds.items()
        if keys
    )


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a ``.safetensors`` file."""
    _require_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # also of torch, about types that it has not
        raise InputError(f"{file}: not a safetensors file ({truncate(error)})") from None
    return check_state(file, state), metadata


def read_torch(file: Path) -> dict[str, Any]:
    """The dictionary in a file of ``torch.save``, refused if it holds more than tensors, numbers and text."""
    _require_file(file)
    try:
        _refuse_packed(file)
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about what a damaged file seems to be
            content = torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{file}: not a checkpoint, or one that would have to be unpickled, which can run code: refused"
        ) from None
    except Exception as error:  # torch raises nearly anything on a damaged file
        with open(file, "rb") as opened:
            archive = opened.read(2) == b"PK"
        # of other files the reader of old ones tells what it stumbled over: that says nothing
        why = f" ({truncate(error)})" if archive else ": expected a file of torch.save, such as .ckpt or .pth"
        raise InputError(f"{file}: not a checkpoint{why}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a checkpoint, got a {type(content).__name__}")
    return content


def _refuse_packed(file: Path) -> None:
    """Refuse an archive that holds more than its file: ``torch.save`` compresses nothing."""
    with open(file, "rb") as opened:
        if opened.read(4) != b"PK\x03\x04":
            return  # torch takes it for one of before 2020, which is not packed
        if not _ends_with_its_directory(opened):
            raise InputError(f"{file}: not a checkpoint of torch.save: an archive that ends in another way")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > file.stat().st_size:
        what = (
            f"{short_repr(packed[0])} is compressed" if packed else "it claims more content than it has bytes"
        )
        raise InputError(f"{file}: not a checkpoint of torch.save: {what}")


def _ends_with_its_directory(file: BinaryIO) -> bool:
    """Whether a ZIP archive ends with its directory and nothing else, as ``torch.save`` writes it.

    Python and torch look for the directory in ways of their own: in another archive they may find two.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read().rjust(98, b"\0")
    large, locator, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        return False
    if locator[:4] != b"PK\x06\x07":
        length, start = struct.unpack("<II", end[12:20])
        return length + start == size - 22
    length, start = struct.unpack("<QQ", large[40:56])
    (place,) = struct.unpack("<Q", locator[8:16])
    return large[:4] == b"PK\x06\x06" and place == size - 98 and length + start == size - 98


def _require_file(file: Path) -> None:
    if file.is_dir():
        raise InputError(f"{file}: expected a checkpoint, found a folder")
    if not file.is_file():
        raise InputError(f"{file}: no such file (expected a checkpoint)")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: expected a checkpoint, found an empty file")
