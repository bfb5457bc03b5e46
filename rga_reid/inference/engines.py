"""Run a model by PyTorch, onnxruntime or OpenVINO, and measure which of them is the fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rga_reid.errors import InputError
from rga_reid.inference.graphs import PACKAGES
from rga_reid.inference.onnx_embedder import OnnxEmbedder
from rga_reid.inputs import truncate
from rga_reid.models import EmbeddingModel, export_model
from rga_reid.models.onnx_graph import EXPORT_PACKAGES, find_missing, require_packages
from rga_reid.runtime import keep_freed_memory

ENGINES = ("torch", *PACKAGES)
MAX_MEASURED_BATCH = 16  #: images in a pass that is measured
PASSES = 3  #: passes of which the fastest counts, after a first one that does not


def convert_embedder(
    model: EmbeddingModel, *engines: str, device: str | torch.device = "cpu"
) -> dict[str, OnnxEmbedder]:
    """Export a model once, to a temporary ONNX file, and open it in some engines.

    Args:
        model: model with a fingerprint, as ``load_embedder`` returns it.
        engines: ``onnx`` and ``openvino``.
        device: see ``open_graph``.

    Raises:
        InputError: a missing package, or a model that cannot be exported.
    """
    for engine in engines:
        require_packages(PACKAGES[engine], *EXPORT_PACKAGES, purpose=f"--engine {engine}")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            export_model(model, file, "onnx")
        except InputError:
            raise
        except Exception as error:  # networks of the user; the exporter raises many types
            raise InputError(
                f"--engine {engines[0]}: {model.fingerprint.checkpoint} cannot be exported ({truncate(error)})"
            ) from None
        found = {engine: OnnxEmbedder(file, device, engine=engine) for engine in engines}
    for engine, embedder in found.items():
        embedder.fingerprint = replace(model.fingerprint, engine=engine)
        embedder.source, embedder.trained_on = model, model.trained_on
    return found


def open_other_engines(embedder: Any, device: str | torch.device = "cpu") -> dict[str, OnnxEmbedder]:
    """Return a model in the other engines that are installed and can run it.

    Args:
        embedder: result of ``load_embedder``. A class of the user runs in PyTorch only.
        device: see ``open_graph``.

    Raises:
        InputError: a model that cannot be exported.
    """
    if isinstance(embedder, OnnxEmbedder) and embedder.source is None:
        current = embedder.fingerprint.engine
        return {
            engine: embedder.with_engine(engine)
            for engine, package in PACKAGES.items()
            if engine != current and not find_missing(package)
        }
    if not isinstance(embedder, EmbeddingModel) or find_missing(*EXPORT_PACKAGES):
        return {}
    engines = [engine for engine, package in PACKAGES.items() if not find_missing(package)]
    return convert_embedder(embedder, *engines, device=device)


def measure_rates(
    embedders: Mapping[str, Any], batch_size: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the images that each embedder embeds per second, fastest first.

    They take turns on the same random pixels, so that other load affects all of them; the fastest pass counts.

    Args:
        embedders: embedders by name, of one size.
        batch_size: images in a pass, of which at most ``MAX_MEASURED_BATCH`` are used.
        clock: seconds.
    """
    count = min(batch_size, MAX_MEASURED_BATCH)
    best = dict.fromkeys(embedders, float("inf"))
    with keep_freed_memory():
        for turn in range(PASSES + 1):
            for name, embedder in embedders.items():
                images = torch.randint(0, 256, (count, 3, *embedder.size), dtype=torch.uint8)
                start = clock()
                embedder.embed(images, batch_size=count)
                if turn > 0:
                    best[name] = min(best[name], clock() - start)
    rates = {name: count / max(seconds, 1e-9) for name, seconds in best.items()}
    return dict(sorted(rates.items(), key=lambda item: -item[1]))
