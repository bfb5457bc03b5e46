"""Cases of command lines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from tests.fuzz.harness import LISTED, OLD, Case
from tests.fuzz.material import BOUND, Material
from tests.fuzz.mutations import Draw, times


def words(draw: Draw, material: Material) -> Case:
    """Command lines: valid ones with words left out, doubled, put in or changed."""
    model, gallery, image, folder, features = "model.safetensors", "pictures", "image.jpg", "images", "g.npz"
    sides = ["--query", "q.npz", "--gallery", "g.npz"]
    valid = (
        ["evaluate", *sides, "--max-rank", "10", "--metric", "cosine", "--json", "o.json"],
        ["evaluate", *sides, "--rerank", "--per-query", "o.parquet", "--average-precision", "trapezoid"],
        ["calibrate", *sides, "--false-match-rate", "0.1", "--plot", "o.png"],
        ["verify", image, image, "--checkpoint", model, "--threshold", "0.5", "--device", "cpu"],
        ["query", "--gallery", gallery, "--checkpoint", model, "--image", image, "--top-k", "3", "--where",
        "pid != 3 and camid in (1, 2)"],
        ["query", "--gallery", gallery, "--checkpoint", model, "--image", folder, "--rerank", "--shortlist",
        "12", "--multi",
        "--html", "o.html"],
        ["query", "--gallery", gallery, "--checkpoint", model, "--image", image, "--exclude-camera", "1",
        "--threshold", "-1",
        "--json", "o.jsonl"],
        ["features", "--checkpoint", model, "--images", folder, "--out", "o.npz", "--batch-size", "2"],
        ["gallery", "build", "--features", features, "--gallery", "G", "--index", "hnsw", "--hnsw-m", "8"],
        ["gallery", "build", "--images", folder, "--checkpoint", model, "--gallery", "G", "--batch-size",
        "2"],
        ["gallery", "info", "--gallery", "ivf", "--json", "o.json"],
        ["gallery", "verify", "--gallery", "ivfpq"],
        ["data", "check", "set", "--dataset", "names.yaml", "--fast"],
        ["test", "--checkpoint", model, "--data.root", "set", "--batch-size", "4", "--json", "o.json"],
        ["convert", "resnet18.pth", "o.safetensors", "--size", "32", "32", "--last-stride", "1"],
        ["export", "--checkpoint", model, "--format", "safetensors", "--out", "o.safetensors"],
        ["explain", "--image", image, "--checkpoint", model, "--out", "o.html", "--seed", "1"],
        ["report", "runs", "--out", "report", "--title", "T", "--baseline", "base"],
        ["train", "--config", "recipe.yaml", "--data.root", "set", "--out", "run", "--model.last_stride",
        "2"],
        ["ablate", "--config", "plan.yaml", "--data.root", "set", "--only", "base", "--seed", "0", "--json",
        "o.json"],
        ["demo", "--help"], ["--help"], ["--version"], ["query", "--help"], ["gallery", "add", "--help"],
    )  # fmt: skip
    chosen = draw(st.sampled_from(valid))
    words = list(chosen)
    for _ in range(times(draw)):
        _spoil_words(draw, words)
    same = words == chosen
    if words[:1] == ["demo"] and "--help" not in words:
        words.append("--unknown")  # it would run for minutes
    elif words[:1] == ["train"]:
        words += [*BOUND, *_SMALL]
    elif words[:1] == ["ablate"]:
        words += ["--out", "runs"]  # whose runs are finished: elsewhere it would train
    files = _inputs(material, chosen)
    return Case(words, {"o.json": OLD, **files}, same, LISTED, {**_free(words, files), **_WORKED_ON})


#: By the words that name them: what lies in the folder of a case.
_FILES = {
    **{name: (name,) for name in ("model.safetensors", "pictures", "ivf", "ivfpq", "q.npz", "g.npz", "set")},
    **{name: (name,) for name in ("names.yaml", "resnet18.pth", "recipe.yaml", "runs")},
    "plan.yaml": ("plan.yaml", "recipe.yaml", "runs"),
    "image.jpg": ("image.jpg",),
    "images": ("images",),
}
_PLACES = {"image.jpg": "set/query/0011_c1s1_000000_00.jpg", "images": "set/query"}
_WORKED_ON = {"runs/plan.json": "what a report of the folder needs of the last plan"}
#: A training whose recipe was left out would be of a ResNet-50.
_SMALL = ["--model.depth", "18", "--model.size", "[32, 32]", "--data.identities_per_batch", "2"]
_INSIDE = {
    "set": "set/train.txt",
    "images": "images/0011_c1s1_000000_00.jpg",
    **{name: f"{name}/manifest.json" for name in ("pictures", "ivf", "ivfpq")},
    "runs": "runs/base/seed-0/result.json",
    "plan.yaml": "recipe.yaml",
}
_OUTPUTS = {"--json", "--csv", "--html", "--plot", "--per-query", "--out"}


def _inputs(material: Material, words: Sequence[str]) -> dict[str, bytes]:
    """Copies of what a line needs: a word in the wrong place may make an output of an input."""
    files: dict[str, bytes] = {}
    for name in sorted({name for word in words for name in _FILES.get(word, ())}):
        place = _PLACES.get(name, name)
        if material.path(place).is_dir():
            files |= {f"{name}/{below}": content for below, content in material.tree(place).items()}
        else:
            files[name] = material.read(place)
    return files


def _free(words: Sequence[str], files: Iterable[str]) -> dict[str, str]:
    """Files that a line reads no more, for it names them as outputs alone: they are replaced, as asked."""
    read = {
        os.path.normpath(word.rpartition("=")[2])
        for before, word in zip(["", *words], words, strict=False)
        if before not in _OUTPUTS and word.partition("=")[0] not in _OUTPUTS
    }
    needed = {inner for word in read for inner in (word, *_FILES.get(word, ()))}
    why = "named as an output alone"
    return {file: why for file in files if file not in needed and file.partition("/")[0] not in needed}


_WORDS = (
    "", " ", "-", "--", "---", "-h", "--help", "--version", "x", "0", "-1", "1", "2.5", "1e9", "nan", "inf",
    "9" * 30, "9" * 5000,
    str(2**31), str(2**63), str(10**12), "true", "null", "[]", "{}", "[1, 2]", "{a: 1}", "&a [*a]",
    "!!python/object/apply:os.system [x]",
    "[" * 2000, "/dev/null", "/dev/zero", "pipe", ".", "a\nb", "\x1b[2J", "💥", "\udcff", "\udcff.json", "é",
    "a" * 3000, "=",
    "./g.npz", "set/../q.npz",
    "--json", "--json=", "--json=o.json", "--out", "--device", "meta", "cuda:99", "cpu:7", "mps", "vulkan",
    "--seed", "--config",
    "--print_config", "--unknown", "--Top-k", "--topk", "demo", "tset", "market1501/rga_scc", "o.json/x",
    "no/such/folder/o.json",
    "pid ==", "camid == 3 or " * 900 + "pid == 1", "not " * 2400 + "pid == 1", "(" * 400, "pid in (1, 2",
    "path == '\\d'",
    "1is 2", "pid is 3", "__import__('os').system('x') == 1", "pid == " + "9" * 5000,
    "'a' in path and 'b' not in path",
)  # fmt: skip


def _spoil_words(draw: Draw, words: list[str]) -> None:
    kinds = ("value", "value", "value", "output", "remove", "insert", "double", "swap", "letter", "join")
    kind = draw(st.sampled_from(kinds))
    place = draw(st.integers(0, max(0, len(words) - 1)))
    if kind == "value" and words:
        words[place] = draw(st.sampled_from(_WORDS))
    elif kind == "output" and words:  # what the line names, or lies in a folder that it names, is an output
        at = [number for number, word in enumerate(words[:-1], 1) if word in _OUTPUTS]
        named = [word for word in words if not word.startswith("-") and len(word) > 1] or ["x"]
        file = draw(st.sampled_from((*named, *(_INSIDE[word] for word in named if word in _INSIDE))))
        if at:
            words[draw(st.sampled_from(at))] = file
        else:
            words += ["--json", file]
    elif kind == "remove" and words:
        del words[place]
    elif kind == "insert":
        words.insert(place, draw(st.sampled_from(_WORDS)))
    elif kind == "double" and words:
        words.insert(place, words[place])
    elif kind == "swap" and words:
        other = draw(st.integers(0, len(words) - 1))
        words[place], words[other] = words[other], words[place]
    elif kind == "letter" and words and words[place]:
        at = draw(st.integers(0, len(words[place]) - 1))
        words[place] = (
            words[place][:at] + draw(st.sampled_from(("", "x", "-", "_", ".", "="))) + words[place][at + 1 :]
        )
    elif kind == "join" and place + 1 < len(words):
        words[place : place + 2] = [f"{words[place]}={words[place + 1]}"]
