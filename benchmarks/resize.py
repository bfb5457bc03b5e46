"""Measure how well a trained RGA keeps its attention when its input size changes.

Images go through the model at its own size and at others, with the weights over positions interpolated
(``ResNet.set_input_size``). After each stage the attention of the other size is laid over that of the own
size, the map of positions resized bilinearly, and correlated with it (Pearson, over the positions or channels
of an image, mean over images); the last column is the cosine of the two embeddings. No label is used.

    python benchmarks/resize.py --checkpoint demo/model/last.ckpt --images demo/data/query
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rga_reid.attention import RGA
from rga_reid.data import decode, table_from_images
from rga_reid.files import write_json
from rga_reid.models import EmbeddingModel, load_model

SCALES = (0.625, 0.75, 0.875, 1.25, 1.5, 2.0)


def attend(model: EmbeddingModel, images: Tensor, size: tuple[int, int]) -> tuple[dict[str, Tensor], Tensor]:
    """Attention by "stage kind", and unit embeddings, of uint8 images that are resized to ``size``."""
    backbone, noted = model.backbone, defaultdict[str, list[Tensor]](list)
    backbone.set_input_size(size)
    if images.shape[2:] != size:
        images = F.interpolate(images.float(), size, mode="bilinear", antialias=True).round()

    def note(stage: int) -> Any:
        def hook(module: RGA, inputs: tuple[Tensor], output: Tensor) -> None:
            for kind, weight in module.relations(inputs[0]).weights.items():
                noted[f"{stage} {kind}"].append(weight)

        return hook

    hooks = [
        module.register_forward_hook(note(stage))
        for stage, module in backbone.attention_stages().items()
        if isinstance(module, RGA)
    ]
    with torch.inference_mode():
        # an image's relations at stage 1 take 16 MiB at 256×128
        features = torch.cat([model(model.normalise(batch)) for batch in images.split(16)])
    for handle in hooks:
        handle.remove()
    attention = {name: torch.cat(batches) for name, batches in noted.items()}
    return attention, F.normalize(features)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, per image: (B, 1, H, W) with (B, 1, h, w) resized to H×W, or (B, C, 1, 1) with the same."""
    if one.shape != other.shape:
        other = F.interpolate(other, one.shape[2:], mode="bilinear", antialias=True)
    one, other = (t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (one, other))
    return F.cosine_similarity(one, other, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", default="demo/model/last.ckpt", help="a trained model with RGA")
    parser.add_argument("--images", default="demo/data/query", help="folder of person crops")
    parser.add_argument("--count", type=int, default=256, help="how many of them, evenly spaced")
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    model = load_model(options.checkpoint)
    paths = table_from_images(options.images).path.tolist()
    chosen = np.linspace(0, len(paths) - 1, min(options.count, len(paths))).round().astype(int)
    height, width = model.size
    # read at twice the size: what a larger input shows is more than what a smaller one does
    images = torch.from_numpy(decode([paths[i] for i in chosen], (2 * height, 2 * width)))
    own, own_features = attend(model, images, model.size)
    results = []
    print(f"| input size | {' | '.join(own)} | embedding |\n" + "|---" * (len(own) + 2) + "|")
    for scale in SCALES:
        size = (round(scale * height), round(scale * width))
        attention, features = attend(model, images, size)
        row: dict[str, Any] = {"height": size[0], "width": size[1]}
        row |= {name: round(float(correlation(own[name], attention[name]).mean()), 4) for name in own}
        row["embedding"] = round(float((own_features * features).sum(1).mean()), 4)
        results.append(row)
        values = " | ".join(f"{row[name]:.3f}" for name in (*own, "embedding"))
        print(f"| {size[0]}×{size[1]} | {values} |", flush=True)
    if options.out:
        write_json(
            options.out,
            {
                "checkpoint": Path(options.checkpoint).name,
                "own_size": list(model.size),
                "images": len(chosen),
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
