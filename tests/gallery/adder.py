"""Add images to a gallery one after the other; print each path when it is added. Run as a program.

``python -m tests.gallery.adder LOCATION NAME COUNT``
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from rga_reid.gallery import Gallery


def run(location: str, name: str, count: int) -> None:
    """Add ``COUNT`` times three images."""
    gallery = Gallery.open(location, wait=300)
    generator = np.random.default_rng(len(name))
    for number in range(count):
        paths = [f"{name}/{number}_{row}.jpg" for row in range(3)]
        gallery.add(generator.normal(size=(3, gallery.dimension)), pd.DataFrame({"path": paths}))
        print("\n".join(paths), flush=True)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
