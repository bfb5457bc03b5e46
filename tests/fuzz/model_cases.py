"""Cases of checkpoints."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.harness import OLD, Case
from tests.fuzz.material import QUERY_IMAGES, Material
from tests.fuzz.mutations import VALUES, Draw, corrupt_bytes, corrupt_json, corrupt_tree, pick

#: Values for the configuration of a model.
CONFIGS = (
    [4096, 4096], [10**9, 10**9], [31, 31], [32.5, 32], ["32", "32"], [32], [32, 32, 32], 101, "rga", "pam",
    "nonlocal", "os.system", "rga_reid.files.atomic_file", [0, 0, 0], [1e-300] * 3, ["a"] * 3,
    {"class_path": "torch.nn.Linear", "init_args": {"out_features": 10**12}},
    {"class_path": "rga_reid.attention.RGA", "init_args": {"channel_ratio": 10**9}},
)  # fmt: skip


def checkpoints(draw: Draw, material: Material) -> Case:
    """Checkpoints of this program and of torchvision."""
    name = pick(draw, "model.safetensors", "model.ckpt", "resnet18.pth", "legacy.ckpt")
    old = material.read(name)
    header = name == "model.safetensors" and draw(st.booleans())
    content = corrupt_header(draw, old) if header else corrupt_bytes(draw, old)
    files: dict[str, Any] = {name: content, "o.json": OLD, "o.safetensors": OLD, "o.npz": OLD}
    valid = content == old
    if name == "resnet18.pth":
        return Case(["convert", name, "o.safetensors", "--size", "32", "32", "--overwrite"], files, valid)
    one, two = map(material.path, QUERY_IMAGES)
    command = pick(draw, "verify", "verify", "features", "query")
    words = {
        "verify": ["verify", one, two, "--json", "o.json"],
        "features": ["features", "--images", material.path("set/query"), "--out", "o.npz", "--overwrite"],
        "query": ["query", "--gallery", material.path("images"), "--image", one, "--csv", "o.json"],
    }[command]
    # the gallery was built with model.safetensors
    valid = valid and (command != "query" or name == "model.safetensors")
    return Case([*words, "--checkpoint", name], files, valid)


def corrupt_header(draw: Draw, content: bytes) -> bytes:
    """Corrupt the JSON header of a .safetensors file, or the model's configuration in it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if draw(st.booleans()):
        config = json.loads(header["__metadata__"]["rga_reid_model"])
        header["__metadata__"]["rga_reid_model"] = json.dumps(corrupt_tree(draw, config, (*VALUES, *CONFIGS)))
        text = json.dumps(header).encode()
    else:
        few = {key: header[key] for key in [*header][:6]}
        text = corrupt_json(draw, few)
        if draw(st.booleans()):
            text = json.dumps({**header, **corrupt_tree(draw, few)}).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
