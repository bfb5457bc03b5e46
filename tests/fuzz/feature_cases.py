"""Cases of features and of what is made of them: tables, archives, galleries, calibrations."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import strategies as st

from rga_reid.gallery.manifest import canonical_json
from tests.fuzz.arrays import spoiled_npy, spoiled_npz
from tests.fuzz.harness import CHANGED, LOCK, OLD, Case
from tests.fuzz.material import Material
from tests.fuzz.mutations import PLAIN, Draw, spoiled_bytes, spoiled_json, spoiled_text, spoiled_tree


def tables(draw: Draw, material: Material) -> Case:
    """Features in .npy files with their labels in CSV files."""
    files: dict[str, Any] = {
        f"{side}.{kind}": material.read(f"{side}.{kind}") for side in "qg" for kind in ("npy", "csv")
    }
    name = draw(st.sampled_from(("q.csv", "g.csv", "q.npy", "g.npy")))
    content = (
        spoiled_text(draw, files[name].decode()) if name.endswith("csv") else spoiled_npy(draw, files[name])
    )
    valid = content == files[name]
    return _evaluated(draw, {**files, name: content}, "npy", valid)


def archives(draw: Draw, material: Material) -> Case:
    """Features in .npz files, stored and compressed."""
    packed = draw(st.sampled_from(("", "_packed")))
    files: dict[str, Any] = {f"{side}.npz": material.read(f"{side}{packed}.npz") for side in "qg"}
    name = draw(st.sampled_from(sorted(files)))
    if draw(st.booleans()):
        content, valid = spoiled_npz(draw, files[name]), False
    else:  # the simplest case is one that is not spoiled
        content = spoiled_bytes(draw, files[name])
        valid = content == files[name]
    if draw(st.sampled_from((False, False, True))):
        command = draw(st.sampled_from(("build", "add")))
        if command == "build":
            index = draw(st.sampled_from(("flat", "ivf")))
            return Case(
                ["gallery", "build", "--features", "a.npz", "--gallery", "G", "--index", index],
                {"a.npz": content},
                valid,
            )
        gallery = {f"G/{path}": data for path, data in material.tree("flat").items()}
        return Case(
            ["gallery", "add", "--features", "a.npz", "--gallery", "G"],
            {"a.npz": content, **gallery},
            valid,
            LOCK,
            works_on=CHANGED,
        )
    return _evaluated(draw, {**files, name: content}, "npz", valid)


def _evaluated(draw: Draw, files: dict[str, Any], kind: str, valid: bool) -> Case:
    files = {**files, "o.json": OLD, "o.csv": OLD}
    sides = ["--query", f"q.{kind}", "--gallery", f"g.{kind}", "--json", "o.json"]
    command = draw(st.sampled_from(("plain", "rerank", "protocol", "expand", "euclidean", "calibrate")))
    if command == "calibrate":
        return Case(["calibrate", *sides, "--false-match-rate", "0.1"], files, valid)
    more = {
        "plain": ["--per-query", "o.csv"],
        "rerank": ["--rerank"],
        "protocol": [
            "--protocol",
            draw(st.sampled_from(("no_cameras", "multi_query", "market1501", "cuhk03_classic"))),
        ],
        "expand": ["--query-expansion"],
        "euclidean": ["--metric", "euclidean", "--average-precision", "trapezoid"],
    }[command]
    if command == "protocol" and "no_cameras" not in more:
        valid = False  # one camera is unknown
    if command == "rerank":
        valid = valid and kind == "npz"
    return Case(["evaluate", *sides, *more], files, valid)


def galleries(draw: Draw, material: Material) -> Case:
    """Galleries: any byte of any file; or with a manifest that is consistent with the damage."""
    kind = draw(st.sampled_from(("flat", "flat", "ivf", "hnsw", "pictures")))
    files = material.tree(kind)
    how = draw(st.sampled_from(("bytes", "manifest", "sealed", "none")))
    manifest = json.loads(files["manifest.json"])
    changed = dict(files)
    if how == "bytes":
        name = draw(st.sampled_from(sorted(name for name in files if name != "lock")))
        changed[name] = spoiled_bytes(draw, files[name])
        if draw(st.sampled_from((False,) * 9 + (True,))):
            del changed[name]
    elif how == "manifest":
        spoiled = spoiled_tree(draw, manifest, PLAIN)
        changed["manifest.json"] = _seal(spoiled)
    elif how == "sealed":
        # FAISS reads index files, and is not proof against intent: see SECURITY.md
        name = draw(
            st.sampled_from(
                sorted(
                    name for name in files if name not in ("lock", "manifest.json") and "faiss" not in name
                )
            )
        )
        changed[name] = _spoiled_part(draw, name, files[name])
        changed["manifest.json"] = _seal(_recorded(manifest, name, changed[name]))
    valid = changed == files or (how == "sealed" and changed[name] == files[name])
    case_files: dict[str, Any] = {f"G/{name}": content for name, content in changed.items()}
    case_files |= {"a.npz": material.read("g.npz"), "o.json": OLD}
    command = draw(st.sampled_from(("info", "verify", "remove", "add", "compact", "query")))
    gallery = ["--gallery", "G", "--json", "o.json"]
    if command == "query":
        image = str(material.path("set/query/0011_c1s1_000000_00.jpg"))
        more = [
            "--checkpoint",
            str(material.path("model.safetensors")),
            "--where",
            "pid != 3",
            "--html",
            "o.html",
        ]
        return Case(["query", *gallery, "--image", image, *more], case_files, valid and kind == "pictures")
    more = {"remove": ["--pid", "1"], "add": ["--features", "a.npz"]}.get(command, [])
    valid = valid and (command != "add" or kind != "pictures")
    works_on = CHANGED if command in ("add", "remove", "compact") else {}
    return Case(["gallery", command, *gallery, *more], case_files, valid, LOCK, works_on)


def _seal(manifest: Any) -> bytes:
    return (
        canonical_json({key: value for key, value in manifest.items() if key != "sha256"})
        if isinstance(manifest, dict)
        else json.dumps(manifest).encode()
    )


def _recorded(manifest: Any, name: str, content: bytes) -> Any:
    """The manifest with the size and checksum of a changed file."""
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if name.startswith("removals"):
        manifest["removals"] |= record
        return manifest
    _, segment, file = name.split("/")
    for one in manifest["segments"]:
        if one["name"] == segment:
            one["files"][file] = record
    return manifest


def _spoiled_part(draw: Draw, name: str, content: bytes) -> bytes:
    if name.endswith("npy"):
        return spoiled_npy(draw, content)
    if name.endswith("jsonl"):
        return spoiled_text(draw, content.decode())
    return spoiled_bytes(draw, content)


def calibrations(draw: Draw, material: Material) -> Case:
    """The JSON of ``calibrate``."""
    value = json.loads(material.read("calibration.json"))
    short = {**value, "histogram": {}}
    content = spoiled_json(draw, draw(st.sampled_from((short, {"threshold": 0.5}))))
    one, two = (str(material.path(f"set/query/00{pid}_c1s1_000000_00.jpg")) for pid in (11, 12))
    words = [
        "verify",
        one,
        two,
        "--checkpoint",
        str(material.path("model.safetensors")),
        "--calibration",
        "c.json",
    ]
    valid = content in (json.dumps(short).encode(), json.dumps({"threshold": 0.5}).encode())
    return Case([*words, "--json", "o.json"], {"c.json": content, "o.json": OLD}, valid)
