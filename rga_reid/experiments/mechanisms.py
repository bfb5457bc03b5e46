"""Trained networks that differ in their attention: those of ``explain --demo``, and the variants of an ablation."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rga_reid.errors import InputError
from rga_reid.experiments.ablation import LAST, TRAIN, TRAINED
from rga_reid.experiments.results import read_plan_summary
from rga_reid.models import EmbeddingModel, load_model
from rga_reid.models.analysis import capture_gates, capture_stages
from rga_reid.models.embedding import uint8_batch

#: attention modules with relations that ``explain --demo`` compares
MECHANISMS = ("rga", "pam", "cam", "dual", "nonlocal", "criss_cross")
MIN_USE = 0.01  #: change of the map, or spread of the gates, from which a module is said to be in use


def load_variants(folder: Path) -> dict[str, EmbeddingModel]:
    """Load the variants of an ablation in the order of its plan, each with its first seed that was trained to the end.

    Args:
        folder: output folder of ``ablate``.

    Raises:
        InputError: no such variant, or a damaged plan.
    """
    planned = read_plan_summary(folder).get("variants", [])
    first: dict[str, Path] = {}
    runs = [file.parent for file in folder.glob(f"*/seed-*/{TRAINED}")]
    for run in sorted(runs, key=lambda run: int(run.name.removeprefix("seed-"))):
        first.setdefault(run.parent.name, run)
    if not first:
        raise InputError(
            f"--runs {folder}: expected the folder of an ablation with a trained variant, found none"
        )
    order = [name for name in planned if name in first]
    order += sorted(first.keys() - set(order))
    return {variant: load_model(first[variant] / TRAIN / LAST) for variant in order}


def missing_for_view(model: EmbeddingModel, view: str) -> str:
    """Return what a model would need for a view of ``explain``: ``attention``, ``gates``, or "" for nothing."""
    if view == "relations" and not model.backbone.attention_stages():
        return "attention"
    if view == "gates" and not capture_gates(model, torch.zeros(1, 3, *model.size, dtype=torch.uint8)):
        return "gates"
    return ""


def measure_use(model: EmbeddingModel, image: str | os.PathLike[str]) -> str:
    """Describe how much each attention module does on a picture, and whether all of them are in use.

    A module that adds to the map (PAM, CAM, dual, non-local, criss-cross) is the identity before training: its use
    is the norm of its change relative to the map. The use of a module that scales the map by gates (RGA) is the
    standard deviation of the gates over positions or channels. Both are 0 without an effect.
    """
    found = []
    for capture in capture_stages(model, uint8_batch([image], model.size)):
        if capture.weights:
            use = max(float(one.std()) for one in capture.weights.values())
        else:
            use = float((capture.output - capture.x).norm() / capture.x.norm())
        found.append((capture.stage, use))
    kind = "gates vary by" if capture.weights else "the map changes by"
    stages = ", ".join(f"{100 * use:.1f} % after stage {stage}" for stage, use in found)
    idle = [str(stage) for stage, use in found if use < MIN_USE]
    hardly = f"; hardly used (less than {100 * MIN_USE:g} %) after stage {', '.join(idle)}" if idle else ""
    return f"{kind} {stages}{hardly}"
