"""Write synthetic image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, count: int) -> list[str]:
    """Write images as smooth as photographs, enlarged small noise, as JPEG at quality 90; return their paths."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8))
        paths.append(str(folder / f"{number:05d}.jpg"))
        noise.resize((64, 128), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths
