"""Load the model that embeds images, and compare it with the model of a gallery."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from rga_reid.commands._options import parse_size
from rga_reid.errors import InputError
from rga_reid.inputs import is_class_path

if TYPE_CHECKING:
    import torch

    from rga_reid.gallery import Gallery
    from rga_reid.inference import ModelFingerprint
    from rga_reid.inference.embedder import LoadedEmbedder


def read_embedder(
    options: Namespace,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    like: ModelFingerprint | None = None,
) -> LoadedEmbedder:
    """Load the model of ``--checkpoint``, or another one, with the preprocessing of the options.

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
    return load_embedder(checkpoint or options.checkpoint, device, **preprocessing, like=like)


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
