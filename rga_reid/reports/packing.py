"""Numbers inside a page: half precision, deflated, base64; each array is kept once."""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RELATIVE_ERROR = 2.0**-11  #: of a packed number, unless it is 2³⁰ times smaller than the largest of its array
_LARGEST = 15  # largest values lie below 2¹⁵ after scaling: half precision ends at 65504


@dataclass
class Pack:
    """Collects arrays; ``blobs`` is what the page holds."""

    blobs: list[str] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Keep an array; the reference says where it lies and by which power of two it was divided."""
        largest = float(np.abs(array).max(initial=0.0))
        exponent = math.frexp(largest)[1] - _LARGEST if largest > 0 else 0
        halves = np.ldexp(array.astype(np.float64), -exponent).astype("<f2")
        return {"blob": self._keep(_planes(halves)), "shape": list(array.shape), "scale": 2.0**exponent}

    def add_pictures(self, maps: np.ndarray) -> dict[str, Any]:
        """Keep maps ``(n, h, w)`` to be looked at, each scaled to 0 to 255 between its lowest and highest."""
        low = maps.min(axis=(1, 2), keepdims=True)
        span = maps.max(axis=(1, 2), keepdims=True) - low
        scaled = np.divide(maps - low, span, out=np.zeros_like(maps), where=span > 0)
        pixels = np.round(scaled * 255).astype(np.uint8)
        return {"blob": self._keep(pixels.tobytes()), "shape": list(maps.shape)}

    def _keep(self, content: bytes) -> int:
        if content not in self._places:
            self._places[content] = len(self.blobs)
            self.blobs.append(base64.b64encode(zlib.compress(content, 6)).decode("ascii"))
        return self._places[content]


def _planes(halves: np.ndarray) -> bytes:
    """All high bytes, then all low bytes: like lies beside like, which deflates better."""
    pairs = np.frombuffer(halves.tobytes(), np.uint8).reshape(-1, 2)
    return pairs[:, 1].tobytes() + pairs[:, 0].tobytes()
