"""Cases of command lines."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from tests.fuzz.harness import LISTED, OLD, Case
from tests.fuzz.material import QUERY_IMAGES, Material
from tests.fuzz.mutations import Draw, draw_count, pick

#: Valid command lines of all commands that do not train.
LINES = """
evaluate --query q.npz --gallery g.npz --max-rank 10 --metric cosine --json o.json
evaluate --query q.npz --gallery g.npz --rerank --per-query o.parquet --average-precision trapezoid
calibrate --query q.npz --gallery g.npz --false-match-rate 0.1 --plot o.png
verify image.jpg image.jpg --checkpoint model.safetensors --threshold 0.5 --device cpu
query --gallery images --checkpoint model.safetensors --image image.jpg --top-k 3 --where "pid != 3 and camid in (1, 2)"
query --gallery images --checkpoint model.safetensors --image people --rerank --shortlist 12 --multi --html o.html
query --gallery images --checkpoint model.safetensors --image image.jpg --exclude-camera 1 --threshold -1 --json o.jsonl
features --checkpoint model.safetensors --images people --out o.npz --batch-size 2
gallery build --features g.npz --gallery G --index hnsw --hnsw-m 8
gallery build --images people --checkpoint model.safetensors --gallery G --batch-size 2
gallery info --gallery ivf --json o.json
gallery check --gallery ivfpq
data check set --dataset lists.yaml --fast
test --checkpoint model.safetensors --data.root set --batch-size 4 --json o.json
convert resnet18.pth o.safetensors --size 32 32 --last-stride 1
export --checkpoint model.safetensors --format safetensors --out o.safetensors
explain --image image.jpg --checkpoint model.safetensors --out o.html --seed 1
report test.json --out report --title T --baseline test
--help
--version
query --help
gallery add --help
"""

#: Paths in the material of the files and folders that the lines name, if they differ.
PLACES = {"image.jpg": QUERY_IMAGES[0], "people": "set/query"}
FILES = {*PLACES, "set", "images", "ivf", "ivfpq", "model.safetensors", "resnet18.pth", "lists.yaml"}
FILES |= {"q.npz", "g.npz", "test.json"}
INSIDE = {
    "set": "set/train.txt",
    "people": "people/0011_c1s1_000000_00.jpg",
    **{name: f"{name}/manifest.json" for name in ("images", "ivf", "ivfpq")},
}
OUTPUTS = {"--json", "--csv", "--html", "--plot", "--per-query", "--out"}

WORDS = (
    "", " ", "-", "--", "---", "-h", "--help", "--version", "x", "0", "-1", "1", "2.5", "1e9", "nan", "inf",
    "9" * 30, "9" * 5000, str(2**31), str(2**63), str(10**12), "true", "null", "[]", "{}", "[1, 2]", "{a: 1}",
    "[" * 2000, "/dev/null", "/dev/zero", "pipe", ".", "a\nb", "\x1b[2J", "💥", "\udcff", "\udcff.json", "é",
    "a" * 3000, "=", "./g.npz", "set/../q.npz", "--json", "--json=", "--json=o.json", "--out", "--device", "meta",
    "cuda:99", "cpu:7", "mps", "vulkan", "--seed", "--unknown", "--Top-k", "--topk", "tset", "o.json/x",
    "no/such/folder/o.json", "pid ==", "camid == 3 or " * 900 + "pid == 1", "not " * 2400 + "pid == 1", "(" * 400,
    "pid in (1, 2", "path == '\\d'", "1is 2", "pid is 3", "__import__('os').system('x') == 1",
    "pid == " + "9" * 5000, "'a' in path and 'b' not in path",
)  # fmt: skip


def words(draw: Draw, material: Material) -> Case:
    """Valid command lines with words removed, doubled, inserted or changed."""
    chosen = shlex.split(pick(draw, *LINES.strip().splitlines()))
    line = list(chosen)
    for _ in range(draw_count(draw)):
        corrupt_words(draw, line)
    files = copy_inputs(material, chosen)
    return Case(line, {"o.json": OLD, **files}, line == chosen, LISTED, find_outputs(line, files))


def copy_inputs(material: Material, line: Sequence[str]) -> dict[str, bytes]:
    """Return copies of what a line reads, since a corrupted line may write there."""
    files: dict[str, bytes] = {}
    for name in sorted(FILES.intersection(line)):
        place = PLACES.get(name, name)
        folder = (material.root / place).is_dir()
        files |= material.tree(place, name) if folder else {name: material.read(place)}
    return files


def find_outputs(line: Sequence[str], files: Iterable[str]) -> dict[str, str]:
    """Return files that a line names as outputs only: it replaces them, as asked."""
    read = {
        os.path.normpath(word.rpartition("=")[2])
        for before, word in zip(["", *line], line, strict=False)
        if before not in OUTPUTS and word.partition("=")[0] not in OUTPUTS
    }
    return {
        file: "an output only" for file in files if file not in read and file.partition("/")[0] not in read
    }


def corrupt_words(draw: Draw, line: list[str]) -> None:
    """Corrupt a command line in place."""
    kind = pick(
        draw, "value", "value", "value", "output", "remove", "insert", "double", "swap", "letter", "join"
    )
    place = draw(st.integers(0, max(0, len(line) - 1)))
    word = pick(draw, *WORDS)
    if kind == "insert" or not line:
        line.insert(place, word)
    elif kind == "value":
        line[place] = word
    elif kind == "output":  # write to a file that the line reads, or into a folder that it reads
        options = [number for number, before in enumerate(line[:-1], 1) if before in OUTPUTS]
        named = [one for one in line if not one.startswith("-") and len(one) > 1] or ["x"]
        file = pick(draw, *named, *(INSIDE[one] for one in named if one in INSIDE))
        if options:
            line[pick(draw, *options)] = file
        else:
            line += ["--json", file]
    elif kind == "remove":
        del line[place]
    elif kind == "double":
        line.insert(place, line[place])
    elif kind == "swap":
        other = draw(st.integers(0, len(line) - 1))
        line[place], line[other] = line[other], line[place]
    elif kind == "letter" and line[place]:
        at = draw(st.integers(0, len(line[place]) - 1))
        line[place] = line[place][:at] + pick(draw, "", "x", "-", "_", ".", "=") + line[place][at + 1 :]
    elif kind == "join" and place + 1 < len(line):
        line[place : place + 2] = [f"{line[place]}={line[place + 1]}"]
