"""Virtual environments of other programs. They share the packages of this one, so torch is not installed twice."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUIREMENTS = {
    "boxmot": ["boxmot[onnx,openvino]==25.*"],
    "deploy": ["openvino>=2025.2", "opencv-python-headless>=5,<6", "tritonclient", "deep-sort-realtime", "supervision"],
}  # fmt: skip


def environment(name: str) -> Path:
    """Return the Python of an environment with the packages of ``REQUIREMENTS``; make it on first use.

    It is in the folder ``$RGA_REID_BOXMOT_VENV`` or ``$RGA_REID_DEPLOY_VENV`` if that is set, else in the cache of the
    user. It takes 0.6 GB.
    """
    default = Path.home() / ".cache" / "rga-reid" / f"{name}-venv"
    folder = Path(os.environ.get(f"RGA_REID_{name.upper()}_VENV", default))
    python, done = folder / "bin" / "python", folder / "installed.txt"
    requirements = "\n".join(REQUIREMENTS[name])
    if not done.exists() or done.read_text() != requirements:
        venv.create(folder, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shared = folder / "lib" / version / "site-packages" / "shared.pth"
        shared.write_text(sysconfig.get_paths()["purelib"])
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS[name]], check=True, timeout=1800)
        done.write_text(requirements)
    return python


def run_program(name: str, *words: Any) -> str:
    """Run a module of ``tests.peers``, or of this package, in an environment; return what it printed."""
    done = subprocess.run(
        [environment(name), "-m", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
