"""Cases of data sets: images, CSV files, list files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fuzz.harness import LISTED, OLD, Case, Link
from tests.fuzz.material import QUERY_IMAGES, Material
from tests.fuzz.mutations import Draw, corrupt_bytes, corrupt_text, pick


def images(draw: Draw, material: Material) -> Case:
    """Image files, read by every command that reads images."""
    name = pick(draw, *sorted(material.images))
    content = corrupt_bytes(draw, material.images[name])
    image, model = f"images/0001_c1s1_000001_00{Path(name).suffix}", material.path("model.safetensors")
    load = ["--checkpoint", model]
    other, gallery = material.path(QUERY_IMAGES[0]), material.path("images")
    rows = [
        "path,pid,camid,split",
        f"{image},11,1,query",
        "set/bounding_box_test/0011_c2s1_000001_00.jpg,11,2,gallery",
    ]
    files: dict[str, Any] = {
        image: content,
        "set": Link(material.root / "set"),
        "own.csv": "\n".join(rows).encode(),
    }
    files |= dict.fromkeys(("o.json", "o.npz", "o.html"), OLD)
    words = {
        "data": ["data", "check", "own.csv", "--json", "report.json"],
        "test": ["test", *load, "--data.root", "own.csv", "--json", "o.json"],
        "verify": ["verify", image, other, *load, "--json", "o.json"],
        "features": ["features", *load, "--images", "images", "--out", "o.npz", "--overwrite"],
        "query": ["query", "--gallery", gallery, "--image", image, *load, "--html", "o.html"],
        "build": ["gallery", "build", "--images", "images", *load, "--gallery", "G"],
    }[pick(draw, "data", "data", "data", "verify", "features", "query", "build", "test")]
    valid, noisy = content == material.images[name], name.endswith(".tif")
    return Case(words, files, valid, LISTED, noisy=noisy)


def csv_sets(draw: Draw, material: Material) -> Case:
    """Data sets in CSV files."""
    text = material.read("set.csv").decode()
    content = corrupt_text(draw, text)
    files = {"own.csv": content, "set": Link(material.root / "set"), "report.json": OLD}
    check = ["data", "check", "own.csv", "--json", "report.json"]
    model = ["--checkpoint", material.path("model.safetensors"), "--data.root", "own.csv"]
    words = {
        "check": check,
        "fast": [*check, "--fast"],
        "test": ["test", *model, "--json", "report.json"],
        "build": ["gallery", "build", *model, "--gallery", "G"],
    }[pick(draw, "check", "check", "fast", "test", "build")]
    return Case(words, files, content == text.encode(), LISTED)


def list_files(draw: Draw, material: Material) -> Case:
    """Text files that list the images of a split."""
    files: dict[str, Any] = material.tree("set", "set")
    text = files["set/train.txt"]
    files |= {"set/train.txt": corrupt_text(draw, text.decode()), "report.json": OLD}
    words = ["data", "check", "set", "--dataset", material.path("lists.yaml"), "--json", "report.json"]
    return Case([*words, *pick(draw, [], ["--fast"])], files, files["set/train.txt"] == text, LISTED)
