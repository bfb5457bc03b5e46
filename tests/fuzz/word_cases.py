"""Cases of command lines."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.harness import LISTED, OLD, Case, Link
from tests.fuzz.material import Material
from tests.fuzz.mutations import Draw, times


def words(draw: Draw, material: Material) -> Case:
    """Command lines: valid ones with words left out, doubled, put in or changed."""
    # links: a word in the wrong place may make an output of an input
    names = (
        "model.safetensors",
        "pictures",
        "ivf",
        "ivfpq",
        "q.npz",
        "g.npz",
        "set",
        "names.yaml",
        "resnet18.pth",
        "runs",
    )
    links = {name: Link(material.path(name)) for name in names}
    links |= {
        "image.jpg": Link(material.path("set/query/0011_c1s1_000000_00.jpg")),
        "images": Link(material.path("set/query")),
    }
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
        ["--help"], ["--version"], ["query", "--help"], ["gallery", "add", "--help"],
    )  # fmt: skip
    chosen = draw(st.sampled_from(valid))
    words = list(chosen)
    for _ in range(times(draw)):
        _spoil_words(draw, words)
    if words[:1] == ["demo"]:
        words.append("--unknown")  # it would run for minutes
    return Case(words, {"o.json": OLD, **links}, words == chosen, LISTED)


_WORDS = (
    "", " ", "-", "--", "---", "-h", "--help", "--version", "x", "0", "-1", "1", "2.5", "1e9", "nan", "inf",
    "9" * 30, "9" * 5000,
    str(2**31), str(2**63), str(10**12), "true", "null", "[]", "{}", "[1, 2]", "{a: 1}", "&a [*a]",
    "!!python/object/apply:os.system [x]",
    "[" * 2000, "/dev/null", "/dev/zero", "pipe", ".", "a\nb", "\x1b[2J", "💥", "\udcff", "\udcff.json", "é",
    "a" * 3000, "=",
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
    kind = draw(
        st.sampled_from(("value", "value", "value", "remove", "insert", "double", "swap", "letter", "join"))
    )
    place = draw(st.integers(0, max(0, len(words) - 1)))
    if kind == "value" and words:
        words[place] = draw(st.sampled_from(_WORDS))
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
