"""Images a second that a CPU embeds: PyTorch, onnxruntime and OpenVINO, in one run.

PyTorch in float32, in bfloat16, compiled and by ``model.optimize()``, onnxruntime in float32 and INT8, and OpenVINO in
float32 embed the same uint8 batches, in turns; medians are reported. Ratios to PyTorch in float32 are medians of the
ratios of each turn. Engines that are not installed or cannot run a model are listed. The models are the architecture
of the demo (ResNet-18 + RGA-SC), ResNet-50 + RGA-SC and torchvision's MobileNetV2 with random weights, or checkpoints.
For checkpoints, the lowest cosine to PyTorch in float32 is measured too, on the calibration images.

    python benchmarks/embedding.py --out embedding.json
    python benchmarks/embedding.py --quick  # to see that it runs
    python benchmarks/embedding.py --checkpoints last.ckpt --calibration-images DIR
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pictures import draw
from torch import Tensor

from rga_reid.data.images import list_images
from rga_reid.errors import InputError
from rga_reid.experiments.benchmark import describe_machine, time_interleaved
from rga_reid.files import write_json
from rga_reid.inference import load_embedder
from rga_reid.inference.engines import convert_embedder
from rga_reid.models import EmbeddingModel, build_model, export_model, save_model
from rga_reid.models.export import ExportSettings
from rga_reid.runtime import keep_freed_memory
from rga_reid.training.trainer import has_fast_bfloat16

MODELS: dict[str, dict[str, Any]] = {
    "demo": {"backbone": "resnet18", "attention": "rga", "size": (96, 48)},
    "resnet50_rga": {"backbone": "resnet50", "attention": "rga", "size": (256, 128)},
    "mobilenet_v2": {"backbone": "torchvision/mobilenet_v2", "size": (192, 96)},
}
BASE = "PyTorch float32"
CALIBRATION_IMAGES = 64
PACKAGES = ("torch", "onnxruntime", "openvino")

Embed = Callable[[Tensor], Tensor]


def in_bfloat16(model: EmbeddingModel, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.embed(images)


def open_engines(
    checkpoint: Path, folder: Path, pictures: list[Path], batches: list[int]
) -> tuple[dict[str, Embed], dict[str, str]]:
    """Return what embeds a batch in each engine, and why others are left out."""
    model = load_embedder(checkpoint)
    assert isinstance(model, EmbeddingModel)
    left_out: dict[str, str] = {}

    def in_fast_bfloat16() -> Embed:
        if not has_fast_bfloat16("cpu"):
            raise InputError("the processor does not multiply bfloat16, and emulation is many times slower")
        return partial(in_bfloat16, model)

    def compiled() -> Embed:
        own = copy.deepcopy(model)
        own.compile(dynamic=False)
        for batch in batches:  # each is compiled on its first use
            own.embed(random_images(own.size, batch))
        return own.embed

    def quantized() -> Embed:
        file = folder / "int8.onnx"
        export_model(model, file, "onnx", ExportSettings(quantize="int8"), calibration_images=pictures)
        return load_embedder(file).embed

    def converted(engine: str) -> Embed:
        return convert_embedder(model, engine)[engine].embed

    engines: dict[str, Embed] = {BASE: model.embed}
    for name, prepare in (
        ("PyTorch bfloat16", in_fast_bfloat16),
        ("PyTorch optimize()", lambda: model.optimize().embed),
        ("torch.compile", compiled),
        ("onnxruntime float32", partial(converted, "onnx")),
        ("onnxruntime INT8", quantized),
        ("OpenVINO float32", partial(converted, "openvino")),
    ):
        try:
            engines[name] = prepare()
        except InputError as error:  # not installed, or not for this processor
            left_out[name] = str(error)
        except Exception as error:  # of a compiler
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return engines, left_out


def random_images(size: tuple[int, int], batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


def measure(
    name: str, checkpoint: Path, pictures: list[Path], batches: list[int], turns: int, trained: bool
) -> dict[str, Any]:
    """Return the images per second of each engine and batch size for one model."""
    with tempfile.TemporaryDirectory() as folder, keep_freed_memory():
        engines, left_out = open_engines(checkpoint, Path(folder), pictures, batches)
        size = load_embedder(checkpoint).size
        rows = []
        for batch in batches:
            images = random_images(size, batch)
            seconds = time_interleaved([partial(embed, images) for embed in engines.values()], turns)
            for engine, times in zip(engines, seconds, strict=True):
                ratios = [base / own for base, own in zip(seconds[0], times, strict=True)]
                rows.append(
                    {
                        "engine": engine,
                        "batch": batch,
                        "images_per_second": round(batch / median(times), 1),
                        "ratio": round(median(ratios), 2),
                        "ratio_range": [round(limit(ratios), 2) for limit in (min, max)],
                    }
                )
        result: dict[str, Any] = {"model": name, "size": size, "left_out": left_out, "results": rows}
        if trained:
            expected = engines[BASE](pictures)  # type: ignore[arg-type]
            result["lowest_cosine"] = {
                engine: round(float((embed(pictures) * expected).sum(1).min()), 5)  # type: ignore[arg-type]
                for engine, embed in engines.items()
            }
        return result


def print_result(result: dict[str, Any]) -> None:
    height, width = result["size"]
    print(f"{result['model']}, {height}×{width}")
    for row in result["results"]:
        rate, ratio = f"{row['images_per_second']:,.1f} images/s", f"{row['ratio']:.2f} times {BASE}"
        print(f"  batch {row['batch']:>3}  {row['engine']:<20}{rate:>18}  {ratio}")
    for engine, cosine in result.get("lowest_cosine", {}).items():
        print(f"  {engine:<20}lowest cosine {cosine}")
    for engine, reason in result["left_out"].items():
        print(f"  {engine}: left out ({reason})", flush=True)


def describe_packages() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, help="with random weights (default: all)")
    parser.add_argument(
        "--checkpoints", nargs="+", type=Path, default=[], help="instead, or in addition to --models"
    )
    parser.add_argument("--calibration-images", help="folder of pictures for INT8 (default: drawn ones)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--turns", type=int, default=21, help="batches of each engine")
    parser.add_argument("--threads", type=int, help="threads of each engine (default: those of PyTorch)")
    parser.add_argument("--quick", action="store_true", help="demo model, small batches, few turns")
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    if options.models is None:
        options.models = [] if options.checkpoints else list(MODELS)
    if options.quick:
        options.models, options.batches, options.turns = options.models[:1], [1, 4], 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.calibration_images is None:
            pictures = [Path(path) for path in draw(folder, 8 if options.quick else CALIBRATION_IMAGES)]
        else:
            pictures = list(list_images(options.calibration_images))[:CALIBRATION_IMAGES]
        files = {}
        for model in options.models:
            files[model] = folder / f"{model}.safetensors"
            save_model(build_model(weights=None, **MODELS[model]), files[model])
        files |= {str(checkpoint): checkpoint for checkpoint in options.checkpoints}
        asked = {"batches": options.batches, "turns": options.turns, "threads": torch.get_num_threads()}
        machine = {**describe_machine(), "packages": describe_packages()}
        for model, file in files.items():
            trained = model not in options.models
            results.append(measure(model, file, pictures, options.batches, options.turns, trained))
            print_result(results[-1])
            if options.out:
                write_json(options.out, {"machine": machine, "options": asked, "results": results})


if __name__ == "__main__":
    main()
