"""What a mechanism thinks: its relation matrices, its attention, and every step between, as values.

``mechanism.relations(x)`` computes the explicit form of the papers, matrix by matrix. It shares no code with
the fast ``forward``, so that each is the other's proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

_NAMES = re.compile(r"[A-Za-zΑ-ω][A-Za-zΑ-ω0-9]*(?:_[A-Za-z0-9]+)?'?")  # x, θ_s, x' in a formula


class Step(NamedTuple):
    """One named intermediate tensor of the explicit form."""

    symbol: str  #: as in the paper, in plain letters: "θ", "G_s" for G with the subscript s
    meaning: str  #: in words
    formula: str  #: how it follows from earlier symbols, each of which it names
    tensor: Tensor  #: its value, of any shape
    inputs: tuple[str, ...] = ()  #: the earlier symbols that the formula names

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)


@dataclass
class Trace:
    """The record of one run of an explicit form: what a mechanism tells it, step by step, in any shape."""

    given: Mapping[str, Tensor] = field(default_factory=dict)  #: matrices to go on with in place of its own
    matrices: dict[str, Tensor] = field(default_factory=dict)  #: the relations, by name
    weights: dict[str, Tensor] = field(default_factory=dict)  #: the attention that is applied, by name
    flow: list[Step] = field(default_factory=list)  #: all steps, in order

    def step(self, symbol: str, meaning: str, formula: str, tensor: Tensor) -> Tensor:
        """Record an intermediate tensor and return it.

        Args:
            symbol, meaning, formula, tensor: see ``Step``.
        """
        known = {step.symbol for step in self.flow}
        inputs = tuple(dict.fromkeys(name for name in _NAMES.findall(formula) if name in known))
        self.flow.append(Step(symbol, meaning, formula, tensor, inputs))
        return tensor

    def matrix(self, name: str, symbol: str, meaning: str, formula: str, tensor: Tensor) -> Tensor:
        """Record a relation matrix; return it, or the one given in its place.

        Args:
            name: in ``Relations.matrices``; one of channels begins with ``channel``.
            symbol, meaning, formula, tensor: see ``Step``.
        """
        tensor = self.matrices[name] = self.given.get(name, tensor)
        return self.step(symbol, meaning, formula, tensor)

    def weight(self, name: str, symbol: str, meaning: str, formula: str, tensor: Tensor) -> Tensor:
        """Record the attention that is finally applied and return it.

        Args:
            name: in ``Relations.weights``: ``spatial`` or ``channel``.
            symbol, meaning, formula, tensor: see ``Step``.
        """
        self.weights[name] = tensor
        return self.step(symbol, meaning, formula, tensor)


@dataclass(frozen=True, eq=False)
class Relations:
    """The explicit form of a mechanism on one batch.

    ``matrices`` holds the relations by name: (B, N, N) between positions, (B, C, C) between channels,
    (B, N, N') where keys are pooled; entry [b, i, j] is what node i takes from, or thinks of, node j.

    All else follows from ``x`` and ``matrices`` and is computed when asked for, with the module's parameters
    as they are then: change a matrix, in place or with ``dataclasses.replace``, and ``weights``, ``flow`` and
    ``output`` change with it. Running statistics of batch norms are never touched.
    """

    x: Tensor  #: the input map
    matrices: dict[str, Tensor]  #: by name, see above
    #: computes the output from the map, and takes down each step, with the matrices that the trace is given
    explicit: Callable[[Tensor, Trace], Tensor] = field(repr=False)

    @classmethod
    def of(cls, explicit: Callable[[Tensor, Trace], Tensor], x: Tensor) -> Relations:
        """Run ``explicit(x, trace) -> output`` once and keep its matrices."""
        relations = cls(x, {}, explicit)
        return replace(relations, matrices=relations.trace()[0].matrices)

    def trace(self) -> tuple[Trace, Tensor]:
        """All steps and the output, from ``x`` and ``matrices``, in one run."""
        trace = Trace(given=self.matrices)
        trace.step("x", "input map", "", self.x)
        return trace, self.explicit(self.x, trace)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The attention that is finally applied, by name: (B, 1, H, W), (B, C, 1, 1), ..."""
        return self.trace()[0].weights

    @property
    def flow(self) -> list[Step]:
        """The named intermediate tensors, in order."""
        return self.trace()[0].flow

    @property
    def output(self) -> Tensor:
        """What ``forward(x)`` returns."""
        return self.trace()[1]


def run_layers(layers: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """``layers(x)``, leaving the running statistics of batch norms alone.

    Args:
        layers: one layer, or a Sequential.
        x: the input.
        weight: used in place of the first layer's weight if given.
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
