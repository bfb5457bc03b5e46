"""Time and memory of the attention mechanisms, on this machine.

Each mechanism's fast form against its explicit form (the papers', matrix by matrix), and a whole ResNet-50
with attention after each stage against the same ResNet-50 without. What is compared is interleaved in one
run, and medians are reported; memory is the growth of a fresh process's peak resident set (Linux, glibc).

    python benchmarks/attention.py --out attention.json
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from rga_reid.attention import CAM, PAM, RGA, CrissCross, DualAttention, NonLocal
from rga_reid.attention.trace import Trace
from rga_reid.experiments.benchmark import (
    describe_machine,
    describe_options,
    in_fresh_processes,
    peak_resident,
    run_interleaved,
)
from rga_reid.files import write_json

STAGES = {1: (256, 64, 32), 2: (512, 32, 16), 3: (1024, 16, 8), 4: (2048, 16, 8)}  # ResNet-50, 256×128
ATTENTION_MODULES: dict[str, Callable[..., nn.Module]] = {
    "rga_s": functools.partial(RGA, channel=False),
    "rga_c": functools.partial(RGA, spatial=False),
    "rga": RGA,
    "pam": PAM,
    "cam": CAM,
    "dual": DualAttention,
    "criss_cross": CrissCross,
    "nonlocal_embedded_gaussian": NonLocal,
    "nonlocal_gaussian": functools.partial(NonLocal, mode="gaussian"),
    "nonlocal_dot_product": functools.partial(NonLocal, mode="dot_product"),
    "nonlocal_concatenation": functools.partial(NonLocal, mode="concatenation"),
}


class Explicit(nn.Module):
    """A mechanism computed by its explicit form."""

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.mechanism = mechanism

    def forward(self, x: Tensor) -> Tensor:
        return self.mechanism._explicit(x, Trace())


def resnet50(mechanism: str | None) -> nn.Module:
    """ResNet-50 with last stride 1, and the mechanism after each stage."""
    body = torchvision.models.resnet50()
    for layer in (body.layer4[0].conv2, body.layer4[0].downsample[0]):
        layer.stride = (1, 1)
    stem = [body.conv1, body.bn1, body.relu, body.maxpool]
    stages = [body.layer1, body.layer2, body.layer3, body.layer4]
    if mechanism is not None:
        attention = [ATTENTION_MODULES[mechanism](channels, size) for channels, *size in STAGES.values()]
        stages = [layer for pair in zip(stages, attention, strict=True) for layer in pair]
    return nn.Sequential(*stem, *stages)


def make(case: dict[str, Any]) -> Callable[[], None]:
    """One run of ``case``: a forward without gradients in eval mode, or a training step without optimiser."""
    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    if case["stage"] is None:
        model, shape = resnet50(case["mechanism"]), (3, 256, 128)
    else:
        channels, *size = shape = STAGES[case["stage"]]
        model = ATTENTION_MODULES[case["mechanism"]](channels, size)
        if case["form"] == "explicit":
            model = Explicit(model)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.1)
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    model = model.to(memory_format=layout).train(case["run"] == "step")
    x = torch.randn(case["batch"], *shape).to(memory_format=layout)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=case["bfloat16"])

    def forward() -> None:
        with torch.inference_mode(), autocast():
            model(x)

    def step() -> None:
        x.requires_grad_(case["stage"] is not None)
        x.grad = None
        model.zero_grad()
        with autocast():
            y = model(x)
        y.backward(y.detach())

    return forward if case["run"] == "forward" else step


def peak_memory(case: dict[str, Any]) -> float:
    """Growth of this process's peak resident set during one run, in MiB."""
    run = make(case)
    make({**case, "batch": 2})()  # libraries set themselves up
    return peak_resident(run)


def compare(cases: list[dict[str, Any]], repeats: int) -> Iterator[dict[str, Any]]:
    """The cases with ``milliseconds`` (median of interleaved) and ``mebibytes``; the last is the base."""
    medians = [1e3 * seconds for seconds in run_interleaved([make(case) for case in cases], repeats)]
    memory = in_fresh_processes(peak_memory, cases)
    for case, milliseconds, mebibytes in zip(cases, medians, memory, strict=True):
        yield {
            **case,
            "milliseconds": round(milliseconds, 2),
            "mebibytes": round(mebibytes, 1),
            "time_ratio": round(milliseconds / medians[-1], 3),
            "memory_ratio": round(mebibytes / memory[-1], 3),
        }


def groups(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Lists of cases to compare, the base last."""
    common = {"threads": options.threads, "batch": options.batch, "bfloat16": False, "channels_last": False}
    for run in ("forward", "step"):
        if "network" in options.parts:
            for setting in ({}, {"channels_last": True}, {"channels_last": True, "bfloat16": True}):
                shared = {**common, **setting, "stage": None, "form": "fast", "run": run}
                yield [{**shared, "mechanism": name} for name in (*options.networks, None)]
        if "modules" in options.parts:
            for mechanism in options.mechanisms:
                for stage in options.stages:
                    shared = {**common, "mechanism": mechanism, "stage": stage, "run": run}
                    if mechanism == "nonlocal_concatenation":
                        if run == "step" and stage == 1:
                            continue  # the explicit form takes 21 GiB for a batch of 1
                        shared["batch"] = 1  # its explicit form makes a (B, C, N, N) tensor: 4 GiB at stage 1
                    yield [{**shared, "form": form} for form in ("fast", "explicit")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="write the results there as JSON")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--parts", nargs="+", default=["network", "modules"], choices=["network", "modules"])
    parser.add_argument("--networks", nargs="+", default=["rga", "rga_s", "rga_c"], choices=ATTENTION_MODULES)
    parser.add_argument("--mechanisms", nargs="+", default=list(ATTENTION_MODULES), choices=ATTENTION_MODULES)
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 4], choices=STAGES)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    print("| mechanism | where | form | run | layout | ms | × | MiB | × |\n" + "|---" * 9 + "|")
    for cases in groups(options):
        for row in compare(cases, options.repeats):
            results.append(row)
            where = "ResNet-50" if row["stage"] is None else f"stage {row['stage']}"
            layout = "channels last" if row["channels_last"] else "contiguous"
            layout += ", bfloat16" if row["bfloat16"] else ""
            print(
                f"| {row['mechanism'] or 'none'} | {where} | {row['form']} | {row['run']} | {layout} "
                f"| {row['milliseconds']:.1f} | {row['time_ratio']:.2f} "
                f"| {row['mebibytes']:.0f} | {row['memory_ratio']:.2f} |",
                flush=True,
            )
        if options.out:
            asked = describe_options(options)
            write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    main()
