"""What each mechanism means, in plain words: one place for the pages and figures that explain them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Words:
    """A mechanism for a reader new to its paper.

    Args:
        title: full name.
        paper: where it comes from.
        idea: what it does, in one sentence.
        nodes: what is related to what.
        entry: what one number of the matrix is.
        row: what a row is.
        use: what is done with the matrix.
        row_caption: below the picture of a row.
        column_caption: below the picture of a column.
        directions: which of the two are used, one of ``BOTH``, ``ROWS``, ``NONE`` and ``UNKNOWN``.
    """

    title: str
    paper: str
    idea: str
    nodes: str
    entry: str
    row: str
    use: str
    row_caption: str
    column_caption: str
    directions: str = "row only"


BOTH, ROWS, NONE, UNKNOWN = "row and column", "row only", "none", "not described here"
_SHARES = "Shares that sum to 1: brighter places give more to the chosen point."
_NO_SHARES = "What the chosen point takes from each place: numbers that do not sum to 1."
_TAKERS = (
    "Who takes from the chosen point. This mechanism gathers along rows; a column is never used by itself."
)
_RGA_ROW = "What the chosen point thinks of every place: row i of G. Raw products, which do not sum to 1."
_RGA_COLUMN = (
    "What every place thinks of the chosen point: column i of G. RGA reads this direction as well as the row."
)

WORDS = {
    "rga": Words(
        "Relation-aware global attention (RGA-SC)",
        "Zhang et al., CVPR 2020",
        "A point learns how important it is from its relations to all points, in both directions.",
        "positions (G_s), then channels (G_c)",
        "G[i, j] = θ(x_i)·φ(x_j), a raw product",
        "relations of i to all; together with column i, a description of point i",
        "row and column go through a small network that gives one weight a_i between 0 and 1: x_i is scaled, "
        "nothing is mixed",
        _RGA_ROW,
        _RGA_COLUMN,
        BOTH,
    ),
    "pam": Words(
        "Position attention (PAM)",
        "Fu et al., CVPR 2019 (DANet)",
        "Each position adds a mixture of all positions, weighted by likeness.",
        "positions",
        "A[i, j] = softmax_j(Q_i·K_j), a share",
        "a recipe: how much i takes from each j; sums to 1",
        "the features of all places are mixed by row i and added: γ · V Aᵀ + x",
        _SHARES,
        _TAKERS,
    ),
    "cam": Words(
        "Channel attention (CAM)",
        "Fu et al., CVPR 2019 (DANet)",
        "Each channel adds a mixture of all channels; those least like it weigh most.",
        "channels",
        "A[i, j] = softmax_j(max_k E[i, k] − E[i, j]), E = X Xᵀ",
        "a recipe: how much channel i takes from each j; sums to 1",
        "channels are mixed by row i and added: γ · A X + x",
        "Shares that sum to 1. The sign favours channels that fire in other places than this one.",
        "How much other channels take from this one; never used by itself.",
    ),
    "nonlocal": Words(
        "Non-local block",
        "Wang et al., CVPR 2018",
        "Each position adds a mixture of all positions, made in fewer channels and mapped back.",
        "positions",
        "f[i, j] = softmax_j(θ(x_i)·φ(x_j)), a share",
        "a recipe: how much i takes from each j; sums to 1",
        "mixed by row i, mapped back by W and added: W(y) + x",
        _SHARES,
        _TAKERS,
    ),
    "criss_cross": Words(
        "Criss-cross attention (CCNet)",
        "Huang et al., ICCV 2019",
        "In one pass a position mixes its own row and column only; a second pass reaches everything else.",
        "positions that share a row or a column",
        "A[i, j] = softmax of Q_i·K_j over H + W − 1 places, 0 elsewhere",
        "a recipe over the cross through i; sums to 1",
        "mixed along the cross and added: γ · O + x; each further pass does so again, with the same weights",
        "One pass sees the cross of the chosen point. Two passes together reach every place, by way of the "
        "two corners that share a line with each.",
        _TAKERS,
    ),
    "se": Words(
        "Squeeze-and-excitation (SE)",
        "Hu et al., CVPR 2018",
        "Each channel is weighed by what the whole map holds, without any relation matrix.",
        "none",
        "none: one weight per channel",
        "none",
        "each channel is scaled by its weight",
        "",
        "",
        NONE,
    ),
    "cbam": Words(
        "Convolutional block attention (CBAM)",
        "Woo et al., ECCV 2018",
        "Channels, then positions, are weighed by means and peaks, without any relation matrix.",
        "none",
        "none: one weight per channel, one per position",
        "none",
        "channels and positions are scaled by their weights",
        "",
        "",
        NONE,
    ),
}
WORDS["rga_s"] = replace(
    WORDS["rga"], title="Relation-aware global attention, positions (RGA-S)", nodes="positions"
)
WORDS["rga_c"] = replace(
    WORDS["rga"], title="Relation-aware global attention, channels (RGA-C)", nodes="channels"
)
WORDS["dual"] = Words(
    "Dual attention (PAM + CAM)",
    "Fu et al., CVPR 2019 (DANet)",
    "Position and channel attention side by side, summed.",
    "positions, and channels",
    "A_p[i, j] and A_c[i, j], shares",
    "a recipe; sums to 1",
    "both mixtures are added to x; with DANet's head the output is a convolution of their sum",
    _SHARES,
    _TAKERS,
)


VARIANTS = {  #: with other options than the mechanism of that name: what the matrix means is another thing
    "nonlocal_gaussian": replace(
        WORDS["nonlocal"], title="Non-local block, gaussian", entry="f[i, j] = softmax_j(x_i·x_j), a share"
    ),
    "nonlocal_dot_product": replace(
        WORDS["nonlocal"],
        title="Non-local block, dot product",
        entry="f[i, j] = θ(x_i)·φ(x_j) / N, which may be below 0: not a share",
        row="how much i takes from each j; does not sum to 1",
        row_caption=_NO_SHARES,
    ),
    "nonlocal_concatenation": replace(
        WORDS["nonlocal"],
        title="Non-local block, concatenation",
        entry="f[i, j] = ReLU(w · [θ(x_i), φ(x_j)]) / N, at least 0: not a share",
        row="how much i takes from each j; does not sum to 1",
        row_caption=_NO_SHARES,
    ),
}


def lookup(mechanism: str) -> Words:
    """The words of a mechanism, by its short name; of one not known here, no more than its name."""
    nothing = (UNKNOWN,) * 5
    unknown = Words(mechanism, "", *nothing, "Row i of the matrix.", "Column i of the matrix.", UNKNOWN)
    return {**WORDS, **VARIANTS}.get(mechanism, unknown)
