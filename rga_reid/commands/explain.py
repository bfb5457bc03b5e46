"""``explain``: show the attention of models on pictures, as an interactive page or as figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import check_images, new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import MAX_SEED, InputError, check_int
from rga_reid.files import atomic_file, write_text
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    from rga_reid.reports.explorer import Exhibit

_FORMATS = ("html", "png", "pdf")


def parser() -> ArgumentParser:
    """Options of ``explain``."""
    command = new_parser(
        "explain",
        "Show what attention modules compute for pictures: relation matrices, their rows and columns over the "
        "photo, the data flow with tensor shapes, and the applied attention. Without a checkpoint, untrained "
        "ResNet-50s at 256x128 are compared.",
    )
    command.add_argument("--image", metavar="FILE", nargs="+", required=True, help="pictures of people")
    command.add_argument(
        "--checkpoint", metavar="FILE", nargs="+", default=[], help="trained models, side by side"
    )
    command.add_argument(
        "--attention",
        metavar="NAME",
        nargs="+",
        default=[],
        help="attention modules to compare (default: rga nonlocal pam cam criss_cross); with a checkpoint: "
        "modules that it must have",
    )
    command.add_argument("--out", metavar="FILE", required=True, help="file to write")
    command.add_argument(
        "--format",
        choices=_FORMATS,
        help="html page, or png or pdf figures (default: by the suffix of --out)",
    )
    command.add_argument(
        "--stage",
        type=int,
        choices=(1, 2, 3, 4),
        help="stage of the figures (default: the last with at most 512 positions, which is shown unpooled)",
    )
    command.add_argument("--seed", type=int, default=0, help="random seed of untrained weights")
    return command


def run(options: Namespace) -> None:
    """Run the models; write the page or the figures."""
    kind = _choose_format(options)
    check_outputs(options, {"out": ()})
    check_int("--seed", options.seed, 0, MAX_SEED)
    check_images("--image", *options.image)
    if kind == "png" and len(options.image) > 1:
        raise InputError(f"--image: a png shows one picture, got {len(options.image)}; use html or pdf")

    from rga_reid.experiments.explain import explain

    with progress_bar("relations") as moved:
        exhibits = explain(
            options.image,
            checkpoints=options.checkpoint,
            attention=options.attention,
            seed=options.seed,
            progress=moved,
        )
    if kind == "html":
        _write_page(options, exhibits)
    else:
        _write_figures(options, exhibits, kind)
    photos = len({exhibit.image for exhibit in exhibits})
    views = f"{len(exhibits)} view{'' if len(exhibits) == 1 else 's'}"
    print(f"{options.out}: {views} of {photos} picture{'' if photos == 1 else 's'}")


def _choose_format(options: Namespace) -> str:
    suffix = Path(options.out).suffix.lstrip(".").lower()
    if options.format is None and suffix not in _FORMATS:
        raise InputError(
            f"--out {options.out}: expected a name that ends in .html, .png or .pdf, or --format"
        )
    if options.format is not None and suffix in _FORMATS and suffix != options.format:
        raise InputError(f"--format {options.format}: --out {options.out} has the suffix of another format")
    return options.format or suffix


def _write_page(options: Namespace, exhibits: list[Exhibit]) -> None:
    from rga_reid.experiments.explain import shorten_paths
    from rga_reid.reports.explorer import explorer_page

    models = "; ".join(dict.fromkeys(exhibit.model for exhibit in exhibits))
    if options.checkpoint:
        models += f". Trained: {', '.join(shorten_paths(options.checkpoint).values())}"
    write_text(options.out, explorer_page(exhibits, note=models))


def _write_figures(options: Namespace, exhibits: list[Exhibit], kind: str) -> None:
    from matplotlib.backends.backend_pdf import PdfPages

    from rga_reid.reports.attention_figures import attention_figure, flow_figure, relation_figure
    from rga_reid.reports.plots import NO_DATE, save_figure

    # SE and CBAM have weights but no relation matrices
    has_matrices = any(exhibit.stage(options.stage).matrices for exhibit in exhibits)
    with atomic_file(options.out) as temporary:
        if kind == "png":
            figure = (
                relation_figure(exhibits, stage=options.stage) if has_matrices else attention_figure(exhibits)
            )
            save_figure(figure, temporary, "png")
            return
        with PdfPages(temporary, metadata=NO_DATE["pdf"]) as pages:
            for image in dict.fromkeys(exhibit.image for exhibit in exhibits):
                shown = [exhibit for exhibit in exhibits if exhibit.image == image]
                if has_matrices:
                    pages.savefig(relation_figure(shown, stage=options.stage))
                pages.savefig(attention_figure(shown))
            for exhibit in {(one.mechanism, one.model): one for one in exhibits}.values():
                pages.savefig(flow_figure(exhibit, stage=options.stage))
