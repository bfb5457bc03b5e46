"""Which precision `auto` means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.training.trainer import has_fast_bfloat16, resolve_precision


def pretend(patch: pytest.MonkeyPatch, *, cuda: bool, **capabilities: bool) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: cuda)
    patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **capabilities}, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "meant"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"bf16": True}, "bf16-mixed"),  # of Arm
        ({"avx512_bf16": False, "avx512_f": True}, "32-true"),  # torch computes in it, but slowly
        ({}, "32-true"),
    ],
)
@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], meant: str, accelerator: str
) -> None:
    pretend(monkeypatch, cuda=False, **capabilities)
    assert resolve_precision("auto", accelerator) == meant


@pytest.mark.parametrize("ampere", [True, False])
def test_auto_looks_at_the_gpu_where_that_trains(monkeypatch: pytest.MonkeyPatch, ampere: bool) -> None:
    pretend(monkeypatch, cuda=True, avx512_bf16=not ampere)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: ampere)
    gpu, cpu = ("bf16-mixed", "32-true") if ampere else ("32-true", "bf16-mixed")
    assert [resolve_precision("auto", where) for where in ("auto", "gpu", "cuda")] == [gpu] * 3
    assert resolve_precision("auto", "cpu") == cpu


def test_other_precisions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=False)
    for given in ("bf16-mixed", "16-mixed", 32, None):
        assert resolve_precision(given, "cpu") == given


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "64", 64])
def test_weights_of_another_precision_are_refused(precision: object) -> None:
    with pytest.raises(InputError, match=r"trainer.precision: expected 32-true, .* got"):
        resolve_precision(precision, "cpu")


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True), (True, True)])
def test_older_versions_of_torch_tell_it_in_other_places(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_fast_bfloat16("cpu") == (avx512 or amx)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="compares with the flags that Linux shows")
def test_this_processor_is_told_right() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = " ".join(line for line in lines if line.lower().startswith(("flags", "features"))).split()
    assert has_fast_bfloat16("cpu") == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
