"""Small valid files of every kind that the program reads, created once, for the cases to corrupt.

Their content does not depend on the folder, so a seed draws the same cases everywhere.
"""

from __future__ import annotations

import copy
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
import yaml
from PIL import Image

from rga_reid.data import read_table
from rga_reid.evaluation import calibrate
from rga_reid.gallery import Gallery
from rga_reid.inference import ModelFingerprint
from rga_reid.inference.feature_files import write_features
from rga_reid.models import build_model, load_model, save_model
from rga_reid.models.checkpoints import CONFIG_KEY, DATA_KEY
from tests.folders import files_below

ROWS = 24  #: number of rows of the feature files
SPLITS = {  # folder, identities, camera of each image
    "train": ("bounding_box_train", (1, 2, 3, 4), (1, 2, 1, 2)),
    "query": ("query", (11, 12, 13), (1,)),
    "gallery": ("bounding_box_test", (11, 12, 13), (1, 2)),
}
QUERY_IMAGES = tuple(f"set/query/00{pid}_c1s1_000000_00.jpg" for pid in (11, 12))
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


@dataclass(frozen=True)
class Material:
    """The valid files."""

    root: Path
    images: dict[str, bytes]

    def path(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def tree(self, name: str, prefix: str) -> dict[str, bytes]:
        """Return the files of a folder; ``prefix`` replaces its name."""
        return {f"{prefix}/{path}": content for path, content in files_below(self.root / name).items()}


def build(root: Path) -> Material:
    """Create all files in a new folder."""
    root.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_data_set(root)
    write_checkpoints(root)
    write_feature_files(root)
    write_galleries(root)
    return Material(root, encode_images())


def write_data_set(root: Path) -> None:
    """Write 25 images in the layout of Market-1501, and a CSV file, a card and list files for them."""
    seed = 0
    for folder, pids, cameras in SPLITS.values():
        (root / "set" / folder).mkdir(parents=True)
        for pid in pids:
            for frame, camera in enumerate(cameras):
                base = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
                seed += 1  # no image twice
                name = f"{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"
                Image.fromarray(base.repeat(8, 0).repeat(8, 1)).save(root / "set" / folder / name)
    table = read_table(root / "set")
    table = table.assign(path=[Path(path).relative_to(root).as_posix() for path in table.path])
    table.to_csv(root / "set.csv", index=False)
    for split in ("train", "query"):
        rows = table[table.split == split].itertuples()
        (root / "set" / f"{split}.txt").write_text(
            "".join(f"{Path(row.path).name} {row.pid}\n" for row in rows)
        )
    (root / "lists.yaml").write_text(yaml.safe_dump(LISTS_CARD))


def write_checkpoints(root: Path) -> None:
    model = build_model(depth=18, attention="rga", stages=(3,), size=(32, 32))
    model.trained_on = {"images": 16, "identities": 4, "cameras": 2, "datasets": 1}
    save_model(model, root / "model.safetensors")
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    content = {"state_dict": state, CONFIG_KEY: model.config, DATA_KEY: model.trained_on, "epoch": 1}
    torch.save(content, root / "model.ckpt")
    torch.save(content, root / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), root / "resnet18.pth")


def write_feature_files(root: Path) -> None:
    """Write query and gallery features in every format, a calibration, and the metrics of a test."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 8))
    for side in ("q", "g"):
        pids = np.arange(ROWS) % 6
        features = (centres[pids] + 0.3 * rng.normal(size=(ROWS, 8))).astype(np.float32)
        camids = [None if row == 5 else row % 2 if side == "q" else 2 for row in range(ROWS)]
        paths = [f"{side}/{row}.jpg" for row in range(ROWS)]
        table = pd.DataFrame({"path": paths, "pid": pids, "camid": pd.array(camids, dtype="Int64")})
        write_features(root / f"{side}.npz", features, table)
        np.savez_compressed(root / f"{side}_packed.npz", **dict(np.load(root / f"{side}.npz")))
        np.save(root / f"{side}.npy", features)
        table.to_csv(root / f"{side}.csv", index=False)
    calibration = calibrate(rng.normal(0.7, 0.1, 50), rng.normal(0.2, 0.1, 5000)).to_dict(0.01)
    (root / "calibration.json").write_text(json.dumps({**calibration, "histogram": {}}))
    metrics = {f"rank-{k}": 0.9 for k in (1, 5, 10, 20)} | {"mAP": 0.5, "mAP_trapezoid": 0.4, "mINP": 0.3}
    (root / "test.json").write_text(json.dumps({**metrics, "cmc": [0.6, 0.7, 0.8], "queries": 3}))


def write_galleries(root: Path) -> None:
    """Write a gallery of each kind; the flat one has a log of removals, one has images and a model."""
    rng = np.random.default_rng(2)

    def draw_people(count: int, dimension: int) -> tuple[np.ndarray, pd.DataFrame]:
        paths = [f"/photos/{row}.jpg" for row in range(count)]
        table = pd.DataFrame({"path": paths, "pid": np.arange(count) % 7, "camid": np.arange(count) % 3})
        return rng.normal(size=(count, dimension)).astype(np.float32), table

    Gallery.build(*draw_people(30, 8)).save(root / "flat")
    Gallery.open(root / "flat").remove(pids=[6])
    for kind in ("ivf", "hnsw", "ivfpq"):
        Gallery.build(*draw_people(1100, 8), index=kind).save(root / kind)
    record = ModelFingerprint.of(load_model(root / "model.safetensors"), root / "model.safetensors")
    features, table = draw_people(20, 512)
    table["path"] = [path.relative_to(root).as_posix() for path in sorted((root / "set").rglob("*.jpg"))][:20]
    record = replace(record, checkpoint="/models/model.safetensors")
    Gallery.build(features, table, model=record).save(root / "images")


def encode_images() -> dict[str, bytes]:
    """Return images in every format, by names that say the format."""
    rgb = Image.fromarray(np.random.default_rng(4).integers(0, 256, (24, 17, 3), dtype=np.uint8))
    grey = Image.fromarray((np.arange(24 * 17).reshape(24, 17) * 100).astype(np.uint16))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    formats: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
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
    contents = {"text.ppm": b"P3 2 2 255\n0 0 0 255 255 255 9 9 9 1 2 3\n"}
    for name, (image, kind, options) in formats.items():
        buffer = io.BytesIO()
        copy.copy(image).save(buffer, kind, **options)
        contents[name] = buffer.getvalue()
    return contents
