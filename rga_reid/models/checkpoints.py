"""Reading and writing models. Nothing is unpickled: a file from a stranger cannot run code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rga_reid.devices import choose_device
from rga_reid.errors import InputError, short_repr
from rga_reid.files import atomic_file, checksum
from rga_reid.inputs import truncate
from rga_reid.models.build import CONFIG, build_model, resolve_attention
from rga_reid.models.embedding import EmbeddingModel
from rga_reid.models.weights import check_state, diff_state_dicts, read_safetensors, read_torch

CONFIG_KEY = "rga_reid_model"  #: where a Lightning checkpoint and a safetensors header keep ``model.config``
DATA_KEY = "rga_reid_data"  #: where they keep what the model was trained on (``trained_on``)
PREFIX = "model."  #: of the model's keys in a Lightning checkpoint


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> EmbeddingModel:
    """Load a trained model for inference, in evaluation mode, without its classifier.

    Args:
        path: a Lightning ``.ckpt`` of ``rga-reid train``, or a ``.safetensors`` of ``save_model``.
        device: where the model is put.

    Raises:
        InputError: no such file, not a checkpoint, a pickle, or a checkpoint of another program; a device
            that is not there.
    """
    file, place = Path(path), choose_device(device)
    read = _read_safetensors if file.suffix == ".safetensors" else _read_lightning
    config, trained_on, state = read(file)
    unknown = [key for key in config if key not in CONFIG]
    if unknown:
        raise InputError(f"{file}: the model it names has an unknown setting {short_repr(unknown[0])}")
    try:
        resolve_attention(config.get("attention"), trusted=False)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    model = build_with_state(file, config, state)
    model.trained_on = trained_on
    return model.to(place)


def build_with_state(file: Path, config: dict[str, Any], state: dict[str, Tensor]) -> EmbeddingModel:
    """The model of ``config`` with the weights of ``state``, in evaluation mode, without its classifier.

    Raises:
        InputError: a key too few or too many (the classifier's may be there), or another shape.
    """
    state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    # shapes without numbers: a file cannot ask for a model larger than itself
    with _of_its_choice(file), torch.device("meta"):
        expected = build_model(**config).state_dict()
    wrong = diff_state_dicts(expected, state)
    if wrong:
        raise InputError(f"{file}: the weights do not fit the model they name ({wrong})")
    with _of_its_choice(file):
        model = build_model(**config)
        model.load_state_dict(state)
    return model.eval()


@contextmanager
def _of_its_choice(file: Path) -> Iterator[None]:
    """Tell in one line what a model of a file's choice fails of: that may be anything."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{file}: the weights do not fit the model they name ({truncate(error)})") from None


def save_model(model: EmbeddingModel, path: str | os.PathLike[str]) -> None:
    """Write weights (not the classifier's), configuration and ``trained_on`` as ``.safetensors``, atomically.

    Args:
        model: made by ``build_model``, or loaded.
        path: of the file; ``load_model`` reads it where its name ends in ``.safetensors``.

    Raises:
        InputError: the model has no ``config``, or the file cannot be written.
    """
    if model.config is None:
        raise InputError("save_model: this model has no config; make it with build_model")
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    with atomic_file(path) as temporary:
        metadata = {CONFIG_KEY: json.dumps(model.config), DATA_KEY: json.dumps(model.trained_on)}
        save_file(state, temporary, metadata=metadata)
        _order_metadata(temporary)


def _order_metadata(file: Path) -> None:
    """Sort the metadata in a safetensors header, which come in an order of chance: files would differ.

    The format: 8 bytes with the header's length, the header as JSON filled up with spaces, the tensors.
    """
    with open(file, "r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise RuntimeError(f"safetensors: a header of {length} bytes, sorted it has {len(text)}")
        opened.seek(8)
        opened.write(text.ljust(length))


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hex: tells whether a gallery was made with this checkpoint.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return checksum(file)


def _read_lightning(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Tensor]]:
    content = read_torch(file)
    config, state = content.get(CONFIG_KEY), content.get("state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise InputError(f"{file}: expected a checkpoint of rga-reid train (it has no {CONFIG_KEY})")
    if not _json_can_hold(config):
        raise InputError(f"{file}: {CONFIG_KEY}: expected numbers, texts and lists of them")
    told = content.get(DATA_KEY)  # of anybody's DataModule
    trained_on = told if isinstance(told, dict) and _json_can_hold(told) else None
    state = check_state(file, state)
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return config, trained_on, own


def _json_can_hold(value: Any) -> bool:
    """Whether JSON can hold a value."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Tensor]]:
    state, metadata = read_safetensors(file)
    try:
        config = json.loads(metadata[CONFIG_KEY])
        trained_on = json.loads(metadata.get(DATA_KEY, "null"))
    except (KeyError, ValueError, RecursionError):
        config = trained_on = None
    if not isinstance(config, dict):
        raise InputError(f"{file}: expected a model of rga-reid (its header has no {CONFIG_KEY})")
    return config, trained_on, state


@dataclass(frozen=True)
class ModelFingerprint:
    """The checkpoint that embedded a gallery, and how it prepares an image.

    Args:
        checkpoint: absolute path of the checkpoint.
        sha256: of the checkpoint file, in hex.
        size: (H, W) of the model's input in pixels.
        mean, std: of the RGB channels, on the scale 0 to 1; None for a model that does not normalise.
    """

    checkpoint: str
    sha256: str
    size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, model: Any, checkpoint: str | os.PathLike[str]) -> ModelFingerprint:
        """The record of a model that was loaded from ``checkpoint``.

        Args:
            model: has ``size``, and ``mean`` and ``std`` if it normalises.

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
        )

    @classmethod
    def from_json(cls, value: Any) -> ModelFingerprint:
        """The record that ``to_json`` wrote.

        Raises:
            ValueError, TypeError, KeyError: a value of another form.
        """
        mean, std = (None if value[key] is None else tuple(map(float, value[key])) for key in ("mean", "std"))
        height, width = map(int, value["size"])
        return cls(str(value["checkpoint"]), str(value["sha256"]), (height, width), mean, std)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return asdict(self)

    def is_same(self, other: ModelFingerprint) -> bool:
        """Whether both have the same weights and preprocessing, wherever the files lie."""
        return replace(other, checkpoint=self.checkpoint) == self

    def find_checkpoint(self, given: str | os.PathLike[str] | None = None) -> Path:
        """The checkpoint to embed queries with: ``given``, or else the one that is remembered.

        Raises:
            InputError: it is missing, or not byte for byte the one that the gallery was built with.
        """
        file = Path(self.checkpoint if given is None else given)
        if not file.is_file():
            hint = (
                "; the gallery was built with it: if it has moved, give --checkpoint" if given is None else ""
            )
            raise InputError(f"{file}: no such checkpoint{hint}")
        if _fingerprint(file) != self.sha256:
            found = "has another content" if given is not None else "has changed since"
            raise InputError(
                f"{file}: the gallery was built with another model: "
                f"{self.checkpoint}, SHA-256 {self.sha256[:12]}...; this file {found}"
            )
        return file


def is_same_model(one: ModelFingerprint | None, other: ModelFingerprint | None) -> bool:
    """Whether two records, or two unknown models, are of one."""
    return one == other or (one is not None and other is not None and one.is_same(other))


def _fingerprint(file: str | os.PathLike[str]) -> str:
    try:
        return fingerprint(file)
    except OSError as error:
        raise InputError(f"{os.fspath(file)}: cannot read this checkpoint ({error.strerror})") from None
