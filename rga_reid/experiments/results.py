"""Read finished runs and evaluations from folders and files, for reports."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError, short_repr
from rga_reid.evaluation.metrics import RANKS
from rga_reid.experiments import ablation
from rga_reid.experiments.ablation_worker import read_training_seconds
from rga_reid.experiments.benchmark import MEASUREMENTS
from rga_reid.inputs import MAX_ROWS, is_number, open_text, read_json, read_parquet, truncate
from rga_reid.models import load_model
from rga_reid.models.analysis import total_costs
from rga_reid.models.weights import read_torch
from rga_reid.reports.ablation_stats import Evaluation

_QUERIES = dict.fromkeys(("query", "pid", "camid", "AP_step", "matches"), "numbers")
_RANKED = {**dict.fromkeys(("query", "rank", "score", "pid", "camid"), "numbers"), "path": "texts"}
_NO_NAN = ("query", "rank", "score")  # identities and cameras may be unknown
_KINDS: dict[str, Callable[[pd.Series], bool]] = {
    "numbers": pd.api.types.is_numeric_dtype,
    "texts": pd.api.types.is_string_dtype,
}
_CURVE = ["epoch", "step", "loss"]
_MAX_NUMBER = 1e18
_METRICS = ("mAP", "mAP_trapezoid", "mINP", *(f"rank-{k}" for k in RANKS))
_TESTS = ("test.json", "metrics.json")  # of `train --test.root`, and a common name for `test --json`


def read_evaluations(paths: Sequence[str | os.PathLike[str]]) -> list[Evaluation]:
    """Read all finished runs and evaluations.

    Args:
        paths: each is the folder of an ablation or of one of its runs, a folder of ``train`` with the metrics
            of a test in ``test.json``, or a file of ``test --json`` or ``evaluate --json``.

    Raises:
        InputError: a path without results, or two results with the same name and seed.
    """
    _check_seeds(folder for path in paths for folder in _run_folders(Path(path)))
    evaluations: list[Evaluation] = []
    for path in map(Path, paths):
        if path.is_file():
            evaluations.append(_read_metrics_file(path, path.stem))
        elif (path / ablation.RESULT).is_file():
            evaluations.append(read_run(path))
        elif any((path / name).is_file() for name in _TESTS):
            evaluations.append(_read_training(path))
        else:
            evaluations += _read_ablation(path)
    keys = [(one.name, one.seed) for one in evaluations]
    duplicates = {name for name, seed in keys if keys.count((name, seed)) > 1}
    if duplicates:
        raise InputError(
            f"report: two evaluations are called {min(duplicates)!r}; rename a folder or file, or write "
            "separate reports"
        )
    return evaluations


def list_unfinished_runs(paths: Sequence[Path]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the failed runs of ablations, as names and reasons, and the names of other unfinished runs."""
    unfinished = [
        folder
        for path in paths
        for folder in _run_folders(path)
        if folder != path and not (folder / ablation.RESULT).is_file()
    ]
    names = {folder: f"{folder.parent.name} seed {folder.name[5:]}" for folder in unfinished}
    failed = [folder for folder in unfinished if (folder / ablation.ERROR).is_file()]
    missing = [names[folder] for folder in unfinished if folder not in failed]
    return [(names[folder], ablation.failure_reason(folder)) for folder in failed], missing


def _run_folders(path: Path) -> list[Path]:
    """Return the folders of started runs in the folder of an ablation or of one run."""
    if (path / ablation.SETTINGS).is_file():
        return [path]
    started = path.glob(f"*/seed-*/{ablation.SETTINGS}") if path.is_dir() else ()
    return sorted(file.parent for file in started if file.parent.name[5:].isdecimal())


def _check_seeds(folders: Iterable[Path]) -> None:
    """Refuse finished runs of a variant whose settings differ in more than the seed."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in folders:
        if not (folder / ablation.RESULT).is_file():
            continue
        settings = {key: value for key, value in ablation.read_settings(folder).items() if key != "seed"}
        other, expected = first.setdefault(str(settings.get("variant")), (folder, settings))
        changes = ablation.changed_settings(expected, settings)
        if changes:
            raise InputError(
                f"{folder}: cannot be another seed of {other}, because settings differ "
                f"({'; '.join(changes[:3])}); write separate reports"
            )


def read_plan_summary(path: Path) -> dict[str, Any]:
    """Read title, baseline and order of variants from the folder of an ablation; empty if it is not one."""
    file = path / ablation.PLAN
    if not file.is_file():
        return {}
    kept = _read_object(file)
    variants = kept.get("variants", [])
    texts = [kept.get("baseline", ""), *(variants if isinstance(variants, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{file}: expected the names of the variants and of their baseline")
    return kept


def check_ablation_folder(out: Path) -> None:
    """Refuse a folder that is neither empty nor that of an ablation.

    Raises:
        InputError: the folder has files, apart from hidden ones, but no plan written by an ablation.
    """
    if not out.is_dir() or not any(not entry.name.startswith(".") for entry in out.iterdir()):
        return
    try:
        kept = read_plan_summary(out)
    except InputError:
        kept = {}
    variants = kept.get("variants")
    if not isinstance(variants, list) or kept.get("baseline") not in variants or "title" not in kept:
        found = "another file" if (out / ablation.PLAN).exists() else "none"
        raise InputError(
            f"--out {out}: expected a new or empty folder, or that of an ablation with its {ablation.PLAN}, "
            f"found {found}; choose another folder"
        )


def add_measurements(evaluations: Iterable[Evaluation], out: Path) -> list[Evaluation]:
    """Return the evaluations with the latency and memory that ``measure`` has written in ``out``."""
    file = out / MEASUREMENTS
    models = _get_mapping(_read_object(file), "models", file) if file.is_file() else {}

    def add(evaluation: Evaluation) -> Evaluation:
        if evaluation.name not in models:
            return evaluation
        facts = _get_mapping(models, evaluation.name, file)
        latency, memory = (_get_number(facts, key, file) for key in ("latency_ms", "memory_mib"))
        return replace(evaluation, latency_ms=latency, memory_mib=memory)

    return [add(evaluation) for evaluation in evaluations]


def describe_conditions(out: Path) -> str:
    """Describe how the numbers of an ablation were measured, or return ""."""
    file = out / MEASUREMENTS
    if not file.is_file():
        return ""
    kept = _read_object(file)
    conditions, machine = _get_mapping(kept, "conditions", file), _get_mapping(kept, "machine", file)
    facts = {key: truncate(value) for key, value in {**machine, **conditions}.items()}
    try:
        where = facts["device"] if facts["device"] != "cpu" else "{processor}, {cores} cores".format(**facts)
        return (
            "Parameters and multiply-accumulates of the backbone, for one image. Latency: median of {turns} "
            "forward passes of {latency_images} image, models interleaved. Memory: peak growth for a batch "
            "of {memory_images} images, each model in its own process. Measured after training on {where}, "
            "torch {torch}. Training time: wall-clock time without interruptions."
        ).format(**{**facts, "where": where})
    except KeyError as error:
        raise InputError(f"{file}: {error} is missing in 'conditions' or 'machine'") from None


def read_run(folder: Path) -> Evaluation:
    """Read a finished run of an ablation.

    Raises:
        InputError: a damaged file.
    """
    file = folder / ablation.RESULT
    result = _read_object(file)
    variant, seed = result.get("variant"), result.get("seed")
    if not isinstance(variant, str) or type(seed) is not int:
        raise InputError(f"{file}: expected the result of a run, with its variant and its seed")
    queries = _read_run_table(folder / ablation.QUERIES, _QUERIES)
    if queries is not None:
        if "path" in queries and (queries["path"].isna().any() or not _KINDS["texts"](queries["path"])):
            raise InputError(f"{folder / ablation.QUERIES}: column path: expected a text for each query")
        found = queries[queries["matches"] > 0]
        fractions = found["AP_step"].between(0, 1).all()
        if queries["query"].duplicated().any() or found["pid"].isna().any() or not fractions:
            raise InputError(
                f"{folder / ablation.QUERIES}: expected a row for each query, with its person and precision"
            )
    return Evaluation(
        variant,
        seed,
        *_parse_metrics(_get_mapping(result, "metrics", file), file),
        queries=queries,
        ranked=_read_run_table(folder / ablation.RANKED, _RANKED),
        curve=read_curve(folder / ablation.TRAIN),
        parameters=_get_number(result, "parameters", file),  # type: ignore[arg-type]  # a whole one
        macs=_get_number(result, "macs", file),  # type: ignore[arg-type]
        training_seconds=_get_number(result, "training_seconds", file),
    )


def read_curve(folder: Path) -> pd.DataFrame | None:
    """Compute the mean training loss of each epoch from the CSV logs of ``train``.

    A resumed run has several logs.

    Returns:
        Columns ``epoch`` (from 1) and ``loss``; None without logs.

    Raises:
        InputError: a damaged log.
    """
    logs = [log for log in (folder / "csv").glob("version_*/metrics.csv") if log.parent.name[8:].isdecimal()]
    tables = []
    for log in sorted(logs, key=lambda file: int(file.parent.name[8:])):
        try:
            with open_text(log) as lines:
                read = islice(csv.DictReader(lines, strict=True), MAX_ROWS + 1)
                rows = [[row.get(column) for column in _CURVE] for row in read]
            if len(rows) > MAX_ROWS:
                raise InputError(f"{log}: expected at most {MAX_ROWS:,} rows, found more")
            tables.append(pd.DataFrame(rows, columns=_CURVE).apply(pd.to_numeric))
        except (ValueError, TypeError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{log}: not a training log ({truncate(error)})") from None
    steps = pd.concat([pd.DataFrame(columns=_CURVE, dtype=float), *tables])
    steps = steps.dropna(subset=["loss"]).drop_duplicates("step", keep="last")
    if steps.empty:
        return None
    if not np.isfinite(steps[["epoch", "loss"]]).all(axis=None):
        raise InputError(f"{folder / 'csv'}: expected an epoch and a finite loss for each step")
    means = steps.groupby("epoch")["loss"].mean()
    return pd.DataFrame({"epoch": means.index.astype(int) + 1, "loss": means.to_numpy()})


def _read_ablation(path: Path) -> list[Evaluation]:
    names = read_plan_summary(path).get("variants", [])
    order = {name: number for number, name in enumerate(names)}

    def sort_key(folder: Path) -> tuple[int, str, int]:
        variant = folder.parent.name
        return order.get(variant, len(order)), variant, int(folder.name[5:])

    results = path.glob(f"*/seed-*/{ablation.RESULT}")
    folders = [file.parent for file in results if file.parent.name[5:].isdecimal()]
    if not folders:
        raise InputError(
            f"{path}: expected the folder of an ablation or of a run with {' or '.join(_TESTS)}, or a JSON file "
            "of metrics; found nothing finished"
        )
    return add_measurements(map(read_run, sorted(folders, key=sort_key)), path)


def _read_training(folder: Path) -> Evaluation:
    file = next(folder / name for name in _TESTS if (folder / name).is_file())
    evaluation = replace(_read_metrics_file(file, folder.resolve().name), curve=read_curve(folder))
    checkpoint = folder / ablation.LAST
    if not checkpoint.is_file():
        return evaluation
    parameters, macs = total_costs(load_model(checkpoint).backbone)
    seconds = read_training_seconds(read_torch(checkpoint))
    return replace(evaluation, parameters=parameters, macs=macs, training_seconds=seconds)


def _read_metrics_file(file: Path, name: str) -> Evaluation:
    return Evaluation(name, None, *_parse_metrics(_read_object(file), file))


def _parse_metrics(content: Mapping[str, Any], file: Path) -> tuple[dict[str, float], tuple[float, ...]]:
    found = {key: content[key] for key in _METRICS if key in content}
    curve = content.get("cmc", [])
    numbers = [*found.values(), *(curve if isinstance(curve, list) else [None])]
    if "mAP" not in found or not all(is_number(value) and 0 <= value <= 1 for value in numbers):
        raise InputError(f"{file}: expected the metrics of `test --json` or `evaluate --json`, as fractions")
    return {key: float(value) for key, value in found.items()}, tuple(map(float, curve))


def _read_object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _get_mapping(content: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise InputError(f"{file}: {short_repr(key)}: expected an object, found {short_repr(value)}")
    return value


def _get_number(content: Mapping[str, Any], key: str, file: Path) -> float | None:
    """Return a nonnegative number, or None if the key is missing."""
    value = content.get(key)
    if value is None:
        return None
    if not is_number(value) or not 0 <= value <= _MAX_NUMBER:
        raise InputError(f"{file}: {key}: expected a number, found {short_repr(value)}")
    return value


def _read_run_table(file: Path, columns: Mapping[str, str]) -> pd.DataFrame | None:
    """Read a table of a run and check its columns; None if the file does not exist."""
    if not file.is_file():
        return None
    table = read_parquet(file)
    for name, kind in columns.items():
        if name not in table or not _KINDS[kind](table[name]):
            found = f"{table[name].dtype}" if name in table else "none"
            raise InputError(f"{file}: expected a column {name} of {kind}, found {found}")
        if kind != "numbers":
            continue
        values = table[name].to_numpy(float, na_value=np.nan)
        if np.isinf(values).any() or (name in _NO_NAN and np.isnan(values).any()):
            raise InputError(f"{file}: column {name}: expected finite numbers")
    return table
