"""The files of ``rga-reid new attention``: each works as it was written."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from rga_reid.commands import main
from rga_reid.experiments.ablation_check import check_model
from rga_reid.experiments.ablation_plan import read_plan
from rga_reid.experiments.results import read_evaluations
from rga_reid.models import build_model
from rga_reid.models.analysis import capture_stages
from rga_reid.runtime import import_modules
from rga_reid.training.module import build_reid_module
from tests.conftest import CHECKOUT

Refused = Callable[..., str]
NAMES = ["new_gate.py", "new_gate.yaml", "test_new_gate.py"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the three files."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "attention", "new_gate.py"]) == 0
    yield tmp_path
    for name in ("new_gate", "test_new_gate"):
        sys.modules.pop(name, None)


def test_three_files(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert sorted(os.listdir(place)) == NAMES
    printed = capsys.readouterr().out
    assert "new_gate.NewGate" in printed
    assert all(name in printed for name in NAMES)


def test_the_module_meets_the_contract(place: Path) -> None:
    import_modules(["new_gate"])
    module = sys.modules["new_gate"].NewGate(16, (6, 3)).double()
    torch.nn.init.constant_(module.scale, 3.0)
    x = torch.randn(2, 16, 6, 3, dtype=torch.float64)
    relations = module.relations(x)
    matrix = relations.matrices["positions"]
    embedded = module.theta(x).flatten(2)
    cosines = torch.cosine_similarity(embedded[:, :, :, None], embedded[:, :, None, :], dim=1)
    torch.testing.assert_close(matrix, cosines)
    expected = 2 * torch.sigmoid(3 * cosines.mean(2)).view(2, 1, 6, 3) * x
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(relations.output, expected)
    relations.matrices["positions"] = torch.zeros_like(matrix)
    torch.testing.assert_close(relations.output, x)
    assert [step.symbol for step in relations.flow] == ["x", "e", "G", "m", "a", "out"]
    assert relations.flow[3].inputs == ("G",)

    model = build_model(depth=18, attention="new_gate.NewGate", stages=[2, 3], size=(32, 32)).eval()
    captures = capture_stages(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert [capture.stage for capture in captures] == [2, 3]


def test_the_plan_is_checked_as_ablate_does(place: Path) -> None:
    plan = read_plan("new_gate.yaml")
    assert [variant.name for variant in plan.variants] == ["baseline", "rga", "new_gate"]
    attention = [variant.recipe["model"]["attention"] for variant in plan.variants]
    assert attention[0] is None
    assert attention[1] == {"class_path": "rga_reid.attention.RGA", "init_args": {"zero_init_gate": True}}
    assert plan.variants[2].recipe["imports"] == ["new_gate"]
    assert plan.synthetic is not None
    import_modules(plan.variants[2].recipe["imports"])
    check_model(
        build_reid_module(classes=2, depth=18, attention=attention[2], weights=None, size=(32, 32)), "cpu"
    )


def test_the_test_passes_and_can_fail(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_modules(["new_gate", "test_new_gate"])
    test = sys.modules["test_new_gate"]
    x = torch.randn(2, 16, 6, 3, dtype=torch.float64)
    module = sys.modules["new_gate"].NewGate(16, (6, 3), ratio=4).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    checks = (test.test_forward_equals_the_explicit_form, test.test_forward_equals_loops)
    for check in checks:
        check(module, x)
    test.test_starts_as_the_identity(x)
    test.test_in_a_network(place)
    (place / "new_gate.py").write_text(
        (place / "new_gate.py").read_text().replace("2 * torch", "3 * torch", 1)
    )
    monkeypatch.syspath_prepend(place)
    changed = importlib.reload(sys.modules["new_gate"]).NewGate(16, (6, 3), ratio=4).double()
    for check in checks:
        with pytest.raises(AssertionError):
            check(changed, x)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("my-attention.py", "my-attention.py"),
        ("3d.py", "3d.py"),
        ("class.py", "class.py"),
        ("_.py", "_.py"),
        ("attention", "ends in .py"),
        ("torch.py", "another module is called torch"),
        ("rga.py", "use this name already"),
        ("relations.py", "use this name already"),
        ("no/attention.py", "its folder does not exist"),
    ],
)
def test_other_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, name: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert found in refused("new", "attention", name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("mine")
    assert f"{name}: exists already" in refused("new", "attention", "new_gate.py")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_files_pass_ruff(place: Path) -> None:
    shutil.copy(CHECKOUT / "ruff.toml", place)
    first_party = ["--config", 'lint.isort.known-first-party=["rga_reid", "new_gate"]']
    for words in (["check", "--no-cache", *first_party], ["format", "--no-cache", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, *NAMES[::2]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_that_are_printed(place: Path) -> None:
    """The test in its own process, and the plan with a small data set and short trainings."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_new_gate.py"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "5 passed" in done.stdout, done.stdout

    plan = yaml.safe_load(Path("new_gate.yaml").read_text())
    plan["synthetic"] = {"train_identities": 4, "test_identities": 3, "distractors": 1, "size": [64, 32]}
    plan["overrides"] = {
        "model.size": [64, 32],
        "model.resolution_schedule": [],
        "data.identities_per_batch": 2,
        "trainer.max_epochs": 1,
        "trainer.log_every_n_steps": 1,
    }
    Path("new_gate.yaml").write_text(yaml.safe_dump(plan))
    words = [sys.executable, str(CHECKOUT / "cli.py"), "ablate", "--config", "new_gate.yaml", "--out", "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_evaluations(["out"])
    assert [one.name for one in found] == ["baseline", "rga", "new_gate"]
    assert found[0].parameters < found[2].parameters < found[1].parameters
