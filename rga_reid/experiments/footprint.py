"""What the models of an ablation take: latency and memory, measured when nothing trains any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rga_reid.experiments.measuring import in_fresh_processes, interleaved, machine, peak_resident
from rga_reid.files import write_json
from rga_reid.inputs import read_json
from rga_reid.models import EmbeddingModel, load_model
from rga_reid.retrieval.extraction import choose_device

MEASURED = "measured.json"
_TURNS = 31  # of each model; the median counts
_BATCH = 32  # images, for the memory


def measure(checkpoints: Mapping[str, Path], out: Path) -> dict[str, dict[str, float]]:
    """Latency and memory of each model, on the device that ``test`` would use.

    The models take turns in one process, so that a slow spell of the machine meets all of them; memory is
    measured in a process for each. What was measured before is kept if it was on this device, and of models
    of the same build.

    Args:
        checkpoints: by the name of the variant.
        out: folder of the file that keeps the figures.

    Returns:
        By the name: ``latency_ms``, median of a forward pass of one image in milliseconds, and
        ``memory_mib``, growth of the memory at its peak while 32 images pass.
    """
    file = out / MEASURED
    device = choose_device(None)
    named = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    conditions = {"latency_images": 1, "memory_images": _BATCH, "turns": _TURNS, **named}
    builds = {name: load_model(path).config for name, path in checkpoints.items()}
    if file.is_file():
        kept = read_json(file)
        if json.dumps([kept.get("builds"), kept.get("conditions")]) == json.dumps([builds, conditions]):
            return kept["models"]
    names, paths = list(checkpoints), [str(path) for path in checkpoints.values()]
    (latencies,) = in_fresh_processes(_latencies, [paths])
    memory = in_fresh_processes(_memory, paths)
    models = {
        name: {"latency_ms": round(latency, 3), "memory_mib": round(mebibytes, 1)}
        for name, latency, mebibytes in zip(names, latencies, memory, strict=True)
    }
    write_json(file, {"models": models, "builds": builds, "conditions": conditions, "machine": machine()})
    return models


def _latencies(paths: list[str]) -> list[float]:
    device = choose_device(None)
    models = [load_model(path, device) for path in paths]
    with torch.inference_mode():
        seconds = interleaved([partial(_forward, model, _images(model, 1)) for model in models], _TURNS)
    return [1e3 * one for one in seconds]


def _memory(path: str) -> float:
    device = choose_device(None)
    model = load_model(path, device)
    with torch.inference_mode():
        _forward(model, _images(model, 2))  # libraries set themselves up
        run = partial(_forward, model, _images(model, _BATCH))
        if device.type != "cuda":
            return peak_resident(run)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def _images(model: EmbeddingModel, count: int) -> Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *model.size, generator=generator).to(device)


def _forward(model: EmbeddingModel, images: Tensor) -> None:
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
