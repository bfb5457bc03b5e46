"""Commands write and read only what the command line names."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from rga_reid import __version__
from rga_reid.data import load_card, read_table
from rga_reid.data.cache import FOLDER, cached_images
from rga_reid.data.cuhk03 import unpack
from rga_reid.errors import InputError
from rga_reid.experiments.ablation import _environment, lock_run, python_module
from rga_reid.inference.feature_files import read_features
from rga_reid.resources import find_resource
from tests.folders import files_below
from tests.security.hostile import SEGMENT, Run, npy, refusal, reseal


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Folder that no command may touch."""
    folder = tmp_path / "outside"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.jpg").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine, too")
    return folder


CHANGES = (
    ["add", "--features", "f.npz"],
    ["remove", "--pid", "1"],
    ["compact"],
    ["build", "--features", "f.npz", "--overwrite"],
)


@pytest.mark.parametrize("words", CHANGES, ids=lambda words: words[0])
@pytest.mark.parametrize("trick", ["segments", "segment", "lock", "log", "unnamed"])
def test_a_gallery_with_links_changes_nothing_outside(
    saved: Path, outside: Path, words: list[str], trick: str, run: Run
) -> None:
    features, table = np.ones((2, 6), np.float32), np.array(["n.jpg", "m.jpg"])
    np.savez(saved.parent / "f.npz", features=features, paths=table)
    if trick == "segments":
        shutil.move(saved / SEGMENT.parent, outside / "segments")
        (saved / "segments").symlink_to(outside / "segments")
        (outside / "segments" / "photos").mkdir()
        (outside / "segments" / "photos" / "b.jpg").write_bytes(b"mine")
    elif trick == "segment":
        (segment,) = (saved / "segments").iterdir()
        shutil.move(segment, outside / segment.name)
        segment.symlink_to(outside / segment.name)
    elif trick == "lock":
        (saved / "lock").unlink(missing_ok=True)
        (saved / "lock").symlink_to(outside / "new")
    elif trick == "log":
        (log,) = saved.glob("removals-*.jsonl")
        coming = saved / "removals-3.jsonl"
        shutil.move(log, outside / "log")
        coming.symlink_to(outside / "log")
        reseal(saved, lambda manifest: manifest["removals"].update(name=coming.name))
    else:
        (saved / "segments" / "elsewhere").symlink_to(outside)
    before = files_below(outside)
    run(["gallery", words[0], "--gallery", str(saved), *words[1:]], saved.parent)
    assert files_below(outside) == before


@pytest.mark.parametrize(
    "change",
    [
        {"segments": [{"name": "../../outside", "count": 5, "index": None, "files": {}}]},
        {"removals": {"name": "../outside/notes.txt", "bytes": 9, "sha256": "0" * 64}},
    ],
)
def test_a_manifest_names_nothing_outside(
    saved: Path, outside: Path, change: dict[str, Any], run: Run
) -> None:
    reseal(saved, lambda manifest: manifest.update(change))
    before = files_below(outside)
    for action in ("info", "verify", "compact"):
        assert "damaged manifest" in refusal(run(["gallery", action, "--gallery", str(saved)], saved.parent))
    assert files_below(outside) == before


def test_a_gallery_with_changed_names_loses_nothing(saved: Path, run: Run) -> None:
    """If the manifest names missing segments, the segments that exist are kept."""
    reseal(saved, lambda manifest: manifest["segments"][0].update(name="000009-9"))
    before = files_below(saved)
    assert "000009-9" in refusal(
        run(["gallery", "remove", "--gallery", str(saved), "--pid", "1"], saved.parent)
    )
    assert {**files_below(saved), "lock": b""} == {**before, "lock": b""}


def test_members_of_an_archive_are_not_unpacked(tmp_path: Path, outside: Path) -> None:
    arrays = {
        "features": np.eye(3, dtype=np.float32),
        "pids": np.arange(3),
        "../outside/notes.txt": np.zeros(1),
    }
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for name, array in arrays.items():
            archive.writestr(name if "/" in name else f"{name}.npy", npy(array))
    before = files_below(outside)
    read_features(tmp_path / "f.npz")
    assert files_below(outside) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "outside"]


def test_a_data_set_leads_no_cache_elsewhere(tiny_market: Path, tmp_path: Path, outside: Path) -> None:
    (tmp_path / FOLDER).symlink_to(outside)
    before = files_below(outside)
    with pytest.raises(InputError, match="a link, expected a folder"):
        cached_images(read_table(tiny_market).path.tolist(), (32, 16), where="file", beside=tmp_path)
    assert files_below(outside) == before


def test_a_protocol_names_no_picture_outside(tmp_path: Path, outside: Path) -> None:
    Image.new("RGB", (4, 8)).save(outside / "1_001_1_01.png")
    (tmp_path / "set" / "labeled").mkdir(parents=True)
    card = yaml.safe_load(find_resource("datasets", "cuhk03_labeled").read_text())
    card["pattern"] = r".*(?P<camid>[12])_\d+\.png"
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    names = np.array([["../../outside/1_001_1_01.png"]], dtype=object)
    index = {f"{split}_idx": [1] for split in ("train", "query", "gallery")}
    protocol = card["splits"]["train"]["sources"][0]["list"]
    savemat(tmp_path / "set" / protocol, {"filelist": names, "labels": [1], **index})
    with pytest.raises(InputError, match="leads outside the data set"):
        read_table(tmp_path / "set", load_card(tmp_path / "card.yaml"))


@pytest.mark.parametrize("rows", [2, 0])
@pytest.mark.parametrize("words", [[], ["--overwrite"], ["--resume"]])
def test_what_a_folder_holds_by_names_of_a_gallery_stays(
    tmp_path: Path, words: list[str], rows: int, run: Run
) -> None:
    """A folder named segments may belong to somebody."""
    mine = tmp_path / "audio"
    (mine / "segments" / "day1").mkdir(parents=True)
    (mine / "segments" / "day1" / "mine.wav").write_bytes(b"mine")
    np.savez(tmp_path / "f.npz", features=np.ones((rows, 3), np.float32), paths=np.array(["a"] * rows, "U1"))
    before = files_below(mine)
    build = ["gallery", "build", "--features", "f.npz", "--gallery", "audio"]
    refusal(run([*build, *words], tmp_path))
    assert files_below(mine) == before


@pytest.mark.parametrize(
    "name",
    ["manifest.json.bak", "segments/notes.txt", "segments/.DS_Store"],
)
@pytest.mark.parametrize("words", CHANGES, ids=lambda words: words[0])
def test_what_lies_beside_a_gallery_stays(saved: Path, words: list[str], name: str, run: Run) -> None:
    features, table = np.ones((2, 6), np.float32), np.array(["n.jpg", "m.jpg"])
    np.savez(saved.parent / "f.npz", features=features, paths=table)
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_bytes(b"mine")
    done = run(["gallery", words[0], "--gallery", str(saved), *words[1:]], saved.parent)
    assert done.code == (2 if words[0] == "build" and not name.endswith(".DS_Store") else 0)
    assert (saved / name).read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["labeled", "link/labeled"])
def test_no_pictures_are_unpacked_through_a_link(tmp_path: Path, outside: Path, kind: str) -> None:
    with h5py.File(tmp_path / "cuhk-03.mat", "w") as file:
        file["labeled"] = np.zeros(3)
    (tmp_path / kind.partition("/")[0]).symlink_to(outside / "none" if kind == "labeled" else outside)
    before = files_below(outside)
    with pytest.raises(InputError, match="expected a folder"):
        unpack(tmp_path, kind)
    assert files_below(outside) == before
    assert not (outside / "none").exists()


def test_runs_of_an_ablation_import_nothing_from_where_they_are_started(tmp_path: Path) -> None:
    """It may be the folder of an untrusted data set."""
    for name in ("yaml", "difflib", "runpy", "rga_reid"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    done = subprocess.run(
        python_module("rga_reid.commands", ["--version"]),
        cwd=tmp_path,
        env=_environment(0, 1, []),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rga-reid {__version__}\n", "")


def test_what_a_killed_run_left_as_a_link_is_not_followed(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(outside / "new")
    with pytest.raises(InputError, match="cannot write there"), lock_run(tmp_path / "run"):
        pass
    assert not (outside / "new").exists()


@pytest.mark.parametrize("trick", ["logs", pytest.param("version", marks=pytest.mark.slow)])
def test_logs_that_are_links_are_not_emptied(
    tmp_path: Path, tiny_market: Path, outside: Path, trick: str, run: Run
) -> None:
    recipe = {
        "model": {"depth": 18, "weights": None, "size": [32, 32]},
        "data": {"identities_per_batch": 2, "images_per_identity": 2},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    (outside / "version_0").mkdir()
    (outside / "version_0" / "mine").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last.ckpt").write_bytes(b"an earlier run")
    if trick == "logs":
        (tmp_path / "out" / "csv").symlink_to(outside)
    else:
        (tmp_path / "out" / "csv").mkdir()
        (tmp_path / "out" / "csv" / "version_0").symlink_to(outside / "version_0")
    before = files_below(outside)
    words = ["train", "--config", "r.yaml", "--data.root", str(tiny_market), "--out", "out", "--overwrite"]
    assert run(words, tmp_path).code == (2 if trick == "logs" else 0)
    assert files_below(outside) == before
    kept = (tmp_path / "out" / "last.ckpt").read_bytes() == b"an earlier run"
    assert kept == (trick == "logs")
