"""Names and texts in HTML pages are escaped, whatever they contain."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from rga_reid.commands import main
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.experiments.demo import run_demo
from rga_reid.reports.ablation_page import write_report
from rga_reid.reports.ablation_stats import Evaluation
from rga_reid.reports.ablation_tables import AblationReport
from rga_reid.reports.language import Text
from tests.security.hostile import Run, refusal

NAMES = (
    "<script>alert(1)<", "</script><script>alert(2)</script>", "'\"><img src=x onerror=alert(3)>", "]]><!--",
    "{{7*7}}",
    "&lt;b&gt;", "$x_1$ \\frac{", "javascript:alert(4)", "\u202egpj.exe", "\\u003cscript\\u003e",
    "`${alert(5)}`",
)  # fmt: skip


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LARGE = 2**63 - 1


class Elements(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def assert_harmless(page: str, shown: Sequence[str], scripts: int = 0) -> None:
    """Check that a page runs and loads nothing, and shows these names unchanged."""
    found = Elements(page.replace("<wbr>", ""))  # within names, where lines may break
    assert found.tags.count("script") == scripts
    assert not {"iframe", "object", "embed", "base", "form", "link"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    links = [value for name, value in found.attributes if name in ("src", "href", "action", "data")]
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "<img src=x" not in page
    (policy,) = (value for name, value in found.attributes if name == "content" and "-src" in value)
    assert policy.partition("; script-src ")[0] == POLICY
    assert ("script-src 'sha256-" in policy) == bool(scripts)
    seen = [*found.texts, *(value for name, value in found.attributes if name in ("title", "aria-label"))]
    for name in shown:
        assert any(name in text for text in seen), name


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set whose files have hostile names."""
    root = tmp_path_factory.mktemp("names")
    rows = []
    for number, name in enumerate(NAMES):
        file = root / f"{name.replace('/', '∕')}.png"
        other = root / "gallery" / file.name
        other.parent.mkdir(exist_ok=True)
        for path, split, camera in ((file, "query", 1), (other, "gallery", 2)):
            rows.append({"path": str(path), "pid": number, "camid": camera, "split": split})
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 32, 3), np.uint8)).save(path)
    pd.DataFrame(rows).to_csv(root / "set.csv", index=False)
    return root


def test_page_of_queries(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Names of queries, gallery images and the gallery, and unusual identities and cameras."""
    files = sorted(map(str, pictures.glob("*.png")))
    gallery, page = tmp_path / NAMES[0], tmp_path / "page.html"
    numbers = np.array([LARGE, -LARGE - 1, -1, 0] + [1] * (len(NAMES) - 4))
    features = np.random.default_rng(0).normal(size=(len(NAMES), 512)).astype(np.float32)
    np.savez(tmp_path / "f.npz", features=features, paths=np.array(NAMES), pids=numbers, camids=numbers)
    assert main(["gallery", "build", "--features", str(tmp_path / "f.npz"), "--gallery", str(gallery)]) == 0
    words = ["query", "--gallery", str(gallery), "--checkpoint", str(tiny_checkpoint), "--top-k", "20"]
    words.append("--same-features")
    assert main([*words, "--html", str(page), "--image", *files]) == 0
    assert_harmless(
        read(page), [*NAMES, *files, f"“{NAMES[0]}”", f"person {LARGE}", f"camera {-LARGE - 1}"], 2
    )


@pytest.mark.parametrize("name", ["split", "path"])
def test_splits_and_paths_that_are_none(tmp_path: Path, tiny_checkpoint: Path, name: str, run: Run) -> None:
    row = {"path": "p.png", "pid": "1", "camid": "1", "split": "query", name: NAMES[1]}
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    lines = ("path,pid,camid,split", "p.png,1,1,gallery", ",".join(row.values()))
    (tmp_path / "own.csv").write_text("\n".join(lines))
    words = ["--checkpoint", str(tiny_checkpoint), "--html", "page.html"]
    assert "own.csv" in refusal(run(["test", "--data.root", "own.csv", *words], tmp_path))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("label", NAMES)
def test_people_and_cameras_of_any_name(tmp_path: Path, tiny_checkpoint: Path, label: str) -> None:
    """People and cameras may be text, which pages show unchanged."""
    files = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(files):
        Image.new("RGB", (4, 8), (40 * number, 0, 0)).save(tmp_path / name)
    split = ["query", "gallery", "gallery", "gallery"]
    table = pd.DataFrame({"path": files, "pid": label, "camid": [label, "a", "b", "c"], "split": split})
    table.to_csv(tmp_path / "own.csv", index=False)
    words = ["--checkpoint", str(tiny_checkpoint), "--html", str(tmp_path / "page.html")]
    assert main(["test", "--data.root", str(tmp_path / "own.csv"), *words]) == 0
    assert_harmless(read(tmp_path / "page.html"), [f"person {label}", f"camera {label}"], 2)


def test_page_of_a_test(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Names of the images, the data set, its card and the checkpoint."""
    data, card, model = (tmp_path / f"{NAMES[0]}.{suffix}" for suffix in ("csv", "yaml", "safetensors"))
    shutil.copy(tiny_checkpoint, model)
    shutil.copy(pictures / "set.csv", data)
    folder = {"sources": [{"folder": NAMES[0]}]}
    splits = {"train": folder, "query": folder, "gallery": folder}
    content = {"name": "x", "title": NAMES[1], "citation": NAMES[1], "url": "javascript:alert(6)"}
    pattern = "(?P<pid>.*)"
    card.write_text(yaml.safe_dump({**content, "layout": "names", "pattern": pattern, "splits": splits}))
    page = tmp_path / "page.html"
    words = ["test", "--checkpoint", str(model), "--data.root", str(data), "--data.dataset", str(card)]
    assert main([*words, "--html", str(page)]) == 0
    shown = [match.group(1) for match in re.finditer(r'title="([^"]*)"', read(page))]
    paths = [path for path in map(html.unescape, shown) if path.endswith(".png")]
    assert len(set(paths)) > 9  # nine queries, and what is like them
    known = set(pd.read_csv(pictures / "set.csv")["path"])
    assert set(paths) <= known
    assert_harmless(read(page), [*paths, model.name, f"“{data.name}”", str(card)], 2)


def test_page_of_relations(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Names of files and checkpoints; a folder and a file name together can end a script."""
    models = [tmp_path / folder / "script><script>alert(1).safetensors" for folder in ("<", "a")]
    for model in models:
        model.parent.mkdir()
        shutil.copy(tiny_checkpoint, model)
    files = sorted(map(str, pictures.glob("*.png")))[:1]
    words = ["explain", "--image", *files, "--checkpoint", *map(str, models)]
    assert main([*words, "--out", str(tmp_path / "page.html")]) == 0
    page = read(tmp_path / "page.html")
    assert_harmless(page, [], scripts=2)
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [photo["name"] for photo in data["photos"]] == [Path(file).name for file in files]
    assert "(</script><script>alert(1).safetensors)" in {
        exhibit["label"][-39:] for exhibit in data["exhibits"]
    }
    assert main([*words[:3], "--checkpoint", str(models[0]), "--out", str(tmp_path / "figure.png")]) == 0


def assert_report_harmless(folder: Path, shown: Sequence[str]) -> None:
    """Check the page, the Markdown file and the figures."""
    assert_harmless(read(folder / "report.html"), shown, scripts=2)
    markdown = read(folder / "report.md")
    assert not re.search(r"(?<!\\)<", markdown)
    for file in folder.glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
        assert not {"script", "foreignObject", "image", "a"} & tags


def test_page_of_a_report(tmp_path: Path) -> None:
    """Names of files become names of variants."""
    places = []
    for number, name in enumerate(NAMES):
        place = tmp_path / f"{name.replace('/', '∕')}.json"
        place.write_text(json.dumps({"mAP": 0.1 * number / 2, "rank-1": 0.5, "cmc": [0.1, 0.2, 0.3]}))
        places.append(place)
    stems = [place.stem for place in places]
    words = ["report", *map(str, places), "--out", str(tmp_path / "report"), "--title", NAMES[1]]
    assert main([*words, "--baseline", stems[0]]) == 0
    assert_report_harmless(tmp_path / "report", [NAMES[1], *stems])
    assert (tmp_path / "report" / "cmc.svg").is_file()


def test_page_of_an_ablation(pictures: Path, tmp_path: Path) -> None:
    """Names of variants, images, the machine and failures, and unusual identities."""
    images, variant = sorted(map(str, pictures.glob("*.png"))), "</style></title>" + NAMES[1]
    count = 3

    def evaluate(name: str, precision: float) -> Evaluation:
        labels = {"path": images[:count], "pid": [LARGE, -5, 13], "camid": 1}
        queries = pd.DataFrame({"query": range(count), **labels, "AP_step": precision, "matches": 1})
        ranked = pd.DataFrame(
            {
                "query": range(count),
                "rank": 1,
                "score": 0.5,
                "path": images[3:6],
                "pid": [1, -5, LARGE],
                "camid": 2,
            }
        )
        return Evaluation(name, 0, {"mAP": precision}, (0.5, 0.6), queries, ranked)

    report = AblationReport(
        NAMES[2],
        [evaluate("base", 0.5), evaluate(variant, 0.6)],
        variant,
        failures=[("other seed 1", NAMES[4])],
        missing=[NAMES[5]],
        conditions=Text("conditions", dict.fromkeys(("turns", "where"), NAMES[0])),
    )
    write_report(report, tmp_path / "report")
    shown = [variant, NAMES[0], NAMES[2], *NAMES[4:6], str(LARGE)]
    assert_report_harmless(tmp_path / "report", shown)
    assert read(tmp_path / "report" / "report.html").count("data:image/jpeg") == 6


@pytest.mark.slow
def test_pages_of_the_demo(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The user names the folder, which is a part of all paths on the pages."""
    out = tmp_path / NAMES[2] / "</script><script>alert(2)"
    write_synthetic(out / "data", SyntheticSettings(2, 2, (2, 2), (2, 2), 1, 1, (64, 32)))
    checkpoint = out / "model" / f"{NAMES[0]}.safetensors"
    checkpoint.parent.mkdir()
    shutil.copy(tiny_checkpoint, checkpoint)
    demo = run_demo(out, out / "data", checkpoint, seed=0, name="trained")
    image = next(iter((out / "data" / "query").iterdir()))
    assert_harmless(read(demo.page), [str(image.parent)], scripts=2)
    assert_harmless(read(demo.relations), [], scripts=2)
    assert_report_harmless(demo.report.parent, ["colour histogram"])
