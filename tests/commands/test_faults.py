"""What docs/faults.md promises: commands that are interrupted or killed, disks that take nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from rga_reid import Gallery, load_model
from rga_reid.commands import main
from rga_reid.gallery.folder_store import orphaned_files
from rga_reid.inference.feature_files import read_features

DRIVER = Path(__file__).with_name("faulty.py")
Answer = dict[str, Any]
State = bytes | dict[str, bytes | None] | None  # of an output: content, those of a folder, not there


class Driver:
    """The process that forks, see faulty.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *words: object, **fault: object) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"words": list(map(str, words)), **fault}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def run() -> Iterator[Driver]:
    process = subprocess.Popen(
        [sys.executable, str(DRIVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[2]), "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield Driver(process)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Inputs:
    """What the commands read, and nobody writes."""

    market: Path
    table: Path
    checkpoint: Path
    images: Path
    features: Path
    gallery: Path
    published: Path
    recipe: Path
    plan: Path
    metrics: Path
    asked: Path


@pytest.fixture(scope="module")
def inputs(tiny_market: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    rows, pids = generator.normal(size=(1100, 16)).astype(np.float32), np.arange(1100) % 50
    rows += 3 * generator.normal(size=(50, 16)).astype(np.float32)[pids]
    paths = np.array([f"{row}.jpg" for row in range(1100)])
    np.savez(folder / "features.npz", features=rows, pids=pids, camids=pids % 3, paths=paths)
    np.savez(folder / "asked.npz", features=rows[:100], pids=pids[:100], camids=pids[:100] % 3 + 1)
    images = tiny_market / "bounding_box_test"
    words = ["--images", str(images), "--checkpoint", str(tiny_checkpoint)]
    assert main(["gallery", "build", "--gallery", str(folder / "gallery"), *words]) == 0
    splits = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    lines = [
        f"{image},{image.name[:4]},{image.name[6]},{split}"
        for place, split in splits.items()
        for image in sorted((tiny_market / place).glob("0*.jpg"))
    ]
    (folder / "set.csv").write_text("\n".join(["path,pid,camid,split", *lines]))
    torch.save(torchvision.models.resnet18().state_dict(), folder / "published.pth")
    recipe = {
        "model": {"depth": 18, "attention": "se", "weights": None, "size": [64, 32]},
        "data": {"identities_per_batch": 2, "images_per_identity": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    variants = [{"name": name, "recipe": {"model": {"attention": name}}} for name in ("se", "cbam")]
    plan = {"title": "two", "recipe": str(folder / "recipe.yaml"), "variants": variants, "seeds": [0]}
    (folder / "plan.yaml").write_text(json.dumps(plan))
    (folder / "metrics.json").write_text('{"mAP": 0.5}')
    return Inputs(
        tiny_market,
        folder / "set.csv",
        tiny_checkpoint,
        images,
        folder / "features.npz",
        folder / "gallery",
        folder / "published.pth",
        folder / "recipe.yaml",
        folder / "plan.yaml",
        folder / "metrics.json",
        folder / "asked.npz",
    )


@dataclass(frozen=True)
class Case:
    """A command, and how to tell that what it writes is whole.

    Args:
        words: of the command, by the inputs and the folder that it may write in.
        outputs: files in that folder, and what fails on one that is not whole.
        prepare: what is there before, by the same.
        again: more words with which the command goes on, or starts over, after it was stopped.
        done: fails where what was there before has not been changed to its end.
    """

    words: Callable[[Inputs, Path], list[object]]
    outputs: dict[str, Callable[[Path], object]]
    prepare: Callable[[Inputs, Path], object] = lambda inputs, out: None
    again: Callable[[Path], list[str]] = lambda out: []
    done: Callable[[Path], object] = lambda out: None


def page(file: Path) -> None:
    assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")


def features(file: Path) -> None:
    found, table = read_features(file)
    assert found.shape == (14, 512)
    assert table["path"].notna().all()


def json_file(file: Path) -> None:
    assert json.loads(file.read_text())


def gallery(*counts: int) -> Callable[[Path], None]:
    """A gallery whose bytes are right, of one of these numbers of images, if any are given."""

    def whole(folder: Path) -> None:
        found = Gallery.open(folder)
        assert found.check() > 0
        assert not counts or len(found) in counts

    return whole


def copy(inputs: Inputs, out: Path) -> None:
    shutil.copytree(inputs.gallery, out / "g")


def put(*names: str) -> Callable[[Inputs, Path], None]:
    """Files that the command replaces."""

    def prepare(inputs: Inputs, out: Path) -> None:
        for name in names:
            (out / name).write_bytes(b"old")

    return prepare


def build_again(out: Path) -> list[str]:
    return ["--resume"] if (out / "g" / "unfinished.json").exists() else ["--overwrite"]


CASES = {
    "check": Case(
        lambda i, out: ["data", "check", i.table, "--json", out / "d.json"],
        {"d.json": json_file},
        prepare=put("d.json"),
    ),
    "test": Case(
        lambda i, out: [
            *("test", "--checkpoint", i.checkpoint, "--data.root", i.market),
            *("--json", out / "m.json", "--html", out / "m.html"),
        ],
        {"m.json": json_file, "m.html": page},
        prepare=put("m.json", "m.html"),
    ),
    "features": Case(
        lambda i, out: [
            *("features", "--checkpoint", i.checkpoint, "--images", i.images),
            *("--out", out / "f.npz", "--overwrite"),
        ],
        {"f.npz": features},
        prepare=put("f.npz"),
    ),
    "evaluate": Case(
        lambda i, out: [
            *("evaluate", "--query", i.asked, "--gallery", i.features),
            *("--json", out / "m.json", "--per-query", out / "q.csv"),
        ],
        {
            "m.json": json_file,
            "q.csv": lambda file: np.testing.assert_equal(file.read_text().count("\n"), 101),
        },
        prepare=put("m.json", "q.csv"),
    ),
    "calibrate": Case(
        lambda i, out: [
            *("calibrate", "--query", i.asked, "--gallery", i.features, "--json", out / "c.json"),
        ],
        {"c.json": json_file},
        prepare=put("c.json"),
    ),
    "compare two pictures": Case(
        lambda i, out: [
            *("verify", *sorted((i.market / "query").iterdir())[:2]),
            *("--checkpoint", i.checkpoint, "--json", out / "v.json"),
        ],
        {"v.json": json_file},
        prepare=put("v.json"),
    ),
    "report": Case(
        lambda i, out: ["report", i.metrics, "--out", out / "report", "--json", out / "r.json"],
        {"report/report.html": page, "r.json": json_file},
        prepare=lambda inputs, out: [put("r.json")(inputs, out), (out / "report").mkdir()],
        again=lambda out: ["--overwrite"],
    ),
    "build": Case(
        lambda i, out: [
            *("gallery", "build", "--gallery", out / "g", "--images", i.images),
            *("--checkpoint", i.checkpoint, "--batch-size", 3),
        ],
        {"g": gallery(14)},
        again=build_again,
    ),
    "build in the place of another": Case(
        lambda i, out: [
            *("gallery", "build", "--gallery", out / "g", "--images", i.market / "query"),
            *("--checkpoint", i.checkpoint, "--batch-size", 3, "--overwrite"),
        ],
        {"g": gallery(14, 4)},
        prepare=copy,
        done=lambda out: gallery(4)(out / "g"),
    ),
    "build an index": Case(
        lambda i, out: [
            *("gallery", "build", "--gallery", out / "g", "--features", i.features, "--index", "ivf"),
            *("--json", out / "g.json"),
        ],
        {"g": gallery(1100), "g.json": json_file},
        again=lambda out: ["--overwrite"],
    ),
    "add": Case(
        lambda i, out: [
            *("gallery", "add", "--gallery", out / "g", "--images", i.market / "query", "--batch-size", 3),
            *("--json", out / "g.json"),
        ],
        {"g": gallery(14, 17, 18), "g.json": json_file},  # a block is what exceeds two images: a batch
        prepare=copy,
        again=lambda out: ["--skip-known"],
        done=lambda out: gallery(18)(out / "g"),
    ),
    "remove": Case(
        lambda i, out: ["gallery", "remove", "--gallery", out / "g", "--pid", 12],
        {"g": gallery(14, 11)},
        prepare=copy,
        done=lambda out: gallery(11)(out / "g"),
    ),
    "export": Case(
        lambda i, out: [
            *("export", "--checkpoint", i.checkpoint, "--format", "torchscript"),
            *("--out", out / "m.pt", "--overwrite"),
        ],
        {"m.pt": torch.jit.load},
        prepare=put("m.pt"),
    ),
    "convert": Case(
        lambda i, out: ["convert", i.published, out / "m.safetensors", "--overwrite"],
        {"m.safetensors": load_model},
        prepare=put("m.safetensors"),
    ),
    "query": Case(
        lambda i, out: [
            *("query", "--gallery", i.gallery, "--image", i.market / "query"),
            *("--html", out / "q.html", "--json", out / "q.json", "--csv", out / "q.csv"),
        ],
        {
            "q.html": page,
            "q.json": json_file,
            "q.csv": lambda file: np.testing.assert_equal(file.read_text().count("\n"), 41),
        },
        prepare=put("q.html", "q.json", "q.csv"),
    ),
    "explain": Case(
        lambda i, out: [
            *("explain", "--checkpoint", i.checkpoint, "--out", out / "e.html"),
            *("--image", next((i.market / "query").iterdir())),
        ],
        {"e.html": page},
        prepare=put("e.html"),
    ),
    "train": Case(
        lambda i, out: ["train", "--config", i.recipe, "--data.root", i.market, "--out", out / "run"],
        {"run/last.ckpt": load_model},
        again=lambda out: ["--resume"] if (out / "run" / "last.ckpt").exists() else ["--overwrite"],
    ),
    "demo": Case(
        lambda i, out: ["demo", "--config", i.recipe, "--epochs", 1, "--out", out / "demo"],
        {
            "demo/model/last.ckpt": load_model,
            "demo/gallery": gallery(),
            "demo/query.html": page,
            "demo/explain.html": page,
            "demo/metrics.json": json_file,
        },
        again=lambda out: ["--overwrite"],
    ),
}


for action in ("info", "verify", "compact"):
    CASES[action] = Case(
        lambda i, out, action=action: [
            *("gallery", action, "--gallery", out / "g", "--json", out / "g.json"),
        ],
        {"g": gallery(14), "g.json": json_file},
        prepare=copy,
    )


QUICK = [name for name in CASES if name not in ("train", "demo")]


def litter(folder: Path) -> list[Path]:
    """What commands keep there while they work, and no longer."""
    drafts = [path for path in folder.rglob(".*") if path.name != ".rga-reid-cache"]
    galleries = [path.parent for path in folder.rglob("lock")]
    return sorted(drafts) + [path for gallery in galleries for path in orphaned_files(gallery)]


def state(file: Path) -> State:
    """An output as it is now."""
    if file.is_dir():
        return contents(file)
    return file.read_bytes() if file.exists() else None


def prepared(case: Case, inputs: Inputs, out: Path) -> dict[str, State]:
    """Put there what is there before the command; its outputs as they are then."""
    case.prepare(inputs, out)
    return {name: state(out / name) for name in case.outputs}


def check(case: Case, out: Path) -> None:
    """All is done: each output is whole, and new."""
    for name, whole in case.outputs.items():
        whole(out / name)
    case.done(out)


def check_stopped(case: Case, out: Path, before: dict[str, State]) -> None:
    """Each output is as it was before, which is not there only where it was not, or whole."""
    for name, whole in case.outputs.items():
        file = out / name
        begun = file.is_dir() and not (file / "manifest.json").exists()  # a gallery, nobody opens it
        if state(file) != before[name] and not (before[name] is None and begun):
            assert file.exists(), f"{name} is gone"
            whole(file)


def points(answer: Answer, signum: int, count: int) -> list[int]:
    """Events to strike at: Ctrl-C anywhere, the others where files are written."""
    generator = np.random.default_rng(signum)
    places = range(1, answer["events"]) if signum == signal.SIGINT else answer["writing"]
    chosen = generator.choice(places, min(count, len(places)), replace=False)
    return [int(place) for place in np.sort(chosen)]


def strike(run: Driver, case: Case, inputs: Inputs, out: Path, signum: int, at: int) -> None:
    """The command gets a signal, and leaves what it promises."""
    out.mkdir()
    before = prepared(case, inputs, out)
    answer = run(*case.words(inputs, out), watched=True, signal=signum, at=at)
    where = f"signal {signum} at {at}, {answer['struck']}: {answer['error']}"
    if signum == signal.SIGKILL:
        assert answer["code"] == -signum, where
    else:
        said = {signal.SIGINT: "rga-reid: interrupted", signal.SIGTERM: "rga-reid: terminated"}[signum]
        assert (answer["code"], answer["error"].strip()) == (128 + signum, said), where
        assert litter(out) == [], where
    check_stopped(case, out, before)


def repeat(run: Driver, case: Case, inputs: Inputs, out: Path) -> None:
    """The command is given again, and leaves what it does without a fault."""
    answer = run(*case.words(inputs, out), *case.again(out))
    removed = "pid 12: not in the gallery" in answer["error"]  # it was done already
    assert answer["code"] == (2 if removed else 0), answer["error"]
    assert removed or litter(out) == []
    check(case, out)


def strikes(run: Driver, inputs: Inputs, folder: Path, name: str, counts: dict[signal.Signals, int]) -> None:
    case, out = CASES[name], folder / "out"
    out.mkdir()
    case.prepare(inputs, out)
    answer = run(*case.words(inputs, out), watched=True)
    assert answer["code"] == 0, answer["error"]
    check(case, out)
    assert litter(out) == []
    shutil.rmtree(out)
    for signum, count in counts.items():
        for at in points(answer, signum, count):
            strike(run, case, inputs, out, signum, at)
            if signum == signal.SIGKILL or count > 1:
                repeat(run, case, inputs, out)
            shutil.rmtree(out)


@pytest.mark.parametrize("name", QUICK)
def test_a_command_that_is_stopped_leaves_nothing_half_written(
    run: Driver, inputs: Inputs, tmp_path: Path, name: str
) -> None:
    strikes(run, inputs, tmp_path, name, {signal.SIGINT: 1, signal.SIGKILL: 1})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_blocks_that_were_added_stay(run: Driver, inputs: Inputs, tmp_path: Path, signum: int) -> None:
    """The later an addition is stopped, the more it has added; what is left is added afterwards."""
    case, out, counts = CASES["add"], tmp_path / "out", []
    out.mkdir()
    case.prepare(inputs, out)
    answer = run(*case.words(inputs, out), watched=True)
    shutil.rmtree(out)
    for at in answer["writing"][:: len(answer["writing"]) // 10]:
        strike(run, case, inputs, out, signum, at)
        table = Gallery.open(out / "g").table
        new = [Path(path) for path in table["path"][14:]]
        assert new == sorted((inputs.market / "query").iterdir())[: len(new)]
        counts.append(len(table))
        if counts[-1] == 17:
            repeat(run, case, inputs, out)
        shutil.rmtree(out)
    assert counts == sorted(counts)
    assert set(counts) >= {14, 17}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_at_many_points(run: Driver, inputs: Inputs, tmp_path: Path, name: str) -> None:
    strikes(run, inputs, tmp_path, name, {signal.SIGINT: 20, signal.SIGTERM: 20, signal.SIGKILL: 20})


@pytest.mark.parametrize("name", CASES)
def test_a_disk_that_is_full(run: Driver, inputs: Inputs, tmp_path: Path, name: str) -> None:
    """Nothing fits (no file may grow): one line, and all is as it was."""
    case = CASES[name]
    case.prepare(inputs, tmp_path)
    before = contents(tmp_path)
    answer = run(*case.words(inputs, tmp_path), most=64)
    assert (answer["code"], answer["error"].count("\n")) == (2, 1), answer["error"]
    assert str(tmp_path) in answer["error"]
    assert "cannot write" in answer["error"]
    assert "File too large" in answer["error"]
    assert litter(tmp_path) == []
    if name in ("train", "demo"):  # which leave the folder they had begun
        assert not any((tmp_path / output).exists() for output in case.outputs)
    else:
        assert contents(tmp_path) == before
    answer = run(*case.words(inputs, tmp_path), *case.again(tmp_path))
    assert answer["code"] == 0, answer["error"]
    check(case, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_an_output_that_cannot_be_written(run: Driver, inputs: Inputs, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    case = CASES[name]
    case.prepare(inputs, out)
    before = contents(out)
    folders = [out, *(path for path in out.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    answer = run(*case.words(inputs, out), bound=True)
    for folder in folders:
        folder.chmod(0o755)
    assert (answer["code"], answer["error"].count("\n")) == (2, 1), answer["error"]
    assert str(out) in answer["error"]
    assert "cannot write" in answer["error"]
    assert answer["output"] == ""
    assert contents(out) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
@pytest.mark.parametrize("name", [name for name in CASES if name != "demo"])  # it tells each step before
def test_results_that_nothing_takes(run: Driver, inputs: Inputs, tmp_path: Path, name: str) -> None:
    """Files are written before the first line is printed; of a training, those of an epoch."""
    case = CASES[name]
    case.prepare(inputs, tmp_path)
    answer = run(*case.words(inputs, tmp_path), full=True)
    assert (answer["code"], answer["output"]) == (2, "")
    assert answer["error"] == "rga-reid: error: output: No space left on device\n"
    assert litter(tmp_path) == []
    check(case, tmp_path)
    if name == "train":
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0
        assert run(*case.words(inputs, tmp_path), "--resume")["code"] == 0


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files and folders, but for a gallery's lock."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if path.name != "lock"
    }


def test_a_checkpoint_that_finds_no_room(run: Driver, inputs: Inputs, tmp_path: Path) -> None:
    """The one before stays, and the run goes on from it when there is room again."""
    words = CASES["train"].words(inputs, tmp_path)
    assert run(*words, "--trainer.max_epochs", 1)["code"] == 0
    kept = (tmp_path / "run" / "last.ckpt").read_bytes()
    answer = run(*words, "--resume", most=1 << 20)
    assert (answer["code"], answer["error"].count("\n")) == (2, 1), answer["error"]
    assert "run/last.ckpt: cannot write there (File too large)" in answer["error"]
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == kept
    assert litter(tmp_path) == []
    assert run(*words, "--resume")["code"] == 0
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_logs_that_find_no_room(run: Driver, inputs: Inputs, tmp_path: Path) -> None:
    """CSV and TensorBoard files are written by Lightning, not atomically: still one line."""
    words = CASES["train"].words(inputs, tmp_path)
    assert run(*words, "--trainer.max_epochs", 1)["code"] == 0
    size = (tmp_path / "run" / "config.yaml").stat().st_size + 100
    answer = run(*words, "--overwrite", most=size)
    assert (answer["code"], answer["error"].count("\n")) == (2, 1), answer["error"]
    assert re.search(r"/run(/\S+)?: cannot write there \(File too large\)", answer["error"])


def test_decoded_images_that_find_no_room(
    run: Driver, inputs: Inputs, disk: tuple[Path, Callable[[int], AbstractContextManager[None]]]
) -> None:
    """They are written through a mapping, where a full disk would kill the process."""
    place, room = disk
    shutil.copytree(inputs.market, place / "market")
    words = ["train", "--config", inputs.recipe, "--data.root", place / "market", "--data.cache", "file"]
    words += ["--out", place.parent / "run"]
    with room(100_000):
        limited = {} if list(place.glob("other files")) else {"most": 100_000}
        answer = run(*words, **limited)
    assert (answer["code"], answer["error"].count("\n")) == (2, 1), answer["error"]
    assert re.search(r"\.npy: cannot write there \((No space left|File too large)", answer["error"])
    assert list((place / "market" / ".rga-reid-cache").iterdir()) == []
    assert run(*words, "--overwrite", "--trainer.max_epochs", 1)["code"] == 0


def first_line(log: Path, process: subprocess.Popen[str]) -> float:
    """Wait for what a process writes; the seconds that it took."""
    start = time.monotonic()
    while not log.read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - start < 300, "nothing was written"
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_real_processes_at_random_times(inputs: Inputs, tmp_path: Path, signum: int) -> None:
    """As a user meets it: imports, threads, Lightning and all; while it trains, and on its way there."""
    generator = np.random.default_rng(signum)
    case, program = CASES["train"], [sys.executable, str(DRIVER.parents[2] / "cli.py")]
    out, log, codes, seconds = tmp_path / "out", tmp_path / "log", [], 0.0
    for trains in (True,) * 8 + (False,) * 6:
        out.mkdir()
        with open(log, "w") as lines:
            process = subprocess.Popen(
                # it does not end by itself, however fast the machine is
                [*program, *map(str, case.words(inputs, out)), "--trainer.max_epochs", "1000000"],
                stdout=lines,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        try:
            if trains:
                seconds = first_line(log, process)
            time.sleep(generator.uniform(0, 4) if trains else generator.uniform(0.2, seconds))
            process.send_signal(signum)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        codes.append(process.returncode)
        if trains or process.returncode != -signum:  # before the program had begun
            assert process.returncode == 128 + signum, error
            assert error.splitlines()[-1] in ("rga-reid: interrupted", "rga-reid: terminated")
            assert "Traceback" not in error
        assert litter(out) == []
        check_stopped(case, out, dict.fromkeys(case.outputs))
        shutil.rmtree(out)
    assert codes.count(128 + signum) > 6
