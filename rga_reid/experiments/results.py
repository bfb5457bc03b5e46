"""Read finished runs and evaluations from folders and files, for reports."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rga_reid._deprecated import rename_options
from rga_reid.errors import InputError, short_repr
from rga_reid.evaluation.features import label_series
from rga_reid.evaluation.metrics import RANKS
from rga_reid.experiments import ablation
from rga_reid.experiments.ablation_worker import read_training_seconds
from rga_reid.experiments.benchmark import MEASUREMENTS
from rga_reid.experiments.recipes import check_imports
from rga_reid.inputs import is_number, open_text, read_json, read_parquet, read_yaml, truncate
from rga_reid.models import load_model
from rga_reid.models.analysis import total_costs
from rga_reid.models.weights import read_torch
from rga_reid.reports.ablation_stats import Evaluation
from rga_reid.reports.language import Text

_LABELS = ("pid", "camid")  # whole numbers or text, null where unknown
_QUERIES = {"path": "str", "query": "int64", "AP_step": "float64", "matches": "int64"}
_RANKED = {"path": "str", "query": "int64", "rank": "int64", "score": "float64"}
_CURVE = ["epoch", "step", "loss", "loss_epoch", "val_mAP"]
_MAX_NUMBER = 1e18
_METRICS = ("mAP", "mAP_trapezoid", "mINP", *(f"rank-{k}" for k in RANKS))
_CONFIG = "config.yaml"  # as in training.callbacks, which would import Lightning
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
            evaluations.append(Evaluation(path.stem, None, **_read_metrics(path)))
        elif (path / ablation.RESULT).is_file():
            evaluations.append(read_run(path))
        elif any((path / name).is_file() for name in _TESTS):
            evaluations.append(_read_training(path))
        else:
            evaluations += _read_ablation(path)
    keys = [(one.name, one.seed) for one in evaluations]
    names = [name for name, _ in keys]
    # without a seed the settings are unknown, so that it may not be another seed of a variant
    duplicates = {
        name
        for name, seed in keys
        if keys.count((name, seed)) > 1 or (seed is None and names.count(name) > 1)
    }
    if duplicates:
        raise InputError(
            f"report: two evaluations are called {min(duplicates)!r}; rename a folder or file, or write "
            "separate reports"
        )
    return evaluations


def list_unfinished_runs(paths: Sequence[Path]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the failed runs of ablations, as names and reasons, and the names of other unfinished runs."""
    failed, missing = [], []
    for path in paths:
        for folder in _run_folders(path):
            name = f"{folder.parent.name} seed {folder.name[5:]}"
            if folder == path or (folder / ablation.RESULT).is_file():
                continue
            if (folder / ablation.ERROR).is_file():
                failed.append((name, ablation.failure_reason(folder)))
            else:
                missing.append(name)
    return failed, missing


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
        changes = ablation.compare_settings(expected, settings)
        if changes:
            raise InputError(
                f"{folder}: cannot be another seed of {other}, because settings differ "
                f"({'; '.join(changes[:3])}); write separate reports"
            )


def read_plan_summary(path: Path) -> dict[str, Any]:
    """Read title, baseline, order of variants and recipes from the folder of an ablation; empty if it is not one."""
    file = path / ablation.PLAN
    if not file.is_file():
        return {}
    with _explain_damage(file):
        content = read_json(file)
        plan = {key: content[key] for key in ("title", "baseline", "variants")}
        plan["variants"].index(plan["baseline"])
        # older releases have not written the recipes
        plan["recipes"] = [str(name) for name in content.get("recipes", [])]
    return plan


def check_ablation_folder(out: Path) -> None:
    """Refuse a folder that is neither empty nor that of an ablation.

    Raises:
        InputError: the folder has files, apart from hidden ones, but no plan written by an ablation.
    """
    if not out.is_dir() or all(entry.name.startswith(".") for entry in out.iterdir()):
        return
    try:
        is_ablation = bool(read_plan_summary(out))
    except InputError:
        is_ablation = False
    if not is_ablation:
        raise InputError(
            f"--out {out}: expected a new or empty folder, or that of an ablation with its {ablation.PLAN}, "
            "found other files; choose another folder"
        )


def add_measurements(evaluations: Iterable[Evaluation], out: Path) -> list[Evaluation]:
    """Return the evaluations with the latency and memory that ``measure`` has written in ``out``."""
    file = out / MEASUREMENTS
    added = list(evaluations)
    with _explain_damage(file):
        models = read_json(file)["models"] if file.is_file() else {}
        for number, one in enumerate(added):
            if one.name in models:
                latency, memory = (_number(models[one.name][key]) for key in ("latency_ms", "memory_mib"))
                added[number] = replace(one, latency_ms=latency, memory_mib=memory)
    return added


def read_conditions(out: Path) -> Text | None:
    """Return how the numbers of an ablation were measured, a text of the section ``report``; None if unknown."""
    file = out / MEASUREMENTS
    if not file.is_file():
        return None
    with _explain_damage(file):
        kept = read_json(file)
        facts = {key: truncate(value) for key, value in {**kept["machine"], **kept["conditions"]}.items()}
        counts = [  # files of older releases have no threads
            f"{facts[name]} {name[:-1] if facts[name] == '1' else name}"
            for name in ("cores", "threads")
            if name == "cores" or name in facts
        ]
        cpu = ", ".join([facts["processor"], *counts])
        facts["where"] = cpu if facts["device"] == "cpu" else facts["device"]
        names = ("turns", "latency_images", "memory_images", "where", "torch")
        return Text("conditions", {name: facts[name] for name in names})


def read_run(folder: Path) -> Evaluation:
    """Read a finished run of an ablation.

    Raises:
        InputError: a damaged file.
    """
    file = folder / ablation.RESULT
    queries = _read_table(folder / ablation.QUERIES, _QUERIES)
    with _explain_damage(folder / ablation.QUERIES):
        if queries is not None:
            found = queries[queries["matches"] > 0]
            if queries["query"].duplicated().any() or not found["AP_step"].between(0, 1).all():
                raise ValueError("expected one row per query, with its average precision")
            if found["pid"].isna().any():
                raise ValueError("expected the identity of each query with a match")
    with _explain_damage(file):
        result = read_json(file)
        return Evaluation(
            str(result["variant"]),
            int(result["seed"]),
            **_parse_metrics(result["metrics"]),
            queries=queries,
            ranked=_read_table(folder / ablation.RANKED, _RANKED),
            curve=read_curve(folder / ablation.TRAIN),
            checkpoint=_checkpoint(folder / ablation.TRAIN),
            cameras=_read_cameras(folder / ablation.CAMERAS),
            trained_on=_two_numbers(result.get("trained_on") or {}, ("images", "identities")),
            **_read_settings(folder),
            **_read_training_options(folder / ablation.TRAIN),
            **{key: _number(result.get(key)) for key in ("parameters", "macs", "training_seconds")},
        )


def read_curve(folder: Path) -> pd.DataFrame | None:
    """Read the mean training loss and the mAP of each epoch from the CSV logs of ``train``.

    A resumed run has several logs. Logs of older releases have no means; they are computed from the logged steps.

    Returns:
        Columns ``epoch`` (from 1), ``loss`` and ``val_mAP`` (on held-out identities), null where they were not
        logged; None without logs.

    Raises:
        InputError: a damaged log.
    """
    logs = [log for log in (folder / "csv").glob("version_*/metrics.csv") if log.parent.name[8:].isdecimal()]
    tables = [pd.DataFrame(columns=_CURVE, dtype=float)]
    for log in sorted(logs, key=lambda file: int(file.parent.name[8:])):
        with _explain_damage(log), open_text(log) as lines:
            rows = pd.DataFrame(list(csv.DictReader(lines)), columns=_CURVE)
            tables.append(rows.apply(pd.to_numeric))
    logged = pd.concat(tables)
    steps = (
        logged.dropna(subset=["loss"]).drop_duplicates("step", keep="last").groupby("epoch")["loss"].mean()
    )
    whole = logged.dropna(subset=["loss_epoch"]).groupby("epoch")["loss_epoch"].last()
    losses = whole.combine_first(steps).rename("loss")
    scores = logged.dropna(subset=["val_mAP"]).groupby("epoch")["val_mAP"].last()
    means = pd.concat([losses, scores], axis=1).sort_index()
    if means.empty:
        return None
    with _explain_damage(folder / "csv"):
        return means.reset_index().assign(epoch=means.index.astype(int) + 1)


def _checkpoint(folder: Path) -> str | None:
    file = folder / ablation.LAST
    return str(file) if file.is_file() else None


def _read_training_options(folder: Path) -> dict[str, Any]:
    """Return ``imports`` and ``options`` of an ``Evaluation``; none if the settings of a training are not there."""
    file = folder / _CONFIG
    if not file.is_file():
        return {}
    with _explain_damage(file):
        content = rename_options(read_yaml(file, what="settings of train"), warn=False)
        sections = {name: content.get(name) or {} for name in ("model", "data", "trainer")}
        sections["data"].pop("root", None)  # the same data set may be in another folder
        options = {
            f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()
        }
        return {"imports": check_imports(content.get("imports")), "options": options}


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return ``dataset`` and ``drawn`` of an ``Evaluation`` of a run."""
    if not (folder / ablation.SETTINGS).is_file():
        return {}
    with _explain_damage(folder / ablation.SETTINGS):
        dataset = ablation.read_settings(folder)["dataset"]
        name = Path(str(dataset["card"])).name.removesuffix(".yaml")
        return {"dataset": name, "drawn": dataset.get("synthetic") is not None or name == "synthetic"}


def _read_cameras(file: Path) -> pd.DataFrame | None:
    """Read the table of ``rank_between_cameras``; None if the run has none."""
    if not file.is_file():
        return None
    table = read_parquet(file)
    with _explain_damage(file):
        table = table.astype(
            {"query_camera": "str", "gallery_camera": "str", "queries": "int64", "rank1": "float64"}
        )
        if not table["rank1"].between(0, 1).all():
            raise ValueError("expected rank-1 of pairs of cameras, as fractions")
        return table


def _read_ablation(path: Path) -> list[Evaluation]:
    order = {name: number for number, name in enumerate(read_plan_summary(path).get("variants", []))}

    def sort_key(folder: Path) -> tuple[int, str, int]:
        variant = folder.parent.name
        return order.get(variant, len(order)), variant, int(folder.name[5:])

    folders = [folder for folder in _run_folders(path) if (folder / ablation.RESULT).is_file()]
    if not folders:
        raise InputError(
            f"{path}: expected the folder of an ablation or of a run with {' or '.join(_TESTS)}, or a JSON file "
            "of metrics; found nothing finished"
        )
    return add_measurements(map(read_run, sorted(folders, key=sort_key)), path)


def _read_training(folder: Path) -> Evaluation:
    file = next(folder / name for name in _TESTS if (folder / name).is_file())
    evaluation = Evaluation(folder.resolve().name, None, **_read_metrics(file), curve=read_curve(folder))
    checkpoint = folder / ablation.LAST
    if not checkpoint.is_file():
        return evaluation
    evaluation = replace(evaluation, checkpoint=str(checkpoint), **_read_training_options(folder))
    model = load_model(checkpoint)
    parameters, macs = total_costs(model.backbone)
    with _explain_damage(checkpoint):
        seconds = _number(read_training_seconds(read_torch(checkpoint)))
        trained_on = _two_numbers(model.trained_on or {}, ("images", "identities"))
    return replace(
        evaluation, parameters=parameters, macs=macs, training_seconds=seconds, trained_on=trained_on
    )


def _read_metrics(file: Path) -> dict[str, Any]:
    with _explain_damage(file):
        return _parse_metrics(read_json(file))


def _parse_metrics(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``Evaluation`` from ``test --json`` or ``evaluate --json``: fractions and counts."""
    return {
        "metrics": {key: _number(content[key], 1) for key in _METRICS if key == "mAP" or key in content},
        "cmc": tuple(_number(value, 1) for value in content.get("cmc", [])),
        "counts": _two_numbers(content, ("queries", "gallery")),
    }


def _two_numbers(content: Mapping[str, Any], keys: tuple[str, str]) -> tuple[float, float] | None:
    """Return the numbers of two keys; None if one of them is missing."""
    first, second = (_number(content.get(key)) for key in keys)
    return None if first is None or second is None else (first, second)


def _number(value: Any, most: float = 1e18) -> Any:
    """Return a number from 0 to ``most``; None stays None, except among fractions."""
    if value is None and most > 1:
        return None
    if not is_number(value) or not 0 <= value <= most:
        raise ValueError(f"expected a number from 0 to {most:g}, found {short_repr(value)}")
    return float(value)


def _read_table(file: Path, types: Mapping[str, str]) -> pd.DataFrame | None:
    """Read a table of a run; None if the file does not exist."""
    if not file.is_file():
        return None
    table = read_parquet(file)
    with _explain_damage(file):
        labels = {name: label_series(table[name], len(table), f"{file}: column {name}") for name in _LABELS}
        types = {name: kind for name, kind in types.items() if name != "path" or name in table}
        return table.astype(types).assign(**labels)


@contextmanager
def _explain_damage(file: Path) -> Iterator[None]:
    """Raise ``InputError`` if what a file contains is not what a command of this package writes."""
    try:
        yield
    except InputError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        csv.Error,
    ) as error:
        found = f"{type(error).__name__}: {truncate(error)}"
        raise InputError(f"{file}: damaged, or not a file of this kind ({found})") from None
