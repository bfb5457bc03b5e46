"""A small recipe, plan and card, to be changed into invalid ones."""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, Any] = {
    "model": {
        "depth": 18,
        "attention": None,
        "stages": [1, 2],
        "last_stride": 1,
        "weights": None,
        "size": [32, 32],
        "loss": {"label_smoothing": 0.1, "margin": 0.3, "triplets": "post_neck"},
        "augmentation": {"crop_probability": 0.5, "erase_area": [0.02, 0.4]},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "schedule": {"class_path": "rga_reid.training.OneCycle", "init_args": {"rise": 0.15}},
        "resolution_schedule": [[0, 32, 32]],
    },
    "data": {"identities_per_batch": 2, "images_per_identity": 2, "epoch": "identities", "val_fraction": 0.0},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 1,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
    },
}

PLAN: dict[str, Any] = {
    "title": "A plan",
    "recipe": "recipe.yaml",
    "overrides": {"trainer.max_epochs": 1},
    "seeds": [0],
    "baseline": "base",
    "flip": False,
    "synthetic": {"train_identities": 4, "test_identities": 2, "size": [32, 16]},
    "published": "market1501",
    "variants": [
        {"name": "base"},
        {"name": "other", "overrides": {"model.attention": "pam"}, "seeds": [0, 1]},
    ],
}

NAMES_CARD: dict[str, Any] = {
    "name": "small",
    "title": "A small set",
    "layout": "names",
    "pattern": r"(?P<pid>-?\d+)_c(?P<camid>\d+)s\d_.*\.jpg",
    "junk_pids": [-1],
    "distractor_pids": [0],
    "cameras": 2,
    "citation": "nobody",
    "url": "none",
    "terms": "none",
    "splits": {
        "train": {"sources": [{"folder": "bounding_box_train"}], "images": 16, "identities": 4},
        "query": {"sources": [{"folder": ["query", "query2"]}], "images": 3, "identities": 3},
        "gallery": {"sources": [{"folder": "bounding_box_test"}], "images": 6, "junk": 0, "distractors": 0},
    },
}
