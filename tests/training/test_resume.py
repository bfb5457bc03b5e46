"""A run that is interrupted and resumed ends as an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rga_reid.commands import main
from rga_reid.training import ReIDModule
from tests.states import assert_equal, numbers_of

ROOT = Path(__file__).parents[2]
STEPS = 9  # batches per epoch: 6 identities, shown 3 times each, 2 in a batch
EMA = [{"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.8}}]
CHANGES: dict[str, Any] = {
    "data": {"epoch": "images", "val_fraction": 0.25},
    "trainer": {"callbacks": EMA},
}
Words = Callable[..., list[str]]


def run_all(jobs: list[Any], folder: Path) -> list[int]:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("runs.py")), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    codes = [int(line) for line in done.stdout.splitlines() if line.lstrip("-").isdigit()]
    assert len(codes) == sum(map(len, jobs)), done.stdout + done.stderr
    return codes


def state(checkpoint: Path) -> dict[str, Any]:
    """Return what a run hands on: everything but the paths of its folder."""
    content = torch.load(checkpoint, weights_only=True)
    scores = [
        {key: value for key, value in saved.items() if key in ("best_model_score", "latest_update_step")}
        for saved in content["callbacks"].values()
    ]
    steps = {key: content[key] for key in ("epoch", "global_step")}
    return {**numbers_of(checkpoint), **steps, "scores": scores}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accumulated", "places"),
    [
        (
            1,
            [
                ["batch", 4],
                ["batch", STEPS + 1],  # the first after an epoch
                ["batch", 2 * STEPS],  # the last of an epoch
                ["validation", 2],  # at the end of the run
                ["saving", 3],
                ["saving", 7],
            ],
        ),
        (2, [["batch", 6], ["batch", STEPS]]),
    ],
)
def test_killed_runs(small_run: Words, tmp_path: Path, accumulated: int, places: list[Any]) -> None:
    trainer = CHANGES["trainer"] | {"accumulate_grad_batches": accumulated}
    _, *words, out = small_run(name="whole", **CHANGES | {"trainer": trainer})
    words = [*words[:-1], "--save-every", "2", "--out"]
    outs = [tmp_path / f"{place[0]}{place[1]}" for place in places]
    jobs: list[Any] = [[[[*words, out], None]]]
    for place, folder in zip(places, outs, strict=True):
        jobs.append([[[*words, str(folder)], place], [[*words, str(folder), "--resume"], None]])
    assert run_all(jobs, tmp_path) == [0, *[-9, 0] * len(places)]
    for folder in outs:
        for name in ("last.ckpt", "best.ckpt"):
            assert_equal(state(tmp_path / "whole" / name), state(folder / name), f"{folder.name}/{name}")
        assert {path.name for path in folder.glob("[!.]*.ckpt")} == {"last.ckpt", "best.ckpt"}


@pytest.mark.parametrize(
    ("limit", "place"),
    [(1.0, (1, 5)), (2, (1, 0))],  # epoch and batch, counted from 0
)
def test_interrupted_run(
    small_run: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | float,
    place: tuple[int, int],
) -> None:
    changes = CHANGES | {"trainer": CHANGES["trainer"] | {"limit_train_batches": limit}}
    options = ["--seed", "3", "--save-every", "2"]
    assert main(small_run(*options, name="whole", **changes)) == 0
    step = ReIDModule.training_step

    def interrupted(self: ReIDModule, batch: Any, batch_index: int) -> torch.Tensor:
        if (self.current_epoch, batch_index) == place:
            raise KeyboardInterrupt
        return step(self, batch, batch_index)

    words = small_run(*options, name="parts", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(ReIDModule, "training_step", interrupted)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert_equal(state(tmp_path / "whole" / "last.ckpt"), state(tmp_path / "parts" / "last.ckpt"))


def test_best_score_is_kept_when_the_folder_moves(small_run: Words, tmp_path: Path) -> None:
    words = small_run(data=CHANGES["data"], trainer={"max_epochs": 1})
    assert main(words) == 0
    run, moved = tmp_path / "run", tmp_path / "moved"
    content = torch.load(run / "last.ckpt", weights_only=True)
    (saved,) = [one for one in content["callbacks"].values() if one.get("monitor") == "val_mAP"]
    highest = torch.tensor(2.0)  # which no epoch reaches
    scores = {"best_model_score": highest, "kth_value": highest}
    saved.update(scores, best_k_models={saved["best_model_path"]: highest})
    torch.save(content, run / "last.ckpt")
    run.rename(moved)
    best = (moved / "best.ckpt").read_bytes()
    words[words.index("--out") + 1] = str(moved)
    assert main([*words, "--resume", "--trainer.max_epochs", "2"]) == 0
    assert (moved / "best.ckpt").read_bytes() == best
    assert not run.exists()
    (moved / "best.ckpt").unlink()
    assert main([*words, "--resume", "--trainer.max_epochs", "3"]) == 0
    assert (moved / "best.ckpt").is_file()  # a score without its weights does not count


def test_best_weights_are_those_that_were_ranked(small_run: Words, tmp_path: Path) -> None:
    trainer = {"max_epochs": 1, "val_check_interval": 4}
    assert main(small_run(data=CHANGES["data"], trainer=trainer)) == 0
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["global_step"] in (4, 8)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == STEPS


def test_other_runs_are_not_resumed(
    small_run: Words, tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = small_run(data=CHANGES["data"], trainer={"max_epochs": 1, "limit_train_batches": 1})
    assert main(words) == 0
    resume = [*words, "--resume", "--trainer.max_epochs", "2"]
    assert "6 identities, this data set has 4" in refused(*resume, "--data.val_fraction", "0.5")
    other = tmp_path / "other"
    shutil.copytree(tiny_market, other)
    first = min((other / "bounding_box_train").iterdir())
    first.rename(first.with_name(first.name.replace("_000000_", "_000009_")))
    assert "other images" in refused(*resume, "--data.root", str(other))
    error = refused(*resume, "--data.images_per_identity", "3", "--seed", "1")
    assert "images 2, seed 0, now images 3, seed 1" in error
    callbacks = "[{class_path: rga_reid.training.EMA}]"
    assert "without a moving average" in refused(*resume, "--trainer.callbacks", callbacks)
    assert "size was [" in refused(*resume, "--model.size", "[48, 32]")
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    trained = content["optimizer_states"][0]["param_groups"][0]["params"]
    trained.append(len(trained))
    torch.save(content, tmp_path / "run" / "last.ckpt")
    assert "model.frozen_stages" in refused(*resume)
    content["state_dict"]["model.extra"] = torch.zeros(1)
    torch.save(content, tmp_path / "run" / "last.ckpt")
    error = refused(*resume)
    assert "holds another model" in error
    assert "model.extra" in error
