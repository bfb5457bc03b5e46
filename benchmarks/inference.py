"""Measure what attention costs in inference, beside what its arithmetic costs.

``networks``: whole networks with and without attention, as built and by ``optimize()``, in turns in one run; medians of
the ratios to the network without attention of the same form, and the ratio of multiply-accumulates.

``modules``: each attention module beside the product of two 1024 x 1024 matrices in the same run, whose rate gives the
least time for the multiply-accumulates of the module.

    python benchmarks/inference.py --out inference.json
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.experiments.benchmark import describe_machine, describe_options, time_interleaved
from rga_reid.files import write_json
from rga_reid.models import build_model
from rga_reid.models.analysis import total_costs

SIZES = {"resnet18": (128, 64), "resnet50": (256, 128)}
MAPS = {"stage 1": (256, 64, 32), "stage 4": (2048, 16, 8)}  # of ResNet-50 at 256x128
SIDE = 1024


def let_act(module: nn.Module) -> nn.Module:
    """Set the factors that start at 0, so that no work can be left out."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.1)
    return module


def measure_networks(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    names = [None, *options.attention]
    for backbone, batch in (
        (name, int(batch)) for name, batch in (pair.split(":") for pair in options.networks)
    ):
        size = SIZES[backbone]
        plain = {}
        for name in names:
            torch.manual_seed(0)
            plain[name] = build_model(backbone=backbone, attention=name, weights=None, size=size).eval()
            let_act(plain[name])
        macs = {name: total_costs(model.backbone)[1] for name, model in plain.items()}
        forms = {"built": plain, "optimized": {name: model.optimize() for name, model in plain.items()}}
        if options.bfloat16:
            forms["bfloat16"] = {name: model.optimize(dtype=torch.bfloat16) for name, model in plain.items()}
        runs: list[Callable[[], object]] = []
        for models in forms.values():
            for model in models.values():
                images = torch.randn(batch, 3, *size, dtype=next(model.parameters()).dtype)
                images = images.to(memory_format=torch.channels_last)
                runs.append(functools.partial(torch.inference_mode()(model), images))
        seconds = iter(time_interleaved(runs, options.repeats))
        for form, models in forms.items():
            base: list[float] = []
            for name in models:
                times = next(seconds)
                base = base or times
                yield {
                    "network": backbone,
                    "batch": batch,
                    "form": form,
                    "attention": name,
                    "milliseconds": round(1e3 * median(times), 2),
                    "ratio": round(median(own / other for own, other in zip(times, base, strict=True)), 3),
                    "macs_ratio": round(macs[name] / macs[None], 3),
                }


def measure_modules(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    left, right = torch.randn(2, SIDE, SIDE)
    for place, (channels, *size) in MAPS.items():
        x = torch.randn(options.batch, channels, *size).to(memory_format=torch.channels_last)
        for name in options.attention:
            module = let_act(ATTENTION_MODULES[name](channels, size)).eval()
            module = module.fold() if hasattr(module, "fold") else module  # type: ignore[operator]
            counter = FlopCounterMode(display=False)
            run = functools.partial(torch.inference_mode()(module), x)
            with counter:
                run()
            product, own = time_interleaved([lambda: left @ right, run], options.repeats)
            least = counter.get_total_flops() / (2 * SIDE**3) * median(product)
            yield {
                "place": place,
                "attention": name,
                "batch": options.batch,
                "milliseconds": round(1e3 * median(own), 2),
                "limit_milliseconds": round(1e3 * least, 2),
                "ratio": round(median(own) / least, 2),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--networks", nargs="*", default=["resnet18:1", "resnet18:32", "resnet50:8"], metavar="NAME:BATCH"
    )
    parser.add_argument("--attention", nargs="+", default=list(ATTENTION_MODULES), choices=ATTENTION_MODULES)
    parser.add_argument("--batch", type=int, default=8, help="maps of a module")
    parser.add_argument("--bfloat16", action="store_true", help="optimised networks in bfloat16, too")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, list[dict[str, Any]]] = {"networks": [], "modules": []}
    print("| network | batch | form | attention | ms | × | × GMAC |\n" + "|---" * 7 + "|")
    for row in measure_networks(options):
        results["networks"].append(row)
        cells = (
            row[key]
            for key in ("network", "batch", "form", "attention", "milliseconds", "ratio", "macs_ratio")
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print("\n| module | where | ms | limit, ms | × |\n" + "|---" * 5 + "|")
    for row in measure_modules(options):
        results["modules"].append(row)
        cells = (row[key] for key in ("attention", "place", "milliseconds", "limit_milliseconds", "ratio"))
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if options.out:
        asked = describe_options(options)
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    main()
