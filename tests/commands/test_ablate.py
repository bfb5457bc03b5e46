"""The commands `ablate` and `report` on a small data set."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from io import TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from rga_reid import load_model
from rga_reid.commands import main
from rga_reid.data import read_table
from rga_reid.evaluation import PROTOCOLS
from rga_reid.experiments import ablation_worker
from rga_reid.experiments.ablation import Outcome, Progress, Run, lock_run
from rga_reid.experiments.evaluate_model import evaluate_model
from rga_reid.experiments.results import read_curve, read_evaluations, read_run
from rga_reid.reports.ablation_stats import table_rows
from rga_reid.runtime import run_main
from tests.folders import files_below

ROOT = Path(__file__).parents[2]
RECIPE = {
    "model": {
        "depth": 18,
        "attention": None,
        "weights": None,
        "size": [32, 32],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "schedule": {"class_path": "rga_reid.training.OneCycle"},
    },
    "data": {"identities_per_batch": 3, "images_per_identity": 2},
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_model_summary": False},
}
SMALL = {"train_identities": 3, "test_identities": 1, "distractors": 0, "junk": 0}
Refused = Callable[..., str]


def read_page(file: Path) -> str:
    """Return the text of a page without its tags."""
    return html.unescape(re.sub("<[^>]+>", "", file.read_text(encoding="utf-8")))


class InThisProcess:
    """Stands in for ``subprocess.Popen``: imports take longer than these runs."""

    def __init__(self, command: list[str], *, stdout: BinaryIO, **_: Any) -> None:
        _, _, _, module, *words = command
        log = TextIOWrapper(stdout, write_through=True)
        with redirect_stdout(log), redirect_stderr(log), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *words])
            is_training = module == "rga_reid.commands"
            self.code = main(words) if is_training else run_main(ablation_worker.main)
        log.detach()

    def poll(self) -> int:
        return self.code

    wait = poll


def call_each(function: Callable[[Any], Any], cases: list[Any]) -> list[Any]:
    return [function(case) for case in cases]


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Make runs and measurements without other processes."""
    with pytest.MonkeyPatch.context() as patch:
        processes = SimpleNamespace(Popen=InThisProcess, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
        patch.setattr("rga_reid.experiments.ablation.subprocess", processes)
        patch.setattr("rga_reid.experiments.benchmark.in_fresh_processes", call_each)
        yield


def write_plan(folder: Path, **changes: object) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    plan = {
        "recipe": "recipe.yaml",
        "variants": [{"name": "plain"}, {"name": "broken", "overrides": {"trainer.max_epochs": 0}}],
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return str(path)


@pytest.fixture(scope="module")
def ablated(tiny_market: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of an ablation with one good and one broken variant, and its exit code."""
    folder = tmp_path_factory.mktemp("ablation")
    words = ["--config", write_plan(folder), "--data.root", str(tiny_market), "--out", str(folder / "out")]
    return folder, main(["ablate", *words, "--json", str(folder / "table.json")])


def test_results_and_errors(ablated: tuple[Path, int], tiny_market: Path) -> None:
    folder, code = ablated
    out = folder / "out"
    assert code == 1
    assert "max_epochs" in (out / "broken/seed-0/error.txt").read_text()
    assert not (out / "broken/seed-0/result.json").exists()
    run = out / "plain/seed-0"
    result = json.loads((run / "result.json").read_text())
    expected = evaluate_model(load_model(run / "train/last.ckpt"), read_table(tiny_market))
    assert result["metrics"] == expected.to_dict()
    assert result["training_seconds"] > 0
    queries = pd.read_parquet(run / "queries.parquet")
    pd.testing.assert_frame_equal(queries, expected.to_frame(), check_dtype=False)
    ranked = pd.read_parquet(run / "ranked.parquet")
    first = ranked[ranked["rank"] == 1].merge(queries, on="query", suffixes=("", "_query"))
    assert ((first.pid == first.pid_query) == (first.first_match == 1)).all()
    measured = json.loads((out / "measured.json").read_text())
    assert measured["models"]["plain"]["latency_ms"] > 0


def write_card(file: Path, protocol: str) -> str:
    """Write the card of Market-1501 with a protocol."""
    card = yaml.safe_load((ROOT / "datasets/market1501.yaml").read_text())
    file.write_text(yaml.safe_dump({**card, "protocol": protocol}))
    return str(file)


def test_protocol_of_the_card(
    ablated: tuple[Path, int], tiny_market: Path, tmp_path: Path, refused: Refused
) -> None:
    source, run = ablated[0] / "out/plain/seed-0", tmp_path / "run"
    shutil.copytree(source, run)
    card = write_card(tmp_path / "no_cameras.yaml", "no_cameras")
    ablation_worker.evaluate_run(run, str(tiny_market), card, flip=False)
    model = load_model(run / "train/last.ckpt")
    expected = evaluate_model(model, read_table(tiny_market), protocol=PROTOCOLS["no_cameras"])
    queries, before = (pd.read_parquet(folder / "queries.parquet") for folder in (run, source))
    pd.testing.assert_frame_equal(queries, expected.to_frame(), check_dtype=False)
    assert (queries["matches"] > before["matches"]).any()  # images of the query's camera count, too
    assert pd.read_parquet(run / "cameras.parquet").empty

    plan = write_plan(tmp_path, overrides={"data.dataset": write_card(tmp_path / "drawn.yaml", "viper")})
    words = ["ablate", "--config", plan, "--data.root", str(tiny_market), "--out", str(tmp_path / "drawn")]
    assert "protocol viper" in refused(*words)
    assert not (tmp_path / "drawn/plain").exists()


def test_report_of_an_ablation(ablated: tuple[Path, int], tiny_market: Path) -> None:
    folder, _ = ablated
    page = read_page(folder / "out/report.html")
    assert "failed: broken seed 0" in page
    table = read_table(tiny_market)
    splits = table["split"][table["pid"].astype(str) != "-1"]  # without the junk image
    queries, gallery = (int((splits == split).sum()) for split in ("query", "gallery"))
    text = (folder / "out/report.md").read_text()
    training = table[table["split"] == "train"]
    facts = f"""
- data set: market1501
- training images (identities): {len(training)} ({training["pid"].nunique()})
- query images: {queries}
- gallery images: {gallery}
- recipe: recipe.yaml
- backbone: resnet18
- input size (height × width): 32×32
- epochs: 2
- seeds: 0
"""
    assert facts in text
    assert main(["report", str(folder / "out"), "--out", str(folder / "again")]) == 0
    assert facts in (folder / "again/report.md").read_text()
    table = json.loads((folder / "table.json").read_text())
    assert (table["baseline"], [row["name"] for row in table["variants"]]) == ("plain", ["plain"])
    run = read_run(folder / "out/plain/seed-0")
    assert run.curve is not None
    assert run.curve["epoch"].tolist() == [1, 2]
    assert table["variants"][0]["metrics"]["mAP"]["mean"] == run.metrics["mAP"]


def test_refused_options_and_settings(
    ablated: tuple[Path, int], tiny_market: Path, tmp_path: Path, refused: Refused
) -> None:
    out, root = str(ablated[0] / "out"), str(tiny_market)
    words = ["ablate", "--out", out, "--data.root", root, "--config"]
    before = files_below(Path(out))
    changed = write_plan(tmp_path, overrides={"trainer.max_epochs": 3})
    assert "recipe.trainer.max_epochs was 2, is 3" in refused(*words, changed)
    mistyped = write_plan(tmp_path, overrides={"trainer.max_epoch": 3})
    error = refused(*words, mistyped)
    assert "max_epoch" in error
    assert "variants[0] (plain)" in error
    plan = write_plan(tmp_path)
    assert "--only other" in refused(*words, plan, "--only", "other")
    assert "--seed 4" in refused(*words, plan, "--seed", "4")
    assert "--jobs" in refused(*words, plan, "--jobs", "0")
    assert "nowhere" in refused("ablate", "--out", out, "--config", plan, "--data.root", "nowhere")
    assert "--data.root" in refused("ablate", "--out", out, "--config", plan)
    assert "ablations/none" in refused("ablate", "--out", out, "--config", "ablations/none")
    assert files_below(Path(out)) == before


@pytest.mark.parametrize("content", [None, '{"name": "holiday"}', '["a"]', "no JSON"])
def test_other_folders_are_left_alone(
    tiny_market: Path, tmp_path: Path, refused: Refused, content: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    if content is not None:
        (out / "plan.json").write_text(content)
    before = files_below(out)
    words = ["ablate", "--config", write_plan(tmp_path), "--data.root", str(tiny_market), "--out"]
    assert f"--out {out}" in refused(*words, str(out))
    assert files_below(out) == before
    (tmp_path / "file").write_text("")
    assert "file: cannot write there" in refused(*words, str(tmp_path / "file"))


def test_another_data_set_is_refused(
    ablated: tuple[Path, int], tiny_market: Path, tmp_path: Path, refused: Refused
) -> None:
    out = ablated[0] / "out"
    moved = shutil.copytree(tiny_market, tmp_path / "market")
    words = ["ablate", "--config", write_plan(tmp_path), "--out", str(out), "--data.root"]
    assert main([*words, str(moved), "--only", "plain"]) == 0  # the same data set in another folder
    image = next((moved / "query").iterdir())
    image.rename(image.with_name(image.name.replace("s1_", "s2_")))
    assert "dataset.digest was" in refused(*words, str(moved))
    listed = write_plan(tmp_path, overrides={"data.root": [str(moved), str(moved)]})
    assert "one data set" in refused(*words[:2], listed, *words[3:], str(moved))
    plan = write_plan(tmp_path, synthetic={"train_identities": 4, "test_identities": 2})
    assert "dataset.synthetic" in refused("ablate", "--config", plan, "--out", str(out))
    assert not (out / "data").exists()  # refused before it is generated


def test_synthetic_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """An interrupted generation continues; other settings are refused, also the size of images."""
    seen = []

    def make_runs(runs: list[Run], **_: object) -> Outcome:
        seen.extend(run.settings()["dataset"] for run in runs)
        return Outcome((), ())

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rga_reid.experiments.ablation.make_runs", make_runs)
    out = tmp_path / "out"

    def words(**changes: object) -> list[str]:
        synthetic = {**SMALL, "size": [32, 16], **changes}
        plan = write_plan(tmp_path, variants=[{"name": "plain"}], synthetic=synthetic)
        return ["ablate", "--config", plan, "--out", str(out)]

    with monkeypatch.context() as patch:
        patch.setattr("rga_reid.data.synthetic.write_synthetic", stopped)
        assert main(words()) == 130
    assert main(words()) == 0
    assert seen[0]["synthetic"] == {**seen[0]["synthetic"], **SMALL, "size": [32, 16]}
    before = files_below(out)
    assert main(words()) == 0
    assert "size was [32, 16], is [32, 32]" in refused(*words(size=[32, 32]))
    assert "junk was 0, is 1" in refused(*words(junk=1))
    assert files_below(out) == before
    shutil.rmtree(out / "data")
    assert main(words(size=[32, 32])) == 0  # no run was made of the other one
    with Image.open(next((out / "data/query").glob("*.jpg"))) as image:
        assert image.size == (32, 32)


GATE = """
from torch import nn


class Gate(nn.Module):
    def __init__(self, in_channels, size):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x):
        return x * self.conv(x).sigmoid()
"""


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module that has a gate and a package from which no class is named."""
    (tmp_path / "own_gate.py").write_text(GATE)
    (tmp_path / "own_side").mkdir()
    (tmp_path / "own_side" / "__init__.py").write_text("from own_side import effects\n")
    (tmp_path / "own_side" / "effects.py").write_text("FACTOR = 2\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_edited_modules_are_refused(
    own_modules: Path, tiny_market: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the runs that use them; comments and formatting do not count."""

    def make_runs(runs: list[Run], **_: object) -> Outcome:
        for run in runs:
            run.prepare()
            (run.folder / "train").mkdir(exist_ok=True)
            (run.folder / "train/last.ckpt").touch()
        return Outcome((), ())

    monkeypatch.setattr("rga_reid.experiments.ablation.make_runs", make_runs)
    variants = [{"name": "plain"}, {"name": "gate", "overrides": {"model.attention": "own_gate.Gate"}}]
    plan = write_plan(own_modules, variants=variants, imports=["own_gate"])
    words = ["ablate", "--config", plan, "--data.root", str(tiny_market), "--out", "out"]
    words += ["--import", "own_side"]
    assert main(words) == 0
    gate, effects = own_modules / "own_gate.py", own_modules / "own_side/effects.py"
    gate.write_text(
        "# sigmoid\n" + GATE.replace("(in_channels, in_channels, 1)", "(in_channels,\n  in_channels, 1)")
    )
    assert main(words) == 0
    gate.write_text(GATE.replace("sigmoid", "tanh"))
    error = refused(*words)
    assert "out/gate/seed-0: " in error
    assert "own_gate" in error
    assert "delete this folder" in error
    (own_modules / "out/gate/seed-0/train/last.ckpt").unlink()  # as if it had failed in its first epoch
    assert main(words) == 0
    effects.write_text("FACTOR = 3\n")
    error = refused(*words)
    assert "out/plain/seed-0: " in error
    assert "own_side.effects" in error
    for name in ("plain", "gate"):  # as an older release has written them
        file = own_modules / "out" / name / "seed-0/run.json"
        settings = json.loads(file.read_text())
        del settings["code"]
        file.write_text(json.dumps(settings))
    assert main(words) == 0


def test_locked_run(
    ablated: tuple[Path, int], tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ablated[0] / "out"
    words = ["ablate", "--config", write_plan(tmp_path), "--out", str(out), "--data.root", str(tiny_market)]
    with lock_run(out / "broken" / "seed-0"):
        assert main(words) == 1
    assert "in use by another process: broken seed 0" in capsys.readouterr().out


def test_lines_about_checks_and_runs(
    tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, variants=[{"name": "a"}, {"name": "b"}])
    words = ["ablate", "--config", plan, "--data.root", str(tiny_market), "--out", str(tmp_path / "out")]
    wait = time.sleep

    def stop(seconds: float) -> None:
        if (tmp_path / "out/b/seed-0").is_dir():
            raise KeyboardInterrupt
        wait(seconds)

    with monkeypatch.context() as patch:
        patch.setattr("rga_reid.experiments.ablation.time.sleep", stop)
        assert main(words) == 130
    logs = [f"{name} seed 0: training, log {tmp_path / 'out' / name / 'seed-0' / 'log.txt'}" for name in "ab"]
    out, err = capsys.readouterr()
    assert out.splitlines() == ["checking the models of a, b"]
    lines = err.splitlines()
    assert [lines[0], lines[2]] == [f"[1/2] {logs[0]}", f"[2/2] {logs[1]}"]
    assert lines[1].startswith("[1/2] a seed 0 finished, about ")
    assert lines[-2:] == ["the same command continues the runs", "rga-reid: interrupted"]
    (tmp_path / "out/b/seed-0/result.json").unlink()  # as if it had been stopped during the test
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["checking the models of b", "1 of 2 runs finished before"]
    assert err.splitlines() == [f"[1/1] {logs[1].replace('training', 'testing')}", "[1/1] b seed 0 finished"]


def test_tests_of_earlier_trainings_do_not_predict_the_time_left(
    tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]

    def make_runs(runs: list[Run], *, report: Callable[[Progress], None], **_: object) -> Outcome:
        report(Progress(0.95, 0, 3, ("a testing",)))
        now[0] = 20
        report(Progress(1, 0.05, 3, news="a finished"))
        report(Progress(1, 0.05, 3, started="b starts", trains=True))
        now[0] = 40
        report(Progress(1.1, 0.15, 3, started="b resumes its last epoch", trains=True))
        now[0] = 65
        report(Progress(2, 1.05, 3, news="b finished", trains=True))
        return Outcome((), ())

    monkeypatch.setattr("rga_reid.experiments.ablation.make_runs", make_runs)
    monkeypatch.setattr("rga_reid.commands.ablate.time", SimpleNamespace(monotonic=lambda: now[0]))
    words = [
        "--config",
        write_plan(tmp_path),
        "--data.root",
        str(tiny_market),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["ablate", *words, "--only", "plain"]) == 0
    lines = capsys.readouterr().err.splitlines()
    resumed = "b resumes its last epoch"
    assert lines == ["[1/3] a finished", "b starts", resumed, "[2/3] b finished, about 45 s left"]


def test_report_without_measurements(
    ablated: tuple[Path, int],
    tiny_market: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(ablated[0] / "out", out)
    for file in (out / "report.html", out / "measured.json"):
        file.unlink()

    def die(*_: object) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr("rga_reid.experiments.benchmark.in_fresh_processes", die)
    words = ["--config", write_plan(tmp_path), "--out", str(out), "--data.root", str(tiny_market)]
    assert main(["ablate", *words]) == 1  # for the broken variant
    assert "could not be measured" in capsys.readouterr().out
    assert (out / "report.html").is_file()


def test_report_of_folders_and_files(
    ablated: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ablated[0] / "out/plain/seed-0"
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    (tmp_path / "other.json").write_text(json.dumps({**metrics, "mAP": 0.25}))
    trained = tmp_path / "trained"
    trained.mkdir()
    for name in ("last.ckpt", "csv"):
        (trained / name).symlink_to(run / "train" / name)
    (trained / "test.json").write_text(json.dumps(metrics))
    paths = [str(ablated[0] / "out"), str(trained), str(tmp_path / "other.json")]
    words = ["report", *paths, "--out", str(tmp_path / "report"), "--baseline", "other"]
    assert main([*words, "--no-photos", "--json", str(tmp_path / "table.json")]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["variants"]
    assert [row["name"] for row in rows] == ["plain", "trained", "other"]
    assert rows[0]["parameters"] == rows[1]["parameters"] > 0
    assert rows[0]["training_seconds"] == pytest.approx(rows[1]["training_seconds"])
    assert rows[2]["parameters"] is None
    assert all(row["difference"] is None for row in rows)
    assert [row["reason"] for row in rows] == ["no per-query results"] * 2 + ["baseline"]
    assert rows[0]["verdict"] == "seed spread unknown"
    assert str(tmp_path / "report/report.html") in capsys.readouterr().out
    assert main([*words, "--overwrite", "--lang", "zh"]) == 0
    assert '<html lang="zh-CN">' in (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_a_file_named_like_a_variant_is_no_seed_of_it(
    ablated: tuple[Path, int], tmp_path: Path, refused: Refused
) -> None:
    run = ablated[0] / "out/plain/seed-0"
    (tmp_path / "plain.json").write_text('{"mAP": 0.5}')
    out = ["--out", str(tmp_path / "report")]
    assert "'plain'" in refused("report", str(run), str(tmp_path / "plain.json"), *out)


def test_a_file_about_other_data_has_no_verdict(tmp_path: Path) -> None:
    counts = {"queries": 4, "gallery": 9}
    for name, changed in {"base": {}, "same": {}, "other": {"queries": 5}, "larger": {"gallery": 8}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"mAP": 0.5, **counts, **changed}))
    (tmp_path / "unknown.json").write_text('{"mAP": 0.5}')
    names = ("base", "same", "other", "larger", "unknown")
    rows = table_rows(read_evaluations([tmp_path / f"{name}.json" for name in names]), "base")[1:]
    missing = ("seed spread unknown", "no per-query results")
    assert [(row.verdict, row.reason) for row in rows] == [missing, *[("", "other queries")] * 2, missing]


def test_report_of_other_files(tmp_path: Path, refused: Refused) -> None:
    out = ["--out", str(tmp_path / "report")]
    assert "nothing" in refused("report", str(tmp_path / "nothing"), *out)
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json: expected a JSON file" in refused("report", str(tmp_path / "bad.json"), *out)
    (tmp_path / "good.json").write_text('{"mAP": 0.5}')
    assert "'good'" in refused("report", *[str(tmp_path / "good.json")] * 2, *out)
    assert "--overwrite" in refused("report", str(tmp_path / "good.json"), "--out", str(tmp_path))
    assert not (tmp_path / "report").exists()
    assert read_evaluations([tmp_path / "good.json"])[0].metrics == {"mAP": 0.5}


def copy_run(ablated: tuple[Path, int], folder: Path, **changes: object) -> Path:
    """Copy the good run, with changes to its settings and result."""
    shutil.copytree(ablated[0] / "out/plain/seed-0", folder, ignore=shutil.ignore_patterns("*.ckpt"))
    for name in ("run.json", "result.json"):
        content = json.loads((folder / name).read_text())
        content |= {key: value for key, value in changes.items() if key in content}
        (folder / name).write_text(json.dumps(content))
    return folder


def test_seeds_have_the_same_settings(ablated: tuple[Path, int], tmp_path: Path, refused: Refused) -> None:
    first, out = str(ablated[0] / "out"), ["--out", str(tmp_path / "report"), "--no-photos"]
    copy_run(ablated, tmp_path / "alike/plain/seed-1", seed=1)
    assert main(["report", first, str(tmp_path / "alike"), *out]) == 0
    assert [one.seed for one in read_evaluations([first, tmp_path / "alike"])] == [0, 1]
    for what, value in (("flip", True), ("recipe", {"trainer": {}}), ("dataset", {"digest": "x"})):
        folder = tmp_path / what
        copy_run(ablated, folder / "plain/seed-1", seed=1, **{what: value})
        for paths in ([first, str(folder)], [str(folder / "plain/seed-1"), first]):
            error = refused("report", *paths, *out, "--overwrite")
            assert "another seed" in error
            assert what in error
    for seed, code in enumerate([{"own": "a", "own.x": "a"}, {"own": "b"}, {"own": "b"}, {}]):
        copy_run(ablated, tmp_path / f"code/plain/seed-{seed}", seed=seed, code=code)
    assert "code of own has changed" in refused("report", str(tmp_path / "code"), *out, "--overwrite")
    shutil.rmtree(tmp_path / "code/plain/seed-0")
    assert main(["report", str(tmp_path / "code"), *out, "--overwrite"]) == 0


def test_imports_of_a_training_are_read(ablated: tuple[Path, int], tmp_path: Path) -> None:
    run = copy_run(ablated, tmp_path / "plain/seed-0")
    assert read_evaluations([run])[0].imports == []
    config = run / "train/config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "imports": ["own_a", "own_b"]}))
    assert read_evaluations([run])[0].imports == ["own_a", "own_b"]


def test_report_lists_what_is_not_in_its_tables(
    ablated: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(ablated[0] / "out", folder, ignore=shutil.ignore_patterns("*.ckpt"))
    (copy_run(ablated, folder / "plain/seed-1", seed=1) / "result.json").unlink()
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "baseline": "broken"}))
    words = ["report", str(folder), "--no-photos", "--out"]
    assert main([*words, str(tmp_path / "report")]) == 0
    pages = [read_page(tmp_path / "report" / name) for name in ("report.md", "report.html")]
    for page in (*pages, printed := capsys.readouterr().out):
        assert "not finished: plain seed 1" in page
        assert "failed: broken seed 0: " in page
        assert "expected more than 0" in page
        assert page is printed or "baseline of the plan, broken" in page
    assert main([*words, str(tmp_path / "b"), "--baseline", "plain"]) == 0
    assert "of the plan" not in (tmp_path / "b" / "report.md").read_text()


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("queries.parquet", "pid", float("inf")),
        ("queries.parquet", "camid", 1.5),
        ("queries.parquet", "AP_step", float("nan")),
        ("ranked.parquet", "pid", True),
        ("ranked.parquet", "rank", float("nan")),
        ("cameras.parquet", "rank1", 1.5),
    ],
)
def test_damaged_tables_of_runs(
    ablated: tuple[Path, int], tmp_path: Path, refused: Refused, name: str, column: str, value: object
) -> None:
    run = copy_run(ablated, tmp_path / "plain/seed-0")
    pd.read_parquet(run / name).assign(**{column: value}).to_parquet(run / name)
    assert f"{name}: " in refused("report", str(run), "--out", str(tmp_path / "report"))


def write_logs(folder: Path, texts: dict[int, str]) -> None:
    """Write the CSV logs of a training that was resumed, by version."""
    for version, text in texts.items():
        log = folder / f"csv/version_{version}" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text(text)


def test_curves_of_a_resumed_training_are_joined(tmp_path: Path) -> None:
    write_logs(
        tmp_path,
        {
            2: "epoch,loss,step\n1,2.0,1\n1,1.0,2\n",
            10: "epoch,loss,step,lr,val_mAP\n1,,2,0.1,\n1,3.0,2,,\n2,0.5,3,,\n2,,3,,0.25\n",
        },
    )
    curve = read_curve(tmp_path)
    assert curve is not None
    assert curve[["epoch", "loss"]].to_numpy().tolist() == [[2, 2.5], [3, 0.5]]
    assert curve["val_mAP"].fillna(-1).tolist() == [-1, 0.25]
    assert read_curve(tmp_path / "none") is None


def test_curves_show_the_means_of_epochs(tmp_path: Path) -> None:
    """Not those of the steps that were logged, of which a short epoch may have none."""
    write_logs(
        tmp_path,
        {
            0: "epoch,loss,step\n0,4.0,9\n",  # an older release
            1: "epoch,loss,loss_epoch,step\n1,,3.0,14\n2,2.5,,20\n2,,2.0,24\n",
            2: "epoch,loss,loss_epoch,step\n2,2.6,,20\n2,,2.1,24\n",
        },
    )
    curve = read_curve(tmp_path)
    assert curve is not None
    assert curve[["epoch", "loss"]].to_numpy().tolist() == [[1, 4.0], [2, 3.0], [3, 2.1]]


@pytest.mark.slow
def test_killed_ablation_ends_as_an_uninterrupted_one(tiny_market: Path, tmp_path: Path) -> None:
    variants = [{"name": "plain"}, {"name": "rga", "overrides": {"model.attention": "rga"}}]
    plan = write_plan(tmp_path, variants=variants, overrides={"trainer.max_epochs": 6})
    words = [sys.executable, "-m", "rga_reid.commands", "ablate", "--config", plan]
    words += ["--data.root", str(tiny_market), "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*words, str(out)], env=environment, start_new_session=True)
    until = time.monotonic() + 1000
    while "epoch 2/6" not in (log.read_text() if (log := out / "rga/seed-0/log.txt").is_file() else ""):
        assert time.monotonic() < until
        assert process.poll() is None, "the ablation ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = out / "plain/seed-0/result.json"
    before = (finished.stat().st_mtime_ns, finished.read_bytes())
    for folder in (out, whole):
        assert subprocess.run([*words, str(folder)], env=environment, check=False).returncode == 0
    assert (finished.stat().st_mtime_ns, finished.read_bytes()) == before
    for name in ("plain", "rga"):
        one, two = (folder / f"{name}/seed-0" for folder in (out, whole))
        first, second = (json.loads((run / "result.json").read_text()) for run in (one, two))
        assert first["metrics"] == second["metrics"]
        states = [load_model(run / "train/last.ckpt").state_dict() for run in (one, two)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        pd.testing.assert_frame_equal(read_curve(one / "train"), read_curve(two / "train"))
