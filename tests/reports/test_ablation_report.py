"""Page and tables of an ablation report."""

from __future__ import annotations

import html
import io
import json
import math
import re
import shlex
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.reports.ablation_latex import bibliography, escape_tex, latex
from rga_reid.reports.ablation_page import report_page, write_report
from rga_reid.reports.ablation_stats import Evaluation
from rga_reid.reports.ablation_tables import (
    AblationReport,
    csv_table,
    load_published,
    markdown,
    score_table,
)
from rga_reid.reports.charts import (
    Chart,
    Series,
    cmc_chart,
    cost_chart,
    draw_chart,
    learning_chart,
    precision_chart,
)
from rga_reid.reports.language import Text

EVIL = '<img src=x onerror="alert(1)">&_$%'


def evaluation(name: str, seed: int, folder: Path, shift: float) -> Evaluation:
    rng = np.random.default_rng(seed)
    precision = np.clip(rng.uniform(0.2, 0.6, 30) + shift * rng.uniform(-1, 1, 30), 0, 1)
    queries = pd.DataFrame(
        {
            "query": range(30),
            "path": [str(folder / f"{n % 4}.jpg") for n in range(30)],
            "pid": pd.array([1000 + n for n in range(30)], dtype="Int64"),
            "camid": pd.array([1] * 30, dtype="Int64"),
            "AP_step": precision,
            "matches": 2,
        }
    )
    rows = [
        (query, rank, 0.5, str(folder / f"{(query + rank) % 4}.jpg"), 1000 + query + rank % 2, 2)
        for query in range(30)
        for rank in range(1, 11)
    ]
    ranked = pd.DataFrame(rows, columns=["query", "rank", "score", "path", "pid", "camid"])
    curve = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.5 - shift], "val_mAP": [None, None, 0.25]})
    cameras = pd.DataFrame(
        {"query_camera": ["1"], "gallery_camera": ["2"], "queries": [30], "rank1": [0.5 - shift]}
    )
    metrics = {"mAP": float(precision.mean()), "mAP_trapezoid": 0.3, "rank-1": 0.5, "mINP": 0.1}
    cmc = tuple(np.linspace(0.5, 0.9, 50))
    costs = (11_000_000, 500_000_000, 720.0, 9.5, 310.0)
    return Evaluation(name, seed, metrics, cmc, queries, ranked, curve, *costs, f"{name}/last.ckpt", cameras)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> AblationReport:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):  # the fourth is missing
        Image.new("RGB", (64, 128), (60 * number, 90, 120)).save(folder / f"{number}.jpg")
    runs = [("base", 0, 0), ("base", 1, 0), (EVIL, 0, 0.3)]
    return AblationReport(
        f"Title {EVIL}",
        [evaluation(name, seed, folder, shift) for name, seed, shift in runs],
        "base",
        failures=[("other seed 0", f"no {EVIL}")],
        missing=["late seed 1"],
        published=load_published("market1501"),
        conditions=Text("conditions", {"where": "Some | where"}),
    )


def test_the_page_has_every_run_and_each_picture_once(report: AblationReport) -> None:
    page = report_page(report)
    assert "<img src=x" not in page
    texts = ["other seed 0", ": late seed 1", "20.0</td>", "--checkpoint base/last.ckpt"]
    for text in (*texts, "Zhang et al., CVPR 2020", "not measured here"):
        assert text in page
    assert page.count("data:image/jpeg") == 3
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    charts = {one["name"]: one["series"] for one in json.loads(data)["charts"]}
    assert list(charts) == ["cmc", "ap", "learning", "validation", "gmac", "latency"]
    assert all([one["name"] for one in series] == ["base", EVIL] for series in charts.values())
    assert charts["learning"][1]["y"] == [3, 2, 1.2]
    assert (charts["validation"][0]["x"], charts["validation"][0]["y"]) == ([3], [25])
    assert len(re.findall(r'class="shot query', page)) == 20  # ten gain, ten lose
    assert len(re.findall(r"<ol", page)) == 40
    marks = re.findall(r'class="shot [^>]*aria-label="(.*?)：', report_page(report, lang="zh"))
    assert {"查询"} < set(marks) <= {"查询", "正确", "错误", "忽略", "未知"}


def test_commands_import_what_the_models_of_both_sides_need(report: AblationReport) -> None:
    named = {"base": ["own_a"], EVIL: ["own_a", "own_b"]}
    page = report_page(
        replace(report, evaluations=[replace(one, imports=named[one.name]) for one in report.evaluations])
    )
    commands = re.findall(r"<code hidden>(.*?)</code>", page)
    assert len(commands) == 20
    for command in commands:
        words = shlex.split(html.unescape(command))
        assert [words[n + 1] for n, word in enumerate(words) if word == "--import"] == ["own_a", "own_b"]


def test_missing_charts_and_differences_have_a_reason() -> None:
    runs = [Evaluation(name, None, {"mAP": 0.5}, (0.4, 0.5)) for name in "ab"]
    page = report_page(AblationReport("x", runs, "a"), lang="zh")
    assert '<html lang="zh-CN">' in page
    for text in ("没有学习曲线", "没有平均精度的分布", "未知：没有逐查询结果", "变体"):
        assert text in page
    assert 'data-chart="cmc"' in page
    assert 'data-chart="learning"' not in page


def test_charts_have_the_values_of_the_runs(report: AblationReport) -> None:
    runs = report.evaluations
    assert runs[0].queries is not None
    assert runs[1].queries is not None
    chart = precision_chart(runs)
    assert chart is not None
    means = (100 * (runs[0].queries["AP_step"] + runs[1].queries["AP_step"]) / 2).tolist()
    counted = [100 * sum(5 * n <= one < 5 * n + 5 for one in means) / 30 for n in range(20)]
    assert list(chart.series[0].y) == pytest.approx(counted)
    curve = cmc_chart(runs)
    assert curve is not None
    assert curve.series[0].y[0] == pytest.approx(50)
    assert len(curve.series[0].x) == 20
    cost = cost_chart(runs, "gmac")
    assert cost is not None
    maps = [100 * one.metrics["mAP"] for one in runs[:2]]
    assert (*cost.series[0].x, *cost.series[0].y) == pytest.approx((0.5, np.mean(maps)))
    assert (*cost.series[0].low, *cost.series[0].high) == pytest.approx((min(maps), max(maps)))
    assert cost_chart(runs[:2], "latency") is None  # one variant
    with pytest.raises(InputError):
        Chart("cmc", "lines", (Series("a", [1, 2, 3], [1.0]),))


def test_people_with_names(report: AblationReport) -> None:
    def name(table: pd.DataFrame | None) -> pd.DataFrame:
        assert table is not None
        camids = [f"cam {camid}" for camid in table["camid"]]
        return table.assign(pid=[f"{EVIL}{pid}" for pid in table["pid"]], camid=camids)

    named = [replace(one, queries=name(one.queries), ranked=name(one.ranked)) for one in report.evaluations]
    page = report_page(replace(report, evaluations=named))
    assert "<img src=x" not in page
    assert re.search(r">person &lt;img[^<]*10\d\d</span>, <[^>]*>camera cam 1<", page)
    assert page.count("✓") == report_page(report).count("✓")


def test_page_without_photos_names_people_by_numbers(report: AblationReport, tmp_path: Path) -> None:
    files = write_report(report, tmp_path / "out", photos=False)
    charts = ("cmc", "ap", "learning", "validation", "gmac", "latency")
    names = [f"report.{suffix}" for suffix in ("html", "md", "csv", "tex", "bib")]
    names += [f"{name}.{suffix}" for suffix in ("svg", "pdf") for name in charts]
    assert [file.name for file in files] == names
    texts = [file.read_text(encoding="latin-1") for file in files]
    assert not any("data:image/jpeg" in text or ".jpg" in text for text in texts)
    assert re.search(r">person 10\d\d<", texts[0])
    again = write_report(report, tmp_path / "out", photos=False)
    assert [file.read_text(encoding="latin-1") for file in again] == texts  # to the byte


def test_tables_agree_with_the_rows(report: AblationReport) -> None:
    head, base, ours = score_table(report)
    assert len(head) == len(base) == len(ours)
    row = report.rows[1]
    assert row.difference is not None
    values = [row.difference.mean, row.difference.low, row.difference.high]
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in values)
    assert ours[3] == f"{mean} [{low}, {high}]"
    assert "±" in base[1]
    assert "±" not in ours[1]
    table = pd.read_csv(io.StringIO(csv_table(report)))
    assert table["mAP"].tolist() == [one.metrics["mAP"].mean for one in report.rows]
    assert table["difference"][1] == row.difference.mean
    assert table["variant"][1] == EVIL


def test_whole_numbers_and_zeros() -> None:
    def run(name: str, shift: float, **costs: int) -> Evaluation:
        precision = [0.5 + shift, 0.5 - shift, 0.50004 + shift / 100]
        queries = pd.DataFrame({"query": range(3), "pid": [1, 2, 3], "AP_step": precision, "matches": 1})
        return Evaluation(name, 0, {"mAP": float(np.mean(precision))}, queries=queries, **costs)

    runs = [
        run("base", 0, parameters=11_176_512, macs=124_354_560),
        run("same", -1e-4),
        Evaluation("x", 0, {"mAP": 0.5}),
    ]
    report = AblationReport("x", runs, "base")
    assert score_table(report)[2][3] == "0.0 [0.0, 0.0]"
    lines = csv_table(report).splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [(row["parameters"], row["macs"]) for row in rows] == [
        ("11176512", "124354560"),
        ("", ""),
        ("", ""),
    ]
    assert [row["queries"] for row in rows] == ["", "3", ""]


def test_the_thresholds_of_the_verdicts_are_given() -> None:
    maps = {"base": [0.50, 0.52], "pair": [0.60, 0.64], "single": [0.55]}
    runs = [
        Evaluation(name, seed, {"mAP": value})
        for name, values in maps.items()
        for seed, value in enumerate(values)
    ]
    report = AblationReport("x", runs, "base")
    deviation = math.sqrt((statistics.variance(maps["base"]) + statistics.variance(maps["pair"])) / 2)
    # Student's t, 97.5 %, from a printed table: 2 degrees of freedom 4.303
    pair, single = (430.3 * deviation * math.sqrt(1 / n + 1 / 2) for n in (2, 1))
    rest = f"s = {100 * deviation:.2f}, 2 degrees of freedom"
    for text in (markdown(report, {}), latex(report, {}), report_page(report)):
        assert f"for 2 against 2 seeds: {pair:.2f} points of mAP ({rest})" in " ".join(text.split())
        assert f"for 1 against 2 seeds: {single:.2f} points of mAP ({rest})" in " ".join(text.split())
    assert f"{pair:.2f} 个百分点（s = {100 * deviation:.2f}，自由度 2）" in report_page(report, lang="zh")
    alone = AblationReport("x", [runs[0], runs[-1]], "base")
    assert "Threshold" not in markdown(alone, {})


def test_what_was_compared() -> None:
    """Known facts, and the options that are not the same in all variants."""
    attention = {"none": None, "pam": "pam", "own": {"class_path": "own.Gate", "init_args": {"ratio": 4}}}
    optimizer = {"class_path": "SGD", "init_args": {"lr": 0.1, "nesterov": True}}
    runs = [
        Evaluation(
            name,
            seed,
            {"mAP": 0.5},
            counts=(3368, 15913),
            trained_on=(12936, 751),
            dataset="synthetic",
            drawn=True,
            options={
                "model.backbone": "resnet_x",
                "model.size": [64, 32],
                "model.attention": choice,
                "model.optimizer": {
                    **optimizer,
                    "init_args": {**optimizer["init_args"], "lr": 0.1 + (name == "own")},
                },
                "trainer.max_epochs": 3,
            },
        )
        for name, choice in attention.items()
        for seed in (7, 9)
    ]
    report = AblationReport("x", runs, "none", recipes=["demo"])
    facts = {
        "data set": "synthetic, drawn by code",
        "training images (identities)": "12,936 (751)",
        "query images": "3,368",
        "gallery images": "15,913",
        "recipe": "demo",
        "backbone": "resnet_x",
        "input size (height × width)": "64×32",
        "epochs": "3",
        "seeds": "7, 9",
    }
    changes = {
        "none": "model.attention: null; model.optimizer.init_args.lr: 0.1",
        "pam": "model.attention: pam; model.optimizer.init_args.lr: 0.1",
        "own": "model.attention: own.Gate(ratio=4); model.optimizer.init_args.lr: 1.1",
    }
    text = markdown(report, {}).replace("\\_", "_")
    page, chinese = (
        report_page(report, lang=lang).partition("<script")[0].replace("<wbr>", "") for lang in ("en", "zh")
    )
    for name, value in facts.items():
        assert f"\n- {name}: {value}\n" in text
        assert re.search(f">{re.escape(name)}</dt><dd[^>]*>{re.escape(value)}</dd>", page)
        assert escape_tex(f"{name}: {value}")[1:] in latex(report, {})  # the first one begins a sentence
    for name, value in changes.items():
        assert f"\n| {name} | {value} |\n" in text
        assert f">{name}</th><td>{value}</td>" in page
    for value in ("比较的内容", "synthetic（由代码绘制）", "骨干网络"):
        assert value in chinese
    bare = AblationReport("x", [Evaluation(name, None, {"mAP": 0.5}) for name in attention], "none")
    for text in (markdown(bare, {}), report_page(bare).partition("<script")[0]):
        assert "What was compared" not in text
    assert "ata set" not in latex(bare, {})


NAMES = {  #: of runs, as Markdown
    "http://evil.example/x": r"http\://evil.example/x",
    "see https://a.b": r"see https\://a.b",
    "www.evil.example": r"www\.evil.example",
    "$x$ ~~y~~ &lt;b&gt;": r"\$x\$ \~\~y\~\~ \&lt;b\&gt;",
    "a: b, c/d, w.w": "a: b, c/d, w.w",
}


def test_markdown_keeps_its_columns(report: AblationReport) -> None:
    text = markdown(replace(report, missing=list(NAMES)), {"Curves": "cmc.svg"})
    lines = [line for line in text.split("\n") if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert counts == {9, 7, 6}  # scores, costs, published: no name makes a column
    assert r"on Some \| where, torch" in text
    assert "![Curves](cmc.svg)" in text
    assert "<img" not in text.replace(r"\<img", "")
    lines = text.partition("## Runs missing from the tables\n\n")[2].splitlines()
    assert lines[0].startswith("- failed: other seed 0: no ")
    assert lines[1:] == [f"- not finished: {written}" for written in NAMES.values()]


def test_latex_escapes(report: AblationReport) -> None:
    assert escape_tex(r"a_b & 50% #1 {x} \ $") == r"a\_b \& 50\% \#1 \{x\} \textbackslash{} \$"
    assert escape_tex("~ ^ ± − <") == r"\textasciitilde{} \textasciicircum{} $\pm$ $-$ \textless{}"
    for text in ("[9cm]x", "*2", "[[", "*"):  # after \\ and \midrule they would be options
        assert escape_tex(text) == "{}" + text
    assert escape_tex("a[9cm]*") == "a[9cm]*"
    text = latex(report, {"Curves & more": "cmc.pdf"})
    assert [line for line in text.split("\n") if line.startswith("%")] == [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}"
    ]
    tables = text.split(r"\begin{table}")[1:]
    notes = [
        re.findall(r"\\end\{tabular\}.*minipage\}\{.*?\}(.*)\\end\{minipage\}", one, re.DOTALL)
        for one in tables
    ]
    assert [len(one) for one in notes] == [1, 1, 0]
    for note in (
        "within seed spread",
        "choice of queries, not of seeds",
        "Threshold of the verdict",
        "last epoch",
    ):
        assert note in notes[0][0]
    assert "median of" in notes[1][0]
    assert re.search(r"^base & .* & -- & -- & .* & 2 \\\\$", tables[0], re.MULTILINE)
    assert r"onerror=\"alert" not in text
    assert r"\&\_\$\%" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\label{tab:") == 3
    assert (
        "\\includegraphics[width=\\linewidth]{cmc.pdf}\n\\caption{Curves \\& more.}\n\\label{fig:cmc}" in text
    )
    cited = re.findall(r"\\cite\{(\w+)\}", text)
    assert len(cited) == len(set(cited)) == 9
    assert re.findall(r"^@\w+\{(\w+),", bibliography(report), re.MULTILINE) == cited
    assert "run again by others" not in text
    detected = replace(report, published=load_published("cuhk03_detected"))
    assert re.findall(r"^@\w+\{(\w+),", bibliography(detected), re.MULTILINE) == ["zhang2020rga"]
    for caption in re.findall(r"\\caption\{(.*)\}", text):
        assert len(re.findall(r"[.!?](?: |$)", caption)) == 1  # a sentence
    for line in text.split("\n"):
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (7, 5, 3)


def test_what_is_not_known_is_blank(tmp_path: Path) -> None:
    runs = [Evaluation("a", None, {"mAP": 0.5}), Evaluation("b", None, {"mAP": 0.6})]
    bare = AblationReport("Bare", runs, "a")
    page = report_page(bare)
    assert 'class="chart"' not in page
    assert "changes_help" not in page.partition("<script")[0]
    row = ["b", "60.0", "seed spread unknown", "unknown: no per-query results", "", "", "", "1"]
    assert score_table(bare)[2] == row
    assert len(write_report(bare, tmp_path)) == 4
    assert "last epoch" not in page.partition("<script")[0]  # unknown for other evaluations


@pytest.mark.parametrize("names", [["_old"], ["_old", "new$"]])
def test_every_curve_has_its_name(report: AblationReport, names: list[str]) -> None:
    """matplotlib omits labels that begin with an underscore from legends."""
    curves = [replace(report.evaluations[0], name=name) for name in names]
    for chart in (cmc_chart(curves), learning_chart(curves)):
        assert chart is not None
        figure = draw_chart(chart)
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert [text.strip() for text in texts] == [name.replace("$", r"\$") for name in names]


def test_curves_of_an_earlier_report_go(report: AblationReport, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert (tmp_path / "learning.svg").is_file()
    without = [replace(one, curve=None) for one in report.evaluations]
    write_report(AblationReport("x", without, "base"), tmp_path)
    assert not (tmp_path / "learning.svg").exists()
    assert (tmp_path / "cmc.svg").is_file()


def test_one_query_that_gains_is_one(report: AblationReport) -> None:
    base, other = report.evaluations[0], report.evaluations[2]
    assert base.queries is not None
    better = base.queries.assign(AP_step=base.queries.AP_step + (base.queries["query"] == 3) * 0.05)
    page = report_page(AblationReport("x", [base, replace(other, queries=better)], "base"))
    page = page.partition("<script")[0]
    assert ">Largest gain<" in page
    assert "<b>+5.0</b>" in page
    assert ">Largest loss<" not in page
    assert "Each run was tested once, at its last epoch." in page


def test_names_break_after_underscores() -> None:
    runs = [Evaluation(name, None, {"mAP": 0.5}) for name in ("base", "gate_mean_<b>")]
    page = report_page(AblationReport("x", runs, "base"))
    assert page.count('<th scope="row">gate_<wbr>mean_<wbr>&lt;b&gt;</th>') == 2  # results and costs


def test_reports_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="no finished run"):
        AblationReport("x", [], "a")
    with pytest.raises(InputError, match="baseline: expected one of a, got 'b'"):
        AblationReport("x", [Evaluation("a", 0, {})], "b")
    with pytest.raises(InputError, match="published: expected one of market1501"):
        load_published("imagenet")
