"""Outputs of commands replace neither an input nor another output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid import Gallery
from rga_reid.commands import main
from rga_reid.commands._options import new_parser, parse
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError
from rga_reid.inference import ModelFingerprint
from rga_reid.reports.ablation_page import FILES
from tests.commands.conftest import MeanColour

SIDES = "--query q.npz --gallery g.npz"
MODEL = "--checkpoint m.safetensors"
QUERY = f"query {MODEL} --gallery gallery --image a.jpg"
ABLATE = "ablate --config plan.yaml --data.root set --out runs"

#: a command, its output, and the input that the output would replace
INPUTS = [
    (f"evaluate {SIDES}", "--json q.npz", "--query q.npz"),
    (f"evaluate {SIDES}", "--json set/../g.npz", "--gallery g.npz"),
    (f"evaluate {SIDES}", "--json here/g.npz", "--gallery g.npz"),  # through a link
    (f"evaluate {SIDES}", "--json hard.npz", "--query q.npz"),  # a hard link
    ("evaluate --query q.npy --gallery g.npy", "--per-query g.csv", "--gallery g.csv"),
    ("calibrate --query q.npy --gallery g.npz", "--json q.csv", "--query q.csv"),
    (f"verify a.jpg b.jpg {MODEL}", "--json b.jpg", "B b.jpg"),
    (f"verify a.jpg b.jpg {MODEL} --calibration c.json", "--json c.json", "--calibration c.json"),
    (f"explain --image a.jpg b.jpg {MODEL} --format html", "--out b.jpg", "--image b.jpg"),
    (QUERY, "--csv m.safetensors", "--checkpoint m.safetensors"),
    (QUERY, "--html gallery/manifest.json", "a file of --gallery gallery"),
    (f"query {MODEL} --gallery gallery --image set", "--html here/set/train.txt", "a file of --image set"),
    ("query --gallery known --image a.jpg", "--csv b.jpg", "--gallery (its model)"),
    (f"test {MODEL} --data.root set", "--json set/train.txt", "a file of --data.root set"),
    (
        f"test {MODEL} --data.root set --data.dataset card.yaml",
        "--html card.yaml",
        "--data.dataset card.yaml",
    ),
    ("data check set", "--json set/train.txt", "a file of ROOT set"),
    ("gallery info --gallery gallery", "--json gallery/manifest.json", "a file of --gallery gallery"),
    ("gallery remove --gallery gallery --path a.jpg", "--json a.jpg", "--path a.jpg"),
    ("gallery info --gallery known", "--json b.jpg", "--gallery (its model)"),
    ("gallery build --gallery new --features g.npy", "--json g.csv", "--features g.csv"),
    ("report c.json --out new", "--json c.json", "DIR c.json"),
    ("report c.json --out set", "--json set/report.csv", "--out set/report.csv"),
    (ABLATE, "--json plan.yaml", "--config plan.yaml"),
    (ABLATE, "--json set/train.txt", "a file of --data.root set"),
    (f"export {MODEL} --format safetensors --overwrite", "--out m.safetensors", "--checkpoint m.safetensors"),
    ("convert m.safetensors ./m.safetensors --overwrite", "OUT ./m.safetensors", "IN m.safetensors"),
    (f"features {MODEL} --images set --overwrite", "--out set/old.npz", "a file of --images set"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of commands. Outputs are checked before inputs are read, so most contents do not matter."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "set").mkdir()
    for name in ("q.npz", "g.npz", "q.npy", "q.csv", "g.npy", "g.csv", "m.safetensors", "a.jpg", "b.jpg"):
        (root / name).write_text(name)
    for name in ("c.json", "card.yaml", "set/train.txt", "set/old.npz"):
        (root / name).write_text(name)
    (root / "here").symlink_to(root)
    (root / "link").symlink_to(root / "elsewhere")
    (root / "hard.npz").hardlink_to(root / "q.npz")
    (root / "plan.yaml").write_text("recipe: recipe.yaml\nvariants: [{name: a}]\n")
    (root / "recipe.yaml").write_text("model: {depth: 18}\n")
    table = pd.DataFrame({"path": ["1", "2", "3"]})
    Gallery.build(np.eye(3, dtype=np.float32), table).save(root / "gallery")
    fingerprint = ModelFingerprint.of(MeanColour(), root / "b.jpg")
    Gallery.build(np.eye(3, dtype=np.float32), table, model=fingerprint).save(root / "known")
    return root


@pytest.fixture
def unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in the folder of inputs, which must not change."""
    monkeypatch.chdir(folder)

    def list_files() -> list[tuple[str, int, int, int]]:
        files = [(str(path), path.lstat()) for path in folder.rglob("*") if path.name != "lock"]
        return sorted((path, found.st_ino, found.st_size, found.st_mtime_ns) for path, found in files)

    before = list_files()
    yield
    assert list_files() == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("command", "output", "replaced"), INPUTS)
def test_an_output_replaces_no_input(
    refused: Callable[..., str], command: str, output: str, replaced: str
) -> None:
    words = command.split() if output.startswith("OUT") else [*command.split(), *output.split()]
    assert f"{output}: would replace {replaced}" in refused(*words)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{QUERY} --json x --csv y --html here/y", "--html here/y: is the file of --csv too"),
        (f"evaluate {SIDES} --json s.csv --per-query s.csv", "--per-query s.csv: is the file of --json too"),
        (f"evaluate {SIDES} --per-query s.txt", "--per-query s.txt: expected a name that ends in .csv"),
        (f"evaluate {SIDES} --json none/s.json", "--json none/s.json: its folder does not exist"),
        (f"evaluate {SIDES} --json set", "--json set: is a folder"),
        (f"evaluate {SIDES} --json here", "--json here: is a folder"),
        (f"evaluate {SIDES} --json link", "--json link: is a link"),
        (f"evaluate {SIDES} --json /dev/null", "--json /dev/null: is a device"),
        ("explain --image a.jpg --out x.html --format png", "--format png: --out x.html"),
    ],
)
def test_outputs_are_separate_files(refused: Callable[..., str], words: str, message: str) -> None:
    assert message in refused(*words.split())


def test_files_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that --json may not replace are those that a report writes; it may replace its own outputs."""
    monkeypatch.chdir(tmp_path)
    Path("m.json").write_text('{"mAP": 0.5, "cmc": [0.5, 0.6]}')
    for _ in range(2):
        assert main(["report", "m.json", "--out", "out", "--overwrite", "--json", "table.json"]) == 0
    assert {path.name for path in Path("out").iterdir()} <= set(FILES)


def test_values_that_are_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the name of a module is not an input; no string is too odd to be compared."""
    monkeypatch.chdir(tmp_path)
    Path("pam").mkdir()
    Path("pam/page.html").write_text("old")
    Path("loop").symlink_to("loop")
    parser = new_parser("odd", "Odd values.")
    parser.add_argument("--attention", nargs="+")
    parser.add_argument("--more", nargs="+")
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("--out")
    odd = ["\0", "a" * 5000, "a/" * 5000, "\udcff", "💥", "", "pam/page.html/x", "loop"]
    options = parse(parser, ["--attention", "pam", "--out", "pam/page.html"])
    assert options is not None
    options["more"] = [*odd, ["nested", *odd]]
    check_outputs(options, {"out": ()}, {"--in": odd})
    options["more"] = [["nested", "pam/page.html"]]
    with pytest.raises(InputError, match="--more"):
        check_outputs(options, {"out": ()})
