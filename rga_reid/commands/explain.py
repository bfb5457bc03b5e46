"""``explain``: what does the attention of a model relate to what? A page to point at, or figures."""

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
        "Show what mechanisms of attention think of pictures: relation matrices, rows and columns over the "
        "photo, the data flow with true shapes, and the attention that is applied. Without a checkpoint, "
        "untrained ResNet-50s at 256x128 are compared.",
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
        help="mechanisms to compare (default: rga nonlocal pam cam criss_cross); "
        "with a checkpoint: those it must have",
    )
    command.add_argument("--out", metavar="FILE", required=True, help="where to write")
    command.add_argument(
        "--format", choices=_FORMATS, help="html page, png or pdf figures (default: by --out)"
    )
    command.add_argument(
        "--stage",
        type=int,
        choices=(1, 2, 3, 4),
        help="stage of the figures (default: the last of at most 512 positions, whose matrices are whole)",
    )
    command.add_argument("--seed", type=int, default=0, help="of untrained weights (default: 0)")
    return command


def run(options: Namespace) -> None:
    """Check the files, run the models, write the page or the figures."""
    kind = _format(options)
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
    views = f"{len(exhibits)} view{'s' * (len(exhibits) != 1)}"
    print(f"{options.out}: {views} of {photos} picture{'s' * (photos != 1)}")


def _format(options: Namespace) -> str:
    suffix = Path(options.out).suffix.lstrip(".").lower()
    if options.format is None and suffix not in _FORMATS:
        raise InputError(
            f"--out {options.out}: expected a name that ends in .html, .png or .pdf, or --format"
        )
    if options.format is not None and suffix in _FORMATS and suffix != options.format:
        raise InputError(f"--format {options.format}: --out {options.out} ends as a file of another format")
    return options.format or suffix


def _write_page(options: Namespace, exhibits: list[Exhibit]) -> None:
    from rga_reid.experiments.explain import names_of
    from rga_reid.reports.explorer import explorer_page

    models = "; ".join(dict.fromkeys(exhibit.model for exhibit in exhibits))
    if options.checkpoint:
        models += f". Trained: {', '.join(names_of(options.checkpoint).values())}"
    write_text(options.out, explorer_page(exhibits, note=models))


def _write_figures(options: Namespace, exhibits: list[Exhibit], kind: str) -> None:
    from matplotlib.backends.backend_pdf import PdfPages

    from rga_reid.reports.attention_figures import attention_figure, flow_figure, relation_figure
    from rga_reid.reports.html import NO_DATE, save_figure

    # SE and CBAM have weights, but no matrices
    related = any(exhibit.stage(options.stage).matrices for exhibit in exhibits)
    with atomic_file(options.out) as temporary:
        if kind == "png":
            figure = relation_figure(exhibits, stage=options.stage) if related else attention_figure(exhibits)
            save_figure(figure, temporary, "png")
            return
        with PdfPages(temporary, metadata=NO_DATE["pdf"]) as pages:
            for image in dict.fromkeys(exhibit.image for exhibit in exhibits):
                of_image = [exhibit for exhibit in exhibits if exhibit.image == image]
                if related:
                    pages.savefig(relation_figure(of_image, stage=options.stage))
                pages.savefig(attention_figure(of_image))
            for exhibit in {(shown.mechanism, shown.model): shown for shown in exhibits}.values():
                pages.savefig(flow_figure(exhibit, stage=options.stage))
