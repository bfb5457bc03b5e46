"""A training that cannot begin leaves its folder as it found it, whatever an earlier run left there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rga_reid.commands import main
from rga_reid.training.callbacks import DeferredOverwrite
from tests.commands.test_train import RECIPE, edited
from tests.folders import files_below

OBSTACLES = {
    "a share of a batch": ["--trainer.limit_train_batches", "0.0001"],
    "validation after the epoch": ["--trainer.val_check_interval", "99", "--data.held_out", "0.5"],
    "no end": ["--trainer.max_epochs", "-1"],
    "no time": ["--trainer.max_time", "00:00:00:00"],
    "a damaged image": [],
}


@pytest.fixture
def words(tmp_path: Path, tiny_market: Path) -> list[str]:
    recipe, root = tmp_path / "recipe.yaml", tmp_path / "set"
    recipe.write_text(yaml.safe_dump(RECIPE))
    with edited(str(recipe)) as content:
        content["trainer"]["max_epochs"] = 1
        content["model"] |= {"attention": None, "size": [32, 32]}
    shutil.copytree(tiny_market, root)
    return ["train", "--config", str(recipe), "--data.root", str(root), "--out", str(tmp_path / "new/run")]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_an_earlier_run_left_stays(
    words: list[str], tmp_path: Path, refused: Callable[..., str], obstacle: str
) -> None:
    image = next((tmp_path / "set" / "bounding_box_train").glob("*.jpg"))
    whole, run = image.read_bytes(), tmp_path / "new" / "run"

    def fail(*more: str) -> None:
        if not OBSTACLES[obstacle]:
            image.write_bytes(whole[:-200])
        refused(*words, *more, *OBSTACLES[obstacle])
        image.write_bytes(whole)

    fail()
    assert not (tmp_path / "new").exists()  # the same command, put right, needs no --overwrite
    assert main(words) == 0
    (run / "test.json").write_text("{}")
    (run / "not_finite.pt").write_bytes(b"a batch")
    before = files_below(run)
    fail("--overwrite")
    assert files_below(run) == before
    if obstacle != "no time":  # a run that goes on may have none left to do
        fail("--resume", "--trainer.max_epochs", "2")
        assert files_below(run) == before
    assert main([*words, "--overwrite"]) == 0
    after = files_below(run)
    assert after.keys() & {"test.json", "not_finite.pt"} == set()
    logs = [name for name in after if name.startswith(("csv", "tensorboard"))]
    assert {name.split("/")[1] for name in logs} == {"version_0"}
    assert before.keys() & set(logs) == {"csv/version_0/metrics.csv", "tensorboard/version_0/hparams.yaml"}


KILLED = """
import os, signal, sys
from rga_reid.commands import main
from rga_reid.training import ReIDData
ReIDData.train_dataloader = lambda data: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_a_run_that_is_killed_before_it_begins(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    assert main(words) == 0
    before = files_below(run)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, *words, "--overwrite"], capture_output=True)
        assert done.returncode == -9, done.stderr
        assert {name: files_below(run)[name] for name in ("last.ckpt", "config.yaml")} == {
            name: before[name] for name in ("last.ckpt", "config.yaml")
        }
    logs = {name: content for name, content in before.items() if "version_0" in name}
    found = files_below(run)
    assert {name: found[name.replace("version_0", ".earlier-version_0")] for name in logs} == logs
    assert main([*words, "--resume", "--trainer.max_epochs", "2"]) == 0
    found = files_below(run)
    assert {name: found[name] for name in logs} == logs
    assert sorted(os.listdir(run / "csv")) == ["version_0", "version_1"]
    shutil.copytree(
        run / "csv" / "version_0", run / "csv" / ".earlier-version_0"
    )  # killed while it was removed
    assert main([*words, "--overwrite"]) == 0
    assert {path.name for path in run.iterdir()} == {"config.yaml", "csv", "last.ckpt", "tensorboard"}
    assert os.listdir(run / "csv") == os.listdir(run / "tensorboard") == ["version_0"]


def test_a_run_that_begins_in_another_process_is_not_undone(tmp_path: Path) -> None:
    """As where a launcher spawns all processes: the one that waits knows by what it finds in the folder."""
    (tmp_path / "csv" / "version_0").mkdir(parents=True)
    (tmp_path / "last.ckpt").write_bytes(b"old")
    folder = str(tmp_path)
    begin = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from rga_reid.training.callbacks import Beginning\n"
        "folder = Path(sys.argv[1])\n"
        "beginning = Beginning(folder, [folder / 'csv'], replaced=[folder / 'last.ckpt'], config=None)\n"
        "beginning.on_train_start(N(is_global_zero=True), None)\n"
        "(folder / 'csv' / 'version_0').mkdir()\n"
    )
    beginning = DeferredOverwrite(
        tmp_path, [tmp_path / "csv"], replaced=[tmp_path / "last.ckpt"], config=None
    )
    with pytest.raises(ZeroDivisionError), beginning.awaited():
        subprocess.run([sys.executable, "-c", begin, folder], check=True)
        raise ZeroDivisionError
    assert beginning.begun
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "csv",
        "csv/version_0",
    ]
