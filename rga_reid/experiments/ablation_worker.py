"""Test one run of an ablation: ``python -m rga_reid.experiments.ablation_worker FOLDER``.

The last epoch is tested; no checkpoint is chosen on test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from rga_reid.data import load_card, read_table
from rga_reid.devices import choose_device
from rga_reid.evaluation.relevance import MARKET
from rga_reid.experiments import ablation
from rga_reid.experiments.evaluate_model import (
    card_protocol,
    embed_test_images,
    find_protocol,
    rank_between_cameras,
    rank_test_images,
    tabulate_top_matches,
)
from rga_reid.files import write_json, write_table
from rga_reid.inputs import read_json
from rga_reid.models import FlipTTA, load_model
from rga_reid.models.analysis import total_costs
from rga_reid.models.weights import read_torch
from rga_reid.runtime import import_modules, run_main


def evaluate_run(folder: Path, root: str, card: str, *, flip: bool) -> None:
    """Test the last epoch of a run and write its tables, then its result."""
    checkpoint = folder / ablation.TRAIN / ablation.LAST
    device = choose_device()
    model = load_model(checkpoint, device)
    parameters, macs = total_costs(model.backbone)
    junk_pids, protocol = load_card(card).junk_pids, find_protocol(card_protocol(root, card))
    rule = MARKET if protocol is None else protocol.rule
    features, table = embed_test_images(
        FlipTTA(model) if flip else model,
        read_table(root, card),
        device=device,
        protocol=protocol,
    )
    result = rank_test_images(features, table, junk_pids=junk_pids, protocol=protocol)
    ranked = tabulate_top_matches(features, table, junk_pids=junk_pids, rule=rule)
    cameras = rank_between_cameras(features, table, junk_pids=junk_pids, rule=rule)
    write_table(folder / ablation.QUERIES, result.to_frame())
    write_table(folder / ablation.RANKED, ranked)
    write_table(folder / ablation.CAMERAS, cameras)
    settings, trained = (read_json(folder / name) for name in (ablation.SETTINGS, ablation.TRAINED))
    write_json(
        folder / ablation.RESULT,
        {
            "variant": settings["variant"],
            "seed": settings["seed"],
            "metrics": result.to_dict(),
            "trained_on": model.trained_on,
            "parameters": parameters,
            "macs": macs,
            "training_seconds": read_training_seconds(read_torch(checkpoint)),
            "runs_side_by_side": trained["runs_side_by_side"],
            "flip": flip,
            "device": device.type,
            "torch": torch.__version__,
        },
    )


def read_training_seconds(checkpoint: dict[str, Any]) -> float | None:
    """Return the training time without interruptions, which Lightning's Timer saves; None without one."""
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("Timer"):
            return float(state["time_elapsed"]["train"])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--card", required=True)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--import", dest="imports", action="append", default=[])
    options = parser.parse_args()
    import_modules(options.imports)
    evaluate_run(options.folder, options.root, options.card, flip=options.flip)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
