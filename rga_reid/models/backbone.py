"""Interface of all backbones: an image in, the last feature map out, attention modules after its stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rga_reid.errors import InputError, short_repr

if TYPE_CHECKING:
    from typing_extensions import Self

Size = tuple[int, int]
AttentionFactory = Callable[[int, Size], nn.Module]

MIN_SIDE, MAX_SIDE = 32, 1024  #: height and width of an input in pixels

_SLOT = re.compile(r"attention([0-9]+)")


def check_size(size: Sequence[int]) -> None:
    """Check the (H, W) of a backbone's input in pixels.

    Raises:
        InputError: a side out of range.
    """
    if not all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise InputError(
            f"size: expected at least {MIN_SIDE}x{MIN_SIDE} and at most {MAX_SIDE}x{MAX_SIDE} pixels, "
            f"got {short_repr(size[0])}x{short_repr(size[1])}"
        )


class Backbone(nn.Module):
    """``(n, 3, H, W) -> (n, C, h, w)``, with an attention slot after each stage.

    Subclasses set ``channels``, implement ``forward`` and ``map_sizes``, and call ``add_attention`` if they have
    stages. The attention module after stage 2 is the attribute ``attention2``.

    Args:
        name: as a recipe names it, such as ``timm/convnext_atto``.
        size: input (H, W) in pixels, 32 to 1024 each.
        last_stride: stride of the last stage, 1 or 2; None if the architecture has no such stage.

    Attributes:
        channels: C, the channels of the last map.
        size: the input size that the model was built for.
        input_size: the input size that attention currently takes.
        stages: the stages with an attention slot in use, or all stages without attention.
        checkpointing: recompute the activations of each stage in the backward pass instead of storing them.
        frozen_stages: number of first stages that keep their weights, see ``freeze_stages``.
        mean, std: normalisation of the RGB channels that pretrained weights expect; None for ImageNet's.

    Raises:
        InputError: a side out of range.
    """

    channels: int
    stages: tuple[int, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __init__(self, name: str, size: Sequence[int], last_stride: int | None = None) -> None:
        super().__init__()
        check_size(size)
        self.name, self.last_stride = name, last_stride
        self.size: Size = (size[0], size[1])
        self.input_size = self.size
        self.checkpointing = False
        self.frozen_stages = 0
        self._frozen: list[str] = []

    @property
    def title(self) -> str:
        """Name for people to read."""
        return self.name

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(n, C, h, w)`` of normalised float images ``(n, 3, H, W)``."""
        raise NotImplementedError

    def map_sizes(self, size: Size) -> list[Size]:
        """Return the (H, W) of the stages' outputs for an input of ``size`` pixels; the last is the output map."""
        raise NotImplementedError

    def parts(self) -> list[tuple[str, list[str]]]:
        """Return the name of each part, such as ``stem`` or ``stage 1``, and its submodules, for costs."""
        return [("network", [name for name, _ in self.named_children() if not _SLOT.fullmatch(name)])]

    def freeze_stages(self, count: int) -> None:
        """Keep the first stages, and what is before them, as they are.

        Their parameters get no gradient, and their batch norms use and keep the statistics that they have.
        Attention modules are trained.

        Args:
            count: number of stages; 0 freezes nothing.

        Raises:
            InputError: more stages than the backbone has.
        """
        parts = self.parts()
        stages = [row for row, (name, _) in enumerate(parts, 1) if name.startswith("stage ")]
        if type(count) is not int or not 0 <= count <= len(stages):
            raise InputError(
                f"frozen_stages: expected an integer from 0 to {len(stages)}, the stages of the backbone "
                f"{self.name}, got {short_repr(count)}"
            )
        self.frozen_stages = count
        self._frozen = [name for _, names in parts[: stages[count - 1] if count else 0] for name in names]
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def map_layer(self) -> nn.Module:
        """Return the module whose output holds the last spatial activations."""
        return self

    def to_map(self, output: Tensor) -> Tensor:
        """Return the output of ``map_layer`` as a map ``(n, C, h, w)``."""
        return output

    def add_attention(
        self,
        attention: AttentionFactory | None,
        stages: Sequence[int] | None,
        shapes: Sequence[tuple[int, Size]],
    ) -> None:
        """Build an attention module after each of the chosen stages.

        Args:
            attention: class or callable ``(in_channels, size) -> Module``, built once for each chosen stage.
            stages: the chosen ones; None for all.
            shapes: channels and (H, W) of the map after each stage.

        Raises:
            InputError: a stage that does not exist, or attention for a backbone without stages.
        """
        known = range(1, len(shapes) + 1)
        if attention is not None and not shapes:
            raise InputError(
                f"attention: the backbone {self.name} has no stages that an attention module could follow: "
                "expected null"
            )
        chosen = tuple(known if stages is None else stages)
        if shapes and (not set(chosen) <= set(known) or len(set(chosen)) != len(chosen)):
            numbers = ", ".join(map(str, known))
            raise InputError(
                f"stages: expected distinct stages out of {numbers}, got {short_repr(list(chosen))}"
            )
        self.stages = chosen if shapes else ()
        for stage, (width, map_size) in enumerate(shapes, 1):
            used = attention if attention is not None and stage in chosen else nn.Identity
            setattr(self, f"attention{stage}", used(width, map_size))

    def attention_stages(self) -> dict[int, nn.Module]:
        """Return the attention modules by the stage they follow."""
        found = {}
        for name, module in self.named_children():
            slot = _SLOT.fullmatch(name)
            if slot and not isinstance(module, nn.Identity):
                found[int(slot[1])] = module
        return found

    def set_input_size(self, size: Size) -> None:
        """Take inputs of ``size`` from now on, adapting attention modules that are tied to a map size."""
        self.input_size = (size[0], size[1])
        modules = self.attention_stages()
        sizes = self.map_sizes(self.input_size) if modules else []
        for stage, module in modules.items():
            set_map_size: Any = getattr(module, "set_map_size", None)
            if set_map_size is not None:
                set_map_size(sizes[stage - 1])

    def run_stage(self, run: Callable[[Tensor], Tensor], modules: Sequence[nn.Module], x: Tensor) -> Tensor:
        """Return ``run(x)``, recomputing it in the backward pass if ``checkpointing`` is set.

        Args:
            run: a part of the forward pass.
            modules: the modules that it uses.
            x: its input.
        """
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return run(x)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _frozen_buffers(modules)

        return checkpoint(run, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore buffers afterwards: recomputing a batch must not count twice in running statistics."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode and restore the mode of each submodule: some may be frozen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
