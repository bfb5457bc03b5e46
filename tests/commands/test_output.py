"""An output never replaces an input, nor another output: through ``main``, on valid files of every kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rga_reid.commands import main, report
from rga_reid.commands._options import new_parser, parse
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError
from tests.fuzz import material

IMAGE = "set/query/0011_c1s1_000000_00.jpg"
SIDES = ["--query", "q.npz", "--gallery", "g.npz"]
ARRAYS = ["--query", "q.npy", "--gallery", "g.npy"]
MODEL = ["--checkpoint", "model.safetensors"]
ASK = ["query", *MODEL, "--gallery", "pictures", "--image", IMAGE]
TEST = ["test", *MODEL, "--data.root", "set"]
BUILD = ["gallery", "build", "--gallery", "new"]
ABLATE = ["ablate", "--config", "plan.yaml", "--data.root", "set", "--out", "runs"]

#: A command, the option that names its output, the file given there, and the option that names it too.
INPUTS: list[tuple[list[str], str, str, str]] = [
    (["evaluate", *SIDES], "--json", "q.npz", "--query q.npz"),
    (["evaluate", *SIDES], "--json", "./g.npz", "--gallery g.npz"),
    (["evaluate", *SIDES], "--json", "set/../g.npz", "--gallery g.npz"),
    (["evaluate", *SIDES], "--json", "here/g.npz", "--gallery g.npz"),
    (["evaluate", "--query", "here/q.npz", "--gallery", "g.npz"], "--json", "q.npz", "--query here/q.npz"),
    (["evaluate", *SIDES], "--json", "hard.npz", "--query q.npz"),
    (["evaluate", *ARRAYS], "--per-query", "g.csv", "--gallery g.csv"),
    (["calibrate", *SIDES], "--json", "g.npz", "--gallery g.npz"),
    (["calibrate", *ARRAYS], "--json", "q.csv", "--query q.csv"),
    (["verify", IMAGE, IMAGE, *MODEL], "--json", "model.safetensors", "--checkpoint model.safetensors"),
    (["verify", "a.jpg", IMAGE, *MODEL], "--json", "a.jpg", "A a.jpg"),
    (["verify", IMAGE, "a.jpg", *MODEL], "--json", "a.jpg", "B a.jpg"),
    (
        ["verify", IMAGE, IMAGE, *MODEL, "--calibration", "calibration.json"],
        *("--json", "calibration.json", "--calibration calibration.json"),
    ),
    (
        ["explain", "--image", IMAGE, *MODEL, "--format", "html"],
        *("--out", "model.safetensors", "--checkpoint model.safetensors"),
    ),
    (["explain", "--image", IMAGE, "a.jpg", "--format", "pdf"], "--out", "a.jpg", "--image a.jpg"),
    ([*ASK, "a.jpg"], "--json", "a.jpg", "--image a.jpg"),
    (ASK, "--csv", "model.safetensors", "--checkpoint model.safetensors"),
    (ASK, "--html", "pictures/manifest.json", "a file of --gallery pictures"),
    ([*ASK[:5], "--image", "set/query"], "--html", IMAGE, "a file of --image set/query"),
    (["query", "--gallery", "known", "--image", IMAGE], "--csv", "model.ckpt", "--gallery (its model)"),
    (TEST, "--json", "set/train.txt", "a file of --data.root set"),
    (TEST, "--html", f"here/{IMAGE}", "a file of --data.root set"),
    ([*TEST, "--data.dataset", "names.yaml"], "--json", "names.yaml", "--data.dataset names.yaml"),
    (["data", "check", "set.csv"], "--json", "set.csv", "ROOT set.csv"),
    (["data", "check", "set"], "--json", "set/train.txt", "a file of ROOT set"),
    (["data", "check", "set", "--dataset", "names.yaml"], "--json", "names.yaml", "--dataset names.yaml"),
    (["gallery", "info", "--gallery", "flat"], "--json", "flat/manifest.json", "a file of --gallery flat"),
    (["gallery", "verify", "--gallery", "ivf"], "--json", "ivf/manifest.json", "a file of --gallery ivf"),
    (["gallery", "remove", "--gallery", "flat", "--path", "a.jpg"], "--json", "a.jpg", "--path a.jpg"),
    (["gallery", "info", "--gallery", "known"], "--json", "model.ckpt", "--gallery (its model)"),
    ([*BUILD, "--features", "g.npz"], "--json", "g.npz", "--features g.npz"),
    ([*BUILD, "--features", "g.npy"], "--json", "g.csv", "--features g.csv"),
    ([*BUILD, *MODEL, "--images", "set/query"], "--json", IMAGE, "a file of --images set/query"),
    ([*BUILD, *MODEL, "--data.root", "set"], "--json", "set/query.txt", "a file of --data.root set"),
    (["report", "runs"], "--json", "runs/plan.json", "a file of DIR runs"),
    (["report", "runs", "test.json"], "--json", "test.json", "DIR test.json"),
    (["report", "runs", "--out", "new"], "--json", "new", "--out new"),
    (["report", "runs", "--out", "set"], "--json", "set/report.csv", "--out set/report.csv"),
    (ABLATE, "--json", "runs/base/seed-0/result.json", "a file of --out runs"),
    (ABLATE, "--json", "runs/report.html", "--out runs/report.html"),
    (ABLATE, "--json", "plan.yaml", "--config plan.yaml"),
    (ABLATE, "--json", "recipe.yaml", "the recipe "),
    (["ablate", "--config", "based.yaml", "--out", "new"], "--json", "recipe.yaml", "the recipe "),
    (ABLATE, "--json", "set/train.txt", "a file of --data.root set"),
    (
        ["ablate", "--config", "rooted.yaml", "--out", "new"],
        *("--json", "set/train.txt", "a file of the data set of plan rooted.yaml: set"),
    ),
    (
        ["export", *MODEL, "--format", "safetensors", "--overwrite"],
        *("--out", "model.safetensors", "--checkpoint model.safetensors"),
    ),
    (["convert", "published.safetensors", "--overwrite"], "OUT", "./published.safetensors", "IN published"),
    (
        ["features", *MODEL, "--images", "photos", "--overwrite"],
        *("--out", "photos/old.npz", "a file of --images photos"),
    ),
    (
        ["features", "--checkpoint", "q.npz", "--images", "set", "--overwrite"],
        "--out",
        "q.npz",
        "--checkpoint",
    ),
]

#: A command, and two options that name one file.
OUTPUTS = [
    ([*ASK, "--json", "x", "--csv", "./x"], "--csv ./x: is the file of --json too"),
    ([*ASK, "--json", "x", "--csv", "y", "--html", "here/y"], "--html here/y: is the file of --csv too"),
    (
        ["evaluate", *SIDES, "--json", "s.csv", "--per-query", "s.csv"],
        "--per-query s.csv: is the file of --json",
    ),
    (["calibrate", *SIDES, "--json", "s.png", "--plot", "s.png"], "--plot s.png: is the file of --json too"),
    ([*TEST, "--json", "o", "--html", "o"], "--html o: is the file of --json too"),
]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid files of every kind."""
    root = tmp_path_factory.mktemp("valid") / "files"
    material.build(root)
    shutil.copy(root / IMAGE, root / "a.jpg")
    shutil.copy(root / "resnet18.pth", root / "published.safetensors")
    (root / "here").symlink_to(root)
    (root / "hard.npz").hardlink_to(root / "q.npz")
    plan = (root / "plan.yaml").read_text()
    (root / "rooted.yaml").write_text(plan.replace("overrides:", "overrides:\n  data.root: set", 1))
    (root / "based.yaml").write_text(plan.replace("recipe: recipe.yaml", "recipe: upper.yaml"))
    (root / "upper.yaml").write_text("base: recipe.yaml\n")
    (root / "photos").mkdir()
    shutil.copy(root / IMAGE, root / "photos")
    (root / "photos" / "old.npz").write_bytes(b"old")
    words = ["gallery", "build", "--gallery", str(root / "known"), "--images", str(root / "set" / "query")]
    assert main([*words, "--checkpoint", str(root / "model.ckpt")]) == 0
    return root


@pytest.fixture
def kept(valid: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the valid files, in which the test runs, and which it leaves as it was."""
    monkeypatch.chdir(valid)
    before = _state(valid)
    yield valid
    assert _state(valid) == before


def _state(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {str(path): path.lstat() for path in folder.rglob("*")}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in found.items()}


@pytest.mark.parametrize(
    ("words", "option", "file", "other"), INPUTS, ids=[f"{row[0][0]} {row[2]} {row[3]}" for row in INPUTS]
)
def test_an_output_replaces_no_input(
    kept: Path, refused: Callable[..., str], words: list[str], option: str, file: str, other: str
) -> None:
    before = Path(file).read_bytes() if Path(file).is_file() else None
    if option == "OUT":
        words = [*words, file]
        words[2:] = reversed(words[2:])  # positional ones stand together
    else:
        words = [*words, option, file]
    assert f"{option} {file}: would replace {other}" in refused(*words)
    assert (Path(file).read_bytes() if Path(file).is_file() else None) == before


@pytest.mark.parametrize(("words", "message"), OUTPUTS)
def test_two_outputs_are_two_files(
    kept: Path, refused: Callable[..., str], words: list[str], message: str
) -> None:
    assert message in refused(*words)


def test_the_files_of_a_report_have_their_names(kept: Path, tmp_path: Path) -> None:
    """What is refused as a file beside them is what a report writes; and one of ``runs`` may lie in it."""
    table, out = tmp_path / "table.json", tmp_path / "report"
    for _ in range(2):
        words = ["report", "runs", "test.json", "--out", str(out), "--overwrite", "--json", str(table)]
        assert main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(report.FILES)


def test_outputs_of_the_same_command_are_replaced(kept: Path, tmp_path: Path) -> None:
    """As before: outputs beside the inputs, and new names in the folder of one."""
    shutil.copytree("flat", tmp_path / "flat")
    shutil.copy("model.safetensors", tmp_path / "last.safetensors")
    facts = ["gallery", "info", "--gallery", str(tmp_path / "flat"), "--json"]
    assert main([*facts, str(tmp_path / "flat" / "facts.json")]) == 0
    checked = ["--checkpoint", str(tmp_path / "last.safetensors"), "--json", str(tmp_path / "test.json")]
    for _ in range(2):
        assert main([*facts, str(tmp_path / "facts.json")]) == 0
        assert main(["test", "--data.root", "set", *checked]) == 0
        assert main(["evaluate", *SIDES, "--json", str(tmp_path / "e.json")]) == 0


def test_names_that_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is called like a mechanism has no part in it; no text is too odd to be compared."""
    monkeypatch.chdir(tmp_path)
    Path("pam").mkdir()
    Path("pam/page.html").write_text("old")
    parser = new_parser("odd", "Odd values.")
    parser.add_argument("--attention", nargs="+")
    parser.add_argument("--more", nargs="+")
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("--out")
    odd = ["\0", "a" * 5000, "a/" * 5000, "\udcff", "💥", "", "pam/page.html/x"]
    Path("loop").symlink_to("loop")
    options = parse(parser, ["--attention", "pam", "--out", "pam/page.html"])
    assert options is not None
    options["more"] = [*odd, "loop", ["nested", *odd]]
    check_outputs(options, {"out": ()}, {"--in": odd})
    options["more"] = [["nested", "pam/page.html"]]
    with pytest.raises(InputError, match=r"--out pam/page\.html: would replace --more pam/page\.html"):
        check_outputs(options, {"out": ()})


def test_contradictions(kept: Path, refused: Callable[..., str]) -> None:
    error = refused("explain", "--image", IMAGE, "--out", "x.html", "--format", "png")
    assert "--format png: --out x.html" in error
    error = refused(*BUILD, *MODEL, "--images", "set/query", "--resume", "--overwrite")
    assert "--resume goes on, --overwrite starts over; expected one of them" in error
    assert not Path("x.html").exists()
