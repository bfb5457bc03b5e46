"""Finished runs and evaluations as a report takes them, read from folders and files."""

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
from rga_reid.experiments import ablation as files
from rga_reid.experiments.ablation import PLAN
from rga_reid.experiments.ablation_worker import read_seconds
from rga_reid.experiments.benchmark import MEASURED
from rga_reid.inputs import MAX_ROWS, is_number, open_text, read_json, read_parquet, truncate
from rga_reid.models import load_model
from rga_reid.models.analysis import total_costs
from rga_reid.models.weights import read_torch
from rga_reid.reports.ablation_stats import Evaluation

_QUERIES = dict.fromkeys(("query", "pid", "camid", "AP_step", "matches"), "numbers")
_RANKED = {**dict.fromkeys(("query", "rank", "score", "pid", "camid"), "numbers"), "path": "texts"}
_WITHOUT_GAPS = ("query", "rank", "score")  # an identity or a camera may be unknown
_KINDS: dict[str, Callable[[pd.Series], bool]] = {
    "numbers": pd.api.types.is_numeric_dtype,
    "texts": pd.api.types.is_string_dtype,
}
_CURVE = ["epoch", "step", "loss"]
_LARGEST = 1e18  # of what is counted or measured
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
    _check_seeds(folder for place in paths for folder in _run_folders(Path(place)))
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
        raise InputError(
            f"report: {name!r} stands for two evaluations; rename one of the folders or files, or report on "
            "these ablations apart"
        )
    return found


def unfinished_runs(paths: Sequence[Path]) -> tuple[list[tuple[str, str]], list[str]]:
    """Runs of ablations that are in no table: the names of failed ones, and why; the names of the others."""
    left = [
        folder
        for path in paths
        for folder in _run_folders(path)
        if folder != path and not (folder / files.RESULT).is_file()
    ]
    names = {folder: f"{folder.parent.name} seed {folder.name[5:]}" for folder in left}
    failed = [folder for folder in left if (folder / files.ERROR).is_file()]
    missing = [names[folder] for folder in left if folder not in failed]
    return [(names[folder], files.failure_reason(folder)) for folder in failed], missing


def _run_folders(path: Path) -> list[Path]:
    """The folders of runs that were begun, finished or not, of an ablation, or of one run."""
    if (path / files.ASKED).is_file():
        return [path]
    begun = path.glob(f"*/seed-*/{files.ASKED}") if path.is_dir() else ()
    return sorted(file.parent for file in begun if file.parent.name[5:].isdecimal())


def _check_seeds(folders: Iterable[Path]) -> None:
    """Refuse finished runs that are called one variant and were asked for with other settings."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in folders:
        if not (folder / files.RESULT).is_file():
            continue
        asked = {key: value for key, value in _read(folder / files.ASKED).items() if key != "seed"}
        other, settings = first.setdefault(str(asked.get("variant")), (folder, asked))
        changed = files.changed_settings(settings, asked)
        if changed:
            raise InputError(
                f"{folder}: cannot be another seed of {other}, for its settings differ "
                f"({'; '.join(changed[:3])}); report on them apart"
            )


def read_kept_plan(path: Path) -> dict[str, Any]:
    """Title, baseline and order of the variants of an ablation, empty if this is not the folder of one."""
    file = path / PLAN
    if not file.is_file():
        return {}
    kept = _read(file)
    variants = kept.get("variants", [])
    texts = [kept.get("baseline", ""), *(variants if isinstance(variants, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{file}: expected the names of the variants and of their baseline")
    return kept


def check_ablation_folder(out: Path) -> None:
    """Refuse the folder of something else, before a plan, runs and a report are written there.

    Raises:
        InputError: it is not empty and has no plan that an ablation left. Hidden files do not count.
    """
    if not out.is_dir() or not any(not entry.name.startswith(".") for entry in out.iterdir()):
        return
    try:
        kept = read_kept_plan(out)
    except InputError:
        kept = {}
    variants = kept.get("variants")
    if not isinstance(variants, list) or kept.get("baseline") not in variants or "title" not in kept:
        found = "another one" if (out / PLAN).exists() else "none"
        raise InputError(
            f"--out {out}: expected a new or empty folder, or that of an ablation with its {PLAN}, found "
            f"{found} there; choose another folder"
        )


def add_measurements(evaluations: Iterable[Evaluation], out: Path) -> list[Evaluation]:
    """The evaluations with the latency and memory that ``measure`` has left in ``out``."""
    file = out / MEASURED
    models = _mapping(_read(file), "models", file) if file.is_file() else {}

    def measured(one: Evaluation) -> Evaluation:
        if one.name not in models:
            return one
        facts = _mapping(models, one.name, file)
        latency, memory = (_number(facts, key, file) for key in ("latency_ms", "memory_mib"))
        return replace(one, latency_ms=latency, memory_mib=memory)

    return [measured(one) for one in evaluations]


def run_conditions(out: Path) -> str:
    """A sentence on where the figures of an ablation were measured, or ""."""
    file = out / MEASURED
    if not file.is_file():
        return ""
    kept = _read(file)
    how, machine = _mapping(kept, "conditions", file), _mapping(kept, "machine", file)
    facts = {key: truncate(value) for key, value in {**machine, **how}.items()}
    try:
        where = facts["device"] if facts["device"] != "cpu" else "{processor}, {cores} cores".format(**facts)
        return (
            "Parameters and multiply-accumulates are the backbone's, for one image. Latency: median of "
            "{turns} forward passes of {latency_images} image, the models taking turns. Memory: "
            "growth at its peak while {memory_images} images pass, in a process for each model. "
            "{where}, torch {torch}; measured after all training. Training time is wall-clock time, "
            "without interruptions."
        ).format(**{**facts, "where": where})
    except KeyError as error:
        raise InputError(f"{file}: {error} is missing, under 'conditions' or 'machine'") from None


def read_run(folder: Path) -> Evaluation:
    """A finished run of an ablation.

    Raises:
        InputError: a file that is not what a run leaves.
    """
    file = folder / files.RESULT
    result = _read(file)
    variant, seed = result.get("variant"), result.get("seed")
    if not isinstance(variant, str) or type(seed) is not int:
        raise InputError(f"{file}: expected the result of a run, with its variant and its seed")
    queries = _table(folder / files.QUERIES, _QUERIES)
    if queries is not None:
        if "path" in queries and (queries["path"].isna().any() or not _KINDS["texts"](queries["path"])):
            raise InputError(f"{folder / files.QUERIES}: column path: expected a text for each query")
        found = queries[queries["matches"] > 0]
        fractions = found["AP_step"].between(0, 1).all()
        if queries["query"].duplicated().any() or found["pid"].isna().any() or not fractions:
            raise InputError(
                f"{folder / files.QUERIES}: expected a row for each query, with its person and precision"
            )
    return Evaluation(
        variant,
        seed,
        *_metrics(_mapping(result, "metrics", file), file),
        queries=queries,
        ranked=_table(folder / files.RANKED, _RANKED),
        curve=read_curve(folder / files.TRAIN),
        parameters=_number(result, "parameters", file),  # type: ignore[arg-type]  # a whole one
        macs=_number(result, "macs", file),  # type: ignore[arg-type]
        training_seconds=_number(result, "training_seconds", file),
    )


def read_curve(folder: Path) -> pd.DataFrame | None:
    """Mean training loss of each epoch from the CSV logs of ``train``; a resumed run has several.

    Returns:
        Columns ``epoch`` (from 1) and ``loss``; None without logs.

    Raises:
        InputError: a log that is none.
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
            raise InputError(f"{log}: not a log of training ({truncate(error)})") from None
    steps = pd.concat([pd.DataFrame(columns=_CURVE, dtype=float), *tables])
    steps = steps.dropna(subset=["loss"]).drop_duplicates("step", keep="last")
    if steps.empty:
        return None
    if not np.isfinite(steps[["epoch", "loss"]]).all(axis=None):
        raise InputError(
            f"{folder / 'csv'}: a log of training with a step without an epoch, or without a loss"
        )
    means = steps.groupby("epoch")["loss"].mean()
    return pd.DataFrame({"epoch": means.index.astype(int) + 1, "loss": means.to_numpy()})


def _from_ablation(path: Path) -> list[Evaluation]:
    order = read_kept_plan(path).get("variants", [])
    places = {name: number for number, name in enumerate(order)}

    def place(file: Path) -> tuple[int, str, int]:
        variant, seed = file.parts[-3], int(file.parts[-2][5:])
        return places.get(variant, len(places)), variant, seed

    runs = [file for file in path.glob(f"*/seed-*/{files.RESULT}") if file.parts[-2][5:].isdecimal()]
    if not runs:
        raise InputError(
            f"{path}: expected the folder of an ablation or of a tested run ({' or '.join(_TESTS)} beside "
            "its checkpoint), or a JSON file of metrics, with something finished in it"
        )
    return add_measurements((read_run(file.parent) for file in sorted(runs, key=place)), path)


def _from_training(folder: Path) -> Evaluation:
    file = next(folder / name for name in _TESTS if (folder / name).is_file())
    one = replace(_from_metrics(file, folder.resolve().name), curve=read_curve(folder))
    checkpoint = folder / files.LAST
    if not checkpoint.is_file():
        return one
    parameters, macs = total_costs(load_model(checkpoint).backbone)
    seconds = read_seconds(read_torch(checkpoint))
    return replace(one, parameters=parameters, macs=macs, training_seconds=seconds)


def _from_metrics(file: Path, name: str) -> Evaluation:
    return Evaluation(name, None, *_metrics(_read(file), file))


def _metrics(content: Mapping[str, Any], file: Path) -> tuple[dict[str, float], tuple[float, ...]]:
    found = {key: content[key] for key in _METRICS if key in content}
    curve = content.get("cmc", [])
    numbers = [*found.values(), *(curve if isinstance(curve, list) else [None])]
    plain = [is_number(value) and 0 <= value <= 1 for value in numbers]
    if "mAP" not in found or not all(plain):
        raise InputError(f"{file}: expected the metrics of `test --json` or `evaluate --json`, as fractions")
    return {key: float(value) for key, value in found.items()}, tuple(map(float, curve))


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _mapping(content: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise InputError(f"{file}: {short_repr(key)}: expected an object, found {short_repr(value)}")
    return value


def _number(content: Mapping[str, Any], key: str, file: Path) -> float | None:
    """A number that is not negative, or None."""
    value = content.get(key)
    if value is None:
        return None
    if not is_number(value) or not 0 <= value <= _LARGEST:
        raise InputError(f"{file}: {key}: expected a number, found {short_repr(value)}")
    return value


def _table(file: Path, columns: Mapping[str, str]) -> pd.DataFrame | None:
    """A table of a run, if it is there, with these columns of these kinds."""
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
        if np.isinf(values).any() or (name in _WITHOUT_GAPS and np.isnan(values).any()):
            raise InputError(f"{file}: column {name}: expected finite numbers")
    return table
