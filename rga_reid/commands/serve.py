"""``serve``: a gallery as an HTTP API and a page for operators."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_embedder, read_gallery_embedder
from rga_reid.commands._inputs import load_threshold, warn_of_gallery_size
from rga_reid.commands._milvus import add_milvus_options
from rga_reid.commands._options import (
    LOCATION,
    OWN_MODEL,
    add_checkpoint_options,
    add_device_option,
    add_engine_option,
    add_import_option,
    add_same_features_option,
    add_threshold_options,
    check_embedder,
    check_threshold,
    new_parser,
)
from rga_reid.commands.demo import DEFAULT as DEMO
from rga_reid.errors import InputError, check_int

if TYPE_CHECKING:
    import torch

    from rga_reid.gallery import Gallery
    from rga_reid.inference.embedder import LoadedEmbedder

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def parser() -> ArgumentParser:
    """Options of ``serve``."""
    command = new_parser(
        "serve",
        "Serve a gallery: an HTTP API, and a page to search it with pictures. Only this machine can reach it unless "
        "--host names another address, which needs tokens.",
    )
    command.add_argument("--gallery", metavar="LOCATION", help=LOCATION)
    command.add_argument(
        "--demo",
        action="store_true",
        help=f"serve the gallery that `rga-reid demo` has made in the folder {DEMO}",
    )
    add_checkpoint_options(command, OWN_MODEL)
    add_engine_option(command)
    add_same_features_option(command)
    add_threshold_options(command, "least score of the same person")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one")
    command.add_argument(
        "--token-file",
        metavar="FILE",
        help="file of accepted tokens, one per line: NAME ROLES TOKEN, with ROLES such as read,write,erase; or only "
        "TOKEN, which has all roles (default: the lines of $RGA_REID_TOKENS)",
    )
    command.add_argument(
        "--read-only", action="store_true", help="refuse changes, and do not lock the gallery"
    )
    command.add_argument(
        "--images-root",
        metavar="DIR",
        help="folder of the pictures that may be shown; uploaded ones are saved in its subfolder uploads",
    )
    command.add_argument(
        "--audit-log", metavar="FILE", help="append a line of JSON for each search and each change"
    )
    command.add_argument("--workers", type=int, default=1, help="number of threads that embed pictures")
    command.add_argument("--max-upload", metavar="MIB", type=int, default=64, help="largest request, in MiB")
    command.add_argument(
        "--max-pixels", metavar="N", type=int, default=64_000_000, help="largest picture, in pixels"
    )
    command.add_argument(
        "--rate-limit",
        metavar="N",
        type=float,
        default=100.0,
        help="requests per second that each token may send; 0 for no limit",
    )
    command.add_argument(
        "--cors", metavar="ORIGIN", nargs="+", default=[], help="other sites whose pages may use the API"
    )
    add_milvus_options(command)
    add_device_option(command)
    add_import_option(command)
    return command


def run(options: Namespace) -> None:
    """Check the options, open the gallery, load the model, and serve."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serve: needs {missing[0].replace('_', '-')}: pip install 'rga-reid[serve]'")
    if options.demo == (options.gallery is not None):
        raise InputError("serve: expected one of --gallery LOCATION and --demo")
    if options.demo:
        _use_demo(options)
    check_threshold(options)
    check_embedder(options)
    check_int("--port", options.port, 0, 65_535)
    check_int("--workers", options.workers, 1, 64)
    check_int("--max-upload", options.max_upload, 1, 4096)
    check_int("--max-pixels", options.max_pixels, 1, 64_000_000)
    if not 0 <= options.rate_limit < float("inf"):
        raise InputError(f"--rate-limit: expected a number of at least 0, got {options.rate_limit}")

    from rga_reid.serving.auth import VARIABLE, Tokens
    from rga_reid.serving.server import bind, is_loopback, serve

    tokens = Tokens.read(options.token_file)
    if tokens is None and not is_loopback(options.host):
        raise InputError(
            f"--host {options.host}: other machines may reach it, so it needs --token-file FILE or {VARIABLE}"
        )
    listener = bind(options.host, options.port)

    from rga_reid.devices import choose_device
    from rga_reid.serving.app import Settings, create_app
    from rga_reid.serving.audit import AuditLog
    from rga_reid.serving.engine import Engine
    from rga_reid.serving.metrics import Metrics

    device, threshold, metrics = choose_device(options.device), load_threshold(options), Metrics()
    settings = Settings(
        tokens=tokens,
        threshold=threshold,
        read_only=options.read_only,
        max_bytes=options.max_upload << 20,
        rate=options.rate_limit,
        origins=options.cors,
        audit=AuditLog(options.audit_log),
        metrics=metrics,
    )
    engine = Engine(
        options.gallery,
        images_root=None if options.images_root is None else Path(options.images_root),
        read_only=options.read_only,
        workers=options.workers,
        max_pixels=options.max_pixels,
        metrics=metrics,
    )
    warn_of_gallery_size(threshold, len(engine.gallery))
    engine.embedder = _read_embedder(engine.gallery, options, device)
    serve(create_app(engine, settings), listener)


def _use_demo(options: Namespace) -> None:
    folder = Path(DEMO)
    if not (folder / "gallery").is_dir():
        raise InputError(f"--demo: found no gallery in {folder}; `rga-reid demo` makes it")
    options.gallery = str(folder / "gallery")
    if options.images_root is None:
        options.images_root = str(folder)


def _read_embedder(gallery: Gallery, options: Namespace, device: torch.device) -> LoadedEmbedder | None:
    """Return the gallery's model; None for a gallery of features without ``--checkpoint``."""
    if gallery.model is None and options.checkpoint is None:
        return None
    if gallery.model is None and options.same_features:
        return read_embedder(options, device)
    return read_gallery_embedder(gallery, options, device)
