"""Checkpoints: round trips, and files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from rga_reid.errors import InputError
from rga_reid.models import build_model, fingerprint, load_model, resolve_attention, save_model
from rga_reid.models.checkpoints import CONFIG_KEY


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("unpickled",))


def images() -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_saved_model_embeds_as_before(tmp_path: Path) -> None:
    model = build_model(depth=18, attention="rga_s", stages=(2, 3), size=(64, 32), classes=7, mean=(0.5,) * 3)
    expected = model.embed(images())
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.embed(images()), expected)
    assert loaded.classifier is None
    assert not loaded.training
    assert loaded.mean == (0.5, 0.5, 0.5)


def test_stripes_are_saved_too(tmp_path: Path) -> None:
    model = build_model(depth=18, size=(64, 32), classes=7, stripes=3)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.embed(images()), model.embed(images()))
    assert loaded.dimension == 4 * 512


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("a: b\n")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name, told in (
        ("text.ckpt", "not a checkpoint: expected a file of torch.save (.ckpt, .pth)"),
        ("empty.ckpt", "expected a checkpoint, found an empty file"),
        ("", "expected a checkpoint, found a folder"),
        ("none.ckpt", "no such file (expected a checkpoint)"),
    ):
        with pytest.raises(InputError) as error:
            load_model(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {told}"


def test_lightning_checkpoint_of_another_program(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.ckpt")
    with pytest.raises(
        InputError, match=rf"other\.ckpt: expected a checkpoint of rga-reid train .*{CONFIG_KEY}"
    ):
        load_model(tmp_path / "other.ckpt")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_is_unpickled(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "bomb.ckpt"
    if writer == "torch":
        torch.save({"state_dict": {}, CONFIG_KEY: Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        InputError, match=r"bomb\.ckpt: not a checkpoint, or one that would have to be unpickled"
    ):
        load_model(path)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = build_model(depth=18, size=(64, 32))
    assert model.config is not None
    state = {f"model.{key}": value for key, value in model.state_dict().items() if "layer4" not in key}
    torch.save({"state_dict": state, CONFIG_KEY: model.config}, tmp_path / "m.ckpt")
    with pytest.raises(
        InputError,
        match=r"m\.ckpt: .* not fit .*30 keys missing \(backbone\.layer4.*, \.\.\.",
    ):
        load_model(tmp_path / "m.ckpt")
    torch.save({"state_dict": state, CONFIG_KEY: {"dept": 18}}, tmp_path / "m.ckpt")
    with pytest.raises(InputError, match="dept"):
        load_model(tmp_path / "m.ckpt")


def test_unknown_settings_of_several_types_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, CONFIG_KEY: {1: 2, "dept": 18}}, tmp_path / "m.ckpt")
    with pytest.raises(InputError, match=r"m\.ckpt: .*unknown setting 1"):
        load_model(tmp_path / "m.ckpt")


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
    ("choice", "message"),
    [
        ("pamm", "'pamm'; known: rga"),
        ("no.such.Module", "cannot import"),
        ("rga_reid.errors.InputError", r"expected a torch\.nn\.Module class"),
        ({"class_path": "rga_reid.attention.PAM", "init_args": {"rati": 4}}, "rati"),
        ({"class": "pam"}, "class_path and init_args"),
    ],
)
def test_wrong_attention_is_refused(choice: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_attention(choice)  # type: ignore[arg-type]


def test_a_checkpoint_cannot_import_a_module_of_its_choice() -> None:
    with pytest.raises(InputError, match="import this first"):
        resolve_attention("this.Zen", trusted=False)
    resolve_attention("torch.nn.Identity", trusted=False)  # already imported: the program's own choice
    assert issubclass(nn.Identity, nn.Module)


def test_fingerprint_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(tmp_path / "abc") == expected
