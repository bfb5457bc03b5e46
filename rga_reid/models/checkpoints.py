"""Load and save models. Nothing is unpickled, so an untrusted file cannot run code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rga_reid._deprecated import rename_options
from rga_reid.devices import choose_device
from rga_reid.errors import InputError, short_repr
from rga_reid.files import atomic_file, checksum
from rga_reid.inputs import truncate
from rga_reid.models.build import CONFIG, build_model, check_classes
from rga_reid.models.embedding import EmbeddingModel
from rga_reid.models.weights import CONFIG_KEY, DATA_KEY, diff_state_dicts, read_checkpoint


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, classifier: bool = False
) -> EmbeddingModel:
    """Load a trained model for inference, in evaluation mode.

    Args:
        path: a Lightning ``.ckpt`` of ``rga-reid train``, or a ``.safetensors`` of ``save_model``.
        device: device of the model.
        classifier: keep the classifier of the training identities, which a ``.ckpt`` has.

    Raises:
        InputError: the file is missing, not a checkpoint, a pickle, a checkpoint of another program, has NaN
            or infinite weights, or no classifier if that is asked for; the device is unavailable.
    """
    file, chosen = Path(path), choose_device(device)
    config, trained_on, state = read_checkpoint(file)
    try:
        config = rename_options(config, "model", warn=False)
        unknown = [key for key in config if key not in CONFIG]
        if unknown:
            raise InputError(f"the model configuration has an unknown setting {short_repr(unknown[0])}")
        check_classes(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    model = build_with_state(file, config, state, classifier=classifier)
    model.trained_on = trained_on
    return model.to(chosen)


def build_with_state(
    file: Path, config: dict[str, Any], state: dict[str, Tensor], *, classifier: bool = False
) -> EmbeddingModel:
    """Return the model of ``config`` with the weights of ``state``, in evaluation mode.

    Raises:
        InputError: a missing or unknown key (except the classifier's, unless that is kept), another shape, or a
            value that is NaN or infinite.
    """
    classes = 0
    if classifier:
        weight = state.get("classifier.weight")
        if weight is None or weight.ndim < 2:
            raise InputError(f"{file}: has no classifier, which only a .ckpt of rga-reid train contains")
        classes = len(weight)
    else:
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    # built without memory first, so that a file cannot ask for a model larger than itself
    with _explain_failure(file), torch.device("meta"):
        expected = build_model(classes=classes, **config).state_dict()
    wrong = diff_state_dicts(expected, state)
    if wrong:
        raise InputError(f"{file}: the weights do not fit the model configuration ({wrong})")
    with _explain_failure(file):
        model = build_model(classes=classes, **config)
        model.load_state_dict(state)
    for key, value in model.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{file}: {key} contains NaN or infinite values")
    return model.eval()


@contextmanager
def _explain_failure(file: Path) -> Iterator[None]:
    """Turn any failure to build a model of an untrusted configuration into one line."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"{file}: the weights do not fit the model configuration ({truncate(error)})"
        ) from None


def save_model(model: EmbeddingModel, path: str | os.PathLike[str]) -> None:
    """Write weights (without classifier), configuration and ``trained_on`` as ``.safetensors``, atomically.

    Args:
        model: from ``build_model`` or ``load_model``.
        path: file to write; ``load_model`` reads it if its name ends in ``.safetensors``.

    Raises:
        InputError: the model has no ``config``, or the file cannot be written.
    """
    if model.config is None:
        raise InputError("save_model: this model has no config; create it with build_model")
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    with atomic_file(path) as temporary:
        metadata = {CONFIG_KEY: json.dumps(model.config), DATA_KEY: json.dumps(model.trained_on)}
        save_file(state, temporary, metadata=metadata)
        _sort_metadata(temporary)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata of a safetensors header, whose order is random: equal models give equal files.

    The format: 8 bytes with the header's length, the header as JSON padded with spaces, the tensors.
    """
    with open(file, "r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "safetensors: the sorted header is longer"
        opened.seek(8)
        opened.write(text.ljust(length))


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return checksum(file)


@dataclass(frozen=True)
class ModelFingerprint:
    """Identity of the model that embedded a gallery: its weights and how it prepares an image.

    A checkpoint and its safetensors export have the same weights, so they are the same model, whichever engine runs
    them. Fingerprints written by version 1 have no hash of the weights: they match the same file only.

    Args:
        checkpoint: absolute path of the checkpoint.
        sha256: SHA-256 of the checkpoint file, in hex.
        size: (H, W) of the model's input in pixels.
        mean, std: normalisation of the RGB channels on the scale 0 to 1; None for a model without one.
        weights: SHA-256 of weights and configuration, in hex; None if unknown.
        engine: what ran the model: ``torch``, ``onnx`` (onnxruntime) or ``openvino``.
    """

    checkpoint: str
    sha256: str
    size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: str | None = None
    engine: str = "torch"

    @classmethod
    def of(cls, model: Any, checkpoint: str | os.PathLike[str]) -> ModelFingerprint:
        """Return the fingerprint of a model that was loaded from ``checkpoint``.

        Args:
            model: has ``size``, and ``mean`` and ``std`` if it normalises.
            checkpoint: path of the file.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        mean, std = getattr(model, "mean", None), getattr(model, "std", None)
        return cls(
            checkpoint=os.path.abspath(checkpoint),
            sha256=_fingerprint(checkpoint),
            size=(int(model.size[0]), int(model.size[1])),
            mean=None if mean is None else tuple(map(float, mean)),
            std=None if std is None else tuple(map(float, std)),
            weights=hash_weights(model) if isinstance(model, nn.Module) else None,
        )

    @classmethod
    def from_json(cls, value: Any) -> ModelFingerprint:
        """Return the fingerprint that ``to_json`` wrote, in this version or in an older one without engine.

        Raises:
            ValueError, TypeError, KeyError: a value of another form.
        """
        mean, std = (None if value[key] is None else tuple(map(float, value[key])) for key in ("mean", "std"))
        height, width = map(int, value["size"])
        weights = value.get("weights")
        return cls(
            checkpoint=str(value["checkpoint"]),
            sha256=str(value["sha256"]),
            size=(height, width),
            mean=mean,
            std=std,
            weights=None if weights is None else str(weights),
            engine=str(
                value.get("engine") or ("onnx" if str(value["checkpoint"]).endswith(".onnx") else "torch")
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as a JSON object."""
        return asdict(self)

    def is_same(self, other: ModelFingerprint) -> bool:
        """Return whether both have the same weights and preprocessing, wherever their files are and whatever runs them.

        Features of the same weights in two engines differ by rounding only.
        """
        if (self.size, self.mean, self.std) != (other.size, other.mean, other.std):
            return False
        if self.weights is not None and other.weights is not None:
            return self.weights == other.weights
        return self.sha256 == other.sha256

    def find_checkpoint(self, given: str | os.PathLike[str] | None = None) -> Path:
        """Return the checkpoint to embed queries with: ``given``, or else the recorded one.

        Raises:
            InputError: the file is missing, or holds another model.
        """
        file = Path(self.checkpoint if given is None else given)
        if not file.is_file():
            hint = (
                "; the gallery was built with it: if it has moved, give --checkpoint" if given is None else ""
            )
            raise InputError(f"{file}: no such checkpoint{hint}")
        if _fingerprint(file) == self.sha256:
            return file
        if self.weights is not None and self.is_same(ModelFingerprint.of(load_model(file), file)):
            return file
        found = "holds another one" if given is not None else "has changed since"
        raise InputError(
            f"{file}: the gallery was built with another model, {self.checkpoint} "
            f"(SHA-256 {self.sha256[:12]}...); this file {found}"
        )


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights and configuration, in hex, without its classifier."""
    config = getattr(model, "config", None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        if not key.startswith("classifier."):
            array = value.detach().cpu().contiguous()
            digest.update(f"{key} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def is_same_model(one: ModelFingerprint | None, other: ModelFingerprint | None) -> bool:
    """Return whether two fingerprints are of the same model, or both unknown."""
    return one == other or (one is not None and other is not None and one.is_same(other))


def _fingerprint(file: str | os.PathLike[str]) -> str:
    try:
        return fingerprint(file)
    except OSError as error:
        raise InputError(f"{os.fspath(file)}: cannot read this checkpoint ({error.strerror})") from None
