"""Hostile files, such as a gallery with valid checksums, and the check of a refusal."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rga_reid.gallery.manifest import canonical_json
from tests.fuzz.harness import Outcome

Run = Callable[[list[str], Path], Outcome]  #: run a command in a folder

SEGMENT = Path("segments/000001-0")
MAX_MEMORY = 200  #: MiB that a refusal may allocate


class Bomb:
    """Object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def refusal(outcome: Outcome) -> str:
    """Check that a command refused its input in bounded memory; return its one-line error."""
    assert outcome.code == 2, outcome.escaped or outcome
    assert outcome.error.startswith("rga-reid: error: ")
    assert outcome.error.count("\n") == 1
    assert outcome.mebibytes < MAX_MEMORY
    return outcome.error


def reseal(gallery: Path, change: Callable[[Any], object]) -> None:
    """Change a manifest and update its checksum, as anyone can."""
    manifest = json.loads((gallery / "manifest.json").read_text())
    change(manifest)
    manifest.pop("sha256")
    (gallery / "manifest.json").write_bytes(canonical_json(manifest))


def put(gallery: Path, name: str, content: bytes) -> None:
    """Replace a file of a segment, and its checksum in the manifest."""
    (file,) = gallery.rglob(name)
    file.write_bytes(content)

    def change(manifest: Any) -> None:
        for segment in manifest["segments"]:
            segment["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    reseal(gallery, change)
