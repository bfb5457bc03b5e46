"""Images a second from JPEG files to a finished gallery, beside decoding alone and the model alone.

Decoding, the model on batches in memory, and the build of a gallery take turns; medians are reported. Decoding and the
model overlap in a build, so its limit is the slower of the two, or less where both need all cores.

    python benchmarks/pipeline.py --out pipeline.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from pictures import draw

from rga_reid.data import decode
from rga_reid.experiments.benchmark import describe_machine, describe_options, time_interleaved
from rga_reid.files import write_json
from rga_reid.gallery import GalleryBuilder
from rga_reid.inference import load_embedder
from rga_reid.inference.embed import stream_features
from rga_reid.inference.engines import open_other_engines
from rga_reid.models import build_model, save_model
from rga_reid.runtime import keep_freed_memory

MODELS: dict[str, dict[str, Any]] = {
    "ResNet-18 + RGA, 96×48": {"backbone": "resnet18", "attention": "rga", "size": (96, 48)},
    "MobileNetV2, 192×96": {"backbone": "torchvision/mobilenet_v2", "size": (192, 96)},
    "ResNet-50 + RGA, 256×128": {"backbone": "resnet50", "attention": "rga", "size": (256, 128)},
}
BATCH = 64


def work(embedder: Any, table: pd.DataFrame, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the three things to time; each handles all images."""
    parts = [table["path"].iloc[start : start + BATCH].tolist() for start in range(0, len(table), BATCH)]
    pixels = [torch.from_numpy(decode(paths, embedder.size)) for paths in parts]

    def run_model() -> None:
        with keep_freed_memory():
            for batch in pixels:
                embedder.embed(batch, batch_size=BATCH)

    def build() -> None:
        with GalleryBuilder(folder / "gallery", overwrite=True, model=embedder.fingerprint) as builder:
            for features, rows in stream_features(embedder, table, BATCH):
                builder.add(features, rows)
            builder.finish()

    return {
        "decoding": lambda: [decode(paths, embedder.size) for paths in parts],
        "model": run_model,
        "build": build,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    print("| model | engine | decoding, images/s | model | build | build / slower |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = pd.DataFrame({"path": draw(folder, options.images)})
        for title in options.models:
            file = folder / "model.safetensors"
            save_model(build_model(weights=None, **MODELS[title]), file)
            model = load_embedder(file)
            for engine, embedder in {"torch": model, **open_other_engines(model)}.items():
                runs = work(embedder, table, folder)
                seconds = time_interleaved(list(runs.values()), options.repeats)
                rates = [options.images / median(times) for times in seconds]
                row: dict[str, Any] = {
                    "model": title,
                    "engine": engine,
                    "ratio": round(rates[2] / min(rates[:2]), 3),
                }
                row |= dict(
                    zip(
                        ("decoding_rate", "model_rate", "build_rate"),
                        (round(rate, 1) for rate in rates),
                        strict=True,
                    )
                )
                results.append(row)
                cells = (
                    row[key]
                    for key in ("model", "engine", "decoding_rate", "model_rate", "build_rate", "ratio")
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if options.out:
        asked = describe_options(options)
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    main()
