"""Cases of data sets: images, CSV files, cards with their list files, MATLAB files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.harness import LISTED, OLD, Case, Link
from tests.fuzz.material import CUHK_CARD, LISTS_CARD, NAMES_CARD, Material
from tests.fuzz.mutations import Draw, spoiled_bytes, spoiled_text, spoiled_yaml


def images(draw: Draw, material: Material) -> Case:
    """Image files."""
    name = draw(st.sampled_from(sorted(material.images)))
    return replace(_image_case(draw, material, name), noisy=name.endswith(".tif"))  # of libtiff


def _image_case(draw: Draw, material: Material, name: str) -> Case:
    content = spoiled_bytes(draw, material.images[name])
    valid = content == material.images[name]
    suffix = Path(name).suffix
    image, model = f"images/0001_c1s1_000001_00{suffix}", str(material.path("model.safetensors"))
    if suffix == ".pnm":
        image = "images/a.ppm"
    files: dict[str, Any] = {image: content, "set": Link(material.path("set"))}
    other = str(material.path("set/query/0011_c1s1_000000_00.jpg"))
    command = draw(st.sampled_from(("data", "data", "data", "verify", "features", "query", "build", "test")))
    if command in ("data", "test"):
        lines = [
            "path,pid,camid,split",
            f"{image},11,1,query",
            "set/bounding_box_test/0011_c2s1_000001_00.jpg,11,2,gallery",
        ]
        files["own.csv"] = "\n".join(lines).encode()
        if command == "data":
            return Case(["data", "check", "own.csv", "--json", "report.json"], files, valid, LISTED)
        return Case(
            ["test", "--checkpoint", model, "--data.root", "own.csv", "--json", "o.json"],
            {**files, "o.json": OLD},
            valid,
        )
    if command == "verify":
        return Case(
            ["verify", image, other, "--checkpoint", model, "--json", "o.json"],
            {**files, "o.json": OLD},
            valid,
        )
    if command == "features":
        words = ["features", "--checkpoint", model, "--images", "images", "--out", "o.npz", "--overwrite"]
        return Case(words, {**files, "o.npz": OLD}, valid)
    if command == "query":
        words = [
            "query",
            "--gallery",
            str(material.path("pictures")),
            "--image",
            image,
            "--checkpoint",
            model,
        ]
        return Case([*words, "--html", "o.html"], {**files, "o.html": OLD}, valid)
    words = ["gallery", "build", "--images", "images", "--checkpoint", model, "--gallery", "G"]
    return Case(words, files, valid)


def csv_sets(draw: Draw, material: Material) -> Case:
    """A data set of one's own in a CSV file."""
    text = material.path("set.csv").read_text()
    content = spoiled_text(draw, text)
    files = {"own.csv": content, "set": Link(material.path("set")), "report.json": OLD}
    valid = content == text.encode()
    command = draw(st.sampled_from(("check", "check", "fast", "card", "test", "build")))
    if command == "test":
        words = ["test", "--checkpoint", str(material.path("model.safetensors")), "--data.root", "own.csv"]
        return Case([*words, "--json", "report.json"], files, valid)
    if command == "build":
        words = [
            "gallery",
            "build",
            "--data.root",
            "own.csv",
            "--checkpoint",
            str(material.path("model.ckpt")),
        ]
        return Case([*words, "--gallery", "G"], files, valid)
    more = {"check": [], "fast": ["--fast"], "card": ["--dataset", str(material.path("names.yaml"))]}[command]
    return Case(["data", "check", "own.csv", "--json", "report.json", *more], files, valid, LISTED)


def cards(draw: Draw, material: Material) -> Case:
    """Data set cards, and the list files that they name."""
    name, value = draw(st.sampled_from((("names", NAMES_CARD), ("lists", LISTS_CARD))))
    files: dict[str, Any] = {"set": Link(material.path("set"))}
    text = yaml.safe_dump(value, sort_keys=False)
    how = draw(
        st.sampled_from(
            ("tree", "tree", "text", "pattern") if name == "names" else ("tree", "text", "list", "list")
        )
    )
    content = text.encode()
    if how == "list":
        files = _copied_set(material)
        listing = files["set/train.txt"]
        files["set/train.txt"] = spoiled_text(draw, listing.decode())
        valid = files["set/train.txt"] == listing
    else:
        content = spoiled_yaml(draw, value, "text" if how == "text" else "tree")
        if how == "pattern":
            content = yaml.safe_dump({**value, "pattern": draw(st.sampled_from(_PATTERNS))}).encode()
        valid = content == text.encode()
    command = draw(st.sampled_from(("check", "fast", "test", "train")))
    files |= {"card.yaml": content, "report.json": OLD}
    if command == "test" and name == "names":
        words = ["test", "--checkpoint", str(material.path("model.safetensors")), "--data.root", "set"]
        return Case([*words, "--data.dataset", "card.yaml", "--json", "report.json"], files, valid)
    more = ["--fast"] if command == "fast" else []
    may_change = {**LISTED, "set/labeled": "pictures are unpacked once"}
    return Case(
        ["data", "check", "set", "--dataset", "card.yaml", "--json", "report.json", *more],
        files,
        valid,
        may_change,
    )


_PATTERNS = (
    "(", "[[a]", "a{99999999999}", "(?P<pid>", r"(?P<pid>.*)", r"(?P<pid>.*)(?P<pid>.)",
    r"(?P<pid>\d+)(?P<x>.*)",
    "(" * 2000 + ")" * 2000, r"(?P<pid>\d+)(?i)_c.*", r"(?P<pid>\d*)(?P<camid>\d*).*", r"(?P<pid>٣)?.*", "*",
    "(?P<pid>a)|.*",
    r"(?P<pid>\d+)_c(?P<camid>\d).*|\p", "(?P<pid>[a-\\d])", "(?P<pid>" + "9?" * 5000 + ").*", "\\",
    "(?<=a+)(?P<pid>b)",
)  # fmt: skip


def _copied_set(material: Material) -> dict[str, Any]:
    return {f"set/{name}": content for name, content in material.tree("set").items()}


def cuhk03(draw: Draw, material: Material) -> Case:
    """MATLAB files: the pictures and the protocol of CUHK03, and a card for them."""
    protocol = material.read(draw(st.sampled_from(("cuhk/protocol.mat", "cuhk/packed.mat"))))
    pictures, card = material.read("cuhk/cuhk-03.mat"), yaml.safe_dump(CUHK_CARD, sort_keys=False).encode()
    which = draw(st.sampled_from(("protocol", "pictures", "card")))
    files: dict[str, Any] = {"set/protocol.mat": protocol, "set/cuhk-03.mat": pictures, "card.yaml": card}
    name = {"protocol": "set/protocol.mat", "pictures": "set/cuhk-03.mat", "card": "card.yaml"}[which]
    content = spoiled_yaml(draw, CUHK_CARD, "tree") if which == "card" else spoiled_bytes(draw, files[name])
    valid = content == files[name]
    words = ["data", "check", "set", "--dataset", "card.yaml", "--json", "report.json"]
    return Case(words, {**files, name: content}, valid, {**LISTED, "set/": "pictures are unpacked once"})
