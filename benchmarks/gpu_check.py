"""Check on one GPU what the tests check on a CPU, and measure it; at most eight minutes, without data or downloads.

Five parts, each in a separate process, so that the others run if one fails or takes too long:

- ``attention``: output and gradients of every attention module, in training and in evaluation, in float32 and with
  autocast to bfloat16 and float16, against float64 on the CPU. The error is the Euclidean norm of the difference
  relative to that of the float64 tensor; the gradients of all parameters count as one tensor.
- ``network``: training steps (forward, losses, backward, Adam) of ResNet-50 with RGA-SC and of plain ResNet-50, with
  autocast to bfloat16 and channels-last memory format: images a second, ratio of the times, peak memory.
- ``training``: 50 steps of the recipe market1501/rga_sc on synthetic pedestrians, from random weights, with
  bf16-mixed precision and torch.compile: the loss is finite and falls; images a second.
- ``evaluation``: ranking and re-ranking of random clustered features of the size of Market-1501, on the device and on
  the CPU: equal ranks; times relative to the bare products on the device.
- ``embedding``: images a second of a model, from tensors and from JPEG files; features against those of the CPU.

A row with a limit is a check: it fails above the limit, or if the value is not a number. The exit code is 1 if a check
or a part fails.

    python benchmarks/gpu_check.py --json gpu_check.json
    python benchmarks/gpu_check.py --device cpu --small     # rehearsal with small sizes
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pictures import draw
from synthetic import SIZES, bare_product, read_features, write_features
from torch import Tensor, nn

from rga_reid.attention import ATTENTION_MODULES, DualAttention, NonLocal
from rga_reid.attention.non_local import MODES
from rga_reid.commands import train
from rga_reid.data import table_from_files
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.evaluation import RankingResult, ReRanking, evaluate_ranking
from rga_reid.experiments.benchmark import describe_machine, peak_memory, run_interleaved
from rga_reid.files import write_json
from rga_reid.inference.embed import stream_features
from rga_reid.models import build_model
from rga_reid.runtime import run_main
from rga_reid.training import ReIDLoss, fit
from rga_reid.training.module import adam

MODULES: dict[str, Callable[..., nn.Module]] = {
    **ATTENTION_MODULES,
    "dual, head": partial(DualAttention, head=True),
    **{f"nonlocal, {mode}": partial(NonLocal, mode=mode) for mode in MODES[1:]},
}
#: largest relative errors of outputs and of gradients; gradients differ more, as a ReLU or a maximum near its edge may
#: choose the other side after rounding. The unit of rounding is 2⁻²⁴, 2⁻⁹ or 2⁻¹².
TOLERANCES = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (5e-2, 0.2), torch.float16: (1e-2, 0.1)}
MAX_MAP_DIFFERENCE = 1e-6
MAX_COSINE_ERROR = 1e-3  #: 1 - cosine of features from the device and from the CPU; cuDNN may use TF32
STEPS = 50
WARM_UP = 10  #: training steps that are not timed: compilation, and the choice of algorithms
REPEATS = 10


class Setup(NamedTuple):
    """Device and sizes."""

    device: torch.device
    small: bool  #: sizes for a rehearsal on a CPU

    @property
    def backbone(self) -> str:
        return "resnet18" if self.small else "resnet50"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return (64, 32) if self.small else (256, 128)

    @property
    def batches(self) -> tuple[int, ...]:
        return (8,) if self.small else (64, 256)

    @property
    def maps(self) -> list[tuple[int, ...]]:
        """Batch, channels, height and width: ResNet-50 after stages 1 and 4."""
        return [(4, 64, 12, 6)] if self.small else [(2, 256, 64, 32), (2, 2048, 16, 8)]


class Row(NamedTuple):
    """One figure."""

    what: str
    value: float
    unit: str = ""
    limit: float | None = None  #: highest accepted value

    @property
    def passed(self) -> bool:
        return self.limit is None or self.value <= self.limit


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(
    runs: Sequence[Callable[[], object]], setup: Setup, repeats: int = REPEATS, warm_up: int = 3
) -> list[float]:
    """Return the median seconds of each function on the device; they take turns, after ``warm_up`` calls of each."""

    def complete(run: Callable[[], object]) -> None:
        run()
        synchronize(setup.device)

    whole = [partial(complete, run) for run in runs]
    for run in whole * min(warm_up, 1 if setup.small else warm_up):
        run()
    return run_interleaved(whole, min(repeats, 2) if setup.small else repeats, warm_up=False)


# Attention modules ----------------------------------------------------------------------------------------


def make_module(name: str, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Return a module in float64 on the CPU and its input; no parameter is 0, as some are at the start.

    Weights and input are bfloat16 numbers, so that autocast does not round them.
    """
    torch.manual_seed(0)
    module = MODULES[name](shape[1], shape[2:])
    for layer in module.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.0  # it would draw other numbers on each device
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.fill_(0.1)
            parameter.copy_(parameter.bfloat16())
    return module.double(), torch.randn(shape).bfloat16().double()


def run_module(module: nn.Module, x: Tensor, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs in training and in evaluation, and the gradients of input and parameters.

    Args:
        module, x: on the same device.
        dtype: lower precision for autocast; None for none.
    """
    x = x.clone().requires_grad_()
    mixed = torch.autocast(x.device.type, dtype) if dtype is not None else nullcontext()
    with mixed:
        y = module.train()(x)
    loss = y.square().mean(dtype=torch.promote_types(y.dtype, torch.float32))
    (2**12 * loss).backward()  # scaled, so that small gradients do not vanish in float16
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    with torch.no_grad(), mixed:
        evaluated = module.eval()(x)
    return [y.detach(), evaluated], [x.grad, torch.cat(gradients)]  # type: ignore[list-item]


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Return the largest relative error of the tensors; NaN if any value is."""
    errors = [
        torch.linalg.vector_norm(one.cpu().double() - other) / torch.linalg.vector_norm(other)
        for one, other in zip(found, expected, strict=True)
    ]
    return torch.stack(errors).max()


def check_attention(setup: Setup, names: Sequence[str] = tuple(MODULES)) -> Iterator[Row]:
    """Compare modules with float64 on the CPU."""
    for name in names:
        errors: dict[torch.dtype, list[Tensor]] = {dtype: [] for dtype in TOLERANCES}
        for shape in setup.maps:
            module, x = make_module(name, shape)
            expected = run_module(copy.deepcopy(module), x, None)
            for dtype, found in errors.items():
                own = copy.deepcopy(module).float().to(setup.device)
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    lower = None if dtype == torch.float32 else dtype
                    output = run_module(own, x.float().to(setup.device), lower)
                pairs = zip(output, expected, strict=True)
                found.append(torch.stack([relative_error(*pair) for pair in pairs]))
        for dtype, found in errors.items():
            largest = torch.stack(found).max(dim=0).values.tolist()
            for what, value, limit in zip(("output", "gradients"), largest, TOLERANCES[dtype], strict=True):
                yield Row(f"{name}, {str(dtype)[6:]}: {what}", value, "relative error", limit)


# Network --------------------------------------------------------------------------------------------------


def make_step(attention: str | None, batch: int, setup: Setup) -> Callable[[], None]:
    """Return a training step of a model with autocast to bfloat16, in channels-last memory format."""
    torch.manual_seed(0)
    model = build_model(
        classes=751, backbone=setup.backbone, attention=attention, weights=None, size=setup.size
    )
    model = model.to(setup.device, memory_format=torch.channels_last)
    losses, optimizer = ReIDLoss(), adam(model.parameters())
    images = torch.randn(batch, 3, *setup.size, device=setup.device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=setup.device) // 4

    def step() -> None:
        with torch.autocast(setup.device.type, torch.bfloat16):
            output = model(images)
        optimizer.zero_grad()
        losses(output, labels)["loss"].backward()
        optimizer.step()

    return step


def measure_network(setup: Setup) -> Iterator[Row]:
    """Measure training steps with RGA-SC and without."""
    for batch in setup.batches:
        steps = {name: make_step(name, batch, setup) for name in ("rga", None)}
        seconds = dict(zip(steps, median_seconds([*steps.values()], setup), strict=True))
        for name, step in steps.items():
            what = f"{setup.backbone}{' + RGA-SC' if name else ''}, batch {batch}"
            yield Row(what, batch / seconds[name], "images/s")
            yield Row(what, peak_memory(step, setup.device), "MiB, peak of a step")
        yield Row(f"RGA-SC / plain, batch {batch}", seconds["rga"] / seconds[None], "ratio of step times")


# Training -------------------------------------------------------------------------------------------------


class StepLog(pl.Callback):
    """Record the loss and the duration of each training step, without the time between steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.losses.append(float(pl_module.step_losses["loss"].detach()))
        synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self.start)


def train_recipe(setup: Setup, folder: Path, words: Sequence[str], *, compiled: bool = False) -> StepLog:
    """Train the recipe on synthetic pedestrians with more options of ``train``.

    At small sizes, compilation stops before code is generated, which takes minutes on a CPU.
    """
    people = 8 if setup.small else 64
    write_synthetic(folder / "data", SyntheticSettings(people, 1, distractors=0, junk=0))
    given = {
        "config": "market1501/rga_sc",
        "data.root": folder / "data",
        "data.epoch": "images",  # longer epochs, as each ends with a checkpoint
        "model.weights": "null",
        "model.compile": str(compiled and not setup.small).lower(),
        "trainer.enable_model_summary": "false",
    }
    if setup.small:
        given |= {"model.backbone": setup.backbone, "model.size": [*setup.size], "model.stages": [4]}
        given |= {"data.identities_per_batch": 4}
    words = [*(f"--{name}={value}" for name, value in given.items()), *words]
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no messages about devices, no tips
    pl.seed_everything(0, verbose=False)
    parser = train.parser()
    built = train.build_objects(parser, parser.parse_args(train.prepare(words)))
    if compiled and setup.small:
        built.model.model.compile(backend="aot_eager")
    log = StepLog()
    accelerator = {"cuda": "gpu"}.get(setup.device.type, setup.device.type)
    devices = [setup.device.index or 0] if accelerator == "gpu" else 1
    options = {**built.trainer.as_dict(), "accelerator": accelerator, "devices": devices, "callbacks": [log]}
    fit(built.model, built.data, folder / "run", trainer=options)
    return log


def check_training(setup: Setup) -> Iterator[Row]:
    """Train with mixed precision and torch.compile."""
    steps = 10 if setup.small else STEPS
    words = ["--trainer.precision", "bf16-mixed", "--trainer.max_steps", str(steps)]
    with tempfile.TemporaryDirectory() as name:
        log = train_recipe(setup, Path(name), words, compiled=True)
    part = max(1, steps // 5)
    first, last = (statistics.fmean(losses) for losses in (log.losses[:part], log.losses[-part:]))
    batch = 16 if setup.small else 64
    yield Row("steps left out", steps - len(log.losses), "steps", 0)
    yield Row("losses that are not finite", sum(not math.isfinite(loss) for loss in log.losses), "steps", 0)
    yield Row(f"loss of the last {part} steps / first {part}", last / first, "ratio", 0.95)
    yield Row("loss at the end", last)
    yield Row("first step, which compiles", log.seconds[0], "s")
    yield Row("market1501/rga_sc", batch / statistics.median(log.seconds[min(WARM_UP, part) :]), "images/s")


# Evaluation -----------------------------------------------------------------------------------------------


def differing_queries(one: RankingResult, other: RankingResult) -> int:
    """Return how many queries have another rank of the first match, or other averages over the ranks."""
    columns = ["first_match", "matches", "AP_step", "AP_trapezoid", "INP"]
    frames = [result.to_frame()[columns].to_numpy(float, na_value=-1.0) for result in (one, other)]
    return int((frames[0] != frames[1]).any(axis=1).sum())


def check_evaluation(setup: Setup) -> Iterator[Row]:
    """Rank and re-rank on the device and on the CPU."""
    name = "tiny" if setup.small else "market1501"
    size = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder), name, 64 if setup.small else 2048)
        inputs = {key: np.array(value) for key, value in read_features(Path(folder)).items()}
    query, gallery = inputs["query_features"], inputs["gallery_features"]
    everything = [query, gallery]
    cases: list[tuple[str, ReRanking | None, list[np.ndarray], list[np.ndarray], int]] = [
        ("ranking", None, [query], [gallery], 5),
        ("re-ranking", ReRanking(), everything, everything, 1),
    ]
    yield Row("queries x gallery", size.queries * size.items, "pairs")
    for what, rerank, left, right, repeats in cases:
        rank = partial(evaluate_ranking, **inputs, rerank=rerank)
        start = time.perf_counter()
        expected = rank(device="cpu")
        yield Row(f"{what} on the CPU", time.perf_counter() - start, "s")
        found = rank(device=setup.device)
        yield Row(f"{what}: other ranks than on the CPU", differing_queries(found, expected), "queries", 0)
        yield Row(f"{what}: mAP", found.mAP, "fraction")
        difference = abs(found.mAP - expected.mAP)
        yield Row(f"{what}: mAP against the CPU", difference, "difference", MAX_MAP_DIFFERENCE)
        product = partial(bare_product, left, right, setup.device)
        product()
        runs = [partial(rank, device=setup.device), product]
        seconds, bare = median_seconds(runs, setup, repeats, warm_up=0)
        yield Row(f"{what} on the device", seconds, "s")
        yield Row(f"{what}: bare product on the device", bare, "s")
        yield Row(f"{what} / bare product", seconds / bare, "ratio")


# Embedding ------------------------------------------------------------------------------------------------


def check_embedding(setup: Setup) -> Iterator[Row]:
    """Embed images, from tensors and from files."""
    torch.manual_seed(0)
    model = build_model(backbone=setup.backbone, attention="rga", weights=None, size=setup.size).eval()
    images = torch.randint(0, 256, (4 * max(setup.batches), 3, *setup.size), dtype=torch.uint8)
    expected = model.embed(images[:8])
    found = model.embed(images[:8], device=setup.device)
    error = float((1 - (found.double() * expected.double()).sum(1)).max())
    yield Row("features against the CPU", error, "1 - cosine", MAX_COSINE_ERROR)
    for batch in setup.batches:
        run = partial(model.embed, images, batch_size=batch)
        (seconds,) = median_seconds([run], setup, repeats=5)
        yield Row(f"tensors, batch {batch}", len(images) / seconds, "images/s")
    with tempfile.TemporaryDirectory() as folder:
        table = table_from_files(draw(Path(folder), len(images)))
        for batch in setup.batches:
            run = partial(lambda size: list(stream_features(model, table, size)), batch)
            (seconds,) = median_seconds([run], setup, repeats=1, warm_up=1)
            yield Row(f"JPEG files, batch {batch}", len(images) / seconds, "images/s")


# The command ----------------------------------------------------------------------------------------------

#: function and seconds of each part; together less than eight minutes
PARTS: dict[str, tuple[Callable[[Setup], Iterator[Row]], int]] = {
    "attention": (check_attention, 90),
    "network": (measure_network, 60),
    "training": (check_training, 210),
    "evaluation": (check_evaluation, 75),
    "embedding": (check_embedding, 40),
}


def run_part(name: str, setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part, and the error that ends it, if any."""
    try:
        for row in PARTS[name][0](setup):
            value = row.value if math.isfinite(row.value) else None  # JSON has no NaN
            yield {"part": name, **row._asdict(), "value": value, "passed": row.passed}
    except Exception as error:  # such as too little memory, or no compiler
        message = (str(error).strip() or "no message").splitlines()[0]
        yield {"part": name, "error": f"{type(error).__name__}: {message}"}


def run_in_process(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the same from a separate process, which is ended when its time is over."""
    seconds = PARTS[name][1]
    command = [sys.executable, __file__, "--worker", name, "--device", options.device]
    command += ["--small"] if options.small else []
    late = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            failed = False
            for line in process.stdout or ():
                if line.startswith("{"):  # libraries may print, too
                    yield (row := json.loads(line))
                    failed |= "error" in row
        finally:
            timer.cancel()
            process.kill()  # if the caller gave up
    if late.is_set():
        yield {"part": name, "error": f"not done after {seconds} s"}
    elif process.returncode and not failed:  # such as a crash of the driver
        yield {"part": name, "error": f"its process ended with code {process.returncode}"}


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return name, memory and driver of a GPU; the type of another device."""
    if device.type != "cuda":
        return {"type": device.type}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    return {
        "type": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "mebibytes": properties.total_memory // 2**20,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def format_row(row: dict[str, Any]) -> str:
    """Return a row as a line of a Markdown table."""
    if "error" in row:
        return f"| {row['part']} | {row['error']} | | | FAILED |"
    limit = "" if row["limit"] is None else f"{row['limit']:g}"
    outcome = "" if row["limit"] is None else "ok" if row["passed"] else "FAILED"
    value = "not finite" if row["value"] is None else f"{row['value']:.4g}"
    return f"| {row['part']} | {row['what']} | {value} {row['unit']} | {limit} | {outcome} |"


def main() -> int:
    """Run the parts, print the table and write JSON; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU if there is one")
    parser.add_argument("--small", action="store_true", help="small sizes, for a rehearsal on a CPU")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device, types=EXACT_TYPES)
    if options.worker:
        rows = sys.stdout
        with redirect_stdout(sys.stderr):
            for row in run_part(options.worker, Setup(device, options.small)):
                print(json.dumps(row), file=rows, flush=True)
        return 0
    options.device = str(device)
    about = describe_device(device)
    print(f"{about.get('name', device)}, driver {about.get('driver')}, torch {torch.__version__}")
    print("| part | what | value | limit | |\n" + "|---" * 5 + "|")
    results: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for name in options.parts:
        start = time.perf_counter()
        for row in run_in_process(name, options):
            results.append(row)
            print(format_row(row), flush=True)
        seconds[name] = round(time.perf_counter() - start, 1)
    failures = sum("error" in row or not row["passed"] for row in results)
    print(f"{failures} failed, {sum(seconds.values()):.0f} s")
    if options.json:
        settings = {"device": str(device), "small": options.small, "parts": options.parts}
        content = {"device": about, "machine": describe_machine(), "options": settings, "seconds": seconds}
        write_json(options.json, {**content, "failures": failures, "results": results})
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
