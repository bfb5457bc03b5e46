"""Finished runs and evaluations as a report takes them, read from folders and files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rga_reid.errors import InputError
from rga_reid.evaluation.result import RANKS
from rga_reid.experiments import ablation_run as files
from rga_reid.experiments.ablation import PLAN
from rga_reid.experiments.footprint import MEASURED
from rga_reid.experiments.trial import seconds_of
from rga_reid.models import load_model
from rga_reid.models.costs import count_costs
from rga_reid.models.state_files import read_torch
from rga_reid.reports.ablation_numbers import Evaluation

_METRICS = ("mAP", "mAP_trapezoid", "mINP", *(f"rank-{k}" for k in RANKS))
_TESTS = ("test.json", "metrics.json")  # what `train --test.root` writes, and what people call it


def read_evaluations(paths: Sequence[str | os.PathLike[str]]) -> list[Evaluation]:
    """All runs that are finished in these places; what a place does not tell is left out.

    Args:
        paths: of each: the folder of an ablation or of one of its runs, a folder of ``train`` with the
            metrics of a test in it as ``test.json``, or a file of ``test --json`` or ``evaluate --json``.

    Raises:
        InputError: a place with nothing of the kind; two places of one name that are no seeds of a variant.
    """
    found: list[Evaluation] = []
    for place in paths:
        path = Path(place)
        if path.is_file():
            found.append(_from_metrics(path, path.stem))
        elif (path / files.RESULT).is_file():
            found.append(read_run(path))
        elif any((path / name).is_file() for name in _TESTS):
            found.append(_from_training(path))
        else:
            found += _from_ablation(path)
    keys = [(one.name, one.seed) for one in found]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        name = min(name for name, _ in twice)
        raise InputError(f"report: {name!r} stands for two evaluations; rename one of the folders or files")
    return found


def kept_plan(path: Path) -> dict[str, Any]:
    """Title, baseline and order of the variants of an ablation, empty if this is not the folder of one."""
    return _read(path / PLAN) if (path / PLAN).is_file() else {}


def with_measured(evaluations: Iterable[Evaluation], out: Path) -> list[Evaluation]:
    """The evaluations with the latency and memory that ``measure`` has left in ``out``."""
    file = out / MEASURED
    models = _read(file)["models"] if file.is_file() else {}
    return [
        replace(one, **{key: models[one.name][key] for key in ("latency_ms", "memory_mib")})
        if one.name in models
        else one
        for one in evaluations
    ]


def conditions_of(out: Path) -> str:
    """A sentence on where the figures of an ablation were measured, or ""."""
    file = out / MEASURED
    if not file.is_file():
        return ""
    kept = _read(file)
    how, machine = kept["conditions"], kept["machine"]
    where = how["device"] if how["device"] != "cpu" else f"{machine['processor']}, {machine['cores']} cores"
    return (
        f"Parameters and multiply-accumulates are the backbone's, for one image. Latency: median of "
        f"{how['turns']} forward passes of {how['latency_images']} image, the models taking turns. Memory: "
        f"growth at its peak while {how['memory_images']} images pass, in a process for each model. {where}, "
        f"torch {machine['torch']}; measured after all training. Training time is wall-clock time, without "
        "interruptions."
    )


def read_run(folder: Path) -> Evaluation:
    """A finished run of an ablation."""
    result = _read(folder / files.RESULT)
    return Evaluation(
        result["variant"],
        result["seed"],
        *_metrics(result["metrics"], folder),
        queries=_table(folder / files.QUERIES),
        ranked=_table(folder / files.RANKED),
        curve=read_curve(folder / files.TRAIN),
        parameters=result["parameters"],
        macs=result["macs"],
        training_seconds=result["training_seconds"],
    )


def read_curve(folder: Path) -> pd.DataFrame | None:
    """Mean training loss of each epoch from the CSV logs of ``train``; a resumed run has several.

    Returns:
        Columns ``epoch`` (from 1) and ``loss``; None without logs.
    """
    logs = sorted((folder / "csv").glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:]))
    tables = [table for table in map(pd.read_csv, logs) if {"epoch", "step", "loss"} <= set(table)]
    if not tables:
        return None
    steps = pd.concat(tables).dropna(subset=["loss"]).drop_duplicates("step", keep="last")
    means = steps.groupby("epoch")["loss"].mean()
    return pd.DataFrame({"epoch": means.index.astype(int) + 1, "loss": means.to_numpy()})


def _from_ablation(path: Path) -> list[Evaluation]:
    order = kept_plan(path).get("variants", [])
    places = {name: number for number, name in enumerate(order)}

    def place(file: Path) -> tuple[int, str, int]:
        variant, seed = file.parts[-3], int(file.parts[-2][5:])
        return places.get(variant, len(places)), variant, seed

    runs = sorted(path.glob(f"*/seed-*/{files.RESULT}"), key=place)
    if not runs:
        raise InputError(
            f"{path}: expected the folder of an ablation or of a tested run ({' or '.join(_TESTS)} beside "
            "its checkpoint), or a JSON file of metrics, with something finished in it"
        )
    return with_measured((read_run(file.parent) for file in runs), path)


def _from_training(folder: Path) -> Evaluation:
    file = next(folder / name for name in _TESTS if (folder / name).is_file())
    one = replace(_from_metrics(file, folder.resolve().name), curve=read_curve(folder))
    checkpoint = folder / files.LAST
    if not checkpoint.is_file():
        return one
    costs = count_costs(load_model(checkpoint).backbone).set_index("part").loc["total"]
    seconds = seconds_of(read_torch(checkpoint))
    return replace(
        one, parameters=int(costs["parameters"]), macs=int(costs["macs"]), training_seconds=seconds
    )


def _from_metrics(file: Path, name: str) -> Evaluation:
    return Evaluation(name, None, *_metrics(_read(file), file))


def _metrics(content: Mapping[str, Any], file: Path) -> tuple[dict[str, float], tuple[float, ...]]:
    found = {key: content[key] for key in _METRICS if key in content}
    curve = content.get("cmc", [])
    numbers = [*found.values(), *(curve if isinstance(curve, list) else [None])]
    if "mAP" not in found or not all(isinstance(value, int | float) for value in numbers):
        raise InputError(f"{file}: expected the metrics of `test --json` or `evaluate --json`")
    return {key: float(value) for key, value in found.items()}, tuple(map(float, curve))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _table(file: Path) -> pd.DataFrame | None:
    return pd.read_parquet(file) if file.is_file() else None
