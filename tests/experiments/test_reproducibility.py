"""The same command writes the same bytes, as docs/reproducibility.md promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torchvision.models import resnet18

from rga_reid.gallery import Gallery
from rga_reid.gallery.index import SETTINGS
from rga_reid.models import build_model, save_model
from tests.states import assert_equal, numbers_of

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {
    "model": {"depth": 18, "attention": "rga", "weights": None, "size": [64, 32]},
    "data": {"identities_per_batch": 2, "images_per_identity": 2, "val_fraction": 0.25},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.8}}],
    },
}
PROGRAM = """
import json, sys
from functools import partial
from rga_reid.commands import main
from rga_reid.data.synthetic import SyntheticSettings
from rga_reid.experiments import demo
small = {"train_identities": 4, "test_identities": 2, "distractors": 2, "junk": 1, "size": (64, 32)}
demo.SyntheticSettings = partial(SyntheticSettings, **small)
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""


def run_twice(commands: list[list[object]], out: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files that commands write below a folder, in two processes with different hash seeds.

    Files of TensorBoard are left out, because their names and contents have times. Of ``metrics.csv``, the column of
    the speed is left out.
    """
    words = json.dumps([list(map(str, command)) for command in commands])
    found = []
    for seed in ("1", "2"):
        out.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        program = [sys.executable, "-c", PROGRAM, words]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files = [file for file in sorted(out.rglob("*")) if file.is_file() and "tfevents" not in file.name]
        found.append({str(file.relative_to(out)): _read_without_speed(file) for file in files})
        shutil.move(out, out.with_name(f"{out.name}-{seed}"))
    return found[0], found[1]


def _read_without_speed(file: Path) -> bytes:
    if file.name != "metrics.csv":
        return file.read_bytes()
    return pd.read_csv(file, dtype=str).drop(columns="images_per_second").to_csv().encode()


def assert_same(first: dict[str, bytes], second: dict[str, bytes], *, but: Iterable[str] = ()) -> None:
    """Check that files have the same bytes, except those with one of these words in their names."""
    assert first.keys() == second.keys()
    differ = [name for name in first if first[name] != second[name] and not any(word in name for word in but)]
    assert differ == []


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def make_people(count: int) -> tuple[np.ndarray, pd.DataFrame]:
    generator = np.random.default_rng(0)
    pids = np.arange(count) % 60
    features = generator.normal(size=(60, 16))[pids] + generator.normal(size=(count, 16))
    paths = [f"{row}.jpg" for row in range(count)]
    return features.astype(np.float32), pd.DataFrame({"path": paths, "pid": pids})


@pytest.mark.slow
def test_all_commands(tiny_market: Path, tmp_path: Path, recipe: Path) -> None:
    out, query = tmp_path / "out", tiny_market / "query"
    image = sorted(query.iterdir())[0]
    model: list[object] = ["--checkpoint", out / "run" / "last.ckpt"]
    vectors, (features, table) = tmp_path / "f.npz", make_people(2000)
    np.savez(vectors, features=features, pids=table["pid"], paths=np.array(table["path"], np.str_))
    both: list[object] = ["--query", vectors, "--gallery", vectors]
    weights = tmp_path / "resnet18.pth"
    torch.save(resnet18().state_dict(), weights)
    gallery: list[object] = ["gallery", "build", "--gallery"]
    commands: list[list[object]] = [
        ["train", "--config", recipe, "--data.root", tiny_market, "--out", out / "run"],
        ["test", *model, "--data.root", tiny_market, "--json", out / "test.json"],
        ["features", *model, "--images", query, "--out", out / "f.npz"],
        ["export", *model, "--format", "safetensors", "--out", out / "m.safetensors"],
        ["export", *model, "--format", "torchscript", "--out", out / "m.pt"],
        ["export", *model, "--format", "onnx", "--out", out / "m.onnx"],
        [*gallery, out / "g", *model, "--images", tiny_market / "bounding_box_test"],
        ["query", "--gallery", out / "g", "--image", query, "--html", out / "q.html", "--csv", out / "q.csv"],
        ["explain", *model, "--image", image, "--out", out / "e.html"],
        ["explain", "--attention", "pam", "rga", "--image", image, "--out", out / "u.html"],
        ["evaluate", *both, "--json", out / "v.json"],
        ["calibrate", *both, "--false-match-rate", "0.01", "--json", out / "c.json"],
        ["convert", weights, out / "c.safetensors"],
        ["demo", "--config", recipe, "--epochs", 1, "--out", out / "demo"],
    ]
    commands += [[*gallery, out / f"g-{kind}", "--index", kind, "--features", vectors] for kind in SETTINGS]
    commands += [["explain", *model, "--image", image, "--out", out / f"e.{kind}"] for kind in ("png", "pdf")]
    commands += [["calibrate", *both, "--plot", out / f"c.{kind}"] for kind in ("png", "svg", "pdf")]
    first, second = run_twice(commands, out)
    assert_same(first, second)
    assert {"demo/metrics.json", "demo/query.html", "demo/explain.html"} < set(first)
    assert str(ROOT).encode() not in first["m.onnx"]
    assert b"site-packages" not in first["m.onnx"]
    runs = [tmp_path / f"out-{number}" / "run" for number in (1, 2)]
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal(*(numbers_of(folder / name) for folder in runs))


def test_saved_models_have_the_same_bytes(tmp_path: Path) -> None:
    """Safetensors itself writes the entries of its header in random order."""
    torch.manual_seed(0)
    model = build_model(depth=18, attention="se", size=(64, 32), classes=3)
    model.trained_on = {"images": 3, "identities": 2}
    file, found = tmp_path / "m.safetensors", set()
    for _ in range(12):
        save_model(model, file)
        found.add(file.read_bytes())
    assert len(found) == 1


@pytest.mark.slow
def test_ablation(tmp_path: Path, recipe: Path) -> None:
    """All numbers are the same, except times."""
    plan = {
        "recipe": str(recipe),
        "seeds": [0, 1],
        "synthetic": {"train_identities": 6, "test_identities": 4, "distractors": 4, "size": [64, 32]},
        "variants": [{"name": "se", "overrides": {"model.attention": "se"}}, {"name": "rga"}],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "out"
    first, second = run_twice([["ablate", "--config", tmp_path / "plan.yaml", "--out", out / "a"]], out)
    timed = ("result.json", "measured.json", "log.txt", "report.", "latency.")
    assert_same(first, second, but=["ckpt", *timed])
    for variant in ("se", "rga"):
        for seed in (0, 1):
            folder = f"a/{variant}/seed-{seed}"
            results = [json.loads(files[f"{folder}/result.json"]) for files in (first, second)]
            for result in results:
                assert result.pop("training_seconds") > 0
            assert results[0] == results[1]
            checkpoints = [tmp_path / f"out-{run}" / folder / "train" / "last.ckpt" for run in (1, 2)]
            assert_equal(*map(numbers_of, checkpoints))
    assert first["a/rga/seed-0/queries.parquet"] != first["a/rga/seed-1/queries.parquet"]


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("kind", SETTINGS)
def test_galleries_do_not_depend_on_the_number_of_threads(tmp_path: Path, kind: str) -> None:
    if kind == "hnsw" and tuple(map(int, faiss.__version__.split(".")[:2])) < (1, 15):
        pytest.skip("before FAISS 1.15, threads insert images in random order")
    features, table = make_people(5000)
    queries = features[:50] + 0.1
    found = []
    for threads in (1, 3):
        with faiss_threads(threads):
            Gallery.build(features, table, index=kind).save(tmp_path / str(threads))
            found.append(Gallery.open(tmp_path / str(threads)).search(queries, 20))
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            twin = tmp_path / "3" / file.relative_to(tmp_path / "1")
            assert file.read_bytes() == twin.read_bytes()
    pd.testing.assert_frame_equal(*found)
