"""Generate the parts of docs/mechanisms that come from the code: equations, data flows, costs and pictures.

NAME.md is the page in English, NAME.zh.md the one in Chinese; words come from rga_reid/reports/strings.

    python docs/mechanisms.py              # the text between the marks, in a few seconds
    python docs/mechanisms.py --pictures   # also the pictures

The pictures show networks that `rga-reid explain --demo demo --attention rga pam cam dual nonlocal criss_cross se cbam`
has trained on the synthetic data set (--demo names another folder).

Text outside the marks is written by hand and kept.
"""

from __future__ import annotations

import argparse
import inspect
import io
import re
import unicodedata
import warnings
from functools import cache, partial
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.experiments.explain import explain
from rga_reid.models import build_model
from rga_reid.models.analysis import count_costs
from rga_reid.reports.attention_figures import attention_figure, draw_flow, relation_figure
from rga_reid.reports.glossary import lookup
from rga_reid.reports.html import symbols_to_html
from rga_reid.reports.language import LANGUAGES, translate, translate_formula, translate_meaning
from rga_reid.reports.plots import NO_DATE
from rga_reid.reports.relation_views import FlowStep, flow_steps

DOCS = Path(__file__).parent
PAGES = tuple(name for name in ATTENTION_MODULES if (DOCS / "mechanisms" / f"{name}.md").is_file())
VARIANTS = {"rga": ("rga", "rga_s", "rga_c")}  #: modules that share a page
CHANNELS, MAP = 2048, (16, 8)  #: after the last stage of a ResNet-50 with last stride 1 at 256×128 pixels
SIZE = (256, 128)


def equation(name: str, lang: str) -> str:
    """Return the formulas in the docstring of the class, with their columns."""
    factory = ATTENTION_MODULES[name]
    documented = factory.func if isinstance(factory, partial) else factory
    before, _, _ = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:")
    lines = [line for line in before.splitlines() if line.startswith("    ")]
    translated = [_translate_line(lang, line) for line in lines]
    return "\n".join(["```text", inspect.cleandoc("\n".join(["", *translated])), "```"])


def _translate_line(lang: str, line: str) -> str:
    """Translate a line; the number of the equation at its end stays in its column."""
    text, number = re.fullmatch(r"(.*?)(\s+\(\d\))?", line).groups(default="")
    translated = translate_formula(lang, text)
    return translated + " " * (bool(number) * (_columns(text) - _columns(translated))) + number


def _columns(text: str) -> int:
    """Return the width of a text in columns: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "FW" else 1 for one in text)


@cache
def flow(name: str) -> list[FlowStep]:
    """Return the data flow after the last stage, from tensors on the meta device."""
    with torch.device("meta"), torch.no_grad():
        module = ATTENTION_MODULES[name](CHANNELS, MAP).eval()
        relations = module.relations(torch.empty(1, CHANNELS, *MAP))
        trace, _ = relations.trace()
    return flow_steps(trace.flow, relations.matrices.values(), trace.weights.values())


def idea(name: str, lang: str) -> str:
    """Return the idea of the module in a sentence."""
    entry = lookup(name, lang)
    return translate(lang, "mechanism_pages", "idea", title=entry.title, paper=entry.paper, idea=entry.idea)


def meaning(name: str, lang: str) -> str:
    """Return the glossary entry as a table."""
    t = partial(translate, lang, "mechanism_pages")
    entry = lookup(name, lang)
    rows = [("nodes", entry.nodes), ("entry", entry.entry), ("row", entry.row), ("use", entry.use)]
    lines = ["| | |", "|---|---|", *(f"| {t(head)} | {_cell(text)} |" for head, text in rows if text)]
    return "\n".join(lines)


def flow_table(name: str, lang: str) -> str:
    """Return the table of tensors with their shapes and inputs."""
    t = partial(translate, lang, "mechanism_pages")
    heads = ("tensor", "shape", "inputs", "formula", "meaning")
    lines = [f"| {' | '.join(map(t, heads))} |", "|---|---|---|---|---|"]
    for step in flow(name):
        symbol = (
            f"**{symbols_to_html(step.symbol)}**"
            if step.kind == "matrix"
            else str(symbols_to_html(step.symbol))
        )
        cells = [symbol, "×".join(map(str, step.shape)), ", ".join(step.inputs)]
        cells += [translate_formula(lang, step.formula), translate_meaning(lang, step.meaning)]
        lines.append(f"| {cells[0]} | " + " | ".join(_cell(cell) for cell in cells[1:]) + " |")
    return "\n".join(lines)


@cache
def costs(name: str) -> tuple[list[tuple[int, int]], int, int]:
    """Return (parameters, MACs) of the attention after each of four stages, and of the network without it."""
    with torch.device("meta"):
        model = build_model(depth=50, attention=name, size=SIZE)
    table = count_costs(model.backbone).set_index("part")
    stages = [(int(row.parameters), int(row.macs)) for part, row in table.iterrows() if "attention" in part]
    rest = table.loc["total"] - table[table.index.str.startswith("attention")].sum()
    return stages, int(rest.parameters), int(rest.macs)


def cost_table(name: str, lang: str) -> str:
    """Return the table of costs that the module adds to a ResNet-50 at 256×128 pixels."""
    t = partial(translate, lang, "mechanism_pages")
    heads = [t("stage", n=n) for n in (1, 2, 3, 4)] + [t("all"), t("share")]
    lines = [f"| | {' | '.join(heads)} |", "|---|---|---|---|---|---|---|"]
    for one in VARIANTS.get(name, (name,)):
        stages, parameters, macs = costs(one)
        total = [sum(column) for column in zip(*stages, strict=True)]
        title = f"`{one}`, " if one != name or name in VARIANTS else ""
        counts = " | ".join(f"{count:,}" for count, _ in [*stages, total])
        lines.append(f"| {title}{t('parameters')} | {counts} | {100 * total[0] / parameters:.1f} % |")
        work = " | ".join(f"{1e-6 * count:,.2f}" for _, count in [*stages, total])
        lines.append(f"| {title}{t('macs')} | {work} | {100 * total[1] / macs:.1f} % |")
    return "\n".join(lines)


def index() -> str:
    """Return the table of all modules in docs/attention.md, with links to their pages."""
    lines = ["| module | nodes | parameters | GMAC |", "|---|---|---|---|"]
    variants = {variant for names in VARIANTS.values() for variant in names[1:]}
    for name in ATTENTION_MODULES:
        if name in variants:
            continue
        total = [sum(column) for column in zip(*costs(name)[0], strict=True)]
        title = lookup(name).title
        pages = f"[{title}](mechanisms/{name}.md) ([中文](mechanisms/{name}.zh.md))"
        link = pages if name in PAGES else title
        lines.append(f"| {link} | {_cell(lookup(name).nodes)} | {total[0]:,} | {1e-9 * total[1]:.3f} |")
    return "\n".join(lines)


def generate(page: Path) -> str:
    """Return the page with the text between its marks generated from the current code."""
    parts = {"idea": idea, "meaning": meaning, "flow": flow_table, "equation": equation, "cost": cost_table}
    name, _, rest = page.name.partition(".")
    lang = "zh" if rest == "zh.md" else "en"

    def fill(found: re.Match[str]) -> str:
        made = index() if found[1] == "index" else parts[found[1]](name, lang)
        return f"<!-- generated: {found[1]} -->\n{made}\n<!-- end -->"

    return re.sub(
        r"<!-- generated: (\w+) -->\n.*?<!-- end -->", fill, page.read_text(encoding="utf-8"), flags=re.DOTALL
    )


def flow_picture(name: str, lang: str = "en") -> str:
    """Return the data flow as SVG with selectable text."""
    buffer = io.StringIO()
    title = translate(lang, "explorer", "flow_of", name=lookup(name, lang).title, n=4)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has the glyphs
        figure = draw_flow(flow(name), title, lang)
        figure.savefig(buffer, format="svg", metadata=NO_DATE["svg"])
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def flow_file(name: str, lang: str) -> str:
    """Return the file name of the picture of the data flow."""
    return f"{name}_flow.svg" if lang == "en" else f"{name}_flow.{lang}.svg"


def relation_picture(checkpoint: Path, photo: Path, out: Path) -> None:
    """Draw the matrices of a trained network on a photo, or its applied attention if it has no matrices."""
    exhibits = explain([photo], checkpoints=[checkpoint], twins=False)
    has_matrices = bool(exhibits[0].stage().matrices)
    figure = relation_figure(exhibits, stage=1) if has_matrices else attention_figure(exhibits)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=84)
    save_picture(Image.open(buffer), out)


def save_picture(picture: Image.Image, out: Path) -> None:
    """Save a picture as PNG with 128 colours, among them those of small parts."""
    settings = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 2, "dither": Image.Dither.NONE}
    picture.convert("RGB").quantize(128, **settings).save(out, optimize=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", action="store_true", help="also draw the pictures")
    options.add_argument(
        "--demo", type=Path, default=Path("demo"), help="folder of `rga-reid explain --demo`"
    )
    chosen = options.parse_args()
    for page in [DOCS / "attention.md", *sorted((DOCS / "mechanisms").glob("*.md"))]:
        page.write_text(generate(page), encoding="utf-8")
    if not chosen.pictures:
        return
    photo = min((chosen.demo / "data" / "query").glob("*.jpg"))
    for name in PAGES:
        for lang in LANGUAGES:
            file = DOCS / "mechanisms" / flow_file(name, lang)
            file.write_text(flow_picture(name, lang), encoding="utf-8")
        checkpoint = chosen.demo / "mechanisms" / name / "last.ckpt"
        relation_picture(checkpoint, photo, DOCS / "mechanisms" / f"{name}.png")


def _cell(text: str) -> str:
    return str(symbols_to_html(text)).replace("|", "\\|").replace("&#39;", "'")


if __name__ == "__main__":
    main()
