"""A Milvus server on this machine, from the PyPI package ``milvus``, which brings the server as a program."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.ports import free_ports

REQUIREMENT = "milvus>=2.3,<2.4"
START_SECONDS = 300
STOP_SECONDS = 60

# resolves the configuration, unpacks the program, and prints where everything is
_PREPARE = """
import json, sys
from milvus import MilvusServerConfig, _initialize_data_files
options = json.loads(sys.argv[1])
config = MilvusServerConfig()
config.update(data_dir=options["folder"])
for key, value in options["settings"].items():
    config.set(key, value)
config.update(**{key: value for key, value in options["settings"].items() if key.endswith("_port")})
config.resolve()
_initialize_data_files(config.base_data_dir)
"""
_ETCD = """name: default
data-dir: {folder}/data/etcd.data
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""


def environment() -> Path:
    """Return the Python of an environment with the package, which is made and installed on first use.

    It is ``$RGA_REID_MILVUS_VENV`` if that is set, else a folder in the cache of the user.
    """
    default = Path.home() / ".cache" / "rga-reid" / "milvus-venv"
    folder = Path(os.environ.get("RGA_REID_MILVUS_VENV", default))
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    found = subprocess.run([python, "-c", "import milvus"], capture_output=True)
    if found.returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", REQUIREMENT], check=True, timeout=600)
    return python


class Server:
    """A standalone server, its data in a folder. A context manager that stops it.

    Args:
        folder: its data, configuration and logs.
        settings: other settings than those of ``milvus-server``.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        names = ["proxy", "etcd", "root_coord", "proxy_internal", "query_coord", "query_node", "index_coord"]
        names += ["index_node", "data_coord", "data_node"]
        *ports, peer, self._metrics = free_ports(len(names) + 2)
        self._settings = {f"{name}_port": port for name, port in zip(names, ports, strict=True)} | settings
        self.port = ports[0]
        self._process: subprocess.Popen[bytes] | None = None
        options = {"folder": str(folder), "settings": self._settings}
        subprocess.run([environment(), "-c", _PREPARE, json.dumps(options)], check=True, timeout=600)
        etcd = (
            folder / "configs" / "etcd.yaml"
        )  # without it, all servers of a machine share the default ports
        etcd.write_text(_ETCD.format(folder=folder, client=self._settings["etcd_port"], peer=peer))
        config = folder / "configs" / "milvus.yaml"
        text = config.read_text().replace("\n  use:\n", f"\n  config:\n    path: {etcd}\n  use:\n", 1)
        config.write_text(text)

    def start(self) -> None:
        """Start the server, and wait until it answers.

        It may end while the session of a server that was killed is still registered, and is then started again.
        """
        deadline = time.monotonic() + START_SECONDS
        process = self._launch()
        while not self._healthy():
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Milvus did not start: see {self.folder}/logs")
            if process.poll() is not None:
                time.sleep(2)
                process = self._launch()
            time.sleep(0.2)

    def _launch(self) -> subprocess.Popen[bytes]:
        binary = self.folder / "bin" / "milvus"
        variables = {
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._metrics),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
            "LD_LIBRARY_PATH": str(binary.parent),
        }
        with (self.folder / "logs" / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "run", "standalone"],
                cwd=self.folder,
                env=os.environ | variables,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        return self._process

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/healthz", timeout=5) as answer:
                return bool(b"OK" in answer.read())
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self.kill()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _end_with_parent() -> None:
    """Ask Linux to end this process when the tests end, however they do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
