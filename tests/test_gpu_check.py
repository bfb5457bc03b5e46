"""The check of a GPU, rehearsed on the CPU at small sizes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rga_reid.attention import SE

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_check

    return gpu_check


@pytest.fixture
def small(check: ModuleType) -> Any:
    return check.Setup(torch.device("cpu"), small=True)


@pytest.mark.parametrize("name", ["rga", "pam", "cbam", "nonlocal, concatenation"])
def test_modules_agree_with_float64(name: str, check: ModuleType, small: Any) -> None:
    rows = list(check.check_attention(small, [name]))
    assert len(rows) == 6  # output and gradients in three types
    assert all(row.passed for row in rows), rows


def test_no_module_is_the_identity(check: ModuleType) -> None:
    for name in check.MODULES:
        module, x = check.make_module(name, (2, 64, 4, 4))
        assert not torch.equal(module(x), x), name
        assert all(parameter.any() for parameter in module.parameters()), name


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_wrong_module_fails(
    factor: float, check: ModuleType, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(SE):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y if x.dtype == torch.float64 else factor * y

    monkeypatch.setitem(check.MODULES, "wrong", Wrong)
    rows = list(check.check_attention(small, ["wrong"]))
    assert not any(row.passed for row in rows if "output" in row.what)


def test_ranks_are_compared(check: ModuleType, small: Any) -> None:
    rows = {row.what: row for row in check.check_evaluation(small)}
    assert all(row.passed for row in rows.values())
    assert rows["ranking: other ranks than on the CPU"].limit == 0
    assert 0.05 < rows["ranking: mAP"].value < rows["re-ranking: mAP"].value < 0.5


def test_one_other_rank_is_found(check: ModuleType) -> None:
    def rank(first: float) -> Any:  # the second item is before or after the third for the first query alone
        query, gallery = [[1.0, 0, 0], [0, 1.0, 0]], [[1.0, 0.1, 0], [first, 0.5, 0.2], [0.1, 1.0, 0]]
        return check.evaluate_ranking(query, gallery, [1, 2], [1, 2, 1])

    assert check.differing_queries(rank(0.8), rank(0.7)) == 0
    assert check.differing_queries(rank(0.8), rank(0.05)) == 1


def test_a_part_that_fails_is_reported(
    check: ModuleType, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(setup: Any) -> Iterator[Any]:
        yield check.Row("speed", 2.0, "images/s")
        yield check.Row("difference", 2.0, "", 1.0)
        yield check.Row("difference", float("nan"), "", 1.0)
        raise torch.OutOfMemoryError("out of memory\nwith details")

    monkeypatch.setitem(check.PARTS, "embedding", (part, 1))
    rows = list(check.run_part("embedding", small))
    assert [row.get("passed") for row in rows] == [True, False, False, None]
    assert rows[-1]["error"] == "OutOfMemoryError: out of memory"
    assert ["FAILED" in check.format_row(row) for row in rows] == [False, True, True, True]
    json.dumps(rows, allow_nan=False)


def test_the_other_parts_run_after_a_failure(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_in_process(name: str, options: Any) -> Iterator[dict[str, Any]]:
        speed = check.Row(f"speed of {name}", 2.0)
        error = {"part": name, "error": "OutOfMemoryError: out of memory"}
        yield error if name in failing else {"part": name, **speed._asdict(), "passed": True}

    monkeypatch.setattr(check, "run_in_process", run_in_process)
    file = tmp_path / "check.json"
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "--device", "cpu", "--json", str(file)])
    failing = {"network"}
    assert check.main() == 1
    assert "speed of embedding" in capsys.readouterr().out
    assert json.loads(file.read_text())["failures"] == 1
    failing = set()
    assert check.main() == 0


def test_all_parts_take_less_than_eight_minutes(check: ModuleType) -> None:
    assert sum(seconds for _, seconds in check.PARTS.values()) <= 8 * 60 - 5  # and the command's own imports


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_network_runs_on_a_gpu_without_leaving_it(dtype: torch.dtype, check: ModuleType) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = check.build_model(
            classes=8, backbone="resnet18", attention="rga", weights=None, size=(64, 32)
        )
        images = torch.empty(4, 3, 64, 32).to(memory_format=torch.channels_last)
        torch.set_autocast_dtype("cuda", dtype)
        torch.set_autocast_enabled("cuda", dtype != torch.float32)
        try:
            output = model(images)
            embedded = model.eval()(images)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert {tensor.device.type for tensor in (*output, embedded)} == {"cuda"}
    assert output.logits.dtype == dtype


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "gpu_check.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    done = run("--device", "cpu", "--small", "--parts", "evaluation", "embedding", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(file.read_text())
    assert (
        {row["part"] for row in written["results"]} == {"evaluation", "embedding"} == set(written["seconds"])
    )
    assert written["failures"] == 0
    assert written["device"] == {"type": "cpu"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(("| evaluation", "| embedding"))]
    assert len(lines) == len(written["results"])


@pytest.mark.slow
def test_a_part_ends_when_its_time_is_over(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check.PARTS, "embedding", (check.check_embedding, 0.5))
    options = argparse.Namespace(device="cpu", small=True)
    assert list(check.run_in_process("embedding", options)) == [
        {"part": "embedding", "error": "not done after 0.5 s"}
    ]


@pytest.mark.slow
def test_an_unknown_device_is_refused() -> None:
    done = run("--device", "abacus")
    assert done.returncode == 2
    assert "abacus" in done.stderr


@pytest.mark.slow
def test_training_part(check: ModuleType, small: Any) -> None:
    rows: dict[str, Any] = {row.what: row for row in check.check_training(small)}
    assert rows["steps left out"].value == rows["losses that are not finite"].value == 0
    assert rows["market1501/rga_sc"].value > 0


@pytest.mark.slow
def test_network_part(check: ModuleType, small: Any) -> None:
    measured: Callable[[Any], Iterator[Any]] = check.measure_network
    values = [row.value for row in measured(small)]
    assert len(values) == 5
    assert all(value > 0 for value in values[:1] + values[2:3] + values[4:])
