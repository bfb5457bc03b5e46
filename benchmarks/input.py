"""Measure how fast training batches are made: from the cache of decoded images, and from JPEG files.

Four ways to a batch of the released recipe (P x K images at 256x128), side by side on the same made-up JPEG
files of 128x64 pixels, as Market-1501's are:

- ``uint8``: from the warm cache, uint8, ready for the device, which augments it.
- ``cpu``: the same, and augmented on the CPU, where that is the device.
- ``per image``: a DataLoader whose two workers read, augment and normalise one image at a time, with PIL and
  torchvision.
- ``decoding``: reading and decoding the files, in one thread, and nothing else.

    python benchmarks/input.py --out input.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import draw
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from rga_reid.data import cached_images
from rga_reid.experiments.benchmark import describe_machine, run_interleaved
from rga_reid.files import write_json
from rga_reid.training import IdentitySampler
from rga_reid.training.augmentation import Augmentation, step_generator
from rga_reid.training.datamodule import DecodedImages, ResumableLoader

SIZE = (256, 128)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PER_IDENTITY = 16


class PerImage(Dataset[Tensor]):
    """One JPEG file at a time, with the released recipe's augmentation."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.crop = v2.RandomCrop(SIZE)
        self.finish = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
                v2.RandomErasing(0.5, scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        picture = Image.open(self.paths[row]).convert("RGB")
        if torch.rand(()) < 0.5:
            enlarged = [round(1.125 * side) for side in SIZE]
            return self.finish(self.crop(v2.functional.resize(picture, enlarged)))
        return self.finish(v2.functional.resize(picture, list(SIZE)))


def ways(paths: list[str], folder: Path) -> dict[str, Callable[[], int]]:
    """Each runs one epoch and returns the number of images that it made."""
    pids = np.arange(len(paths)) // PER_IDENTITY
    decoded = DecodedImages(
        cached_images(paths, SIZE, where="file", beside=folder), np.arange(len(paths)), pids
    )
    augmentation = Augmentation()

    def sampler() -> IdentitySampler:
        return IdentitySampler(pids, 16, 4, epoch="images")

    def uint8() -> int:
        return sum(len(images) for images, _ in ResumableLoader(decoded, sampler()))

    def cpu() -> int:
        batches = enumerate(ResumableLoader(decoded, sampler()))
        return sum(
            len(augmentation(images, SIZE, MEAN, STD, step_generator(step))) for step, (images, _) in batches
        )

    loader = DataLoader(PerImage(paths), batch_sampler=sampler(), num_workers=2, persistent_workers=True)

    def per_image() -> int:
        return sum(len(images) for images in loader)

    def decoding() -> int:
        return len([Image.open(path).convert("RGB").load() for path in paths])

    return {"uint8": uint8, "cpu": cpu, "per image": per_image, "decoding": decoding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2048, help="files to draw, a multiple of 256")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each way; the median counts")
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs = ways(draw(Path(name), options.images), Path(name))
        made = {way: run() for way, run in runs.items()}  # warms up, too
        seconds = run_interleaved(list(runs.values()), options.repeats, warm_up=False)
    rates = {way: made[way] / taken for way, taken in zip(runs, seconds, strict=True)}
    results: dict[str, Any] = {
        way: {"images_per_second": round(rate, 1), "of_per_image": round(rate / rates["per image"], 2)}
        for way, rate in rates.items()
    }
    print("| way | images/s | × per image |\n|---|---|---|")
    for way, row in results.items():
        print(f"| {way} | {row['images_per_second']:,.0f} | {row['of_per_image']:.1f} |")
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "images": options.images, "results": results})


if __name__ == "__main__":
    main()
