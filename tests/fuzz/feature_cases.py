"""Cases of features and what is computed from them: tables, archives, galleries, calibrations, metrics."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import strategies as st

from rga_reid.gallery.manifest import canonical_json
from tests.fuzz.arrays import corrupt_npy, corrupt_npz
from tests.fuzz.harness import CHANGED, LOCK, OLD, Case
from tests.fuzz.material import QUERY_IMAGES, Material
from tests.fuzz.mutations import Draw, corrupt_bytes, corrupt_json, corrupt_text, corrupt_tree, pick


def tables(draw: Draw, material: Material) -> Case:
    """Features in .npy files with their labels in CSV files."""
    files = {f"{side}.{kind}": material.read(f"{side}.{kind}") for side in "qg" for kind in ("npy", "csv")}
    name = pick(draw, "q.csv", "g.csv", "q.npy", "g.npy")
    old = files[name]
    files[name] = corrupt_text(draw, old.decode()) if name.endswith("csv") else corrupt_npy(draw, old)
    return evaluation_case(draw, files, "npy", files[name] == old)


def archives(draw: Draw, material: Material) -> Case:
    """Features in .npz files, stored and compressed."""
    packed = pick(draw, "", "_packed")
    files = {f"{side}.npz": material.read(f"{side}{packed}.npz") for side in "qg"}
    name = pick(draw, "g.npz", "q.npz")
    old = files[name]
    if draw(st.booleans()):
        content, valid = corrupt_npz(draw, old), False
    else:
        content = corrupt_bytes(draw, old)
        valid = content == old
    command = pick(draw, "evaluate", "evaluate", "evaluate", "evaluate", "build", "add")
    if command == "evaluate":
        return evaluation_case(draw, {**files, name: content}, "npz", valid)
    words, files = ["--features", "a.npz", "--gallery", "G"], {"a.npz": content}
    if command == "build":
        return Case(["gallery", "build", *words, "--index", pick(draw, "flat", "ivf")], files, valid)
    files |= material.tree("flat", "G")
    return Case(["gallery", "add", *words], files, valid, LOCK, works_on=CHANGED)


def evaluation_case(draw: Draw, files: dict[str, bytes], kind: str, valid: bool) -> Case:
    files = {**files, "o.json": OLD, "o.csv": OLD}
    sides = ["--query", f"q.{kind}", "--gallery", f"g.{kind}", "--json", "o.json"]
    command = pick(draw, "plain", "rerank", "protocol", "cameras", "expand", "euclidean", "calibrate")
    if command == "calibrate":
        return Case(["calibrate", *sides, "--false-match-rate", "0.1"], files, valid)
    more = {
        "plain": ["--per-query", "o.csv"],
        "rerank": ["--rerank"],
        "protocol": ["--protocol", "no_cameras"],
        "cameras": ["--protocol", pick(draw, "multi_query", "market1501", "cuhk03_classic")],
        "expand": ["--query-expansion"],
        "euclidean": ["--metric", "euclidean", "--average-precision", "trapezoid"],
    }[command]
    # the camera of one query is unknown, and re-ranking needs paths
    valid = valid and command != "cameras" and (command != "rerank" or kind == "npz")
    return Case(["evaluate", *sides, *more], files, valid)


def galleries(draw: Draw, material: Material) -> Case:
    """Galleries: any file corrupted, some with a manifest whose checksums match the corrupted content."""
    kind = pick(draw, "flat", "flat", "ivf", "hnsw", "images")
    files = material.tree(kind, "G")
    changed = dict(files)
    manifest = json.loads(files["G/manifest.json"])
    names = sorted(name for name in files if name not in ("G/lock", "G/manifest.json"))
    how = pick(draw, "bytes", "manifest", "sealed")
    if how == "bytes":
        name = pick(draw, "G/manifest.json", *names)
        changed[name] = corrupt_bytes(draw, files[name])
        if draw(st.integers(0, 9)) == 9:
            del changed[name]
    elif how == "manifest":
        changed["G/manifest.json"] = seal(corrupt_tree(draw, manifest))
    else:  # FAISS is not safe against crafted index files, see SECURITY.md
        name = pick(draw, *(name for name in names if "faiss" not in name))
        if name.endswith("npy"):
            changed[name] = corrupt_npy(draw, files[name])
        elif name.endswith("jsonl"):
            changed[name] = corrupt_text(draw, files[name].decode())
        else:
            changed[name] = corrupt_bytes(draw, files[name])
        if changed[name] != files[name]:
            update_checksum(manifest, name, changed[name])
            changed["G/manifest.json"] = seal(manifest)
    valid = changed == files
    files = {**changed, "a.npz": material.read("g.npz"), "o.json": OLD, "o.html": OLD}
    command = pick(draw, "info", "check", "remove", "add", "compact", "query")
    gallery = ["--gallery", "G", "--json", "o.json"]
    if command == "query":
        words = ["query", *gallery, "--image", material.path(QUERY_IMAGES[0]), "--where", "pid != 3"]
        words += ["--checkpoint", material.path("model.safetensors"), "--html", "o.html"]
        return Case(words, files, valid and kind == "images")
    more = {"remove": ["--pid", "1"], "add": ["--features", "a.npz"]}.get(command, [])
    valid = valid and (command != "add" or kind != "images")
    works_on = CHANGED if command in ("add", "remove", "compact") else {}
    return Case(["gallery", command, *gallery, *more], files, valid, LOCK, works_on)


def seal(manifest: Any) -> bytes:
    """Return a manifest with its own checksum."""
    if not isinstance(manifest, dict):
        return json.dumps(manifest).encode()
    return canonical_json({key: value for key, value in manifest.items() if key != "sha256"})


def update_checksum(manifest: Any, name: str, content: bytes) -> None:
    """Write the size and the checksum of a changed file into a manifest."""
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if name.startswith("G/removals"):
        manifest["removals"] |= record
        return
    _, _, segment, file = name.split("/")
    for one in manifest["segments"]:
        if one["name"] == segment:
            one["files"][file] = record


def calibrations(draw: Draw, material: Material) -> Case:
    """JSON files of ``calibrate``."""
    value = pick(draw, json.loads(material.read("calibration.json")), {"threshold": 0.5})
    content = corrupt_json(draw, value)
    words = ["verify", *map(material.path, QUERY_IMAGES), "--checkpoint", material.path("model.safetensors")]
    words += ["--calibration", "c.json", "--json", "o.json"]
    return Case(words, {"c.json": content, "o.json": OLD}, content == json.dumps(value).encode())


def reports(draw: Draw, material: Material) -> Case:
    """JSON files of metrics, some with odd names."""
    metrics = material.read("test.json")
    content = corrupt_json(draw, json.loads(metrics))
    name = pick(
        draw, "a", "$x_$", "<script>alert(1)<|script>", "=1+1", "é\u202e", "\x1b[2J", "{{7}}", "\\frac{"
    )
    files = {f"{name}.json": metrics, "b.json": content, "o.json": OLD}
    more = pick(draw, [], ["--baseline", "b"], ["--published", "market1501"], ["--no-photos"])
    words = ["report", f"{name}.json", "b.json", "--out", "report", "--json", "o.json", *more]
    return Case(words, files, content == metrics)
