"""The test of one run of an ablation: ``python -m rga_reid.experiments.ablation_worker FOLDER``.

The last epoch is tested, once: nothing here chooses between checkpoints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from rga_reid.data import load_card, read_table
from rga_reid.devices import choose_device
from rga_reid.experiments import ablation as files
from rga_reid.experiments.evaluate_model import embed_test_images, rank_test_images, tabulate_top_matches
from rga_reid.files import write_json, write_table
from rga_reid.inputs import is_number, read_json
from rga_reid.models import FlipTTA, load_model
from rga_reid.models.analysis import total_costs
from rga_reid.models.weights import read_torch
from rga_reid.runtime import run_main


def evaluate_run(folder: Path, root: str, card: str, *, flip: bool) -> None:
    """Test the last epoch of a run and write its result, the result's file last."""
    checkpoint = folder / files.TRAIN / files.LAST
    device = choose_device()
    model = load_model(checkpoint, device)
    parameters, macs = total_costs(model.backbone)
    junk = load_card(card).junk_pids
    tested = FlipTTA(model) if flip else model
    features, table = embed_test_images(tested, read_table(root, card), device=device)
    result = rank_test_images(features, table, junk_pids=junk)
    write_table(folder / files.QUERIES, result.to_frame())
    write_table(folder / files.RANKED, tabulate_top_matches(features, table, junk_pids=junk))
    asked, trained = (read_json(folder / name) for name in (files.ASKED, files.TRAINED))
    write_json(
        folder / files.RESULT,
        {
            "variant": asked["variant"],
            "seed": asked["seed"],
            "metrics": result.to_dict(),
            "parameters": parameters,
            "macs": macs,
            "training_seconds": read_seconds(read_torch(checkpoint)),
            "runs_side_by_side": trained["runs_side_by_side"],
            "flip": flip,
            "device": device.type,
            "torch": torch.__version__,
        },
    )


def read_seconds(checkpoint: dict[str, Any]) -> float | None:
    """How long the training took, without interruptions, if Lightning's Timer was among the callbacks."""
    callbacks = checkpoint.get("callbacks")
    for name, state in callbacks.items() if isinstance(callbacks, dict) else ():
        if str(name).startswith("Timer"):
            elapsed = state.get("time_elapsed") if isinstance(state, dict) else None  # or of another Timer
            seconds = elapsed.get("train") if isinstance(elapsed, dict) else None
            return float(seconds) if is_number(seconds) and seconds >= 0 else None
    return None


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--root", required=True)
    options.add_argument("--card", required=True)
    options.add_argument("--flip", action="store_true")
    asked = options.parse_args()
    evaluate_run(asked.folder, asked.root, asked.card, flip=asked.flip)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
