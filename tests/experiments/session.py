"""An ablation whose runs are small scripts instead of trainings.

    python session.py OUT [RUNS]

Each run counts to five in its folder, from where it was interrupted. At the number in the file ``stop`` of its
variant's folder it waits until that file is removed. A variant named ``bad`` fails at two, ``dies`` is killed
there, and ``odd`` fails with text like the log's headings. RUNS are such as ``a:0,b:1``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rga_reid.experiments.ablation import TRAINED, DataSource, Outcome, Progress, Run, make_runs
from rga_reid.runtime import run_main

TRAINING = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]) / "train"
folder.mkdir(exist_ok=True)
count, stop = folder / "count", folder.parents[1] / "stop"
(folder / "starts").open("a").write("x")
seen = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
(folder / "environment").write_text(" ".join(map(str, seen)))
for number in range(int(count.read_text()) + 1 if count.exists() else 1, 6):
    if "bad" in sys.argv[1] and number == 2:
        sys.exit("no such attention")
    if "dies" in sys.argv[1].split("/") and number == 2:
        os.kill(os.getpid(), 9)
    if "odd" in sys.argv[1].split("/") and number == 2:
        sys.exit("== testing what?\\nexpected a == b")
    count.write_text(str(number))
    print(f"epoch {number}/5 ", flush=True)
    while stop.exists() and number == int(stop.read_text()):
        time.sleep(0.01)
"""
TESTING = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "result.json").write_text((folder / "train" / "count").read_text())
"""


class CountingRun(Run):
    def commands(self) -> list[tuple[str, list[str]]]:
        words = [sys.executable, "-c"]
        trained = (self.folder / TRAINED).is_file()
        left = [] if trained else [("training", [*words, TRAINING, str(self.folder)])]
        return [*left, ("testing", [*words, TESTING, str(self.folder)])]


def runs(out: Path, names: str = "a:0,b:0,a:1", recipe: dict[str, object] | None = None) -> list[Run]:
    data = DataSource("nowhere", "market1501", "0")
    pairs = [name.split(":") for name in names.split(",")]
    return [
        CountingRun(name, int(seed), recipe or {"trainer": {}}, data, False, out / name / f"seed-{seed}")
        for name, seed in pairs
    ]


def session(
    out: Path,
    names: str = "a:0,b:0,a:1",
    report: Callable[[Progress], None] = lambda progress: None,
    **options: object,
) -> tuple[Outcome, list[Progress]]:
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        report(progress)

    return make_runs(runs(out, names), report=watch, **options), seen  # type: ignore[arg-type]


def main() -> int:
    session(Path(sys.argv[1]), *sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
