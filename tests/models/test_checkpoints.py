"""Checkpoints: round trips, files of version 1, fingerprints, and files that are refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rga_reid._deprecated import RGA_ARGUMENTS
from rga_reid.errors import InputError
from rga_reid.inference import ModelFingerprint
from rga_reid.models import (
    EmbeddingModel,
    ResNet,
    build_model,
    fingerprint,
    load_model,
    resolve_attention,
    save_model,
)
from rga_reid.models.checkpoints import CONFIG_KEY, DATA_KEY
from tests.states import weights_by_formula

V1 = Path(__file__).parents[1] / "fixtures" / "v1"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2, 3, 64, 32), dtype=np.uint8))


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return build_model(depth=18, attention="rga_s", stages=(2, 3), size=(64, 32), classes=7, mean=(0.5,) * 3)


def save_lightning(model: EmbeddingModel, path: Path, **changes: Any) -> Path:
    """Write a checkpoint as the trainer does."""
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, CONFIG_KEY: model.config, **changes}, path)
    return path


@pytest.mark.parametrize("stripes", [0, 3])
def test_round_trip(tmp_path: Path, images: Tensor, stripes: int) -> None:
    model = build_model(
        depth=18, attention="rga_s", stages=(2, 3), size=(64, 32), classes=7, mean=(0.5,) * 3, stripes=stripes
    )
    model.trained_on = {"images": 3}
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.embed(images), model.embed(images))
    assert (loaded.classifier, loaded.training, loaded.mean) == (None, False, (0.5, 0.5, 0.5))
    assert loaded.trained_on == {"images": 3}


def test_equal_models_give_equal_files(model: EmbeddingModel, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_model(model, tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_checkpoints_of_version_1_embed_as_before(suffix: str, images: Tensor, tmp_path: Path) -> None:
    """Configuration, keys, shapes and embeddings were recorded with 1.0; the weights follow a formula."""
    recorded = json.loads((V1 / "checkpoint.json").read_text())
    state = {key: weights_by_formula(key, tuple(shape)) for key, shape in recorded["keys"].items()}
    config, data = recorded["config"], {"images": 30, "identities": 3}
    path = tmp_path / f"v1.{suffix}"
    if suffix == "ckpt":
        other: dict[str, Any] = {key: {} for key in recorded["others"]}
        prefixed = {f"model.{key}": value for key, value in state.items()}
        content = {"state_dict": prefixed, recorded["config_key"]: config, recorded["data_key"]: data}
        torch.save({**other, "epoch": 3, **content}, path)
    else:
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        metadata = {recorded["config_key"]: json.dumps(config), recorded["data_key"]: json.dumps(data)}
        save_file(state, path, metadata=metadata)
    model = load_model(path)
    assert model.trained_on == data
    init_args = {RGA_ARGUMENTS[name]: value for name, value in config["attention"]["init_args"].items()}
    now = {
        "backbone": f"resnet{config.pop('depth')}",
        "attention": {**config["attention"], "init_args": init_args},
    }
    assert model.config == config | now
    # in float64, as recorded: roundings of float32 differ by 2e-5 between processors
    np.testing.assert_allclose(
        model.double().embed(images)[:, ::96], recorded["embedding"], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    ("name", "named"), [("text.ckpt", "torch.save"), ("empty.ckpt", "empty"), ("", "folder"), ("none.ckpt", "no such")]
)  # fmt: skip
def test_other_files_are_named(tmp_path: Path, name: str, named: str) -> None:
    (tmp_path / "text.ckpt").write_text("a: b\n")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=named) as error:
        load_model(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": {}, "epoch": 3}, rf"{CONFIG_KEY}.*rga-reid convert"),
        ({"state_dict": {}, CONFIG_KEY: {1: 2, "dept": 18}}, "unknown setting 1"),
        ({"state_dict": {"model.a": torch.zeros(1, dtype=torch.complex64)}, CONFIG_KEY: {}}, "'model.a'"),
        ({"state_dict": {"model.a": torch.zeros(1).expand(9)}, CONFIG_KEY: {}}, "'model.a'"),
        ({"state_dict": {"model.a": 3}, CONFIG_KEY: {}}, "'model.a'"),
        ([], "list"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, content: Any, named: str) -> None:
    torch.save(content, tmp_path / "m.ckpt")
    with pytest.raises(InputError, match=rf"m\.ckpt: .*{named}"):
        load_model(tmp_path / "m.ckpt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_file_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"m\.pt: a TorchScript file"):
        load_model(tmp_path / "m.pt")


def test_weights_that_do_not_fit_are_named(model: EmbeddingModel, tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in model.state_dict().items() if "layer4" not in key}
    path = save_lightning(model, tmp_path / "m.ckpt", state_dict=state)
    with pytest.raises(InputError, match=r"m\.ckpt: .*30 keys missing \(backbone\.layer4.*, \.\.\."):
        load_model(path)


def test_user_data_that_is_not_json_is_dropped(model: EmbeddingModel, tmp_path: Path) -> None:
    path = save_lightning(model, tmp_path / "m.ckpt", **{DATA_KEY: {"images": torch.tensor(3)}})
    assert load_model(path).trained_on is None
    path = save_lightning(model, tmp_path / "m.ckpt", **{CONFIG_KEY: {"depth": torch.tensor(18)}})
    with pytest.raises(InputError, match=CONFIG_KEY):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value"), [("backbone.layer2.0.conv1.weight", torch.nan), ("neck.running_var", torch.inf)]
)
def test_weights_that_are_not_finite_are_named(
    model: EmbeddingModel, tmp_path: Path, key: str, value: float
) -> None:
    state = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"model.{key}"].view(-1)[3] = value
    path = save_lightning(model, tmp_path / "m.ckpt", state_dict=state)
    with pytest.raises(InputError, match=rf"m\.ckpt: {key}"):
        load_model(path)


def test_convert_refuses_weights_that_are_not_finite(tmp_path: Path, refused: Callable[..., str]) -> None:
    state = ResNet(18).state_dict()  # the keys are torchvision's
    state["layer3.0.bn1.weight"][5] = float("nan")
    torch.save(state, tmp_path / "m.pth")
    out = tmp_path / "out.safetensors"
    assert "layer3.0.bn1.weight" in refused("convert", str(tmp_path / "m.pth"), str(out))
    assert not out.exists()


@pytest.fixture(scope="module")
def checkpoint(model: EmbeddingModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lightning(model, tmp_path_factory.mktemp("checkpoint") / "m.ckpt")


def test_an_export_is_the_same_model(model: EmbeddingModel, checkpoint: Path, tmp_path: Path) -> None:
    export = tmp_path / "m.safetensors"
    save_model(model, export)
    one = ModelFingerprint.of(load_model(checkpoint), checkpoint)
    assert one.is_same(ModelFingerprint.of(load_model(export), export))
    assert ModelFingerprint.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.find_checkpoint() == checkpoint
    assert one.find_checkpoint(export) == export
    with pytest.raises(InputError, match="--checkpoint"):
        replace(one, checkpoint="gone.ckpt").find_checkpoint()


CHANGES: dict[str, Callable[[EmbeddingModel], object]] = {
    "weights": lambda model: model.neck.running_mean.add_(1e-3),
    "preprocessing": lambda model: setattr(model, "mean", (0.4, 0.5, 0.5)),
    "network": lambda model: setattr(model, "config", {**(model.config or {}), "stem_pool": "ceil"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_are_others(
    model: EmbeddingModel, checkpoint: Path, tmp_path: Path, change: str
) -> None:
    changed = copy.deepcopy(model)
    CHANGES[change](changed)
    one, other = (ModelFingerprint.of(embedder, checkpoint) for embedder in (model, changed))
    assert not one.is_same(other)
    if change == "weights":
        path = save_lightning(changed, tmp_path / "other.ckpt")
        with pytest.raises(InputError, match=r"other\.ckpt: .*m\.ckpt"):
            one.find_checkpoint(path)


def test_fingerprints_of_version_1_compare_files(
    model: EmbeddingModel, checkpoint: Path, tmp_path: Path
) -> None:
    new = ModelFingerprint.of(model, checkpoint)
    recorded = {key: value for key, value in new.to_json().items() if key != "weights"}
    old = ModelFingerprint.from_json(recorded)
    assert old.weights is None
    assert old.is_same(new)
    assert old.find_checkpoint(shutil.copy(checkpoint, tmp_path / "moved.ckpt")).name == "moved.ckpt"
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"m\.safetensors"):
        old.find_checkpoint(tmp_path / "m.safetensors")


def test_fingerprint_of_an_embedder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(tmp_path / "abc") == sha256
    found = ModelFingerprint.of(SimpleNamespace(size=(8, 4)), tmp_path / "abc")
    assert found == ModelFingerprint(str(tmp_path / "abc"), sha256, (8, 4))
    with pytest.raises(InputError, match="missing"):
        ModelFingerprint.of(SimpleNamespace(size=(8, 4)), tmp_path / "missing")


def test_attention_by_name_class_path_and_options() -> None:
    for choice in ("pam", "rga_reid.attention.PAM", {"class_path": "rga_reid.attention.PAM"}):
        factory = resolve_attention(choice)
        assert factory is not None
        assert type(factory(16, (4, 2))).__name__ == "PAM"
    factory = resolve_attention({"class_path": "rga_reid.attention.PAM", "init_args": {"ratio": 4}})
    assert factory is not None
    assert factory(16, (4, 2)).query_conv.out_channels == 4
    assert resolve_attention(None) is None


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ("pamm", "'pamm'.*rga"),
        ("no.such.Module", r"no\.such"),
        ("rga_reid.errors.InputError", r"nn\.Module"),
        ({"class_path": "rga_reid.attention.PAM", "init_args": {"rati": 4}}, "rati"),
        ({"class": "pam"}, "class_path"),
    ],
)
def test_wrong_attention_is_named(choice: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        resolve_attention(choice)
