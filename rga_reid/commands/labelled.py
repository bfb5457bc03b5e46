"""What ``evaluate``, ``calibrate`` and ``test`` share: features of queries and gallery, and their ranking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FILES = (
    "The files are .npz with the arrays features (n, d) and pids (n,), optionally camids and paths; or .npy "
    "with the features alone, beside a .csv of the same name with the columns pid, optionally camid and path."
)


def add_feature_files(command: ArgumentParser) -> None:
    """The options ``--query`` and ``--gallery``."""
    command.add_argument("--query", metavar="Q.npz", required=True, help="features of the queries")
    command.add_argument("--gallery", metavar="G.npz", required=True, help="features of the gallery")


def files_beside(options: Namespace, *keys: str) -> dict[str, list[str]]:
    """The files of labels that are read beside features in ``.npy`` files, by the option that names those."""
    named = {f"--{key}": options[key] for key in keys if options[key] is not None}
    return {option: [f"{file[:-4]}.csv"] for option, file in named.items() if file.endswith(".npy")}


def check_device(name: str) -> None:
    """Refuse what ``--device`` names if it cannot rank.

    Raises:
        InputError: an unknown device, or one that is not there.
    """
    from rga_reid.evaluation.inputs import torch_device

    try:
        torch_device(name)
    except InputError as error:  # it begins with the word device
        raise InputError(f"--{error}") from None


@contextmanager
def re_ranking_explained() -> Iterator[None]:
    """What ``--rerank`` needs, told of the option: its k1 and k2 are none of the command's."""
    from rga_reid.evaluation.reranking import TooFewItemsError

    try:
        yield
    except TooFewItemsError as error:
        raise InputError(
            f"--rerank: expected at least {error.least} query and gallery images together, found "
            f"{error.items}; leave it out"
        ) from None


def read_sides(query: str, gallery: str) -> dict[str, Any]:
    """Both files, as keywords of ``evaluate_ranking`` and of the other functions that take labelled features.

    Raises:
        InputError: not such a file, no identities, or cameras in one of the files only.
    """
    for side, path in (("query", query), ("gallery", gallery)):
        if not path:
            raise InputError(f"--{side}: expected a file of features, got an empty name")
    sides = {"query": _read(query), "gallery": _read(gallery)}
    has_cameras = ["camid" in table for _, table in sides.values()]
    if len(set(has_cameras)) > 1:
        given, missing = (query, gallery) if has_cameras[0] else (gallery, query)
        _, name = _label(missing, "camid")
        raise InputError(f"{missing}: has no {name}, but {given} has; both need it, or neither")
    inputs: dict[str, Any] = {}
    for side, (features, table) in sides.items():
        inputs[f"{side}_features"] = features
        for column in ("pid", "camid", "path"):
            inputs[f"{side}_{column}s"] = table.get(column)
    return inputs


def _read(path: str) -> tuple[np.ndarray, pd.DataFrame]:
    from rga_reid.retrieval.feature_files import read_features

    features, table = read_features(path)
    if "pid" not in table:
        label = " ".join(_label(path, "pid"))
        raise InputError(f"{path}: expected {label}, the identity of each row of 'features'")
    return features, table


def _label(path: str, column: str) -> tuple[str, str]:
    """What a label is called in a file of this kind: the article and the name."""
    if Path(path).suffix == ".npy":
        return "a", f"column '{column}' in its CSV file"
    return "an", f"array '{column}s'"
