"""``ablate``: train and test the variants of a plan over their seeds, and write the report."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser, parse
from rga_reid.commands._output import check_outputs
from rga_reid.commands.report import FILES
from rga_reid.errors import InputError, check_int, sanitize
from rga_reid.files import require_writable

if TYPE_CHECKING:
    from rga_reid.data.synthetic import SyntheticSettings
    from rga_reid.experiments.ablation import DataSource, Outcome, Progress, Run
    from rga_reid.experiments.ablation_plan import Plan

_FILES = ("plan.json", "data.json", "measured.json")  # in --out, besides the report and the runs


def parser() -> ArgumentParser:
    """Options of ``ablate``."""
    options = new_parser(
        "ablate",
        "Train and test each variant of a plan with each of its seeds, then write a report that compares "
        "them. The same command goes on after an interruption; finished runs are not repeated.",
    )
    options.add_argument("--config", metavar="PLAN", required=True, help="a bundled name or a YAML file")
    options.add_argument("--out", metavar="DIR", required=True, help="folder of the runs and the report")
    options.add_argument("--data.root", metavar="DIR", help="data set (default: the plan's)")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time, each on a GPU of its own")
    options.add_argument("--only", metavar="VARIANT", nargs="+", help="make the runs of these variants only")
    options.add_argument("--seed", type=int, nargs="+", help="make the runs of these seeds only")
    options.add_argument("--no-photos", action="store_true", help="a report without pictures of people")
    options.add_argument("--json", metavar="FILE", help="write the table of results there as JSON")
    return options


def run(options: Namespace) -> int:
    """Check the plan, make its runs, measure, report; 1 if a run failed or is held elsewhere."""
    check_outputs(options, {"json": ()}, {"--out": [f"{options.out}/{name}" for name in (*FILES, *_FILES)]})
    check_int("--jobs", options.jobs)
    from rga_reid.experiments.ablation import gpus, make_runs, plan_runs, write_plan
    from rga_reid.experiments.ablation_plan import read_plan
    from rga_reid.experiments.results import check_ablation_folder
    from rga_reid.reports.ablation_tables import load_published

    plan = read_plan(options.config)
    check_outputs(options, {"json": ()}, {"the recipe": _recipe_files(options.config)})
    load_published(plan.published)  # refuses what the report would refuse, when all is trained
    _check_choice(options, plan)
    _check_recipes(plan, options.config)
    out = Path(options.out)
    check_ablation_folder(out)
    require_writable(out)
    data = _data(options, plan, out)
    runs = plan_runs(plan, out, data)
    write_plan(plan, out)
    with _Display() as display:
        outcome = make_runs(
            runs,
            wanted=lambda run: _wanted(options, run),
            jobs=options.jobs,
            devices=gpus(),
            tell=display.tell,
        )
    partial = options.only is not None or options.seed is not None
    if not partial and outcome.finished and not outcome.elsewhere:
        _measure(outcome, out)
    if outcome.finished:
        _report(options, plan, outcome, out)
    for what, which in (("failed", outcome.failed), ("held by another process", outcome.elsewhere)):
        for one in which:
            print(sanitize(f"{what}: {one.name}{': ' + one.why() if what == 'failed' else ''}"))
    wrong = [one for one in outcome.failed if _wanted(options, one)]
    return 1 if wrong or outcome.elsewhere else 0


def _wanted(options: Namespace, one: Run) -> bool:
    return (options.only is None or one.variant in options.only) and (
        options.seed is None or one.seed in options.seed
    )


def _recipe_files(plan: str) -> list[str]:
    """The files that a plan, which has been read, takes its recipes from, and those beneath them."""
    from rga_reid.experiments.recipes import read_mapping, relative_to

    path, content = read_mapping(plan, what="plan")
    names = {item.get("recipe", content.get("recipe")) for item in content["variants"]}
    waiting, found = [relative_to(path, name) for name in names], set()
    while waiting:
        path, content = read_mapping(waiting.pop())
        found.add(str(path))
        if content.get("base") is not None:
            waiting.append(relative_to(path, str(content["base"])))
    return sorted(found)


def _check_choice(options: Namespace, plan: Plan) -> None:
    names = [variant.name for variant in plan.variants]
    for name in options.only or []:
        if name not in names:
            raise InputError(f"--only {name}: expected some of {', '.join(names)}")
    chosen = [v for v in plan.variants if options.only is None or v.name in options.only]
    for seed in options.seed or []:
        if not any(seed in variant.seeds for variant in chosen):
            raise InputError(f"--seed {seed}: no chosen variant of the plan has it")


def _check_recipes(plan: Plan, name: str) -> None:
    """Parse each variant's recipe, as its run will: a mistyped option is told before anything is trained."""
    import yaml

    from rga_reid.commands import train

    parser = train.parser()
    for number, variant in enumerate(plan.variants):
        words = ["--config", yaml.safe_dump(dict(variant.recipe), sort_keys=False)]
        try:
            parse(parser, words)
        except InputError as error:
            raise InputError(f"plan {name}: variants[{number}] ({variant.name}): {error}") from None


def _data(options: Namespace, plan: Plan, out: Path) -> DataSource:
    """The data set that all variants share, read once so that it is known to be whole."""
    from rga_reid.data import read_table
    from rga_reid.experiments.ablation import DataSource, plan_runs

    sections = [variant.recipe.get("data") or {} for variant in plan.variants]
    asked = [(section.get("dataset", "market1501"), section.get("root")) for section in sections]
    if any(one != asked[0] or isinstance(one[0], list) or isinstance(one[1], list) for one in asked):
        raise InputError(f"plan {options.config}: expected one data set for all variants, got several")
    card, root, drawn = str(asked[0][0]), options.data.root or asked[0][1], None
    if root is None and plan.synthetic is not None:
        drawn = asdict(plan.synthetic)
        if not (out / "data").is_dir():
            plan_runs(plan, out, DataSource(str(out), card, None, drawn))  # refused before anything is drawn
        root = str(_drawn(out, plan, plan.synthetic))
    if not isinstance(root, str):
        raise InputError("--data.root: expected the folder of the data set, which the plan does not name")
    if options.data.root is None:
        check_outputs(options, {"json": ()}, {f"the data set of plan {options.config}:": [root]})
    return DataSource.of(root, card, read_table(root, card), drawn)


def _drawn(out: Path, plan: Plan, settings: SyntheticSettings) -> Path:
    """The synthetic data set of an ablation, drawn once; beside it lies what it was drawn by."""
    from rga_reid.data.synthetic import write_synthetic
    from rga_reid.experiments.ablation import PLAN, changed_settings, round_trip, write_plan
    from rga_reid.files import write_json
    from rga_reid.inputs import read_json

    folder, note, asked = out / "data", out / "data.json", asdict(settings)
    if not folder.is_dir():
        if not (out / PLAN).exists():  # whose folder this is, should the drawing be interrupted
            write_plan(plan, out)
        write_json(note, asked)
        try:
            write_synthetic(folder, settings)
        except InputError:
            if not folder.is_dir():  # else another `ablate` was faster
                raise
    found = changed_settings(read_json(note) if note.is_file() else {}, round_trip(asked))
    if found:
        raise InputError(
            f"{folder}: drawn with other settings (synthetic {'; '.join(found[:3])}); choose another --out, "
            "or delete this folder and the runs to begin anew"
        )
    return folder


def _measure(outcome: Outcome, out: Path) -> None:
    from rga_reid.experiments.ablation import LAST, TRAIN
    from rga_reid.experiments.benchmark import measure

    first: dict[str, Path] = {}
    for run in outcome.finished:
        first.setdefault(run.variant, run.folder / TRAIN / LAST)
    try:
        measure(first, out)
    except Exception as error:  # the results are there: they are worth a report without these figures
        print(sanitize(f"latency and memory could not be measured: {error}"))


def _report(options: Namespace, plan: Plan, outcome: Outcome, out: Path) -> None:
    from rga_reid.commands.report import finish
    from rga_reid.experiments.results import add_measurements, read_run, run_conditions
    from rga_reid.reports.ablation_tables import AblationReport, load_published

    order = {variant.name: number for number, variant in enumerate(plan.variants)}
    runs = sorted(outcome.finished, key=lambda run: (order[run.variant], run.seed))
    evaluations = add_measurements((read_run(run.folder) for run in runs), out)
    names = list(dict.fromkeys(one.name for one in evaluations))
    report = AblationReport(
        plan.title,
        evaluations,
        plan.baseline if plan.baseline in names else names[0],
        failures=[(run.name, run.why()) for run in outcome.failed],
        missing=[run.name for run in (*outcome.elsewhere, *outcome.left)],
        published=load_published(plan.published),
        conditions=run_conditions(out),
        planned_baseline=plan.baseline,
    )
    finish(report, out, photos=not options.no_photos, json=options.json)


class _Display:
    """A bar with the time left if stderr is a terminal, a line for each run that ends if not."""

    def __init__(self) -> None:
        import sys

        from rich import progress as rich
        from rich.console import Console

        self.terminal, self.started = sys.stderr.isatty(), time.monotonic()
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TextColumn("{task.completed:.1f}/{task.total:.0f} runs"),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, highlight=False, soft_wrap=not self.terminal),
            disable=not self.terminal,
            speed_estimate_period=24 * 3600,  # the pace of all the work: epochs come minutes apart
        )
        self.task = self.bar.add_task("starting", total=1)

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tell(self, progress: Progress) -> None:
        """Show it."""
        doing = ", ".join(progress.active) or "waiting"
        self.bar.update(self.task, description=doing, completed=progress.done, total=progress.total)
        if progress.news:
            left = (time.monotonic() - self.started) * (progress.total - progress.done) / progress.done
            minutes = f", about {left / 60:.0f} minutes left" if left > 0 else ""
            news = sanitize(progress.news)
            self.bar.console.print(f"[{progress.done:.0f}/{progress.total}] {news}{minutes}")
