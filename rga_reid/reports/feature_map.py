"""Map of the feature space: each test image as a dot, with its picture and its nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from rga_reid.data import read_image
from rga_reid.data.labels import plain_label
from rga_reid.errors import InputError
from rga_reid.reports.html import jpeg_uri
from rga_reid.reports.ranked_page import shorten_path
from rga_reid.runtime import track

NEIGHBOURS = 10  #: shown for an image
CROP = (40, 80)  #: width and height of a picture in pixels
_COLUMNS = 40  # pictures side by side in the sheet that has all
_PERPLEXITY = 30  # of t-SNE: number of neighbours that a point is placed by
_EMPTY = (128, 128, 128)  # colour behind a picture, and instead of one that cannot be read


@dataclass(frozen=True, eq=False)
class Group:
    """Points of one kind, such as the images of one person.

    Args:
        points: row numbers.
        colour: of CSS.
        marker: ``v``, ``o`` or ``^``: a triangle down, a circle or a triangle up.
        labels: texts of the points that are drawn large, by row number.
    """

    points: np.ndarray
    colour: str
    marker: str
    labels: Mapping[int, str]


def require_layout() -> None:
    """Check that scikit-learn is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("sklearn") is None:
        raise InputError("feature map: needs scikit-learn: pip install scikit-learn")


def flat_layout(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Project features ``(n, d)`` to the plane by t-SNE of their cosine distances: float32 ``(n, 2)``.

    van der Maaten, Hinton: Visualizing Data using t-SNE, JMLR 2008. Neighbours stay neighbours; distances
    between far points and densities of clusters carry little meaning. One version of scikit-learn gives the
    same layout for the same features and seed.

    Raises:
        InputError: scikit-learn is not installed; fewer than 4 rows.
    """
    require_layout()
    if len(features) < 4:
        raise InputError(f"feature map: expected at least 4 images, got {len(features)}")
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    start = "pca" if min(features.shape) >= 2 else "random"
    layout = TSNE(perplexity=perplexity, metric="cosine", init=start, random_state=seed)
    return layout.fit_transform(features)


def nearest_neighbours(features: np.ndarray, count: int = NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest other rows of each row by cosine similarity, best first, and the similarities.

    Args:
        features: ``(n, d)``.
        count: neighbours k, at most n − 1.

    Returns:
        Row numbers and similarities, ``(n, k)`` each.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(features) - 1)]
    return order, np.take_along_axis(similarity, order, axis=1)


def feature_map(
    features: np.ndarray, table: pd.DataFrame, groups: Sequence[Group], *, seed: int = 0
) -> tuple[dict[str, Any], str]:
    """Return what ``feature_map.js`` shows, and the pictures of all images as one data URI.

    Args:
        features: ``(n, d)``.
        table: columns path, pid, camid and split, n rows.
        groups: drawn in colour, later ones on top.
        seed: random seed of the layout.

    Raises:
        InputError: scikit-learn is not installed; fewer than 4 images.
    """
    places = flat_layout(features, seed=seed)
    centre, extent = (places.max(0) + places.min(0)) / 2, float(np.ptp(places, axis=0).max()) or 1
    places = 0.5 + (places - centre) / extent  # from 0 to 1
    rows, similarities = nearest_neighbours(features)
    images = [
        {
            "path": shorten_path(row.path),
            "pid": plain_label(row.pid),
            "camid": plain_label(row.camid),
            "query": row.split == "query",
        }
        for row in table.itertuples()
    ]
    data = {
        "images": images,
        "x": np.round(places[:, 0], 4).tolist(),
        "y": np.round(1 - places[:, 1], 4).tolist(),
        "neighbours": rows.tolist(),
        "similarities": np.round(similarities, 3).tolist(),
        "groups": [
            {
                "points": one.points.tolist(),
                "colour": one.colour,
                "marker": one.marker,
                "labels": {str(row): text for row, text in one.labels.items()},
            }
            for one in groups
        ],
        "crop": {"width": CROP[0], "height": CROP[1], "columns": _COLUMNS},
    }
    return data, _sheet(table["path"].tolist())


def _sheet(paths: Sequence[str]) -> str:
    """Return the pictures in rows of ``_COLUMNS`` as one JPEG data URI: one header for all."""
    width, height = CROP
    sheet = Image.new("RGB", (width * min(_COLUMNS, len(paths)), height * -(-len(paths) // _COLUMNS)), _EMPTY)
    for number, path in enumerate(track(paths, "pictures", len(paths))):
        try:
            image = read_image(path)
        except (InputError, ValueError):  # ValueError: a path that no file can have
            continue
        image.thumbnail(CROP, Image.Resampling.LANCZOS)
        left, top = width * (number % _COLUMNS), height * (number // _COLUMNS)
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
    return jpeg_uri(sheet, quality=75)
