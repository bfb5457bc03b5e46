"""A run that is killed and resumed ends as one that was not: bit for bit, whatever it was doing."""

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
import yaml

from rga_reid.commands import main
from tests.states import assert_equal, numbers_of

ROOT = Path(__file__).parents[2]
STEPS = 9  # batches in an epoch: 6 identities, shown 3 times each, 2 in a batch
RECIPE: dict[str, Any] = {
    "model": {
        "attention": None,
        "weights": None,
        "size": [64, 32],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "rga_reid.training.OneCycle"},
    },
    "data": {"identities_per_batch": 2, "images_per_identity": 2, "visits": "image", "held_out": 0.25},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.8}}],
    },
}
PLACES = {
    1: [
        ["batch", 4],
        ["batch", STEPS + 1],  # the first after an epoch
        ["batch", 2 * STEPS],  # the last of one
        ["validation", 2],  # at the very end
        ["saving", 3],
        ["saving", 7],
    ],
    2: [["batch", 6], ["batch", STEPS]],
}


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
    assert 1 not in codes, done.stderr
    assert len(codes) == sum(map(len, jobs)), done.stdout + done.stderr
    return codes


def state(checkpoint: Path) -> dict[str, Any]:
    """What a run hands on: all but the paths of its folder."""
    content = torch.load(checkpoint, weights_only=True)
    scores = [
        {key: value for key, value in saved.items() if key in ("best_model_score", "latest_update_step")}
        for saved in content["callbacks"].values()
    ]
    steps = {key: content[key] for key in ("epoch", "global_step")}
    return {**numbers_of(checkpoint), **steps, "scores": scores}


@pytest.mark.parametrize("accumulated", PLACES)
def test_killed_runs_end_as_the_uninterrupted_one(
    accumulated: int, tiny_market: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    trainer = RECIPE["trainer"] | {"accumulate_grad_batches": accumulated}
    recipe.write_text(yaml.safe_dump(RECIPE | {"trainer": trainer}))
    words = ["--config", str(recipe), "--data.root", str(tiny_market), "--save-every", "2", "--out"]
    whole = tmp_path / "whole"
    places = PLACES[accumulated]
    outs = [tmp_path / f"{place[0]}{place[1]}" for place in places]
    jobs: list[Any] = [[[[*words, str(whole)], None]]]
    for place, out in zip(places, outs, strict=True):
        jobs.append([[[*words, str(out)], place], [[*words, str(out), "--resume"], None]])
    codes = run_all(jobs, tmp_path)
    assert codes == [0, *[-9, 0] * len(places)]
    for out in outs:
        for name in ("last.ckpt", "best.ckpt"):
            assert_equal(state(whole / name), state(out / name), f"{out.name}/{name}")
        assert not [path for path in out.iterdir() if path.suffix == ".ckpt" and path.name[0] != "."][2:]


def small_run(tiny_market: Path, tmp_path: Path, *words: str) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    content = RECIPE | {"trainer": RECIPE["trainer"] | {"max_epochs": 1, "callbacks": None}}
    content["model"] = RECIPE["model"] | {"depth": 18}
    recipe.write_text(yaml.safe_dump(content))
    out = str(tmp_path / "run")
    return ["train", "--config", str(recipe), "--data.root", str(tiny_market), "--out", out, *words]


def test_the_best_score_goes_along_where_a_run_is_moved(tiny_market: Path, tmp_path: Path) -> None:
    words = small_run(tiny_market, tmp_path)
    assert main(words) == 0
    run, moved = tmp_path / "run", tmp_path / "moved"
    content = torch.load(run / "last.ckpt", weights_only=True)
    (saved,) = [one for one in content["callbacks"].values() if one.get("monitor") == "val_mAP"]
    highest = torch.tensor(2.0)  # which no later epoch reaches
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
    assert (moved / "best.ckpt").is_file()  # a score whose weights are gone counts for nothing


def test_the_best_weights_are_those_that_were_ranked(tiny_market: Path, tmp_path: Path) -> None:
    words = small_run(tiny_market, tmp_path)
    assert main([*words, "--trainer.val_check_interval", "4"]) == 0
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["global_step"] in (4, 8)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == STEPS


def test_what_does_not_fit_a_checkpoint_is_explained(
    tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = small_run(tiny_market, tmp_path)
    assert main([*words, "--trainer.limit_train_batches", "1"]) == 0
    error = refused(*words, "--resume", "--data.held_out", "0.5")
    assert "was trained on 6 identities, this data set has 4 to train on" in error
    other = tmp_path / "other"
    shutil.copytree(tiny_market, other)
    assert main([*words, "--resume", "--data.root", str(other), "--trainer.max_epochs", "2"]) == 0
    first = min((other / "bounding_box_train").iterdir())
    first.rename(first.with_name(first.name.replace("_000000_", "_000009_")))
    error = refused(*words, "--resume", "--data.root", str(other), "--trainer.max_epochs", "3")
    assert "was trained on other images than these" in error
    error = refused(*words, "--resume", "--data.images_per_identity", "3", "--seed", "1")
    assert "trained in other batches: images 2, seed 0, now images 3, seed 1" in error
    callbacks = "[{class_path: rga_reid.training.EMA}]"
    error = refused(*words, "--resume", "--trainer.callbacks", callbacks)
    assert "was trained without a moving average; resume without one, too" in error
    error = refused(*words, "--resume", "--model.attention", "se")
    assert "holds another model" in error
    assert "keys missing (model.backbone.attention1" in error
    error = refused(*words, "--resume", "--model.attention", "rga_s", "--model.stages", "[4]")
    assert error.count("model.backbone.attention4") == 10  # the first ten keys, of more
    assert "save_every: expected a whole number of at least 1" in refused(
        *words, "--overwrite", "--save-every", "0"
    )
