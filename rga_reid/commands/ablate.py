"""Train and test the variants of a plan with several seeds, and write a report."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import add_import_option, add_lang_option, new_parser, parse
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError, check_int, sanitize
from rga_reid.files import require_writable
from rga_reid.runtime import import_modules, progress_bar

if TYPE_CHECKING:
    from rga_reid.data.synthetic import SyntheticSettings
    from rga_reid.experiments.ablation import DataSource, Outcome, Progress, Run
    from rga_reid.experiments.ablation_plan import Plan

_FILES = ("plan.json", "data.json", "measured.json")  # in --out, with the report and the runs


def parser() -> ArgumentParser:
    """Options of ``ablate``."""
    options = new_parser(
        "ablate",
        "Train and test each variant of a plan with each of its seeds, then write a report that compares "
        "them. After an interruption, the same command continues; finished runs are not repeated.",
    )
    options.add_argument(
        "--config", metavar="PLAN", required=True, help="plan: a bundled name or a YAML file"
    )
    options.add_argument("--out", metavar="DIR", required=True, help="folder of the runs and the report")
    options.add_argument("--data.root", metavar="DIR", help="data set (default: the plan's)")
    options.add_argument("--jobs", type=int, default=1, help="number of runs at a time, each on its own GPU")
    options.add_argument("--only", metavar="VARIANT", nargs="+", help="only the runs of these variants")
    options.add_argument("--seed", type=int, nargs="+", help="only the runs with these seeds")
    options.add_argument("--no-photos", action="store_true", help="write a report without images of people")
    options.add_argument("--json", metavar="FILE", help="write the table of results as JSON")
    add_lang_option(options)
    add_import_option(options)
    return options


def run(options: Namespace) -> int:
    """Check the plan, make its runs, measure, report; return 1 if a run failed or is locked."""
    from rga_reid.reports.ablation_page import FILES

    check_outputs(options, {"json": ()}, {"--out": [f"{options.out}/{name}" for name in (*FILES, *_FILES)]})
    check_int("--jobs", options.jobs)
    from rga_reid.experiments.ablation import list_gpus, make_runs, plan_runs, write_plan
    from rga_reid.experiments.ablation_plan import read_plan
    from rga_reid.experiments.results import check_ablation_folder
    from rga_reid.reports.ablation_tables import load_published

    plan = read_plan(options.config, options.imports)
    load_published(plan.published)  # raises before training rather than after it
    _check_selection(options, plan)
    recipes = _parse_recipes(plan, options.config)
    out = Path(options.out)
    check_ablation_folder(out)
    require_writable(out)
    runs = plan_runs(plan, out, _prepare_data(options, plan, out))
    selected = [run for run in runs if _is_selected(options, run)]
    _try_variants(selected, recipes, options.config)
    write_plan(plan, out)
    before = sum(run.state == "finished" for run in selected)
    if before:
        print(f"{before} of {len(selected)} runs finished before", flush=True)
    with _Display() as display:
        outcome = make_runs(
            runs,
            select=lambda run: _is_selected(options, run),
            jobs=options.jobs,
            devices=list_gpus(),
            report=display.show,
        )
    partial = options.only is not None or options.seed is not None
    if not partial and outcome.finished and not outcome.locked:
        _measure(outcome, out)
    if outcome.finished:
        _report(options, plan, outcome, out)
    for run in outcome.failed:
        print(sanitize(f"failed: {run.name}: {run.failure_reason()}"))
    for run in outcome.locked:
        print(sanitize(f"in use by another process: {run.name}"))
    failed = any(_is_selected(options, run) for run in outcome.failed)
    return 1 if failed or outcome.locked else 0


def _is_selected(options: Namespace, run: Run) -> bool:
    return (options.only is None or run.variant in options.only) and (
        options.seed is None or run.seed in options.seed
    )


def _check_selection(options: Namespace, plan: Plan) -> None:
    names = [variant.name for variant in plan.variants]
    for name in options.only or []:
        if name not in names:
            raise InputError(f"--only {name}: expected one of {', '.join(names)}")
    selected = [v for v in plan.variants if options.only is None or v.name in options.only]
    for seed in options.seed or []:
        if not any(seed in variant.seeds for variant in selected):
            raise InputError(f"--seed {seed}: none of the selected variants has this seed")


def _parse_recipes(plan: Plan, name: str) -> dict[str, Namespace]:
    """Return the options of ``train`` of each variant, so that a wrong one is reported before training."""
    import yaml

    from rga_reid.commands import train

    parser, parsed = train.parser(), {}
    for number, variant in enumerate(plan.variants):
        try:
            import_modules(variant.recipe.get("imports", []))
            options = parse(parser, ["--config", yaml.safe_dump(dict(variant.recipe), sort_keys=False)])
        except InputError as error:
            raise InputError(f"plan {name}: variants[{number}] ({variant.name}): {error}") from None
        assert options is not None  # no --help among the words
        parsed[variant.name] = options
    return parsed


def _try_variants(runs: Sequence[Run], recipes: Mapping[str, Namespace], name: str) -> None:
    """Build, run, save and load the model of each variant that is not finished, before anything is trained."""
    from rga_reid.commands import train
    from rga_reid.experiments.ablation_check import check_model

    first = {run.variant: run for run in reversed(runs) if run.state != "finished"}
    parser = train.parser()
    if first:
        names = dict.fromkeys(run.variant for run in runs if run.variant in first)
        print(sanitize(f"checking the models of {', '.join(names)}"), flush=True)
    with progress_bar("checking the models") as progress:
        for done, run in enumerate(first.values(), 1):
            options = recipes[run.variant]
            options.data.root = run.data.root
            try:
                built = train.build_objects(parser, options)
                check_model(built.model, None if options.trainer.accelerator == "auto" else "cpu")
            except InputError as error:
                raise InputError(f"plan {name}: variant {run.variant}: {error}") from None
            progress(done / len(first))


def _prepare_data(options: Namespace, plan: Plan, out: Path) -> DataSource:
    """Return the data set of all variants after reading it once; generate it if it is synthetic."""
    from rga_reid.commands.evaluate import COMBINED
    from rga_reid.data import read_table
    from rga_reid.experiments.ablation import DataSource, plan_runs
    from rga_reid.experiments.evaluate_model import card_protocol

    sections = [variant.recipe.get("data") or {} for variant in plan.variants]
    sources = [(section.get("dataset", "market1501"), section.get("root")) for section in sections]
    card, root = sources[0]
    if any(source != sources[0] for source in sources) or isinstance(card, list) or isinstance(root, list):
        raise InputError(f"plan {options.config}: expected one data set for all variants, got several")
    root, settings = options.data.root or root, None
    if root is None and plan.synthetic is not None:
        settings = asdict(plan.synthetic)
        if not (out / "data").is_dir():
            plan_runs(plan, out, DataSource(str(out), card, None, settings))  # raises before generating
        root = str(_generate_data(out, plan, plan.synthetic))
    if not isinstance(root, str):
        raise InputError("--data.root: expected the folder of a data set, as the plan has none")
    protocol = card_protocol(root, card)
    if protocol in COMBINED:
        raise InputError(
            f"card {card}: ablate is not available for the protocol {protocol}, which ranks no single query "
            "images; use train and test for each variant"
        )
    return DataSource.from_table(root, card, read_table(root, card), settings)


def _generate_data(out: Path, plan: Plan, settings: SyntheticSettings) -> Path:
    """Generate the synthetic data set of an ablation once, and save its settings."""
    from rga_reid.data.synthetic import write_synthetic
    from rga_reid.experiments.ablation import PLAN, changed_settings, to_json_values, write_plan
    from rga_reid.files import write_json
    from rga_reid.inputs import read_json

    folder, file = out / "data", out / "data.json"
    if not folder.is_dir():
        if not (out / PLAN).exists():  # marks the folder, in case of an interruption
            write_plan(plan, out)
        write_json(file, asdict(settings))
        try:
            write_synthetic(folder, settings)
        except InputError:
            if not folder.is_dir():  # else another process has generated it
                raise
    earlier = read_json(file) if file.is_file() else {}
    changes = changed_settings(earlier, to_json_values(asdict(settings)))
    if changes:
        raise InputError(
            f"{folder}: generated with other settings (synthetic {'; '.join(changes[:3])}); choose another "
            "--out, or delete this folder and the runs"
        )
    return folder


def _measure(outcome: Outcome, out: Path) -> None:
    from rga_reid.experiments.ablation import LAST, TRAIN
    from rga_reid.experiments.benchmark import measure

    first: dict[str, Path] = {}
    for run in outcome.finished:
        first.setdefault(run.variant, run.folder / TRAIN / LAST)
    imports = [name for run in outcome.finished for name in run.recipe.get("imports", [])]
    try:
        measure(first, out, list(dict.fromkeys(imports)))
    except Exception as error:  # write the report without these columns
        print(sanitize(f"latency and memory could not be measured: {error}"))


def _report(options: Namespace, plan: Plan, outcome: Outcome, out: Path) -> None:
    from rga_reid.commands.report import write_and_print
    from rga_reid.experiments.ablation import recipe_names
    from rga_reid.experiments.results import add_measurements, read_conditions, read_run
    from rga_reid.reports.ablation_tables import AblationReport, load_published

    order = {variant.name: number for number, variant in enumerate(plan.variants)}
    runs = sorted(outcome.finished, key=lambda run: (order[run.variant], run.seed))
    evaluations = add_measurements((read_run(run.folder) for run in runs), out)
    names = list(dict.fromkeys(one.name for one in evaluations))
    report = AblationReport(
        plan.title,
        evaluations,
        plan.baseline if plan.baseline in names else names[0],
        failures=[(run.name, run.failure_reason()) for run in outcome.failed],
        missing=[run.name for run in (*outcome.locked, *outcome.remaining)],
        published=load_published(plan.published),
        conditions=read_conditions(out),
        planned_baseline=plan.baseline,
        recipes=recipe_names(plan),
    )
    write_and_print(report, out, options)


class _Display:
    """Show a progress bar on a terminal, and a line for each run that starts or ends."""

    def __init__(self) -> None:
        from rich import progress as rich
        from rich.console import Console

        self.terminal = sys.stderr.isatty()
        self.started, self.tested = time.monotonic(), 0.0  # start of the first training, and work before it
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TextColumn("{task.completed:.1f}/{task.total:.0f} runs"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("{task.fields[left]}"),
            console=Console(stderr=True, markup=False, highlight=False, soft_wrap=not self.terminal),
            disable=not self.terminal,
        )
        self.task = self.bar.add_task("starting", total=1, left="")

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.bar.console.print("the same command continues the runs")

    def show(self, progress: Progress) -> None:
        """Show the progress."""
        from rga_reid.training.monitoring import format_seconds

        active = ", ".join(progress.active) or "waiting"
        left = ""
        if not progress.trains:
            self.started, self.tested = time.monotonic(), progress.work
        work = progress.work - self.tested
        if (
            work >= 0.5 and progress.done < progress.total
        ):  # of a run: of less, most was the start of programs
            seconds = (time.monotonic() - self.started) * (progress.total - progress.done) / work
            left = f"about {format_seconds(seconds)} left"
        self.bar.update(
            self.task, description=active, completed=progress.done, total=progress.total, left=left
        )
        if progress.started:
            self.bar.console.print(sanitize(progress.started))
        if progress.news:
            news = sanitize(progress.news) + (f", {left}" if left else "")
            self.bar.console.print(f"[{progress.done:.0f}/{progress.total}] {news}")
