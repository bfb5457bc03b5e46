"""An ablation report for a paper: LaTeX tables and figures, and the BibTeX entries that they cite."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rga_reid.reports.ablation_tables import AblationReport, cost_table, fact_lines, score_table
from rga_reid.reports.language import fill_text

_BIBLIOGRAPHY = Path(__file__).with_name("published.bib")


def latex(report: AblationReport, figures: Mapping[str, str]) -> str:
    """Return tables and figures, which need the LaTeX packages booktabs and graphicx.

    Published results without a citation are left out.

    Args:
        report: to be written.
        figures: file names by caption.
    """
    title = escape_tex(report.title).rstrip(".")
    versus = escape_tex(report.baseline)
    scores = (
        rf"Mean $\pm$ deviation over the seeds in percent, and differences of mAP from {versus} ({title})."
    )
    parts = [
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
        "",
    ]
    facts = "; ".join(fact_lines(report))
    notes = [f"{facts[0].upper()}{facts[1:]}."] if facts else []
    notes += [fill_text("en", ["report"], one) for one in report.reading if one.key != "reading_metrics"]
    head, *rows = _escape(score_table(report))
    for row, line in zip(report.rows, rows, strict=True):
        if row.verdict == "baseline":
            line[2:4] = ["--", "--"]
    parts.append(_table([head, *rows], "lrllrrrr", scores, "results", notes))
    conditions = [fill_text("en", ["report"], report.conditions)] if report.conditions else []
    caption = f"Cost of the variants ({title})."
    parts.append(_table(_escape(cost_table(report)), "lrrrrr", caption, "cost", conditions))
    cited = [entry for entry in report.published if "cite" in entry]
    if cited:
        head = ["method", "mAP", "rank-1", "conditions"]
        rows = [
            [
                rf"{escape_tex(entry['name'])}~\cite{{{entry['cite']}}}",
                *(escape_tex(str(entry[key])) for key in head[1:]),
            ]
            for entry in cited
        ]
        caption = "Results as published, under other conditions than ours."
        parts.append(_table([head, *rows], "lrrl", caption, "published"))
    parts += [_figure(file, escape_tex(caption)) for caption, file in figures.items()]
    return "\n".join(parts)


def bibliography(report: AblationReport) -> str:
    """Return the BibTeX entries of the published results that ``latex`` cites; "" for none."""
    cited = {entry["cite"] for entry in report.published if "cite" in entry}
    entries = re.split(r"\n(?=@)", _BIBLIOGRAPHY.read_text(encoding="utf-8"))
    found = [entry.strip() for entry in entries if re.match(r"@\w+\{([^,]+),", entry)[1] in cited]  # type: ignore[index]
    return "".join(f"{entry}\n\n" for entry in found)


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "“": "``",
    "”": "''",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape_tex(text: str) -> str:
    """Escape a text for LaTeX, also at the start of a table row, where ``[`` and ``*`` would be options."""
    escaped = "".join(_TEX.get(character, character) for character in " ".join(text.split()))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped


def _escape(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(map(escape_tex, line)) for line in cells]


def _table(
    cells: Sequence[Sequence[str]], columns: str, caption: str, label: str, notes: Sequence[str] = ()
) -> str:
    head, *body = (" & ".join(line) + r" \\" for line in cells)
    below = [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    below += [*map(escape_tex, notes), r"\end{minipage}"]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(below if notes else []),
            r"\end{table}",
            "",
        ]
    )


def _figure(file: str, caption: str) -> str:
    return "\n".join(
        [
            r"\begin{figure}",
            r"\centering",
            rf"\includegraphics[width=\linewidth]{{{file}}}",
            rf"\caption{{{caption}.}}",
            rf"\label{{fig:{Path(file).stem}}}",
            r"\end{figure}",
            "",
        ]
    )
