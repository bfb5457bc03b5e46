"""The same work in this package and in torchreid, fast-reid and open-metric-learning, side by side in one run.

Each package runs in a separate process, in turns, with the Python in which it is installed: ``--peer NAME=PYTHON``.
Importing, reading inputs and building networks are not counted; a first repetition warms up.

- ``evaluation``: distances, mAP and CMC of Market-1501's protocol, from features in memory.
- ``reranking``: k-reciprocal re-ranking of features in memory, to a matrix of distances.
- ``features``: JPEG files to features, ResNet-50 at 256x128, in batches of 64.
- ``step``: a training step of ResNet-50 at 256x128 on 64 images in memory: cross-entropy and triplets, Adam.

    python benchmarks/peers.py --peer torchreid=ENV/bin/python --peer fastreid=ENV/bin/python --out peers.json

The networks of all packages have a last stride of 2, which is torchreid's and torchvision's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

# Only what every environment has is imported here: the peers run this file, too.
PACKAGES = {
    "rga_reid": "rga-reid",
    "torchreid": "torchreid",
    "fastreid": "fastreid",
    "oml": "open-metric-learning",
}
# queries, gallery, columns, identities, cameras
SHAPES = {"evaluation": (3368, 15913, 2048, 750, 6), "reranking": (800, 4000, 2048, 190, 6)}
QUICK = {"evaluation": (60, 400, 64, 20, 6), "reranking": (60, 400, 64, 20, 6)}
CLASSES, SIZE, BATCH = 751, (256, 128), 64

Work = Callable[[], Any]
Data = dict[str, np.ndarray]


def ours(task: str, data: Data, folder: Path) -> Work:
    from rga_reid.evaluation import evaluate_ranking, re_ranked_distances
    from rga_reid.models import build_model
    from rga_reid.training import ReIDLoss

    if task == "evaluation":
        return lambda: evaluate_ranking(*labelled(data), metric="euclidean").mAP
    if task == "reranking":
        return lambda: re_ranked_distances(data["query"], data["gallery"], metric="euclidean")
    if task == "features":
        model = build_model(backbone="resnet50", weights=None, last_stride=2, size=SIZE).eval()
        paths = image_paths(folder)
        return lambda: model.embed(paths, batch_size=BATCH)
    model = build_model(backbone="resnet50", weights=None, last_stride=2, size=SIZE, classes=CLASSES).train()
    loss = ReIDLoss()
    return training_step(model, lambda output, pids: loss(output, pids)["loss"])


def torchreid(task: str, data: Data, folder: Path) -> Work:
    from torchreid import engine, metrics, models, utils

    if task == "evaluation":
        query, gallery, *labels = labelled(data)

        def evaluate() -> Any:
            distances = metrics.compute_distance_matrix(torch.from_numpy(query), torch.from_numpy(gallery))
            return metrics.evaluate_rank(distances.numpy(), *labels)[1]

        return evaluate
    if task == "reranking":
        both = torch.from_numpy(data["query"]), torch.from_numpy(data["gallery"])
        pairs = ((0, 1), (0, 0), (1, 1))
        return lambda: utils.re_ranking(
            *(metrics.compute_distance_matrix(both[a], both[b]).numpy() for a, b in pairs)
        )
    if task == "features":
        weights = folder / "torchreid.pth"
        torch.save(models.build_model("resnet50", 1, pretrained=False).state_dict(), weights)
        extract = utils.FeatureExtractor("resnet50", str(weights), SIZE, device="cpu", verbose=False)
        paths = image_paths(folder)
        starts = range(0, len(paths), BATCH)
        return lambda: [extract(paths[start : start + BATCH]) for start in starts]
    model = models.build_model("resnet50", CLASSES, loss="triplet", pretrained=False).train()
    loaders = SimpleNamespace(train_loader=[], test_loader={}, num_train_pids=CLASSES)
    trained = engine.ImageTripletEngine(loaders, model, adam(model), use_gpu=False)
    images, pids = batch()
    return lambda: trained.forward_backward({"img": images, "pid": pids})


def fastreid(task: str, data: Data, folder: Path) -> Work:
    from fastreid.config import get_cfg
    from fastreid.data.transforms import build_transforms
    from fastreid.evaluation.rank import evaluate_rank
    from fastreid.evaluation.rerank import re_ranking
    from fastreid.modeling.meta_arch import build_model
    from fastreid.utils.compute_dist import build_dist
    from fastreid.utils.events import EventStorage
    from PIL import Image

    if task == "evaluation":
        query, gallery, *labels = labelled(data)

        def evaluate() -> Any:
            distances = build_dist(torch.from_numpy(query), torch.from_numpy(gallery))
            return np.mean(evaluate_rank(distances, *labels)[1])

        return evaluate
    if task == "reranking":
        both = torch.from_numpy(data["query"]), torch.from_numpy(data["gallery"])
        return lambda: re_ranking(*(build_dist(both[a], both[b]) for a, b in ((0, 1), (0, 0), (1, 1))))
    settings = get_cfg()
    heads, losses = {"NUM_CLASSES": CLASSES, "WITH_BNNECK": True}, ("CrossEntropyLoss", "TripletLoss")
    options = {"DEVICE": "cpu", "BACKBONE.LAST_STRIDE": 2, "BACKBONE.PRETRAIN": False, "LOSSES.NAME": losses}
    options |= {"LOSSES.CE.EPSILON": 0.1, **{f"HEADS.{key}": value for key, value in heads.items()}}
    settings.merge_from_list([part for key, value in options.items() for part in (f"MODEL.{key}", value)])
    model = build_model(settings)
    if task == "features":
        model.eval()
        prepare, paths = build_transforms(settings, is_train=False), image_paths(folder)

        def extract() -> None:
            with torch.no_grad():
                for start in range(0, len(paths), BATCH):
                    pictures = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
                    model(torch.stack([prepare(picture) for picture in pictures]))

        return extract
    model.train()
    images, pids = batch()

    def step() -> None:
        with EventStorage(0):  # where its losses log the accuracy
            losses = model({"images": images.clone(), "targets": pids})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    optimizer = adam(model)
    return step


def oml(task: str, data: Data, folder: Path) -> Work:
    from oml.const import SEQUENCE_COLUMN
    from oml.datasets import ImageBaseDataset
    from oml.inference import inference
    from oml.metrics import calc_retrieval_metrics_rr
    from oml.models import ResnetExtractor
    from oml.retrieval import RetrievalResults

    if task == "evaluation":
        from oml.interfaces.datasets import ILabeledDataset

        class Labels(ILabeledDataset):
            def __init__(self, side: str) -> None:
                self.pids = data[f"{side}_pids"]
                self.extra_data = {SEQUENCE_COLUMN: list(data[f"{side}_pids"] * 100 + data[f"{side}_camids"])}

            def __len__(self) -> int:
                return len(self.pids)

            def __getitem__(self, item: int) -> dict[str, Any]:
                raise NotImplementedError

            def get_labels(self) -> np.ndarray:
                return self.pids

            def get_label2category(self) -> None:
                return None

        query, gallery = torch.from_numpy(data["query"]), torch.from_numpy(data["gallery"])
        labels = Labels("query"), Labels("gallery")
        count = len(gallery)

        def evaluate() -> Any:
            found = RetrievalResults.from_embeddings_qg(query, gallery, *labels, n_items=count)
            tops = {"cmc_top_k": (1, 5, 10), "precision_top_k": (), "map_top_k": (count,)}
            return calc_retrieval_metrics_rr(found, verbose=False, **tops)["map"][count]

        return evaluate
    if task == "reranking":
        raise NotImplementedError("has no k-reciprocal re-ranking")
    model = ResnetExtractor(None, "resnet50", gem_p=None, remove_fc=True, normalise_features=True)
    if task == "features":
        from oml.transforms.images.torchvision import get_normalisation_torch
        from torchvision.transforms import Compose, Resize

        prepare = Compose([Resize(SIZE), get_normalisation_torch()])  # its own resize makes squares
        dataset = ImageBaseDataset([Path(path) for path in image_paths(folder)], transform=prepare)
        return lambda: inference(model.eval(), dataset, batch_size=BATCH)
    raise NotImplementedError("trains with one loss; no classifier")


def adam(model: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=3e-4)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH, 3, *SIZE), torch.arange(BATCH) // 4


def training_step(model: torch.nn.Module, loss: Callable[[Any, torch.Tensor], torch.Tensor]) -> Work:
    images, pids = batch()
    optimizer = adam(model.to(memory_format=torch.channels_last))
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), pids).backward()
        optimizer.step()

    return step


def labelled(data: Data) -> list[np.ndarray]:
    return [data[name] for name in NAMES]


NAMES = ("query", "gallery", "query_pids", "gallery_pids", "query_camids", "gallery_camids")
PEERS = {"rga_reid": ours, "torchreid": torchreid, "fastreid": fastreid, "oml": oml}


def image_paths(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.jpg")))


def run_task(peer: str, task: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Return the version of a package, the seconds of each repetition, and the mAP of an evaluation."""
    torch.manual_seed(0)
    data = dict(np.load(folder / f"{task}.npz")) if task in SHAPES else {}
    answer: dict[str, Any] = {"version": importlib.metadata.version(PACKAGES[peer])}
    try:
        work = PEERS[peer](task, data, folder)
    except NotImplementedError as error:
        return answer | {"left_out": str(error)}
    seconds, value = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    if task == "evaluation":
        answer["mAP"] = float(value)
    return answer | {"seconds": seconds[1:]}


def make_data(folder: Path, shapes: dict[str, tuple[int, ...]], images: int) -> None:
    """Write features of clusters, one for each identity, and JPEG files."""
    from pictures import draw

    rng = np.random.default_rng(0)
    for task, (queries, items, columns, identities, cameras) in shapes.items():
        centres = rng.standard_normal((identities, columns))
        arrays: Data = {}
        for side, count in (("query", queries), ("gallery", items)):
            pids = arrays[f"{side}_pids"] = rng.integers(0, identities, count)
            arrays[f"{side}_camids"] = rng.integers(0, cameras, count)
            rows = centres[pids] + 4 * rng.standard_normal((count, columns))
            arrays[side] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        np.savez(folder / f"{task}.npz", **arrays)
    draw(folder, images)


def call(python: str, peer: str, task: str, folder: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Run a task of a package in a process."""
    words = [python, __file__, "--run", peer, task, str(folder), str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{peer}, {task}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        peer, task, folder, repeats = sys.argv[2:]
        with contextlib.redirect_stdout(sys.stderr):
            answer = run_task(peer, task, Path(folder), int(repeats))
        print(json.dumps(answer))
        return
    from rga_reid.experiments.benchmark import describe_machine, describe_options
    from rga_reid.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="torchreid, fastreid, oml"
    )
    parser.add_argument("--tasks", nargs="+", default=[*SHAPES, "features", "step"])
    parser.add_argument("--turns", type=int, default=3, help="processes of each package and task")
    parser.add_argument(
        "--repeats", type=int, default=1, help="repetitions in a process, after one that warms up"
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small data, to see that it runs")
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    pythons = {"rga_reid": sys.executable, **dict(pair.split("=", 1) for pair in options.peer)}
    results: list[dict[str, Any]] = []
    print("| task | package | version | seconds | × rga_reid | mAP |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, QUICK if options.quick else SHAPES, 8 if options.quick else options.images)
        for task in options.tasks:
            answers: dict[str, list[dict[str, Any]]] = {peer: [] for peer in pythons}
            for _ in range(options.turns):
                for peer, python in pythons.items():
                    if not any("left_out" in answer for answer in answers[peer]):
                        answers[peer].append(
                            call(python, peer, task, folder, options.repeats, options.threads)
                        )
            base = median(second for answer in answers["rga_reid"] for second in answer["seconds"])
            for peer, given in answers.items():
                row = {"task": task, "package": PACKAGES[peer], "version": given[0]["version"]}
                if "left_out" in given[0]:
                    row["left_out"] = given[0]["left_out"]
                else:
                    seconds = median(second for answer in given for second in answer["seconds"])
                    row |= {"seconds": round(seconds, 3), "ratio": round(seconds / base, 2)}
                    row |= {"mAP": given[0]["mAP"]} if "mAP" in given[0] else {}
                results.append(row)
                cells = [
                    row.get(key, "") for key in ("task", "package", "version", "seconds", "ratio", "mAP")
                ]
                print("| " + " | ".join(map(str, cells)) + " |", row.get("left_out", ""), flush=True)
    if options.out:
        asked = describe_options(options, "peer")
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    main()
