"""MATLAB 5 files of data sets. They are trusted as code is: SciPy reads them, behind a limit on the file size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rga_reid.data.records import list_entries
from rga_reid.errors import InputError
from rga_reid.inputs import truncate

MAX_MATLAB = 8 << 20  #: bytes of a file; the published ones have less than 1 MB


def read_matlab(file: Path, variables: Sequence[str], *, what: str) -> dict[str, np.ndarray]:
    """Read variables of a MATLAB 5 file.

    Args:
        file: file of a data set.
        variables: names, all of which the file must have.
        what: what error messages call the file.

    Raises:
        InputError: the file is missing or too large, is not MATLAB 5, or lacks a variable.
    """
    from scipy.io import loadmat  # few data sets need it

    if not file.is_file():
        nearby = file.parent if file.parent.is_dir() else file.parent.parent
        raise InputError(f"{file}: expected this file, {what}, found {list_entries(nearby)}")
    if file.stat().st_size > MAX_MATLAB:
        raise InputError(f"{file}: expected {what}, of at most {MAX_MATLAB >> 20} MiB")
    try:
        content = loadmat(file, appendmat=False, variable_names=list(variables))
    except Exception as error:  # SciPy raises many types for damaged files and other formats
        raise InputError(f"{file}: expected {what}, a MATLAB 5 file; {truncate(error)}") from None
    missing = [variable for variable in variables if variable not in content]
    if missing:
        found = ", ".join(name for name in content if not name.startswith("__")) or "none of them"
        raise InputError(f"{file}: expected the variable {', '.join(missing)}, found {found}")
    return content
