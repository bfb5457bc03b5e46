"""Trace of an attention module: intermediate tensors, relation matrices and weights.

``module.relations(x)`` computes the explicit form of the papers, matrix by matrix. It shares no code with the fast
``forward``, so that each verifies the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = re.compile(r"[A-Za-zΑ-ω][A-Za-zΑ-ω0-9]*(?:_[A-Za-z0-9]+)?'?")  # x, θ_s, x' in a formula


class Step(NamedTuple):
    """One named intermediate tensor of the explicit form."""

    symbol: str  #: symbol of the paper, such as "θ", or "G_s" for G with the subscript s
    meaning: str  #: description in words
    formula: str  #: formula in terms of earlier symbols
    tensor: Tensor  #: value, of any shape
    inputs: tuple[str, ...] = ()  #: earlier symbols in the formula; c_i is c if there is no other c_i

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.tensor.shape)


@dataclass
class Trace:
    """Record of one run of an explicit form, filled in step by step, with tensors of any shape."""

    given: Mapping[str, Tensor] = field(default_factory=dict)  #: matrices that replace the computed ones
    matrices: dict[str, Tensor] = field(default_factory=dict)  #: relation matrices by name
    weights: dict[str, Tensor] = field(default_factory=dict)  #: applied attention weights by name
    flow: list[Step] = field(default_factory=list)  #: all steps, in order

    def step(self, symbol: str, meaning: str, formula: str, tensor: Tensor) -> Tensor:
        """Record an intermediate tensor and return it.

        Args:
            symbol, meaning, formula, tensor: see ``Step``.
        """
        known = {step.symbol for step in self.flow}
        names = (
            name if name in known else name.removesuffix("_i").removesuffix("_j")
            for name in _NAMES.findall(formula)
        )
        inputs = tuple(dict.fromkeys(name for name in names if name in known))
        self.flow.append(Step(symbol, meaning, formula, tensor, inputs))
        return tensor

    def matrix(self, name: str, symbol: str, meaning: str, formula: str, tensor: Tensor) -> Tensor:
        """Record a relation matrix and return it, or return the given one that replaces it.

        Args:
            name: key in ``Relations.matrices``. If there are as many channels as positions, the names of channel
                matrices begin with ``channel``.
            symbol, meaning, formula, tensor: see ``Step``.
        """
        tensor = self.matrices[name] = self.given.get(name, tensor)
        return self.step(symbol, meaning, formula, tensor)

    def weight(self, name: str, symbol: str, meaning: str, formula: str, tensor: Tensor) -> Tensor:
        """Record attention weights that are applied to the map, and return them.

        Args:
            name: key in ``Relations.weights``: ``spatial`` or ``channel``.
            symbol, meaning, formula, tensor: see ``Step``.
        """
        self.weights[name] = tensor
        return self.step(symbol, meaning, formula, tensor)


def asymmetry(matrix: Tensor) -> float:
    """Return the asymmetry of square matrices ``(..., N, N)``: 0 if symmetric, 1 if no relation is mutual.

    Σ |M[i, j] − M[j, i]| / Σ (|M[i, j]| + |M[j, i]|) over i ≠ j, and over all matrices.
    """
    exact = matrix.double()
    m = exact - torch.diag_embed(exact.diagonal(dim1=-2, dim2=-1))
    total = 2 * m.abs().sum()
    return float((m - m.mT).abs().sum() / total) if total > 0 else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Relations:
    """Explicit form of an attention module on one batch.

    ``matrices`` holds the relations by name: (B, N, N) between positions, (B, C, C) between channels, (B, N, N') with
    pooled keys. Entry [b, i, j] is the relation of node i to node j: the share it takes, or its similarity.

    ``weights``, ``flow`` and ``output`` are computed on access from ``x``, ``matrices`` and the module's current
    parameters: change a matrix, in place or with ``dataclasses.replace``, and they follow. Running statistics of batch
    norms are never updated.
    """

    x: Tensor  #: input map
    matrices: dict[str, Tensor]  #: relation matrices by name
    #: computes the output from the map and records each step in the trace
    explicit: Callable[[Tensor, Trace], Tensor]

    @classmethod
    def of(cls, explicit: Callable[[Tensor, Trace], Tensor], x: Tensor) -> Relations:
        """Run ``explicit(x, trace) -> output`` once and keep its matrices."""
        relations = cls(x, {}, explicit)
        return replace(relations, matrices=relations.trace()[0].matrices)

    def __repr__(self) -> str:
        """Return the shapes, and how much each matrix differs from its transpose."""
        lines = [f"Relations of a map {tuple(self.x.shape)}"]
        for name, matrix in self.matrices.items():
            matrix = matrix.detach()
            rows, keys = matrix.shape[-2:]
            note = f", asymmetry {asymmetry(matrix):.2f}" if rows == keys else ""
            lines.append(
                f"  {name}: {tuple(matrix.shape)}, {float(matrix.min()):.3g} to {float(matrix.max()):.3g}{note}"
            )
        return "\n".join(lines)

    def plot(self, *, item: int = 0, point: tuple[float, float] = (0.36, 0.5)) -> Figure:
        """Draw each matrix with the row and the column of one node.

        Args:
            item: index in the batch.
            point: chosen position, as fractions of height and width from the top left. Of channels, the most active
                one is chosen.

        Returns:
            A matplotlib figure, which notebooks display: a line for each matrix, which is shown with its row and its
            column, as maps where the nodes are positions.

        Raises:
            ValueError: the module has no relation matrix.
        """
        from rga_reid.attention.plots import NotebookFigure

        if not self.matrices:
            raise ValueError("plot: expected relation matrices, got a module with weights only")

        height, width = self.x.shape[2:]
        figure = NotebookFigure(figsize=(8, 2.6 * len(self.matrices)), layout="constrained")
        axes = figure.subplots(len(self.matrices), 3, squeeze=False)
        for line, (name, matrix) in zip(axes, self.matrices.items(), strict=True):
            values = matrix[item].detach().float().cpu()
            rows, keys = values.shape
            of_channels = name.startswith("channel") or rows != height * width
            if of_channels:
                node = key = int(self.x[item].flatten(1).abs().mean(1).argmax())
                row, column = (one[None].numpy() for one in (values[node], values[:, key]))
                titles = [f"row {node}", f"column {key}"]
            else:
                v, u = min(height - 1, int(point[0] * height)), min(width - 1, int(point[1] * width))
                h, w = (height, width) if keys == height * width else (height // 2, width // 2)
                node, key = v * width + u, (v * h // height) * w + u * w // width
                row = values[node].reshape(h, w).numpy()
                column = values[:, key].reshape(height, width).numpy()
                # positions count from 1, as in the explorer
                titles = [f"row {node + 1}", f"column {key + 1}"]
            low, high = min(row.min(), column.min()), max(row.max(), column.max())  # one scale for both
            titles = [f"{name}, {rows}×{keys}", *titles]
            for one, picture, title in zip(line, (values.numpy(), row, column), titles, strict=True):
                limits = {} if one is line[0] else {"vmin": low, "vmax": high}
                is_strip = of_channels and one is not line[0]
                shown = one.imshow(picture, "cividis", aspect="auto" if is_strip else "equal", **limits)
                one.set(xticks=[], yticks=[])
                one.set_title(title, fontsize=9)
                figure.colorbar(shown, ax=one, shrink=0.7).ax.tick_params(labelsize=7)
        return figure

    def trace(self) -> tuple[Trace, Tensor]:
        """Return all steps and the output of one run."""
        trace = Trace(given=self.matrices)
        trace.step("x", "input map", "", self.x)
        return trace, self.explicit(self.x, trace)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Applied attention weights by name: (B, 1, H, W), (B, C, 1, 1), ..."""
        return self.trace()[0].weights

    @property
    def flow(self) -> list[Step]:
        """Named intermediate tensors in order."""
        return self.trace()[0].flow

    @property
    def output(self) -> Tensor:
        """Result of ``forward(x)``."""
        return self.trace()[1]


def run_layers(layers: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return ``layers(x)`` without updating the running statistics of batch norms.

    Args:
        layers: one layer or a Sequential.
        x: input.
        weight: replaces the weight of the first layer if given.
    """
    for layer in layers if isinstance(layers, nn.Sequential) else [layers]:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            of_batch = layer.training or layer.running_mean is None
            statistics = (None, None) if of_batch else (layer.running_mean, layer.running_var)
            x = F.batch_norm(x, *statistics, layer.weight, layer.bias, of_batch, 0.0, layer.eps)
        elif weight is not None:
            x, weight = F.conv2d(x, weight), None
        else:
            x = layer(x)
    return x
