"""Values that no file and no option has reason to hold are refused in one line, before work begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.models.checkpoints import CONFIG_KEY
from tests.fuzz.material import QUERY_IMAGES, Material, build
from tests.security.hostile import Run, npy, put, refusal, reseal
from tests.security.samples import NAMES_CARD, PLAN, RECIPE

NAN, HUGE, LONG = float("nan"), 10**12, "a" * 20_000


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return build(tmp_path_factory.mktemp("material") / "files")


def changed(value: Any, places: dict[str, Any]) -> Any:
    """A copy of what a file holds, with values at places such as ``model.size``."""
    value = json.loads(json.dumps(value))
    for place, new in places.items():
        *keys, last = place.split(".")
        inner = value
        for key in keys:
            inner = inner[int(key) if isinstance(inner, list) else key]
        inner[last] = new
    return value


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-rank", str(HUGE)], "max_rank"),
        (["--max-rank", "9" * 5000], "--max-rank"),
        (["--device", "meta"], "meta"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--metric", LONG], "--metric"),
        (["--json", "\udcff.json"], "UTF-8"),
        (["--json", "no/such/folder/o.json"], "no/such/folder"),
        (["--protocol", "\x1b[2J"], "invalid choice"),
    ],
)
def test_options(material: Material, words: list[str], named: str, run: Run) -> None:
    sides = ["--query", "q.npz", "--gallery", "g.npz"]
    assert named in refusal(run(["evaluate", *sides, *words], material.root))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.size", [10**9, 10**9]),
        ("model.depth", HUGE),
        ("model.stages", [1, LONG]),
        ("model.attention", {"class_path": "os.system"}),
        ("model.loss.margin", NAN),
        ("model.augmentation.crop_scale", 1e9),
        ("model.resolution_schedule", [[0, HUGE, 32]]),
        ("model.optimizer", {"class_path": "rga_reid.errors.short_repr"}),
        ("data.identities_per_batch", -1),
        ("trainer.devices", HUGE),
        ("model.loss.label_smoothing", "Errors: - Problem with given class_path 'a': " * 5_000),
    ],
)
def test_recipes(material: Material, tmp_path: Path, place: str, value: Any, run: Run) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(changed(RECIPE, {place: value})))
    words = ["train", "--config", "r.yaml", "--data.root", material.path("set"), "--out", "out"]
    error = refusal(run(words, tmp_path))
    assert len(error) < 1000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ({"synthetic.size": [10**9, 10**9]}, "synthetic size"),
        ({"synthetic.train_identities": HUGE}, "synthetic train_identities"),
        ({"synthetic.cameras_per_identity": "ab"}, "synthetic cameras_per_identity"),
        ({"overrides": {LONG: 1}}, LONG[:20]),
        ({"overrides": {"data": [1]}}, "variants[0]: data: expected a mapping"),
        ({"variants.0.name": LONG}, "name"),
        ({"variants.0.name": "../../outside"}, "name"),
        ({"seeds": [NAN]}, "seeds"),
        ({"published": "no such data set"}, "published"),
    ],
)
def test_plans(material: Material, tmp_path: Path, places: dict[str, Any], named: str, run: Run) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(changed(PLAN, places)))
    words = ["ablate", "--config", "p.yaml", "--data.root", material.path("set"), "--out", "out"]
    error = refusal(run(words, tmp_path))
    assert named in error
    assert len(error) < 1000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "pattern", ["(", "a{99999999999}", "(" * 2000 + ")" * 2000, "(?P<pid>a)(?P<pid>b)", "*", "\\"]
)
def test_patterns_of_cards(material: Material, tmp_path: Path, pattern: str, run: Run) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**NAMES_CARD, "pattern": pattern}))
    words = ["data", "check", material.path("set"), "--dataset", "c.yaml"]
    assert "card small: pattern: " in refusal(run(words, tmp_path))


@pytest.mark.parametrize(
    "places", [{LONG: 1}, {f"splits.{LONG}": {"sources": []}}, {f"splits.train.{LONG}": 1}]
)
def test_keys_of_cards(material: Material, tmp_path: Path, places: dict[str, Any], run: Run) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed(NAMES_CARD, places)))
    words = ["data", "check", material.path("set"), "--dataset", "c.yaml"]
    error = refusal(run(words, tmp_path))
    assert "unknown" in error
    assert len(error) < 1000


@pytest.mark.parametrize("value", [NAN, "0.5", None, True, [], 10**400])
def test_calibrations(material: Material, tmp_path: Path, value: Any, run: Run) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"threshold": value}))
    image = material.path(QUERY_IMAGES[0])
    words = ["verify", image, image, "--checkpoint", material.path("model.safetensors")]
    assert "c.json" in refusal(run([*words, "--calibration", "c.json"], tmp_path))


@pytest.mark.parametrize("text", ["a\ud800b", "a\udfff"])
def test_half_characters(material: Material, saved: Path, tmp_path: Path, text: str, run: Run) -> None:
    """JSON and arrays can hold them, but nothing could be printed or written with them."""
    image = material.path(QUERY_IMAGES[0])
    (tmp_path / "m.json").write_text(json.dumps({"mAP": 0.5, text: 1}))
    assert "m.json" in refusal(run(["report", "m.json"], tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(
        json.dumps({"variant": text, "seed": 0, "metrics": {"mAP": 1}})
    )
    assert "result.json" in refusal(run(["report", "run"], tmp_path))
    assert not (tmp_path / "report").exists()
    (tmp_path / "c.yaml").write_text(f"name: {json.dumps(text)}\n")
    assert "c.yaml" in refusal(run(["data", "check", "none", "--dataset", "c.yaml"], tmp_path))
    record = {"checkpoint": text, "sha256": "0" * 64, "size": [64, 32], "mean": None, "std": None}
    reseal(saved, lambda manifest: manifest.update(model=record))
    for words in (["gallery", "info", "--json", "o.json"], ["query", "--image", image]):
        assert "manifest.json" in refusal(run([*words, "--gallery", str(saved)], tmp_path))
    letters = np.array(["ab"] * 3)
    letters.view(np.uint32)[1] = ord(text[1])
    np.savez(tmp_path / "f.npz", features=np.eye(3), pids=np.arange(3), paths=letters)
    named = refusal(run(["evaluate", "--query", "f.npz", "--gallery", "f.npz"], tmp_path))
    assert "f.npz: array 'paths'" in named


def test_names_with_a_zero_byte(material: Material, saved: Path, tmp_path: Path, run: Run) -> None:
    image = material.path(QUERY_IMAGES[0])
    record = {"checkpoint": "a\0b", "sha256": "0" * 64, "size": [64, 32], "mean": None, "std": None}
    reseal(saved, lambda manifest: manifest.update(model=record))
    assert "no such checkpoint" in refusal(
        run(["query", "--image", image, "--gallery", str(saved)], tmp_path)
    )
    (tmp_path / "own.csv").write_text("path,pid,camid,split\na\0b.jpg,1,1,train\n")
    refusal(run(["data", "check", "own.csv"], tmp_path))
    assert "no such image" in refusal(
        run(["verify", "a\0b", image, "--checkpoint", material.path("model.safetensors")], tmp_path)
    )


@pytest.mark.parametrize("rows", ["all", "one"])
@pytest.mark.parametrize("value", [NAN, float("inf"), 0.0, 3.0])
def test_vectors_of_galleries_that_are_none(saved: Path, rows: str, value: float, run: Run) -> None:
    """Their checksums may be right."""
    (file,) = saved.rglob("vectors.npy")
    vectors = np.load(file)
    vectors[slice(None) if rows == "all" else 1] = value
    put(saved, "vectors.npy", npy(vectors))
    named = refusal(run(["gallery", "verify", "--gallery", str(saved)], saved.parent))
    assert "vectors.npy: rows that are not of length 1" in named
    queries = np.eye(vectors.shape[1], dtype=np.float32)
    if np.isfinite(value):
        assert np.isfinite(Gallery.open(saved).search(queries)["score"]).all()
    else:
        with pytest.raises(InputError, match="gallery check"):
            Gallery.open(saved).search(queries)


@pytest.fixture
def run_folder(tmp_path: Path, run: Run) -> Path:
    """Return the folder of a finished run of an ablation."""
    folder = tmp_path / "runs" / "base" / "seed-0"
    folder.mkdir(parents=True)
    counts = {"AP_step": 0.5, "AP_trapezoid": 0.5, "INP": 0.5, "first_match": 1, "matches": 1}
    queries = pd.DataFrame({"query": range(3), "path": "a.jpg", "pid": 1, "camid": 1, **counts})
    queries.to_parquet(folder / "queries.parquet", index=False)
    ranked = pd.DataFrame({"query": range(3), "rank": 1, "score": 0.5, "path": "b.jpg", "pid": 1, "camid": 2})
    ranked.to_parquet(folder / "ranked.parquet", index=False)
    metrics = {"mAP": 0.5, "mAP_trapezoid": 0.4, "mINP": 0.3, "cmc": [0.6, 0.7], "queries": 3}
    metrics |= {f"rank-{rank}": 0.6 for rank in (1, 5, 10, 20)}
    result = {"variant": "base", "seed": 0, "metrics": metrics, "parameters": 1000, "macs": 2000}
    (folder / "result.json").write_text(json.dumps({**result, "training_seconds": 1.5, "flip": False}))
    assert run(["report", str(folder), "--out", "valid"], tmp_path).code == 0
    return folder


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("queries.parquet", "pid", float("inf")),
        ("queries.parquet", "camid", 1.5),
        ("queries.parquet", "AP_step", NAN),
        ("ranked.parquet", "pid", True),
        ("ranked.parquet", "rank", NAN),
    ],
)
def test_tables_of_runs(
    run_folder: Path, tmp_path: Path, name: str, column: str, value: Any, run: Run
) -> None:
    table = pd.read_parquet(run_folder / name).assign(**{column: value})
    table.to_parquet(run_folder / name, index=False)
    assert f"{name}: " in refusal(run(["report", str(run_folder)], tmp_path))


@pytest.mark.parametrize("value", [NAN, "0.5", None, True, 7, -1, 10**400])
def test_metrics(tmp_path: Path, value: Any, run: Run) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"mAP": value}))
    assert "m.json" in refusal(run(["report", "m.json"], tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [NAN, 0, 0]),
        ("mean", [10**400, 0, 0]),
        ("std", [0, 0, 0]),
        ("std", ["a"] * 3),
        ("size", [10**9, 10**9]),
        ("depth", HUGE),
        ("attention", "os.system"),
        ("attention", {"class_path": "rga_reid.attention.RGA", "init_args": {"channel_ratio": 10**9}}),
        ("weights", "imagenet"),
        (LONG, 1),
    ],
)
def test_configurations_of_checkpoints(
    material: Material, tmp_path: Path, key: str, value: Any, run: Run
) -> None:
    content = material.read("model.safetensors")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    config = json.loads(header["__metadata__"][CONFIG_KEY])
    header["__metadata__"][CONFIG_KEY] = json.dumps({**config, key: value})
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    image = material.path(QUERY_IMAGES[0])
    error = refusal(run(["verify", image, image, "--checkpoint", "m.safetensors"], tmp_path))
    assert "m.safetensors" in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [("count", 2**64), ("dimension", -1), ("dimension", 10**400), ("version", LONG), ("metric", None)],
)
def test_manifests(saved: Path, key: str, value: Any, run: Run) -> None:
    reseal(saved, lambda manifest: manifest.update({key: value}))
    error = refusal(run(["gallery", "info", "--gallery", str(saved)], saved.parent))
    assert "manifest.json" in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("features", np.full((3, 3), np.nan)),
        ("features", np.full((3, 3), 1e308)),
        ("features", np.zeros((3, 0))),
        ("features", np.ones((3, 3), np.complex64)),
        ("pids", np.full(3, 2**64 - 1, np.uint64)),
        ("pids", np.zeros(3, "M8[s]")),
        ("camids", np.ones(3)),
        ("paths", np.zeros(3, [("a", "<f4")])),
    ],
)
def test_features(tmp_path: Path, name: str, array: np.ndarray, run: Run) -> None:
    np.savez(tmp_path / "f.npz", **{"features": np.eye(3), name: array})
    words = ["gallery", "build", "--features", "f.npz", "--gallery", "G"]
    refusal(run(words, tmp_path))
    assert not (tmp_path / "G").exists()
