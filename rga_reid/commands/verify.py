"""Compare two pictures of people."""

from __future__ import annotations

from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_embedder
from rga_reid.commands._inputs import load_threshold
from rga_reid.commands._options import (
    add_checkpoint_options,
    add_device_option,
    add_import_option,
    add_threshold_options,
    check_embedder,
    check_images,
    check_threshold,
    new_parser,
)
from rga_reid.commands._output import check_outputs
from rga_reid.files import write_json


def parser() -> ArgumentParser:
    """Options of ``verify``."""
    command = new_parser(
        "verify",
        "Compare two pictures of people. The score is the cosine similarity of their features; a decision "
        "needs a threshold for this model, which calibrate finds.",
    )
    command.add_argument("first", metavar="A", help="image file")
    command.add_argument("second", metavar="B", help="image file")
    add_checkpoint_options(command, required=True)
    add_threshold_options(command, "least score of the same person")
    add_device_option(command)
    command.add_argument("--json", metavar="FILE", help="write the result as JSON")
    add_import_option(command)
    return command


def run(options: Namespace) -> None:
    """Embed, compare and print."""
    check_outputs(options, {"json": ()})
    check_threshold(options)
    check_embedder(options)
    check_images("A", options.first)
    check_images("B", options.second)

    from rga_reid.devices import choose_device
    from rga_reid.inference.verify import verify

    threshold = load_threshold(options)
    device = choose_device(options.device)
    model = read_embedder(options, device)
    value = None if threshold is None else threshold.value
    found = verify(model, options.first, options.second, value, device)
    if options.json is not None:
        images = {"first": options.first, "second": options.second}
        kind = None if threshold is None else threshold.kind
        write_json(options.json, {**images, **asdict(found), "threshold_kind": kind, "same": found.same})
    print(f"score {found.score:.6f}")
    if threshold is None:
        print("no decision: it needs a threshold (--calibration FILE or --threshold T)")
    else:
        print(f"threshold {threshold}")
        print(f"decision: {'the same person' if found.same else 'different people'}")
