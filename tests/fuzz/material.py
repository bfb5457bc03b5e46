"""Valid files of every kind that the program reads, small, made once: what the fuzz suite spoils.

Nothing in them depends on the folder that they lie in, so that a seed draws the same cases everywhere.
"""

from __future__ import annotations

import copy
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
import torchvision
import yaml
from PIL import Image
from scipy.io import savemat

from rga_reid.data import read_table
from rga_reid.evaluation import calibrate
from rga_reid.experiments.ablation import QUERIES, RANKED, RESULT, DataSource, plan_runs, write_plan
from rga_reid.experiments.ablation_plan import read_plan
from rga_reid.gallery import Gallery
from rga_reid.inference import ModelFingerprint
from rga_reid.inference.feature_files import write_features
from rga_reid.models import build_model, load_model, save_model
from rga_reid.models.checkpoints import CONFIG_KEY, DATA_KEY
from tests.folders import files_below

ROWS = 24  #: of the features
SPLITS = {"train": (1, 2, 3, 4), "query": (11, 12, 13), "gallery": (11, 12, 13)}
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

RECIPE: dict[str, Any] = {
    "model": {
        "depth": 18,
        "attention": None,
        "stages": [1, 2],
        "last_stride": 1,
        "weights": None,
        "size": [32, 32],
        "loss": {"label_smoothing": 0.1, "margin": 0.3, "triplets": "embedded"},
        "augmentation": {"crop_probability": 0.5, "erase_area": [0.02, 0.4]},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "schedule": {"class_path": "rga_reid.training.OneCycle", "init_args": {"rise": 0.15}},
        "input_sizes": [[0, 32, 32]],
    },
    "data": {"identities_per_batch": 2, "images_per_identity": 2, "visits": "identity", "held_out": 0.0},
    "trainer": {
        "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1, "log_every_n_steps": 1,
        "enable_model_summary": False,
    },
}  # fmt: skip

#: Ends a training that would go on for ever: in seconds, whatever its epochs and batches. A valid one ends
#: before.
BOUND = ["--trainer.max_time", "00:00:00:05"]

PLAN: dict[str, Any] = {
    "title": "A plan",
    "recipe": "recipe.yaml",
    "overrides": {"trainer.max_epochs": 1},
    "seeds": [0],
    "baseline": "base",
    "flip": False,
    "synthetic": {"train_identities": 4, "test_identities": 2, "size": [32, 16]},
    "published": "market1501",
    "variants": [
        {"name": "base"},
        {"name": "other", "overrides": {"model.attention": "pam"}, "seeds": [0, 1]},
    ],
}

_SPLIT_KEYS = {"images": None, "identities": None, "junk": 0, "distractors": 0}

NAMES_CARD: dict[str, Any] = {
    "name": "small",
    "title": "A small set",
    "layout": "names",
    "pattern": r"(?P<pid>-?\d+)_c(?P<camid>\d+)s\d_.*\.jpg",
    "junk_pids": [-1],
    "distractor_pids": [0],
    "cameras": 2,
    "citation": "nobody",
    "url": "none",
    "terms": "none",
    "splits": {
        "train": {"sources": [{"folder": "bounding_box_train"}], "images": 16, "identities": 4},
        "query": {"sources": [{"folder": ["query", "query2"]}], "images": 3, "identities": 3},
        "gallery": {"sources": [{"folder": "bounding_box_test"}], "images": 6, "junk": 0, "distractors": 0},
    },
}

LISTS_CARD: dict[str, Any] = {
    "name": "listed",
    "title": "Lists",
    "layout": "lists",
    "pattern": r"\d+_c(?P<camid>\d+)s.*\.jpg",
    "splits": {
        "train": {"sources": [{"folder": "bounding_box_train", "list": "train.txt"}]},
        "query": {"sources": [{"folder": "query", "list": "query.txt"}], "optional": True},
    },
}

CUHK_CARD: dict[str, Any] = {
    "name": "cells",
    "title": "Cells of cells",
    "layout": "cuhk03",
    "pattern": r"\d+_\d+_(?P<camid>[12])_\d+\.png",
    "splits": {
        "train": {"sources": [{"folder": "labeled", "list": "protocol.mat"}]},
        "query": {"sources": [{"folder": "labeled", "list": "protocol.mat"}]},
        "gallery": {"sources": [{"folder": "labeled", "list": "protocol.mat"}]},
    },
}


@dataclass(frozen=True)
class Material:
    """Folder and content of the valid files; see ``build`` for what they are."""

    root: Path
    images: dict[str, bytes]

    def path(self, name: str) -> Path:
        """One of the files."""
        return self.root / name

    def read(self, name: str) -> bytes:
        """Its content."""
        return (self.root / name).read_bytes()

    def tree(self, name: str) -> dict[str, bytes]:
        """Contents of the files of a folder, by their paths in it."""
        return files_below(self.root / name)


def build(root: Path) -> Material:
    """Make everything in a new folder."""
    root.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    _write_set(root / "set")
    _write_text_files(root)
    _write_checkpoints(root)
    _write_features(root)
    _write_galleries(root)
    _write_cuhk03(root / "cuhk")
    _write_runs(root)
    return Material(root, _images())


def _picture(seed: int, size: tuple[int, int] = (32, 16)) -> np.ndarray:
    base = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    return base.repeat(size[0] // 4, 0).repeat(size[1] // 2, 1)


def _write_set(root: Path) -> None:
    for split, pids in SPLITS.items():
        (root / FOLDERS[split]).mkdir(parents=True)
        cameras = {"train": (1, 2, 1, 2), "query": (1,), "gallery": (1, 2)}[split]
        for pid in pids:
            for frame, camera in enumerate(cameras):
                name = f"{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"
                Image.fromarray(_picture(1000 * pid + frame)).save(root / FOLDERS[split] / name)


def _write_text_files(root: Path) -> None:
    table = read_table(root / "set")
    relative = table.assign(path=[Path(path).relative_to(root).as_posix() for path in table.path])
    relative.to_csv(root / "set.csv", index=False)
    train = relative[relative.split == "train"]
    for name in ("train", "query"):
        rows = relative[relative.split == name]
        lines = [f"{Path(row.path).name} {row.pid}\n" for row in rows.itertuples()]
        (root / "set" / f"{name}.txt").write_text("".join(lines))
    assert len(train) == 16
    for name, value in (
        ("recipe", RECIPE),
        ("plan", PLAN),
        ("names", NAMES_CARD),
        ("lists", LISTS_CARD),
        ("cuhk", CUHK_CARD),
    ):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    rng = np.random.default_rng(0)
    calibration = calibrate(rng.normal(0.7, 0.1, 50), rng.normal(0.2, 0.1, 5000)).to_dict(0.01)
    (root / "calibration.json").write_text(json.dumps(calibration))


def _write_checkpoints(root: Path) -> None:
    model = build_model(depth=18, attention="rga", stages=(3,), size=(32, 32))
    model.trained_on = {"images": 16, "identities": 4, "cameras": 2, "datasets": 1}
    save_model(model, root / "model.safetensors")
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    content = {
        "state_dict": state,
        CONFIG_KEY: model.config,
        DATA_KEY: model.trained_on,
        "epoch": 1,
        "best": np.float64(0.5),
    }
    torch.save(content, root / "model.ckpt")
    torch.save(content, root / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), root / "resnet18.pth")


def _write_features(root: Path) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 8))
    for side in ("q", "g"):
        pids = np.arange(ROWS) % 6
        features = (centres[pids] + 0.3 * rng.normal(size=(ROWS, 8))).astype(np.float32)
        camids = pd.array(
            [None if row == 5 else int(row % 2 if side == "q" else 2) for row in range(ROWS)], dtype="Int64"
        )
        table = pd.DataFrame(
            {"path": [f"{side}/{row}.jpg" for row in range(ROWS)], "pid": pids, "camid": camids}
        )
        write_features(root / f"{side}.npz", features, table)
        np.savez_compressed(root / f"{side}_packed.npz", **dict(np.load(root / f"{side}.npz")))
        np.save(root / f"{side}.npy", features)
        table.to_csv(root / f"{side}.csv", index=False)


def _write_galleries(root: Path) -> None:
    rng = np.random.default_rng(2)

    def people(count: int, dimension: int) -> tuple[np.ndarray, pd.DataFrame]:
        paths = [f"/photos/{row}.jpg" for row in range(count)]
        table = pd.DataFrame({"path": paths, "pid": np.arange(count) % 7, "camid": np.arange(count) % 3})
        return rng.normal(size=(count, dimension)).astype(np.float32), table

    Gallery.build(*people(30, 8)).save(root / "flat")
    Gallery.open(root / "flat").remove(pids=[6])
    for kind in ("ivf", "hnsw", "ivfpq"):
        Gallery.build(*people(1100, 8), index=kind).save(root / kind)
    record = ModelFingerprint.of(load_model(root / "model.safetensors"), root / "model.safetensors")
    record = replace(record, checkpoint="/models/model.safetensors")
    features, table = people(20, 512)
    table["path"] = [path.relative_to(root).as_posix() for path in sorted((root / "set").rglob("*.jpg"))][:20]
    Gallery.build(features, table, model=record).save(root / "pictures")


def _write_cuhk03(root: Path) -> None:
    root.mkdir()
    names = []
    with h5py.File(root / "cuhk-03.mat", "w") as file:

        def reference(data: object) -> h5py.Reference:
            return file.create_dataset(f"#refs#/{len(file.get('#refs#', ()))}", data=data).ref

        cells = np.empty((3, 10), object)
        for identity in range(3):
            for number in range(10):
                if number in (0, 5):
                    names.append(f"1_{identity + 1:03d}_{1 if number < 5 else 2}_{number + 1:02d}.png")
                    cells[identity, number] = reference(_picture(identity).transpose(2, 1, 0))
                else:
                    cells[identity, number] = reference(np.zeros(2, np.uint64))
        pairs = np.array([[reference(cells.T.astype(h5py.ref_dtype))]], h5py.ref_dtype)
        file.create_dataset("labeled", data=pairs)
    filelist = np.empty((len(names), 1), object)
    filelist[:, 0] = names
    content = {
        "filelist": filelist,
        "labels": np.array([[int(name[2:5]) for name in names]]).T,
        "train_idx": [1, 2],
        "query_idx": [3, 5],
        "gallery_idx": [4, 6],
    }
    savemat(root / "protocol.mat", content)
    savemat(root / "packed.mat", content, do_compression=True)


def _write_runs(root: Path) -> None:
    """The folder of an ablation whose runs are finished."""
    out, path = root / "runs", root / "plan.yaml"
    plan = read_plan(str(path))
    source = DataSource.of(str(root / "set"), "market1501", read_table(root / "set"))
    rng = np.random.default_rng(3)
    for run in plan_runs(plan, out, source):
        run.begin()
        precision = rng.uniform(0.3, 1, 3)
        queries = pd.DataFrame(
            {
                "query": range(3), "path": [f"/photos/{n}.jpg" for n in range(3)],
                "pid": pd.array([11, 12, 13], dtype="Int64"), "camid": pd.array([1, 1, 1], dtype="Int64"),
                "AP_step": precision, "AP_trapezoid": precision, "INP": precision,
                "first_match": pd.array([1, 2, 1], dtype="Int64"), "matches": [1, 1, 1],
            }
        )  # fmt: skip
        queries.to_parquet(run.folder / QUERIES, index=False)
        ranked = pd.DataFrame(
            {
                "query": np.repeat(range(3), 2), "rank": [1, 2] * 3, "score": rng.uniform(size=6),
                "path": [f"/photos/g{n}.jpg" for n in range(6)],
                "pid": pd.array([11, 12] * 3, dtype="Int64"), "camid": pd.array([2] * 6, dtype="Int64"),
            }
        )  # fmt: skip
        ranked.to_parquet(run.folder / RANKED, index=False)
        metrics = {
            "mAP": float(precision.mean()),
            "mAP_trapezoid": 0.4,
            "mINP": 0.3,
            "rank-1": 0.6,
            "rank-5": 0.8,
        }
        metrics |= {"rank-10": 0.9, "rank-20": 1.0, "cmc": [0.6, 0.7, 0.8], "queries": 3}
        result = {
            "variant": run.variant, "seed": run.seed, "metrics": metrics, "parameters": 1000, "macs": 2000,
            "training_seconds": 1.5, "runs_side_by_side": 1, "flip": False, "device": "cpu", "torch": "2",
        }  # fmt: skip
        (run.folder / RESULT).write_text(json.dumps(result))
        (run.folder / "train" / "csv" / "version_0").mkdir(parents=True)
        (run.folder / "train" / "csv" / "version_0" / "metrics.csv").write_text(
            "epoch,step,loss\n0,0,3.5\n0,1,2.5\n1,2,2\n"
        )
    (out / "measured.json").write_text(
        json.dumps(
            {
                "models": {name: {"latency_ms": 1.0, "memory_mib": 2.0} for name in ("base", "other")},
                "conditions": {"latency_images": 1, "memory_images": 32, "turns": 31, "device": "cpu"},
                "machine": {"processor": "one", "cores": 2, "torch": "2"},
            }
        )
    )
    write_plan(plan, out)
    (root / "test.json").write_text(json.dumps(metrics))


def _images() -> dict[str, bytes]:
    """Content by a name that tells the kind."""
    rgb = Image.fromarray(np.random.default_rng(4).integers(0, 256, (24, 17, 3), dtype=np.uint8))
    grey = Image.fromarray((np.arange(24 * 17).reshape(24, 17) * 100).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain.jpg": (rgb, "JPEG", {}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True, "exif": exif}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "plain.png": (rgb, "PNG", {}),
        "alpha.png": (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        "sixteen.png": (grey, "PNG", {}),
        "palette.png": (palette, "PNG", {"transparency": 3}),
        "bits.png": (rgb.convert("1"), "PNG", {}),
        "lossy.webp": (rgb, "WEBP", {"exif": exif}),
        "lossless.webp": (rgb, "WEBP", {"lossless": True}),
        "moving.webp": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "moving.gif": (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "plain.bmp": (rgb, "BMP", {}),
        "plain.tif": (rgb, "TIFF", {"exif": exif}),
        "lzw.tif": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (grey, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "plain.ppm": (rgb, "PPM", {}),
        "sixteen.pgm": (grey, "PPM", {}),
    }
    contents = {}
    for name, (image, kind, options) in kinds.items():
        buffer = io.BytesIO()
        copy.copy(image).save(buffer, kind, **options)
        contents[name] = buffer.getvalue()
    contents["text.pnm"] = b"P3 2 2 255\n0 0 0 255 255 255 9 9 9 1 2 3\n"
    return contents
