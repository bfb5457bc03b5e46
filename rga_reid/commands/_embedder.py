"""Load the model that embeds images, and compare it with the model of a gallery."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from rga_reid.commands._options import parse_size
from rga_reid.errors import InputError, sanitize
from rga_reid.inputs import is_class_path

if TYPE_CHECKING:
    import torch

    from rga_reid.gallery import Gallery
    from rga_reid.inference import ModelFingerprint
    from rga_reid.inference.embedder import LoadedEmbedder

MIN_IMAGES, MIN_SECONDS = 2_000, 300  #: least job for which a faster engine is searched
MIN_GAIN = 1.2  #: times as fast as the present engine, to be worth a hint


def read_embedder(
    options: Namespace,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    like: ModelFingerprint | None = None,
) -> LoadedEmbedder:
    """Load the model of ``--checkpoint``, or another one, with the preprocessing and the engine of the options.

    With ``--engine auto``, the fastest engine is measured on batches of ``--batch-size``, or on single images for a
    command without it, and named on stderr.

    Raises:
        InputError: see ``load_embedder``.
    """
    from rga_reid.inference import load_embedder

    preprocessing: dict[str, Any] = {
        "size": parse_size(options.input_size),
        "mean": options.mean,
        "std": options.std,
        "float_input": options.float_input,
    }
    engine = options.get("engine")
    chosen = None if engine == "auto" else engine
    model = load_embedder(checkpoint or options.checkpoint, device, **preprocessing, like=like, engine=chosen)
    return _choose_fastest(model, options, device) if engine == "auto" else model


def _choose_fastest(model: LoadedEmbedder, options: Namespace, device: str | torch.device) -> LoadedEmbedder:
    """Return the model in the fastest of the installed engines; on a GPU, return it unchanged."""
    from rga_reid.inference.engines import measure_rates, open_other_engines

    engine, reason = model.fingerprint.engine, "no other engine is installed for it"
    if _is_cpu(device):
        try:
            others = open_other_engines(model, device)
        except InputError as error:
            others, reason = {}, str(error)
        if others:
            embedders: dict[str, LoadedEmbedder] = {engine: model, **others}
            rates = measure_rates(embedders, options.get("batch_size") or 1)
            fastest = next(iter(rates))
            print(f"engine: {fastest} ({_format_rates(rates)})", file=sys.stderr, flush=True)
            return embedders[fastest]
    else:
        reason = "engines are compared on a CPU only"
    print(f"engine: {engine} ({sanitize(reason)})", file=sys.stderr, flush=True)
    return model


def suggest_engine(
    model: LoadedEmbedder, options: Namespace, device: str | torch.device, images: int
) -> None:
    """Name a faster engine on stderr before a long job, unless ``--engine`` is given.

    Nothing is measured for a job of few images or minutes, or on a GPU: exporting the model takes seconds.

    Args:
        model: model that will embed the images.
        options: options of the command.
        device: device of the model.
        images: number of images to embed.
    """
    if options.engine is not None or images < MIN_IMAGES or not _is_cpu(device):
        return
    from rga_reid.inference.engines import measure_rates, open_other_engines

    engine, batch = model.fingerprint.engine, options.batch_size
    if images / measure_rates({engine: model}, batch)[engine] < MIN_SECONDS:
        return
    try:
        others = open_other_engines(model, device)
    except InputError:  # such as a network that cannot be exported
        return
    rates = measure_rates({engine: model, **others}, batch)
    gain = max(rates.values()) / rates[engine]
    if gain >= MIN_GAIN:
        fastest = next(iter(rates))
        print(
            f"hint: --engine {fastest} is about {gain:.1f} times as fast here ({_format_rates(rates)})",
            file=sys.stderr,
            flush=True,
        )


def _is_cpu(device: str | torch.device) -> bool:
    return str(device).startswith("cpu")


def _format_rates(rates: Mapping[str, float]) -> str:
    return "images/s: " + ", ".join(f"{engine} {rate:,.1f}" for engine, rate in rates.items())


def read_gallery_embedder(
    gallery: Gallery, options: Namespace, device: str | torch.device = "cpu"
) -> LoadedEmbedder:
    """Load the model that embeds images for a gallery: its own, or that of ``--checkpoint``.

    Raises:
        InputError: no ``--checkpoint`` for a gallery whose model is unknown, or whose model's file is missing;
            another model than the gallery's, without ``--same-features``.
    """
    recorded = gallery.model
    if options.checkpoint is not None:
        model = read_embedder(options, device, like=recorded)
    elif recorded is None:
        raise InputError(
            f"{options.gallery}: built from features, so its model is unknown; name the model with --checkpoint and "
            "confirm it with --same-features"
        )
    elif is_class_path(recorded.checkpoint):
        module = recorded.checkpoint.rpartition(".")[0]
        if module not in sys.modules:  # a gallery must not make this program import anything
            raise InputError(
                f"{options.gallery}: built with the class {recorded.checkpoint}, which is not part of rga-reid; add "
                f"--import {module}"
            )
        model = read_embedder(options, device, recorded.checkpoint)
    elif not Path(recorded.checkpoint).is_file():
        raise InputError(
            f"{recorded.checkpoint}: no such checkpoint; the gallery was built with it: if it has moved, give "
            "--checkpoint"
        )
    else:
        model = read_embedder(options, device, recorded.checkpoint, recorded)
    require_same_model(gallery, model.fingerprint, options, f"--checkpoint {model.fingerprint.checkpoint}")
    return model


def require_same_model(
    gallery: Gallery, model: ModelFingerprint | None, options: Namespace, source: str
) -> None:
    """Refuse features of another model than the gallery's, unless ``--same-features`` is given.

    Args:
        gallery: searched, or added to.
        model: fingerprint of the model that made the features; None if unknown.
        options: options of the command.
        source: what the features come from, at the beginning of the message.

    Raises:
        InputError: another model, or one of the two is unknown.
    """
    if options.same_features or (gallery.model is None and model is None):
        return
    hint = "; if they are the same, confirm it with --same-features"
    if gallery.model is None:
        raise InputError(f"{source}: {options.gallery} was built from features of an unknown model{hint}")
    if model is None:
        raise InputError(
            f"{source}: does not say which model made the features; {options.gallery} was built with "
            f"{gallery.model.checkpoint}{hint}"
        )
    try:
        gallery.require_model(model)
    except InputError as error:
        raise InputError(f"{error}{hint}") from None
