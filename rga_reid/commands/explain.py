"""``explain``: show what models use in pictures, as a page or as figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import add_import_option, add_lang_option, check_images, new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.commands.demo import DEFAULT, FOLDERS
from rga_reid.errors import MAX_SEED, InputError, check_int, sanitize
from rga_reid.files import atomic_file, make_folder, write_text
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    from typing import Literal

    from rga_reid.experiments.explain import Models
    from rga_reid.models import EmbeddingModel
    from rga_reid.reports.explorer import Exhibit
    from rga_reid.reports.heat_maps import HeatMap, MapView

    View = MapView | Literal["relations"]

_FORMATS = ("html", "png", "pdf")
TRAINED = "mechanisms"  # folder of the networks that --demo trains
PAGE = "mechanisms.html"
DONE = "done"  # in the folder of a network that was trained to the end: how
_VIEWS = ("relations", "gates", "gradcam", "activation")


def parser() -> ArgumentParser:
    """Options of ``explain``."""
    command = new_parser(
        "explain",
        "Show what models use in pictures: the relations that attention modules compute, with the data flow and the "
        "applied attention; gates, the weights that multiply a map; Grad-CAM; or the activation of the last map. "
        "Without a checkpoint, untrained ResNet-50s at 256x128 are compared.",
    )
    command.add_argument(
        "--image",
        metavar="FILE",
        nargs="+",
        help="pictures of people; required, except with --demo (default: one of the demo set)",
    )
    command.add_argument(
        "--view",
        choices=_VIEWS,
        help="relations and gates need attention; gradcam and activation take any model (default: relations if "
        "every model has attention, otherwise gradcam)",
    )
    command.add_argument(
        "--similar-to", metavar="FILE", help="gradcam of the similarity to this picture; both are shown"
    )
    command.add_argument(
        "--identity",
        metavar="N",
        type=int,
        help="gradcam of the logit of a training identity, counted from 0 in the order of the pids (default: gradcam "
        "of the length of the embedding)",
    )
    command.add_argument(
        "--checkpoint", metavar="FILE", nargs="+", default=[], help="trained models, side by side"
    )
    command.add_argument(
        "--attention",
        metavar="NAME",
        nargs="+",
        default=[],
        help="attention modules or class paths to compare (default: rga nonlocal pam cam criss_cross; for gates "
        "rga se cbam); with --checkpoint: modules that the models must have",
    )
    command.add_argument(
        "--demo",
        metavar="DIR",
        nargs="?",
        const=DEFAULT,
        help="compare trained networks, one per attention module. The first call trains them on the synthetic data "
        f"set of `rga-reid demo`, which is made if necessary, and keeps them in DIR/{TRAINED} (default DIR: "
        f"{DEFAULT}); the next calls take seconds",
    )
    command.add_argument(
        "--epochs", type=int, help="with --demo: train for this many epochs instead of the recipe's 12"
    )
    command.add_argument(
        "--runs",
        metavar="DIR",
        help="compare the trained variants of an ablation, each with its first seed; those without what the view shows "
        "(default view: relations) are left out",
    )
    add_lang_option(command)
    command.add_argument(
        "--out",
        metavar="FILE",
        help="file to write; required, except with --demo (default: DIR/mechanisms.html)",
    )
    command.add_argument(
        "--format",
        choices=_FORMATS,
        help="html page, or png or pdf figures (default: by the suffix of --out)",
    )
    command.add_argument(
        "--stage",
        type=int,
        metavar="N",
        help="stage to show in figures of relations (default: the first with a matrix of at most 512 positions; "
        "without one, as for channels, the last)",
    )
    command.add_argument("--seed", type=int, default=0, help="random seed of untrained weights")
    add_import_option(command)
    return command


def run(options: Namespace) -> None:
    """Run the models; write the page or the figures."""
    _check_sources(options)
    kind = _choose_format(options)
    if kind != "html" and options.lang is not None:
        raise InputError(f"--lang: expected an html page, got {kind}, whose text is English")
    if kind == "html" and options.stage is not None:
        raise InputError("--stage: expected a png or pdf; an html page shows all stages")
    if options.demo is not None:
        make_folder(Path(options.demo))
    read = options.clone()
    read.demo = None  # its page is replaced
    check_outputs(read, {"out": ()})
    check_int("--seed", options.seed, 0, MAX_SEED)
    _check_score(options)
    if options.demo is not None:
        _prepare_demo(options)
    check_images("--image", *(options.image or []))
    if options.similar_to is not None:
        check_images("--similar-to", options.similar_to)

    from rga_reid.experiments.explain import load_models
    from rga_reid.experiments.heat_maps import default_view

    explains_score = options.similar_to is not None or options.identity is not None
    view: View | None = options.view or ("gradcam" if explains_score else None)
    checkpoints: Models = options.checkpoint
    if options.runs is not None:
        view = view or "relations"
        checkpoints = _load_variants(options, view)
    models = load_models(checkpoints, options.attention, classifier=options.identity is not None)
    view = view or default_view(models)
    if view == "relations":
        shown = _show_relations(options, kind, models)
        names, views = [one.image for one in shown], len(shown)
    else:
        if options.stage is not None:
            raise InputError(f"--stage: expected --view relations, got {view}")
        maps = _show_maps(options, kind, models, view)
        names, views = [one.image for one in maps], len(maps)
    photos, what = len(set(names)), "view" if view == "relations" else "map"
    print(
        f"{options.out}: {views} {what}{'' if views == 1 else 's'} of {photos} picture"
        f"{'' if photos == 1 else 's'}{'' if options.view else f' (--view {view})'}"
    )


def _check_sources(options: Namespace) -> None:
    """Check which models are compared; fill in what ``--demo`` implies."""
    given = [f"--{name}" for name in ("checkpoint", "demo", "runs") if options[name]]
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: expected one of them, found {len(given)}")
    if options.epochs is not None:
        check_int("--epochs", options.epochs)
        if options.demo is None:
            raise InputError("--epochs: expected --demo, whose networks are trained")
    if options.demo is not None:
        options.out = options.out or str(Path(options.demo) / PAGE)
    for name in ("image", "out"):
        if not options[name] and not (name == "image" and options.demo is not None):
            raise InputError(f"--{name}: required, except with --demo")


def _prepare_demo(options: Namespace) -> None:
    """Make the demo set and train a network for each attention module, unless that was done before."""
    from rga_reid.commands import train
    from rga_reid.commands._options import parse
    from rga_reid.commands.demo import mark, print_step, set_epochs
    from rga_reid.experiments.demo import make_data
    from rga_reid.experiments.mechanisms import MECHANISMS, measure_use, missing_for_view
    from rga_reid.models import build_model, load_model

    folder, names = Path(options.demo), tuple(options.attention) or MECHANISMS
    view = options.view or "relations"  # of modules that cannot be shown none is trained
    untrained = {name: build_model(depth=18, attention=name, size=(96, 48)) for name in names}
    names = tuple(
        _leave_out({name: missing_for_view(model, view) for name, model in untrained.items()}, options)
    )
    root = folder / "data"
    if not root.is_dir():
        print_step(f"data: rendering pedestrians into {root}")
        if not any((folder / name).exists() for name in FOLDERS):  # otherwise a demo would delete these
            mark(folder)
        make_data(root, options.seed)
    if not options.image:
        options.image = [str(sorted((root / "query").glob("*.jpg"))[0])]
    make_folder(folder / TRAINED)
    for name in names:
        # the recipe has RGA, with an option that it needs to learn from random weights
        choice = (
            f"{{class_path: {name}, init_args: {{zero_init_gate: true}}}}" if name.startswith("rga") else name
        )
        out = folder / TRAINED / name
        checkpoint = out / "last.ckpt"
        how = f"epochs: {options.epochs or 'as the recipe'}, seed: {options.seed}, attention: {choice}\n"
        if not (out / DONE).is_file() or (out / DONE).read_text(encoding="utf-8") != how:
            print_step(f"train: ResNet-18 with {name}")
            words = ["--config", "demo", "--data.root", str(root)]
            words += ["--out", str(out), "--overwrite"]
            words += ["--seed", str(options.seed), "--model.attention", choice]
            settings = parse(train.parser(), train.prepare(words))
            assert settings is not None  # no --help among the words
            if options.epochs is not None:
                set_epochs(settings, options.epochs)
            checkpoint = train.fit_recipe(settings)
            write_text(out / DONE, how)
        print(f"{name}: {measure_use(load_model(checkpoint), options.image[0])}", flush=True)
        options.checkpoint = [*options.checkpoint, str(checkpoint)]
    options.attention = []


def _load_variants(options: Namespace, view: str) -> dict[str, EmbeddingModel]:
    """Load the variants of ``--runs`` that have what the view shows; print which are left out."""
    from rga_reid.experiments.mechanisms import load_variants, missing_for_view

    variants = load_variants(Path(options.runs))
    kept = _leave_out({name: missing_for_view(model, view) for name, model in variants.items()}, options)
    return {name: variants[name] for name in kept}


def _leave_out(missing: Mapping[str, str], options: Namespace) -> list[str]:
    """Return the names of the models that lack nothing for the view; print the others, and what they lack."""
    lacking = {name: what for name, what in missing.items() if what}
    if len(lacking) == len(missing):
        source = f"--runs {options.runs}: no trained variant" if options.demo is None else "--demo: no module"
        raise InputError(
            f"{source} has {next(iter(lacking.values()))}, which --view {options.view or 'relations'} shows; "
            "gradcam and activation take any model"
        )
    if lacking:
        print(sanitize(f"left out: {', '.join(f'{name} (no {what})' for name, what in lacking.items())}"))
    return [name for name in missing if name not in lacking]


def _check_score(options: Namespace) -> None:
    """Check the options that name what Grad-CAM explains."""
    given = [f"--{key.replace('_', '-')}" for key in ("similar_to", "identity") if options[key] is not None]
    if len(given) > 1:
        raise InputError("--similar-to, --identity: expected at most one of them, found both")
    if given and options.view not in (None, "gradcam"):
        raise InputError(f"{given[0]}: expected --view gradcam, got {options.view}")
    if options.identity is not None:
        check_int("--identity", options.identity, 0)
        if not options.checkpoint:
            raise InputError("--identity: expected --checkpoint, whose classifier computes the logit")


def _show_relations(options: Namespace, kind: str, models: Mapping[str, EmbeddingModel]) -> list[Exhibit]:
    if kind == "png" and len(options.image) > 1:
        raise InputError(
            f"--image: a png of relations shows one picture, got {len(options.image)}; use html or pdf"
        )

    from rga_reid.experiments.explain import explain

    with progress_bar("relations") as moved:
        exhibits = explain(
            options.image,
            checkpoints=models,
            attention=options.attention,
            seed=options.seed,
            twins=options.demo is None and options.runs is None,  # these compare trained models
            named=options.runs is not None,
            progress=moved,
        )
    if kind == "html":
        _write_page(options, exhibits, models)
    else:
        _write_figures(options, exhibits, kind)
    return exhibits


def _show_maps(
    options: Namespace, kind: str, models: Mapping[str, EmbeddingModel], view: MapView
) -> list[HeatMap]:
    from rga_reid.experiments.heat_maps import LENGTH, heat_maps
    from rga_reid.reports.heat_maps import heat_map_figure, heat_map_page
    from rga_reid.reports.language import Text
    from rga_reid.reports.plots import save_figure

    with progress_bar(view) as moved:
        maps = heat_maps(
            options.image,
            view,
            checkpoints=models,
            attention=options.attention,
            similar_to=options.similar_to,
            identity=options.identity,
            seed=options.seed,
            progress=moved,
        )
    score: Text | str = LENGTH if view == "gradcam" else ""
    if options.similar_to is not None:
        score = Text("score_cosine", {"name": Path(options.similar_to).name})
    if options.identity is not None:
        score = Text("score_logit", {"identity": options.identity})
    if kind == "html":
        write_text(options.out, heat_map_page(maps, view, score=score, lang=options.lang))
    else:
        with atomic_file(options.out) as temporary:
            save_figure(heat_map_figure(maps, view, score=score), temporary, kind)
    return maps


def _choose_format(options: Namespace) -> str:
    suffix = Path(options.out).suffix.lstrip(".").lower()
    if options.format is None and suffix not in _FORMATS:
        raise InputError(
            f"--out {options.out}: expected a name that ends in .html, .png or .pdf, or --format"
        )
    if options.format is not None and suffix in _FORMATS and suffix != options.format:
        raise InputError(f"--format {options.format}: --out {options.out} has the suffix of another format")
    return options.format or suffix


def _write_page(options: Namespace, exhibits: list[Exhibit], trained: Mapping[str, EmbeddingModel]) -> None:
    from rga_reid.reports.explorer import explorer_page

    folder = None if options.demo is None else (Path(options.demo) / "data").resolve()
    drawn = folder is not None and all(Path(one).resolve().is_relative_to(folder) for one in options.image)
    page = explorer_page(exhibits, trained=list(trained), drawn=drawn, lang=options.lang)
    write_text(options.out, page)


def _write_figures(options: Namespace, exhibits: list[Exhibit], kind: str) -> None:
    from matplotlib.backends.backend_pdf import PdfPages

    from rga_reid.reports.attention_figures import attention_figure, flow_figure, relation_figure
    from rga_reid.reports.plots import NO_DATE, add_chinese_font, save_figure

    # SE and CBAM have weights but no relation matrices
    has_matrices = any(exhibit.stage(options.stage).matrices for exhibit in exhibits)
    with atomic_file(options.out) as temporary:
        if kind == "png":
            figure = (
                relation_figure(exhibits, stage=options.stage) if has_matrices else attention_figure(exhibits)
            )
            save_figure(figure, temporary, "png")
            return
        figures = []
        for image in dict.fromkeys(exhibit.image for exhibit in exhibits):
            shown = [exhibit for exhibit in exhibits if exhibit.image == image]
            if has_matrices:
                figures.append(relation_figure(shown, stage=options.stage))
            figures.append(attention_figure(shown))
        for exhibit in {(one.mechanism, one.model, one.pixels.shape): one for one in exhibits}.values():
            figures.append(flow_figure(exhibit, stage=options.stage))
        with PdfPages(temporary, metadata=NO_DATE["pdf"]) as pages:
            for figure in figures:
                add_chinese_font(figure)
                pages.savefig(figure)
