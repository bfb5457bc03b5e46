"""``--import``: a module of the user in every command that loads a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from rga_reid.commands import main
from rga_reid.commands._options import parse
from rga_reid.commands.train import parser, prepare
from rga_reid.errors import InputError
from rga_reid.experiments.ablation_plan import read_plan
from rga_reid.models import build_model, resolve_attention, save_model
from rga_reid.runtime import import_modules
from tests.conftest import CHECKOUT

Refused = Callable[..., str]

ATTENTION = """
import torch
from torch import nn

from rga_reid.attention import Relations

from own_helper import DOUBLE


class MyAttn(nn.Module):
    def __init__(self, in_channels, size, *, power=1.0):
        super().__init__()
        self.power = power
        self.scale = nn.Parameter(torch.zeros(1, in_channels, 1, 1))

    def forward(self, x):
        return x * DOUBLE * torch.sigmoid(self.scale) ** self.power

    def relations(self, x):
        return Relations.of(self._explicit, x)

    def _explicit(self, x, trace):
        a = DOUBLE * self.scale.sigmoid() ** self.power
        a = trace.weight("channel", "a", "gate of each channel", "2 sigmoid(s)^p", a)
        return trace.step("out", "output map", "a · x", a * x)
"""
HELPER = "DOUBLE = 2.0\n"
CLASS = "own_attn.MyAttn"
RECIPE = {
    "imports": ["own_attn"],
    "model": {"depth": 18, "attention": CLASS, "weights": None, "size": [32, 32], "stages": [1, 3]},
    "data": {"identities_per_batch": 3, "images_per_identity": 2},
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_model_summary": False},
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module that only ``--import`` finds."""
    (tmp_path / "own_attn.py").write_text(ATTENTION)
    (tmp_path / "own_helper.py").write_text(HELPER)
    monkeypatch.chdir(tmp_path)
    before = [*sys.path], {*sys.modules}
    yield tmp_path
    assert sys.path == before[0]
    for name in {*sys.modules} - before[1]:
        if name.startswith("own_"):
            del sys.modules[name]


def forget() -> None:
    """Make the module unknown again, as in a new process."""
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(place: Path) -> str:
    """A model with the user's attention."""
    import_modules(["own_attn"])
    choice = {"class_path": CLASS, "init_args": {"power": 2.0}}
    save_model(build_model(depth=18, attention=choice, stages=[3], size=(32, 32)), place / "own.safetensors")
    forget()
    return "own.safetensors"


@pytest.mark.parametrize(
    "command",
    [
        "verify IMAGE IMAGE --checkpoint own.safetensors",
        "test --checkpoint own.safetensors --data.root ROOT --device cpu",
        "features --checkpoint own.safetensors --images ROOT/query --out f.npz",
        "gallery build --checkpoint own.safetensors --images ROOT/query --gallery people",
        "export --checkpoint own.safetensors --format safetensors --out out.safetensors",
        "explain --checkpoint own.safetensors --image IMAGE --out page.html",
    ],
    ids=lambda command: command.split()[0],
)
def test_commands_that_load_a_model(
    command: str, tiny_market: Path, checkpoint: str, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(min((tiny_market / "query").iterdir()))
    words = command.replace("IMAGE", image).replace("ROOT", str(tiny_market)).split()
    assert "--import own_attn" in refused(*words)
    assert main([*words, "--import", "own_attn"]) == 0


def test_query_with_a_model_of_the_user(tiny_market: Path, checkpoint: str, refused: Refused) -> None:
    words = ["gallery", "build", "--checkpoint", checkpoint, "--gallery", "people", "--import", "own_attn"]
    assert main([*words, "--images", str(tiny_market / "query")]) == 0
    forget()
    image = str(min((tiny_market / "query").iterdir()))
    words = ["query", "--gallery", "people", "--image", image, "--json", "found.json"]
    assert "--import own_attn" in refused(*words)
    assert main([*words, "--import=own_attn"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert found[0]["matches"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_train_records_the_imports(
    tiny_market: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["train", "--config", "recipe.yaml", "--data.root", str(tiny_market), "--out", "run"]
    assert main([*words, "--import", "own_helper"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["imports"] == ["own_attn", "own_helper"]
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: rga-reid ").split()
    forget()
    assert "--import own_attn" in refused("test", "--checkpoint", "run/last.ckpt", *words[3:5])
    assert main(following) == 0  # the printed next command

    forget()  # the configuration of a run is a recipe, too
    again = parse(parser(), prepare(["--config", "run/config.yaml"]))
    assert again is not None
    assert again.imports == ["own_attn", "own_helper"]
    assert "own_attn" in sys.modules


def test_imports_of_recipes_and_plans_are_joined(place: Path, refused: Refused) -> None:
    (place / "base.yaml").write_text("imports: own_attn\nmodel: {attention: pam}\n")
    (place / "recipe.yaml").write_text("base: base.yaml\nimports: [own_helper, own_attn]\n")
    (place / "plan.yaml").write_text("imports: [own_b]\nrecipe: recipe.yaml\nvariants: [{name: a}]\n")
    (variant,) = read_plan("plan.yaml", ["own_c"]).variants
    assert variant.recipe["imports"] == ["own_attn", "own_helper", "own_b", "own_c"]
    for text in ("imports: 3\n", "imports: [1]\n", "imports: {a: b}\n"):
        (place / "base.yaml").write_text(text)
        assert "base.yaml: imports: expected a list" in refused("train", "--config", "recipe.yaml")
        (place / "plan.yaml").write_text(f"{text}recipe: demo\nvariants: [{{name: a}}]\n")
        assert "plan.yaml: imports: expected a list" in refused(
            "ablate", "--config", "plan.yaml", "--out", "o"
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (own_module.py, line 1)"),
        ("\ndef f(:\n", "SyntaxError: invalid syntax (own_module.py, line 2)"),
        ("import own_nothing", "ModuleNotFoundError: No module named 'own_nothing' (own_module.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
def test_a_module_that_raises(place: Path, refused: Refused, text: str, found: str) -> None:
    (place / "own_module.py").write_text(text)
    words = ["convert", "in.pth", "out.safetensors", "--import", "own_module"]
    assert f"--import own_module: {found}" in refused(*words)


def test_a_class_whose_module_was_not_imported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--import own_attn"):
        resolve_attention(CLASS)
    (place / "own_module.py").write_text("import own_nothing\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(place)  # as if it were installed; what it imports is missing
        with pytest.raises(InputError, match="own_nothing") as raised:
            resolve_attention("own_module.Gate")
    assert "--import" not in str(raised.value)


def test_names_of_modules(place: Path, refused: Refused) -> None:
    words = ["report", "a.json", "--import"]
    assert "such as own_attn, got 'own_attn.py'" in refused(*words, "own_attn.py")
    assert "--import: expected a module's name" in refused(*words, "sub/own_attn")
    assert "--import" in refused(*words)
    assert "found no module own_gone" in refused(*words, "own_gone")
    assert "found no module own_gone" in refused(*words, "own_gone.inner")
    (place / "own_package").mkdir()
    (place / "own_package" / "__init__.py").write_text("")
    (place / "own_package" / "inner.py").write_text("import own_helper\n")
    import_modules(["own_package.inner"])
    assert {"own_package.inner", "own_helper"} <= {*sys.modules}


def test_missing_import_of_a_plan(place: Path, tiny_market: Path, refused: Refused) -> None:
    (place / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "imports": []}))
    (place / "plan.yaml").write_text("recipe: recipe.yaml\nvariants: [{name: a}]\n")
    words = ["ablate", "--config", "plan.yaml", "--data.root", str(tiny_market), "--out", "out"]
    error = refused(*words)
    assert "--import own_attn" in error
    assert "imports: [own_attn]" in error


def test_the_current_folder_is_searched_for_imports_only(place: Path) -> None:
    import_modules(["own_attn"])
    with pytest.raises(InputError, match="own_other"):
        build_model(depth=18, attention="own_other.X")
    (place / "own_other.py").write_text("from own_attn import MyAttn as X\n")
    with pytest.raises(InputError, match="own_other"):
        build_model(depth=18, attention="own_other.X")
    import_modules(["own_other"])
    assert build_model(depth=18, attention="own_other.X", size=(32, 32)).config is not None


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program as the installed one runs: Python does not search the current folder."""
    program = [sys.executable, str(CHECKOUT / "cli.py")]
    return subprocess.run([*program, *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_attention_of_the_user_in_every_command(place: Path, tiny_market: Path) -> None:
    """From the file to the report of an ablation, each command in its own process."""
    own, root = ["--import", "own_attn"], ["--data.root", str(tiny_market)]
    model = {key: value for key, value in RECIPE["model"].items() if key != "attention"}
    (place / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "imports": [], "model": model}))
    plan = {
        "recipe": "recipe.yaml",
        "variants": [
            {"name": "plain", "overrides": {"model.attention": None}},
            {"name": "mine", "overrides": {"model.attention": CLASS}},
        ],
    }
    (place / "plan.yaml").write_text(yaml.safe_dump(plan))
    image = str(min((tiny_market / "query").iterdir()))
    trained = ["--checkpoint", "run/last.ckpt"]
    commands = [
        ["train", "--config", "recipe.yaml", "--model.attention", CLASS, *root, "--out", "run"],
        ["test", *trained, *root, "--json", "run/test.json"],
        ["explain", *trained, "--image", image, "--out", "page.html"],
        ["export", *trained, "--format", "onnx", "--out", "model.onnx"],
        ["export", *trained, "--format", "safetensors", "--out", "model.safetensors"],
        ["features", *trained, "--images", str(tiny_market / "query"), "--out", "f.npz"],
        ["verify", image, image, *trained],
        ["gallery", "build", *trained, "--images", str(tiny_market / "query"), "--gallery", "people"],
        ["query", "--gallery", "people", "--image", image],
        ["ablate", "--config", "plan.yaml", *root, "--out", "ablation"],
        ["report", "ablation", "run", "--out", "report", "--json", "report.json"],
    ]
    for words in commands:
        done = run(*words, *own)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    done = run("test", *trained, *root)
    assert (done.returncode, "--import own_attn" in done.stderr) == (2, True), done.stderr
    rows = json.loads((place / "report.json").read_text())["variants"]
    assert [row["name"] for row in rows] == ["plain", "mine", "run"]
    assert rows[1]["parameters"] == rows[2]["parameters"] == rows[0]["parameters"] + 64 + 256
    measured = json.loads((place / "ablation/measured.json").read_text())["models"]
    assert measured["mine"]["latency_ms"] > 0
    config = yaml.safe_load((place / "ablation/mine/seed-0/train/config.yaml").read_text())
    assert config["imports"] == ["own_attn"]
    import_modules(["own_attn"])
    state = torch.load(place / "run/last.ckpt", weights_only=True)["state_dict"]
    assert state["model.backbone.attention3.scale"].abs().sum() > 0
