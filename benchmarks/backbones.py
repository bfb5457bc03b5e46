"""Compare backbones of timm with the bare networks of timm: forward and backward pass, same weights (CPU).

Both take turns on the same images, in training mode. The ratio is the median of the ratios of neighbouring passes.

    python benchmarks/backbones.py --out backbones.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import timm
import torch
from torch import Tensor, nn

from rga_reid.experiments.benchmark import describe_machine
from rga_reid.files import write_json
from rga_reid.models import build_model

NAMES = ("mobilenetv2_100", "resnetv2_50", "convnext_atto", "vit_tiny_patch16_224")
SIZE = (256, 128)


def compare(name: str, batch: int, passes: int) -> dict[str, Any]:
    """Return the milliseconds of a forward and backward pass of both, and their ratio."""
    ours = build_model(
        backbone=f"timm/{name}", size=SIZE, last_stride=None if "vit" in name else 2
    ).backbone.train()
    options = {"img_size": SIZE, "dynamic_img_size": True} if "vit" in name else {}
    bare = timm.create_model(name, num_classes=0, **options).train()
    bare.load_state_dict(
        {key.removeprefix("net."): value for key, value in ours.state_dict().items()}, strict=False
    )
    images = torch.rand(batch, 3, *SIZE)

    def run_bare(x: Tensor) -> Tensor:
        features = bare.forward_features(x)  # type: ignore[operator]
        return bare.forward_head(features, pre_logits=True) if features.ndim == 3 else features  # type: ignore[operator]

    def seconds(forward: Any, module: nn.Module) -> float:
        module.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        forward(images).square().mean().backward()
        return time.perf_counter() - begin

    times = [(seconds(ours, ours), seconds(run_bare, bare)) for _ in range(passes + 2)][2:]
    medians = [statistics.median(one) * 1e3 for one in zip(*times, strict=True)]
    return {
        "backbone": f"timm/{name}",
        "ours_ms": round(medians[0], 2),
        "bare_ms": round(medians[1], 2),
        "ratio": round(statistics.median(one / other for one, other in times), 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--out", default=None, help="JSON file")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [compare(name, options.batch, options.passes) for name in options.names]
    for row in rows:
        print(row)
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "batch": options.batch, "results": rows})


if __name__ == "__main__":
    main()
