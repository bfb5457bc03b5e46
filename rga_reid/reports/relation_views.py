"""Relation matrices prepared for display: complete if small, otherwise pooled, with exact rows of some nodes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rga_reid.attention import Step
from rga_reid.attention.trace import asymmetry
from rga_reid.errors import InputError
from rga_reid.models.analysis import StageCapture

Grid = tuple[int, int]  #: (rows, columns) of a map of positions
Kind = Literal["matrix", "weight", "between"]
PictureKind = Literal["map", "strip", "matrix"]
Form = Literal["product", "mean", "softmax", "softmin"]

MAX_WHOLE = 512  #: nodes of a matrix that is kept complete; a larger one is pooled
MAX_BLOCKS = 128  #: blocks per side of a pooled matrix
EXACT_POINTS: Grid = (8, 4)  #: evenly spread positions whose rows stay exact in a pooled matrix
EXACT_CHANNELS = 16  #: most active channels whose rows stay exact in a pooled matrix
RELATED = 4  #: most and least related channels that are shown for a channel
MAX_MAP_CELLS = 128  #: cells of an activation map
MAX_OPERAND = (
    20_000  #: values of an operand that is kept for all nodes; a larger one for the exact nodes only
)
MAX_CELLS = 64  #: cells per side of the picture of a square tensor in the data flow
ZERO = 2.0**-40  #: share of the largest entry of a matrix below which the page shows 0
BOTH_PASSES = "both_passes"

_MAX_EXPONENT = 15  # stored values are scaled below 2¹⁵, as half precision ends at 65504
_PRODUCT = re.compile(r"([^\s(\[]+)\[:, i\] · ([^\s(\[]+)\[:, j\]")  # columns are nodes
_OF_COLUMNS = re.compile(r"(\S+)ᵀ (\S+)")
_OF_ROWS = re.compile(r"(\S+) (\S+)ᵀ")


@dataclass(frozen=True)
class FlowStep:
    """One tensor in the data flow of an attention module.

    Args:
        symbol, meaning, formula, shape, inputs: see ``Step``.
        kind: a relation matrix, the weight that is finally applied, or neither.
        level: 0 for the input, otherwise 1 more than the highest level of its inputs. Tensors of one level do
            not depend on each other.
    """

    symbol: str
    meaning: str
    formula: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    kind: Kind
    level: int


@dataclass(frozen=True, eq=False)
class StepPicture:
    """Picture of a tensor in the data flow.

    Args:
        kind: ``map``: the mean magnitude at each position; ``strip``: at each channel; ``matrix``: the tensor itself,
            pooled if large.
        values: float32 ``(h, w)`` for maps and matrices, ``(n,)`` for strips.
    """

    kind: PictureKind
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Calculation:
    """Calculation of the entries of a matrix from vectors: entry [i, j] is f(left[i] · right[j]).

    Args:
        form: f is the identity (``product``), division by the number of keys (``mean``), or the softmax of the
            products (``softmax``) or of the negative products (``softmin``) over the row.
        step: symbol of the products; the matrix itself unless the flow has them as a step.
        left, right: the vectors of i and j, such as ``Q[:, i]`` and ``K[:, j]``.
        lefts, rights: float32 ``(nodes, F)`` and ``(keys, F)``.
        nodes, keys: nodes of ``lefts`` and keys of ``rights``; None for all.
        logsumexp: float32 ``(R,)``, logarithm of the denominator of the softmax of each row; empty without one.
    """

    form: Form
    step: str
    left: str
    right: str
    lefts: np.ndarray
    rights: np.ndarray
    nodes: np.ndarray | None
    keys: np.ndarray | None
    logsumexp: np.ndarray


@dataclass(frozen=True, eq=False)
class MatrixView:
    """One relation matrix with R rows and K columns.

    Args:
        name: key in ``Relations.matrices``.
        symbol, formula, meaning: of the step that computes it.
        kind: nodes of the matrix.
        size: (R, K).
        grid: map of the rows, (H, W); (R, 1) for channels.
        key_grid: map of the columns; smaller if keys are pooled.
        picture: float32, the complete matrix or its block means.
        blocks: map of the rows of ``picture``: ``grid``, or a coarser one.
        key_blocks: map of the columns of ``picture``.
        chosen: nodes with exact rows and columns; all nodes if the matrix is complete.
        rows: float32 ``(chosen, K)``; empty if the matrix is complete.
        columns: float32 ``(chosen, R)``, of the key at the same place; empty if the matrix is complete.
        asymmetry: see ``asymmetry``; None if the matrix is not square.
        reach: mean share of the entries in a row that are above ``ZERO``.
        maps: activation maps of channels, float32 ``(m, h, w)``; empty for positions.
        map_channels: channels of ``maps``.
        live: channels whose activation is not 0 everywhere; empty for positions.
        calculation: how an entry is computed; None if it is not a product of two vectors.
    """

    name: str
    symbol: str
    formula: str
    meaning: str
    kind: Literal["positions", "channels"]
    size: tuple[int, int]
    grid: Grid
    key_grid: Grid
    picture: np.ndarray
    blocks: Grid
    key_blocks: Grid
    chosen: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    asymmetry: float | None
    reach: float
    maps: np.ndarray
    map_channels: np.ndarray
    live: np.ndarray
    calculation: Calculation | None = None

    @property
    def whole(self) -> bool:
        """Whether ``picture`` is the complete matrix."""
        return self.picture.shape == self.size

    def nearest(self, node: int) -> int:
        """Return the index in ``chosen`` of the node nearest to ``node``."""
        if self.whole:
            return node
        width = self.grid[1]
        row, column = divmod(node, width)
        rows, columns = divmod(self.chosen, width)
        return int(np.argmin((rows - row) ** 2 + (columns - column) ** 2))

    def row(self, place: int) -> np.ndarray:
        """Return the row of the chosen node at index ``place``: ``(K,)``."""
        return self.picture[place] if self.whole else self.rows[place]

    def column(self, place: int) -> np.ndarray:
        """Return the column of the chosen node at index ``place``: ``(R,)``."""
        if not self.whole:
            return self.columns[place]
        return self.picture[:, _key(int(self.chosen[place]), self.grid, self.key_grid)]


@dataclass(frozen=True, eq=False)
class StageView:
    """Trace of one attention module after one stage, on one picture.

    Args:
        stage: from 1 to 4.
        channels, grid: shape of the map.
        flow: intermediate tensors, in order.
        pictures: a picture of each tensor in ``flow``; None for one that has neither positions nor channels.
        matrices: relation matrices; criss-cross attention also has the product of its passes.
        attention: weight of each position, float32 ``(H, W)``, or None.
        channel_attention: weight of each channel, float32 ``(C,)``, or None.
        change: norm of output − input relative to the input, at each position, float32 ``(H, W)``.
    """

    stage: int
    channels: int
    grid: Grid
    flow: list[FlowStep]
    pictures: list[StepPicture | None]
    matrices: list[MatrixView]
    attention: np.ndarray | None
    channel_attention: np.ndarray | None
    change: np.ndarray


def stage_view(capture: StageCapture) -> StageView:
    """Prepare the capture of a stage for display."""
    _, channels, height, width = capture.x.shape
    x = capture.x[0]
    change = (capture.output[0] - x).norm(dim=0) / x.norm(dim=0).clamp(min=torch.finfo(x.dtype).tiny)
    weights = capture.weights.values()
    spatial = next((one for one in weights if one.shape == (1, 1, height, width)), None)
    channel = next((one for one in weights if one.shape == (1, channels, 1, 1)), None)
    matrices = [_matrix_view(capture, name, matrix[0]) for name, matrix in capture.matrices.items()]
    passes = [m[0] for name, m in capture.matrices.items() if name.startswith("pass_")]
    if len(passes) > 1:
        matrices.append(_both_passes(capture, passes))
    known = list(map(id, capture.matrices.values()))
    related = [step for step in capture.flow if id(step.tensor) in known]
    squares = {step.symbol for step in related}
    squares |= {  # the products that a softmax turns into a matrix; other formulas multiply vectors
        name
        for step in related
        if step.formula.startswith("softmax") and not _PRODUCT.search(step.formula)
        for name in step.inputs
    }
    return StageView(
        capture.stage,
        channels,
        (height, width),
        flow_steps(capture.flow, capture.matrices.values(), capture.weights.values()),
        [
            step_picture(
                step.tensor,
                channels,
                (height, width),
                is_square=step.symbol in squares,
                of_channels=step.symbol.endswith("_c") and step.tensor.dim() == 4,
            )
            for step in capture.flow
        ],
        matrices,
        None if spatial is None else _array(spatial[0, 0]),
        None if channel is None else _array(channel[0, :, 0, 0]),
        _array(change),
    )


def flow_steps(flow: Sequence[Step], matrices: Iterable[Tensor], weights: Iterable[Tensor]) -> list[FlowStep]:
    """Return the steps of a data flow with their kinds and levels."""
    kinds: dict[int, Kind] = dict.fromkeys(map(id, matrices), "matrix")
    kinds.update(dict.fromkeys(map(id, weights), "weight"))
    levels: dict[str, int] = {}
    steps = []
    for symbol, meaning, formula, tensor, inputs in flow:
        levels[symbol] = 1 + max((levels[name] for name in inputs), default=-1)
        kind = kinds.get(id(tensor), "between")
        shape = tuple(tensor.shape)
        steps.append(FlowStep(symbol, meaning, formula, shape, inputs, kind, levels[symbol]))
    return steps


def step_picture(
    tensor: Tensor, channels: int, grid: Grid, *, is_square: bool = False, of_channels: bool = False
) -> StepPicture | None:
    """Return what is drawn of a tensor of batch length 1 in a data flow.

    Args:
        tensor: of any shape.
        channels, grid: shape of the map of the stage.
        is_square: a matrix, or the products it is computed from.
        of_channels: features of channels ``(1, F, C, 1)``, of which there may be as many as positions.
    """
    values, positions = tensor[0].detach().float(), grid[0] * grid[1]
    if is_square and values.dim() == 2 and values.shape[0] == values.shape[1]:
        side = min(MAX_CELLS, len(values))
        return StepPicture("matrix", _array(torch.nn.functional.adaptive_avg_pool2d(values[None], side)[0]))
    if tuple(values.shape[1:]) == grid:
        return StepPicture("map", _array(values.abs().mean(0)))
    columns = values.reshape(values.shape[0], -1) if values.dim() > 1 else values[None]
    if columns.shape[1] == positions and not of_channels:
        return StepPicture("map", _array(columns.abs().mean(0).reshape(grid)))
    if columns.shape[1] == channels:
        return StepPicture("strip", _array(columns.abs().mean(0)))
    if columns.shape[1] == 1:
        return StepPicture("strip", _array(columns[:, 0].abs()))
    return None


def find_calculation(
    flow: Sequence[Step], matrix: Step, chosen: Tensor | None, keys: Tensor | None
) -> Calculation | None:
    """Return how an entry of a matrix is computed, as its formula says.

    Args:
        flow: all steps.
        matrix: the step of the matrix.
        chosen, keys: nodes and keys whose vectors are kept if there are too many; evenly spread ones by default.
    """
    steps = {step.symbol: step for step in flow}
    of_softmax = matrix.formula.startswith("softmax")
    direct = _PRODUCT.search(matrix.formula)
    energy = matrix if direct else next((steps[name] for name in matrix.inputs if of_softmax), None)
    if energy is None:
        return None
    found = direct or _OF_COLUMNS.fullmatch(energy.formula) or _OF_ROWS.fullmatch(energy.formula)
    if found is None or not {*found.groups()} <= set(steps):
        return None
    lefts, rights = (steps[name].tensor[0].flatten(1) for name in found.groups())
    of_rows = found.re is _OF_ROWS
    if not of_rows:
        lefts, rights = lefts.mT, rights.mT
    if lefts.shape[1] != rights.shape[1] or (len(lefts), len(rights)) != tuple(matrix.tensor.shape[1:]):
        return None
    form: Form = "softmax" if of_softmax else "mean" if matrix.formula.endswith("/ N") else "product"
    logsumexp = torch.zeros(0)
    if of_softmax:
        products = lefts.double() @ rights.double().mT
        if "−" in matrix.formula:  # CAM: the softmax of what is missing to the maximum
            form, products = "softmin", -products
        logsumexp = products.masked_fill(matrix.tensor[0] == 0, -torch.inf).logsumexp(1)
    nodes: Tensor | None = None
    columns: Tensor | None = None
    if max(lefts.numel(), rights.numel()) > MAX_OPERAND:
        nodes = _spread_evenly(len(lefts)) if chosen is None else chosen
        columns = nodes if keys is None and len(lefts) == len(rights) else keys
        columns = _spread_evenly(len(rights)) if columns is None else columns
        lefts, rights = lefts[nodes], rights[columns]
    return Calculation(
        form,
        energy.symbol,
        f"{found[1]}[i, :]" if of_rows else f"{found[1]}[:, i]",
        f"{found[2]}[j, :]" if of_rows else f"{found[2]}[:, j]",
        _array(lefts),
        _array(rights),
        None if nodes is None else nodes.cpu().numpy(),
        None if columns is None else columns.cpu().numpy(),
        _array(logsumexp),
    )


def pool(matrix: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
    """Return block means of a matrix, about ``MAX_BLOCKS`` per side; blocks are rectangles of the two maps."""
    (h, w), (kh, kw) = _coarse(grid), _coarse(key_grid)
    keys = torch.nn.functional.adaptive_avg_pool2d(matrix.reshape(-1, 1, *key_grid), (kh, kw)).flatten(1)
    rows = torch.nn.functional.adaptive_avg_pool2d(keys.T.reshape(-1, 1, *grid), (h, w)).flatten(1)
    return rows.T


def find_related(
    row: np.ndarray, own: int, count: int = RELATED, *, among: np.ndarray | None = None
) -> tuple[list[int], list[int]]:
    """Return the nodes with the highest and with the lowest values in a row, except the node itself.

    Args:
        row: (K,).
        own: the node of the row.
        count: of nodes on each side.
        among: nodes to choose from; all by default.
    """
    known = range(len(row)) if among is None else among.tolist()
    others = [node for node in known if node != own]
    most, least = (sorted(others, key=lambda node: (sign * row[node], node))[:count] for sign in (-1, 1))
    return most, least


def _matrix_view(capture: StageCapture, name: str, matrix: Tensor) -> MatrixView:
    step = next(step for step in capture.flow if step.tensor is capture.matrices[name])
    rows, keys = matrix.shape
    grid: Grid = (capture.x.shape[2], capture.x.shape[3])
    if name.startswith("channel") or rows != grid[0] * grid[1]:
        node_map = _node_map(capture.flow, step, rows, grid)
        return _view(name, step, "channels", matrix, (rows, 1), (keys, 1), node_map, capture.flow)
    return _view(name, step, "positions", matrix, grid, _key_grid(grid, keys), None, capture.flow)


def _both_passes(capture: StageCapture, passes: Sequence[Tensor]) -> MatrixView:
    """The product of the matrices: how much a position takes from each other one through all passes."""
    product = passes[0]
    for later in passes[1:]:
        product = later @ product
    symbols = " ".join(f"A_{number}" for number in range(len(passes), 0, -1))
    step = Step(symbols, "how much i takes from each j through all passes", f"{symbols} (product)", product)
    grid = (capture.x.shape[2], capture.x.shape[3])
    return _view(BOTH_PASSES, step, "positions", product, grid, grid, None)


def _view(
    name: str,
    step: Step,
    kind: Literal["positions", "channels"],
    matrix: Tensor,
    grid: Grid,
    key_grid: Grid,
    node_map: Tensor | None,
    flow: Sequence[Step] = (),
) -> MatrixView:
    rows, keys = matrix.shape
    whole = max(rows, keys) <= MAX_WHOLE
    if whole:
        chosen = torch.arange(rows)
    elif node_map is None:
        chosen = _spread(grid)
    else:
        chosen = _most_active(node_map, EXACT_CHANNELS)
    chosen_keys = torch.tensor([_key(int(node), grid, key_grid) for node in chosen])
    exact_rows = _array(matrix[:0] if whole else matrix[chosen])
    exact_columns = _array(matrix.T[:0] if whole else matrix.T[chosen_keys])
    mapped = live = np.arange(rows)  # channels whose activation maps are kept
    kept, kept_keys = (None, None) if whole else (chosen, chosen_keys)
    if node_map is not None:
        active = node_map.flatten(1).any(1).nonzero().flatten().cpu().numpy()
        live = active if len(active) > 1 else live  # a channel needs another one to be compared with
        kept = _most_active(node_map, EXACT_POINTS[0] * EXACT_POINTS[1]) if whole else chosen
        stored = as_stored(_array(matrix))[kept] if whole else as_stored(exact_rows)
        # the page calculates the relation of a channel to its most related one
        best = [
            find_related(line, int(own), 1, among=live)[0] for own, line in zip(kept, stored, strict=True)
        ]
        kept_keys = torch.tensor(sorted({*kept.tolist(), *(node for nodes in best for node in nodes)}))
    if node_map is not None and not whole:
        stored_lines = (as_stored(exact_rows), as_stored(exact_columns))
        lines = [pair for stored in stored_lines for pair in zip(chosen, stored, strict=True)]
        sides = [find_related(line, int(own), among=live) for own, line in lines]
        related = [node for both in sides for side in both for node in side]
        mapped = np.unique([*chosen.tolist(), *related])
    return MatrixView(
        name,
        step.symbol,
        step.formula,
        step.meaning,
        kind,
        (rows, keys),
        grid,
        key_grid,
        _array(matrix if whole else pool(matrix, grid, key_grid)),
        grid if whole else _coarse(grid),
        key_grid if whole else _coarse(key_grid),
        chosen.cpu().numpy(),
        exact_rows,
        exact_columns,
        asymmetry(matrix) if rows == keys else None,
        float((matrix.abs() > ZERO * matrix.abs().max()).double().mean()),
        np.zeros((0, 1, 1), np.float32) if node_map is None else _small_maps(node_map[mapped]),
        mapped[:0] if node_map is None else mapped,
        live[:0] if node_map is None else live,
        find_calculation(flow, step, kept, kept_keys),
    )


def _most_active(node_map: Tensor, count: int) -> Tensor:
    """Channels of the largest mean magnitudes, in order."""
    activity = node_map.flatten(1).abs().mean(1)
    return activity.topk(min(count, len(activity))).indices.sort().values


def to_halves(array: np.ndarray) -> tuple[np.ndarray, int]:
    """Return an array in half precision, divided by a power of 2, and the exponent of that power."""
    largest = float(np.abs(array).max(initial=0.0))
    exponent = math.frexp(largest)[1] - _MAX_EXPONENT if largest > 0 else 0
    return np.ldexp(array.astype(np.float64), -exponent).astype("<f2"), exponent


def as_stored(array: np.ndarray) -> np.ndarray:
    """Return the values that the page has of an array; as these are rounded, more of them are equal."""
    halves, exponent = to_halves(array)
    return np.ldexp(halves.astype(np.float64), exponent)


def _node_map(flow: Sequence[Step], matrix: Step, channels: int, grid: Grid) -> Tensor:
    """The map (C, H, W) whose channels are the nodes: the last one on the way to the matrix."""
    steps, reached = {step.symbol: step for step in flow}, [matrix]
    while reached:
        reached = [steps[name] for step in reached for name in step.inputs]
        for step in reached:
            if step.shape == (1, channels, *grid):
                return step.tensor[0]
    raise InputError(f"{matrix.symbol}: not computed from a map of {channels} channels")


def _small_maps(maps: Tensor) -> np.ndarray:
    height, width = maps.shape[1:]
    while height * width > MAX_MAP_CELLS:
        height, width = (height + 1) // 2, (width + 1) // 2
    return _array(torch.nn.functional.adaptive_avg_pool2d(maps, (height, width)))


def _coarse(grid: Grid) -> Grid:
    height, width = grid
    while height * width > MAX_BLOCKS:
        height, width = (height + 1) // 2, (width + 1) // 2 if width > 1 else 1
    return height, width


def _spread(grid: Grid) -> Tensor:
    """Centres of ``EXACT_POINTS`` equal parts of the map."""
    (height, width), (down, across) = grid, (min(EXACT_POINTS[0], grid[0]), min(EXACT_POINTS[1], grid[1]))
    rows = ((torch.arange(down) + 0.5) * height / down).long()
    columns = ((torch.arange(across) + 0.5) * width / across).long()
    return (rows[:, None] * width + columns).flatten()


def _spread_evenly(count: int) -> Tensor:
    """At most as many nodes as there are exact points, evenly spread."""
    most = min(count, EXACT_POINTS[0] * EXACT_POINTS[1])
    return ((torch.arange(most) + 0.5) * count / most).long()


def _key_grid(grid: Grid, keys: int) -> Grid:
    """Map of the keys: all positions, or 2×2 pools of them."""
    height, width = grid
    return grid if keys == height * width else (height // 2, width // 2)


def _key(node: int, grid: Grid, key_grid: Grid) -> int:
    """The key at the position of a node."""
    row, column = divmod(node, grid[1])
    row, column = row * key_grid[0] // grid[0], column * key_grid[1] // grid[1]
    return row * key_grid[1] + column


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
