"""Glossary of attention modules: the plain-English texts of the explorer, the figures and the docs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.reports.language import load_strings, translate


@dataclass(frozen=True)
class GlossaryEntry:
    """Description of an attention module for a reader who is new to its paper. Unknown texts are empty.

    Args:
        title: full name.
        paper: authors and year.
        idea: one sentence on how the module works.
        nodes: the nodes of the relation matrix.
        entry: meaning of one entry of the matrix.
        row: meaning of a row.
        use: how the module uses the matrix.
        row_caption: caption of the picture of a row.
        column_caption: caption of the picture of a column.
        directions: parts of the matrix that the module reads: ``BOTH``, ``ROWS``, ``NONE`` or unknown.
    """

    title: str
    paper: str = ""
    idea: str = ""
    nodes: str = ""
    entry: str = ""
    row: str = ""
    use: str = ""
    row_caption: str = ""
    column_caption: str = ""
    directions: str = ""


BOTH, ROWS, NONE = "row and column", "row only", "none"
_SHARES = "Weights that sum to 1: a brighter place contributes more to the chosen point."
_RAW_WEIGHTS = "Weight of each place for the chosen point: raw values that do not sum to 1."
_COLUMN = "Places that take from the chosen point. This module uses rows only."
_RGA_ROW = "Relation of the chosen point to every place: row i of G. Raw products that do not sum to 1."
_RGA_COLUMN = (
    "Relation of every place to the chosen point: column i of G. RGA uses both the column and the row."
)

#: by the short name of the module, with options that change the meaning of its matrix
GLOSSARY = {
    "rga": GlossaryEntry(
        title="Relation-aware global attention (RGA-SC)",
        paper="Zhang et al., CVPR 2020",
        idea="The importance of a point is computed from its relations to all points, in both directions.",
        nodes="positions (G_s), then channels (G_c)",
        entry="G[i, j] = θ(x_i)·φ(x_j), a raw product",
        row="relations of i to all points; with column i, it describes point i",
        use="a small network turns row and column into one weight a_i between 0 and 1, which scales x_i; "
        "features are not mixed",
        row_caption=_RGA_ROW,
        column_caption=_RGA_COLUMN,
        directions=BOTH,
    ),
    "pam": GlossaryEntry(
        title="Position attention (PAM)",
        paper="Fu et al., CVPR 2019 (DANet)",
        idea="A weighted sum of all positions is added to each position; the weights are similarities.",
        nodes="positions",
        entry="A[i, j] = softmax_j(Q_i·K_j), a normalised weight",
        row="how much i takes from each j; sums to 1",
        use="the features of all positions are mixed by row i and added: γ · V Aᵀ + x",
        row_caption=_SHARES,
        column_caption=_COLUMN,
        directions=ROWS,
    ),
    "cam": GlossaryEntry(
        title="Channel attention (CAM)",
        paper="Fu et al., CVPR 2019 (DANet)",
        idea="A weighted sum of all channels is added to each channel; the least similar channels weigh most.",
        nodes="channels",
        entry="A[i, j] = softmax_j(max_k E[i, k] − E[i, j]), E = X Xᵀ",
        row="how much channel i takes from each j; sums to 1",
        use="channels are mixed by row i and added: γ · A X + x",
        row_caption="Weights that sum to 1. The minus sign favours channels that are active in other places.",
        column_caption="How much other channels take from this one. This module uses rows only.",
        directions=ROWS,
    ),
    "nonlocal": GlossaryEntry(
        title="Non-local block",
        paper="Wang et al., CVPR 2018",
        idea="A weighted sum of all positions, computed with fewer channels and mapped back, is added to each "
        "position.",
        nodes="positions",
        entry="f[i, j] = softmax_j(θ(x_i)·φ(x_j)), a normalised weight",
        row="how much i takes from each j; sums to 1",
        use="mixed by row i, mapped back by W and added: W(y) + x",
        row_caption=_SHARES,
        column_caption=_COLUMN,
        directions=ROWS,
    ),
    "criss_cross": GlossaryEntry(
        title="Criss-cross attention (CCNet)",
        paper="Huang et al., ICCV 2019",
        idea="One pass mixes a position with its own row and column only; a second pass reaches all positions.",
        nodes="positions that share a row or a column",
        entry="A[i, j] = softmax of Q_i·K_j over H + W − 1 places, 0 elsewhere",
        row="weights over the cross through i; sums to 1",
        use="mixed along the cross and added: γ · O + x; each pass repeats this with the same parameters",
        row_caption="One pass covers the cross of the chosen point. Two passes reach every place, through the "
        "two corners that share a line with both.",
        column_caption=_COLUMN,
        directions=ROWS,
    ),
    "se": GlossaryEntry(
        title="Squeeze-and-excitation (SE)",
        paper="Hu et al., CVPR 2018",
        idea="A weight for each channel is computed from the means of all channels, without a relation matrix.",
        nodes="none",
        entry="none: one weight per channel",
        row="none",
        use="each channel is scaled by its weight",
        directions=NONE,
    ),
    "cbam": GlossaryEntry(
        title="Convolutional block attention (CBAM)",
        paper="Woo et al., ECCV 2018",
        idea="Channels, then positions, get weights that are computed from means and maxima, without a relation "
        "matrix.",
        nodes="none",
        entry="none: one weight per channel, one per position",
        row="none",
        use="channels and positions are scaled by their weights",
        directions=NONE,
    ),
    "dual": GlossaryEntry(
        title="Dual attention (PAM + CAM)",
        paper="Fu et al., CVPR 2019 (DANet)",
        idea="Position and channel attention run in parallel and are summed.",
        nodes="positions, and channels",
        entry="A_p[i, j] and A_c[i, j], normalised weights",
        row="how much i takes from each j; sums to 1",
        use="both weighted sums are added to x; with DANet's head, convolutions follow each branch and the sum",
        row_caption=_SHARES,
        column_caption=_COLUMN,
        directions=ROWS,
    ),
}
GLOSSARY |= {
    "rga_s": replace(
        GLOSSARY["rga"], title="Relation-aware global attention, positions (RGA-S)", nodes="positions"
    ),
    "rga_c": replace(
        GLOSSARY["rga"], title="Relation-aware global attention, channels (RGA-C)", nodes="channels"
    ),
    "nonlocal_gaussian": replace(
        GLOSSARY["nonlocal"],
        title="Non-local block, gaussian",
        entry="f[i, j] = softmax_j(x_i·x_j), a normalised weight",
    ),
    "nonlocal_dot_product": replace(
        GLOSSARY["nonlocal"],
        title="Non-local block, dot product",
        entry="f[i, j] = θ(x_i)·φ(x_j) / N, which can be negative: not a normalised weight",
        row="how much i takes from each j; does not sum to 1",
        row_caption=_RAW_WEIGHTS,
    ),
    "nonlocal_concatenation": replace(
        GLOSSARY["nonlocal"],
        title="Non-local block, concatenation",
        entry="f[i, j] = ReLU(w · [θ(x_i), φ(x_j)]) / N, at least 0: not a normalised weight",
        row="how much i takes from each j; does not sum to 1",
        row_caption=_RAW_WEIGHTS,
    ),
}


def lookup(name: str, lang: str = "en") -> GlossaryEntry:
    """Return the entry of an attention module by its short name, in a language of the pages.

    A module without an entry gets one with its name as title and the first line of its docstring as idea, in English.
    """
    if name in GLOSSARY:
        return GLOSSARY[name] if lang == "en" else replace(GLOSSARY[name], **_translations(name, lang))
    module = ATTENTION_MODULES.get(name)
    module = getattr(module, "func", module)  # of a partial
    idea = (getattr(module, "__doc__", None) or "").strip().partition("\n")[0]
    row, column = (translate(lang, "explorer", key) for key in ("plain_row", "plain_column"))
    return GlossaryEntry(name, idea=idea, row_caption=row, column_caption=column)


def _translations(name: str, lang: str) -> dict[str, str]:
    """Return the translated fields of an entry; a variant has those of its module that it does not replace."""
    known = load_strings(lang)["glossary"]
    base = next(one for one in sorted(known, key=len) if name == one or name.startswith(f"{one}_"))
    return {**known[base], **known[name]}
