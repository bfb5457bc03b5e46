"""Relation matrices made fit to be shown: whole if small, else a pooled picture and exact rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rga_reid.attention import Step
from rga_reid.errors import InputError
from rga_reid.models.analysis import StageCapture

Grid = tuple[int, int]  #: (rows, columns) of a map of positions
Kind = Literal["matrix", "weight", "between"]

WHOLE = 512  #: matrices of up to this many nodes are kept whole
POOLED = 128  #: a larger one is shown as a picture of about so many blocks a side
POINTS: Grid = (8, 4)  #: and exactly at so many points, spread evenly over the map
CHANNELS = 16  #: or at so many channels, the most active ones
RELATED = 4  #: channels most and least related to one
MAP_CELLS = 128  #: an activation map is pooled to at most so many cells
BOTH_PASSES = "both_passes"


@dataclass(frozen=True)
class FlowStep:
    """One tensor of a data flow.

    Args:
        symbol, meaning, formula, shape, inputs: as of ``Step``.
        kind: what it is in the mechanism: a relation matrix, the weight that is finally applied, or neither.
        level: 0 for what comes in, else 1 more than the highest level of its inputs; tensors of one level do
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
class MatrixView:
    """One relation matrix of R rows and K columns.

    Args:
        name: as in ``Relations.matrices``.
        symbol, formula, meaning: of the step that made it.
        kind: what the nodes are.
        size: (R, K).
        grid: the map that rows run over, (H, W); (R, 1) for channels.
        key_grid: the same for columns; smaller where keys are pooled.
        picture: float32, all of the matrix, or means over blocks of it.
        blocks: the map that the picture's rows run over: ``grid``, or a coarser one.
        key_blocks: the same for its columns.
        chosen: nodes with exact rows and columns; all of them, in order, if the matrix is whole.
        rows: float32 ``(chosen, K)``; empty if the matrix is whole.
        columns: float32 ``(chosen, R)``, of the key at the same place; empty if the matrix is whole.
        asymmetry: see ``asymmetry``; None if the matrix is not square.
        reach: mean share of entries in a row that are not 0.
        maps: activation maps of channels, float32 ``(m, h, w)``; empty for positions.
        map_channels: the channels they belong to.
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

    @property
    def whole(self) -> bool:
        return self.picture.shape == self.size

    def nearest(self, node: int) -> int:
        """Place in ``chosen`` of the chosen node nearest to ``node``."""
        if self.whole:
            return node
        width = self.grid[1]
        here, there = divmod(node, width), divmod(self.chosen, width)
        return int(np.argmin((there[0] - here[0]) ** 2 + (there[1] - here[1]) ** 2))

    def row(self, place: int) -> np.ndarray:
        """What the chosen node at ``place`` takes from, or thinks of, every node: ``(K,)``."""
        return self.picture[place] if self.whole else self.rows[place]

    def column(self, place: int) -> np.ndarray:
        """What every node takes from, or thinks of, the one at ``place``: ``(R,)``."""
        if not self.whole:
            return self.columns[place]
        return self.picture[:, _key(int(self.chosen[place]), self.grid, self.key_grid)]


@dataclass(frozen=True, eq=False)
class StageView:
    """What one mechanism does after one stage, on one picture.

    Args:
        stage: from 1 to 4.
        channels, grid: of the map.
        flow: the intermediate tensors, in order.
        matrices: those of the mechanism; criss-cross has its passes taken together besides.
        attention: of each position, float32 ``(H, W)``, or None if positions are not weighed.
        channel_attention: of each channel, float32 ``(C,)``, or None.
        change: length of output − input at each position, as a share of the input's, float32 ``(H, W)``.
    """

    stage: int
    channels: int
    grid: Grid
    flow: list[FlowStep]
    matrices: list[MatrixView]
    attention: np.ndarray | None
    channel_attention: np.ndarray | None
    change: np.ndarray


def stage_view(capture: StageCapture) -> StageView:
    """The part of a capture that is shown."""
    _, channels, height, width = capture.x.shape
    x = capture.x[0]
    change = (capture.output[0] - x).norm(dim=0) / x.norm(dim=0).clamp(min=torch.finfo(x.dtype).tiny)
    spatial, channel = capture.weights.get("spatial"), capture.weights.get("channel")
    matrices = [_matrix_view(capture, name, matrix[0]) for name, matrix in capture.matrices.items()]
    passes = [m[0] for name, m in capture.matrices.items() if name.startswith("pass_")]
    if len(passes) > 1:
        matrices.append(_both_passes(capture, passes))
    return StageView(
        capture.stage,
        channels,
        (height, width),
        flow_steps(capture.flow, capture.matrices.values(), capture.weights.values()),
        matrices,
        None if spatial is None else _array(spatial[0, 0]),
        None if channel is None else _array(channel[0, :, 0, 0]),
        _array(change),
    )


def flow_steps(flow: Sequence[Step], matrices: Iterable[Tensor], weights: Iterable[Tensor]) -> list[FlowStep]:
    """The steps of a data flow, each with its part in the mechanism and its level."""
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


def asymmetry(matrix: Tensor) -> float:
    """How much of the relations runs one way only: 0 for a symmetric matrix, 1 if no pair is mutual.

    Σ |M[i, j] − M[j, i]| / Σ (|M[i, j]| + |M[j, i]|) over i ≠ j.
    """
    m = matrix.double() - torch.diag(matrix.double().diagonal())
    total = 2 * m.abs().sum()
    return float((m - m.T).abs().sum() / total) if total > 0 else 0.0


def pool(matrix: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
    """Means over blocks of about ``POOLED`` × ``POOLED``, blocks being rectangles of the two maps."""
    (h, w), (kh, kw) = _coarse(grid), _coarse(key_grid)
    keys = torch.nn.functional.adaptive_avg_pool2d(matrix.reshape(-1, 1, *key_grid), (kh, kw)).flatten(1)
    rows = torch.nn.functional.adaptive_avg_pool2d(keys.T.reshape(-1, 1, *grid), (h, w)).flatten(1)
    return rows.T


def find_related(row: np.ndarray, own: int, count: int = RELATED) -> tuple[list[int], list[int]]:
    """Nodes with the highest and the lowest values of a row, best first; the node itself is left out."""
    order = [int(node) for node in np.argsort(-row, kind="stable") if node != own]
    return order[:count], order[: -count - 1 : -1]


def _matrix_view(capture: StageCapture, name: str, matrix: Tensor) -> MatrixView:
    place = next(n for n, step in enumerate(capture.flow) if step.tensor is capture.matrices[name])
    step = capture.flow[place]
    rows, keys = matrix.shape
    grid: Grid = (capture.x.shape[2], capture.x.shape[3])
    if name.startswith("channel"):
        shown = _node_map(capture.flow, step, rows, grid)
        return _view(name, step, "channels", matrix, (rows, 1), (keys, 1), shown)
    return _view(name, step, "positions", matrix, grid, _key_grid(grid, keys), None)


def _both_passes(capture: StageCapture, passes: Sequence[Tensor]) -> MatrixView:
    """What a position takes from each other one through all passes: the product of the matrices."""
    product = passes[0]
    for later in passes[1:]:
        product = later @ product
    symbols = " ".join(f"A_{number}" for number in range(len(passes), 0, -1))
    step = Step(symbols, "what i takes from each j through all passes", f"{symbols} (product)", product)
    grid = (capture.x.shape[2], capture.x.shape[3])
    return _view(BOTH_PASSES, step, "positions", product, grid, grid, None)


def _view(
    name: str,
    step: Step,
    kind: Literal["positions", "channels"],
    matrix: Tensor,
    grid: Grid,
    key_grid: Grid,
    shown: Tensor | None,
) -> MatrixView:
    rows, keys = matrix.shape
    whole = max(rows, keys) <= WHOLE
    if whole:
        chosen = torch.arange(rows)
    elif shown is None:
        chosen = _spread(grid)
    else:
        chosen = shown.flatten(1).abs().mean(1).topk(min(CHANNELS, rows)).indices.sort().values
    of_keys = torch.tensor([_key(int(node), grid, key_grid) for node in chosen])
    exact_rows = _array(matrix[:0] if whole else matrix[chosen])
    exact_columns = _array(matrix.T[:0] if whole else matrix.T[of_keys])
    wanted = np.arange(rows if whole else 0)
    if shown is not None and not whole:
        found = [find_related(line, int(node)) for node, line in zip(chosen, exact_rows, strict=True)]
        found += [find_related(line, int(node)) for node, line in zip(chosen, exact_columns, strict=True)]
        wanted = np.unique([*chosen.tolist(), *(node for pair in found for side in pair for node in side)])
    maps = np.zeros((0, 1, 1), np.float32) if shown is None else _small_maps(shown[wanted])
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
        float((matrix != 0).double().mean()),
        maps,
        wanted if shown is not None else wanted[:0],
    )


def _node_map(flow: Sequence[Step], matrix: Step, channels: int, grid: Grid) -> Tensor:
    """The map (C, H, W) whose channels are the nodes: the nearest that the matrix is computed from."""
    steps, reached = {step.symbol: step for step in flow}, [matrix]
    while reached:
        reached = [steps[name] for step in reached for name in step.inputs]
        for step in reached:
            if step.shape == (1, channels, *grid):
                return step.tensor[0]
    raise InputError(f"{matrix.symbol}: its formulas lead to no map of {channels} channels")


def _small_maps(maps: Tensor) -> np.ndarray:
    height, width = maps.shape[1:]
    while height * width > MAP_CELLS:
        height, width = (height + 1) // 2, (width + 1) // 2
    return _array(torch.nn.functional.adaptive_avg_pool2d(maps, (height, width)))


def _coarse(grid: Grid) -> Grid:
    height, width = grid
    while height * width > POOLED:
        height, width = (height + 1) // 2, (width + 1) // 2 if width > 1 else 1
    return height, width


def _spread(grid: Grid) -> Tensor:
    """Positions in the middle of ``POINTS`` equal parts of the map."""
    (height, width), (down, across) = grid, (min(POINTS[0], grid[0]), min(POINTS[1], grid[1]))
    rows = ((torch.arange(down) + 0.5) * height / down).long()
    columns = ((torch.arange(across) + 0.5) * width / across).long()
    return (rows[:, None] * width + columns).flatten()


def _key_grid(grid: Grid, keys: int) -> Grid:
    """The map of the keys: of the positions, or of 2×2 pools of them."""
    height, width = grid
    return grid if keys == height * width else (height // 2, width // 2)


def _key(node: int, grid: Grid, key_grid: Grid) -> int:
    """The key at the place of a node."""
    row, column = divmod(node, grid[1])
    row, column = row * key_grid[0] // grid[0], column * key_grid[1] // grid[1]
    return row * key_grid[1] + column


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
