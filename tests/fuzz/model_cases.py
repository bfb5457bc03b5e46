"""Cases of models and their runs: recipes, plans, checkpoints, reports."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.harness import OLD, Case, Link
from tests.fuzz.material import BOUND, PLAN, RECIPE, Material
from tests.fuzz.mutations import (
    PLAIN,
    Draw,
    spoiled_bytes,
    spoiled_json,
    spoiled_text,
    spoiled_tree,
    spoiled_yaml,
)


def recipes(draw: Draw, material: Material) -> Case:
    """Recipes of training."""
    content = spoiled_yaml(draw, RECIPE, draw(st.sampled_from(("tree", "tree", "text"))))
    valid = content == yaml.safe_dump(RECIPE, sort_keys=False).encode()
    files: dict[str, Any] = {"recipe.yaml": content, "set": Link(material.path("set")), "pipe": b""}
    words = ["train", "--config", "recipe.yaml", "--data.root", "set", "--out", "out"]
    words += BOUND
    if draw(st.booleans()):
        files["mine.yaml"] = b"base: recipe.yaml\nmodel: {depth: 18}\n"
        words[2] = "mine.yaml"
    return Case(words, files, valid, may_leave={"out/not_finite.pt": "the batch whose loss is no number"})


def plans(draw: Draw, material: Material) -> Case:
    """Plans of ablations; the runs of the valid one are finished, so that nothing is trained."""
    text = yaml.safe_dump(PLAN, sort_keys=False)
    files: dict[str, Any] = {f"runs/{name}": content for name, content in material.tree("runs").items()}
    recipe = material.read("recipe.yaml")
    files |= {"plan.yaml": text.encode(), "recipe.yaml": recipe, "o.json": OLD}
    spoiled = draw(st.sampled_from(("plan", "plan", "plan", "recipe", "kept", "error")))
    before = dict(files)
    if spoiled == "plan":
        files["plan.yaml"] = spoiled_yaml(draw, PLAN, draw(st.sampled_from(("tree", "tree", "text"))))
    elif spoiled == "recipe":
        files["recipe.yaml"] = spoiled_yaml(draw, RECIPE, "tree")
    elif spoiled == "kept":
        kept = ("base/seed-0/run", "other/seed-1/run", "base/seed-0/result", "measured")
        name = f"runs/{draw(st.sampled_from(kept))}.json"
        files[name] = spoiled_json(draw, json.loads(files[name]))
    else:  # a run that has failed
        files["runs/other/seed-1/error.txt"] = spoiled_text(draw, "no such attention\nmore\n")
        del files["runs/other/seed-1/result.json"]
    valid = all(
        content == before.get(name) or (name.endswith("json") and _same_json(content, before[name]))
        for name, content in files.items()
    )
    words = ["ablate", "--config", "plan.yaml", "--data.root", str(material.path("set")), "--out", "runs"]
    works_on = {"runs/plan.json": "what a report of the folder needs of the last plan"}
    return Case(
        [*words, "--only", "base", "--seed", "0", "--json", "o.json"], files, valid, works_on=works_on
    )


def checkpoints(draw: Draw, material: Material) -> Case:
    """Checkpoints, of this program and published."""
    name = draw(st.sampled_from(("model.safetensors", "model.ckpt", "resnet18.pth", "legacy.ckpt")))
    content = material.read(name)
    if name == "model.safetensors" and draw(st.booleans()):
        spoiled = _spoiled_header(draw, content)
    else:
        spoiled = spoiled_bytes(draw, content)
    files: dict[str, Any] = {name: spoiled, "o.json": OLD, "o.safetensors": OLD}
    valid = spoiled == content
    if name == "resnet18.pth":
        return Case(["convert", name, "o.safetensors", "--size", "32", "32", "--overwrite"], files, valid)
    one, two = (str(material.path(f"set/query/00{pid}_c1s1_000000_00.jpg")) for pid in (11, 12))
    command = draw(st.sampled_from(("verify", "verify", "features", "query")))
    if command == "verify":
        return Case(["verify", one, two, "--checkpoint", name, "--json", "o.json"], files, valid)
    if command == "features":
        words = [
            "features",
            "--checkpoint",
            name,
            "--images",
            str(material.path("set/query")),
            "--out",
            "o.npz",
        ]
        return Case([*words, "--overwrite"], {**files, "o.npz": OLD}, valid)
    gallery, same = str(material.path("pictures")), valid and name == "model.safetensors"
    return Case(
        ["query", "--gallery", gallery, "--image", one, "--checkpoint", name, "--csv", "o.json"], files, same
    )


def _spoiled_header(draw: Draw, content: bytes) -> bytes:
    """A .safetensors file whose header, JSON, or the model's configuration in it, is spoiled."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if draw(st.booleans()):
        config = json.loads(header["__metadata__"]["rga_reid_model"])
        header["__metadata__"]["rga_reid_model"] = json.dumps(spoiled_tree(draw, config, (*PLAIN, *_CONFIGS)))
        text = json.dumps(header).encode()
    else:
        few = {key: header[key] for key in [*header][:6]}
        text = spoiled_json(draw, few)
        if draw(st.booleans()):
            text = json.dumps({**header, **spoiled_tree(draw, few, PLAIN)}).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


_CONFIGS = (
    [4096, 4096], [10**9, 10**9], [31, 31], [32.5, 32], ["32", "32"], [32], [32, 32, 32], 101, "rga", "pam",
    "nonlocal",
    "os.system", "rga_reid.files.atomic_file", {"class_path": "torch.nn.Linear",
    "init_args": {"out_features": 10**12}},
    {"class_path": "rga_reid.attention.RGA", "init_args": {"channel_ratio": 10**9}}, [0, 0, 0], [1e-300] * 3,
    ["a"] * 3,
)  # fmt: skip


def reports(draw: Draw, material: Material) -> Case:
    """Folders of finished runs, and JSON files of metrics."""
    files: dict[str, Any] = {f"runs/{name}": content for name, content in material.tree("runs").items()}
    files |= {"test.json": material.read("test.json")}
    before = dict(files)
    name = draw(
        st.sampled_from(
            sorted(name for name in files if not name.endswith((".lock", "recipe.yaml", "run.json")))
        )
    )
    if name.endswith("json"):
        files[name] = spoiled_json(draw, json.loads(files[name]))
    elif name.endswith("csv"):
        files[name] = spoiled_text(draw, files[name].decode())
    else:
        files[name] = spoiled_bytes(draw, files[name])
    valid = all(
        files[key] == before[key] or (key.endswith("json") and _same_json(files[key], before[key]))
        for key in files
    )
    if draw(st.booleans()):
        stem = draw(
            st.sampled_from(
                ("a", "$x_$", "<script>alert(1)<|script>", "=1+1", "é\u202e", "\x1b[2J", "{{7}}", "\\frac{")
            )
        )
        files[f"{stem}.json"] = material.read("test.json")
        places = ["runs", "test.json", f"{stem}.json"]
    else:
        places = ["runs", "test.json"]
    more = draw(st.sampled_from(([], ["--baseline", "base"], ["--published", "market1501"], ["--no-photos"])))
    return Case(
        ["report", *places, "--out", "report", "--json", "o.json", *more], {**files, "o.json": OLD}, valid
    )


def _same_json(one: bytes, two: bytes) -> bool:
    try:
        return json.dumps(json.loads(one.decode())) == json.dumps(json.loads(two))  # else 0 equals false
    except ValueError:
        return False
