"""Nothing that a name or a text holds is code in a page."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rga_reid.commands import main

NAMES = (
    "<script>alert(1)<", "</script><script>alert(2)</script>", "'\"><img src=x onerror=alert(3)>", "]]><!--",
    "{{7*7}}",
    "&lt;b&gt;", "$x_1$ \\frac{", "javascript:alert(4)", "\u202egpj.exe", "\\u003cscript\\u003e",
    "`${alert(5)}`",
)  # fmt: skip


class Elements(HTMLParser):
    """Tags with the names of their attributes, and the values of those."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action", "data")]


def assert_harmless(page: str, scripts: int = 0) -> None:
    found = Elements(page)
    assert found.tags.count("script") == scripts
    assert not {"iframe", "object", "embed", "base", "form", "link"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert all(link.startswith(("data:image/", "#")) for link in found.links)
    assert "<img src=x" not in page
    assert "Content-Security-Policy" in page
    assert "49" not in found.tags


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose files have hostile names."""
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


def test_pages_of_queries_and_tests(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = sorted(map(str, pictures.glob("*.png")))
    features = np.random.default_rng(0).normal(size=(len(NAMES), 512)).astype(np.float32)
    gallery = tmp_path / "<script>alert(0)<"
    np.savez(tmp_path / "f.npz", features=features, paths=np.array(NAMES), pids=np.arange(len(NAMES)))
    assert main(["gallery", "build", "--features", str(tmp_path / "f.npz"), "--gallery", str(gallery)]) == 0
    model = ["--checkpoint", str(tiny_checkpoint)]
    page = tmp_path / "page.html"
    assert (
        main(
            [
                "query",
                "--gallery",
                str(gallery),
                "--image",
                *files,
                *model,
                "--top-k",
                "20",
                "--html",
                str(page),
            ]
        )
        == 0
    )
    text = page.read_text(encoding="utf-8")
    assert_harmless(text)
    assert "&lt;script&gt;" in text
    assert main(["test", *model, "--data.root", str(pictures / "set.csv"), "--html", str(page)]) == 0
    assert_harmless(page.read_text(encoding="utf-8"))


def test_page_of_relations(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Names of files, and of checkpoints with their folders: these together can spell the end of a script."""
    models = [tmp_path / folder / "script><script>alert(1).safetensors" for folder in ("<", "a")]
    for model in models:
        model.parent.mkdir()
        shutil.copy(tiny_checkpoint, model)
    files = sorted(map(str, pictures.glob("*.png")))[:4]
    words = ["explain", "--image", *files, "--checkpoint", *map(str, models)]
    assert main([*words, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert_harmless(text, scripts=2)
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert [photo["name"] for photo in json.loads(data)["photos"]] == [Path(file).name for file in files]
    for name in ("figure.png", "figures.pdf"):
        assert main([*words[:3], "--checkpoint", str(models[0]), "--out", str(tmp_path / name)]) == 0


def test_page_of_a_report(tmp_path: Path) -> None:
    places = []
    for number, name in enumerate(NAMES):
        place = tmp_path / f"{name.replace('/', '∕')}.json"
        place.write_text(json.dumps({"mAP": 0.1 * number / 2, "rank-1": 0.5, "cmc": [0.1, 0.2, 0.3]}))
        places.append(str(place))
    words = [
        "report",
        *places,
        "--out",
        str(tmp_path / "report"),
        "--title",
        NAMES[1],
        "--baseline",
        Path(places[0]).stem,
    ]
    assert main(words) == 0
    assert_harmless((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("\\<script", "")
    assert "<script" not in (tmp_path / "report" / "cmc.svg").read_text(encoding="utf-8")
