"""The precision that `auto` stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.training.trainer import has_fast_bfloat16, resolve_precision


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_auto_on_cpu(monkeypatch: pytest.MonkeyPatch, name: str, bfloat16: bool, accelerator: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capabilities = {"avx512_f": True, name: bfloat16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", accelerator) == ("bf16-mixed" if bfloat16 else "32-true")


@pytest.mark.parametrize("amx", [True, False])
def test_auto_on_intel(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    capabilities = {"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", "cpu") == ("bf16-mixed" if amx else "32-true")


@pytest.mark.parametrize("ampere", [True, False])
def test_auto_on_gpu(monkeypatch: pytest.MonkeyPatch, ampere: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: ampere)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not ampere}, raising=False)
    gpu, cpu = ("bf16-mixed", "32-true") if ampere else ("32-true", "bf16-mixed")
    assert [resolve_precision("auto", where) for where in ("auto", "gpu", "cuda")] == [gpu] * 3
    assert resolve_precision("auto", "cpu") == cpu


def test_other_precisions() -> None:
    for given in ("bf16-mixed", "16-mixed", 32, None):
        assert resolve_precision(given, "cpu") == given
    for given in ("bf16-true", "16-true", "64-true", "64", 64):
        with pytest.raises(InputError, match=r"trainer\.precision"):
            resolve_precision(given, "cpu")


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_older_versions_of_torch(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_fast_bfloat16("cpu") == (avx512 or amx)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="compares with the flags of Linux")
def test_this_processor() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(" ".join(line for line in lines if line.lower().startswith(("flags", "features"))).split())
    avx512 = "avx512_bf16" in flags and "avx512_fp16" not in flags
    assert has_fast_bfloat16("cpu") == (avx512 or bool({"amx_bf16", "bf16"} & flags))
