"""Backbones around a network of another library, or of the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rga_reid.errors import InputError
from rga_reid.inputs import truncate
from rga_reid.models.backbone import AttentionFactory, Backbone, Size, eval_mode
from rga_reid.models.weights import diff_state_dicts, with_counters


def no_stride_1_error(name: str) -> InputError:
    """Return the error for a last stride of 1 that a network does not have."""
    return InputError(
        f"last_stride: the backbone {name} has no last stage of stride 1: expected 2 or null, got 1"
    )


class NetworkBackbone(Backbone):
    """A network with attention modules after some of its submodules, inserted by forward hooks.

    The keys of the state_dict are those of the network behind ``net.``, and ``attention1.`` and so on.

    Args:
        name: as a recipe names it.
        net: the network. Its ``forward`` returns ``(n, C, h, w)``.
        stage_names: submodules that end a stage, in the order of the forward pass; their outputs are maps.
        size: input (H, W) in pixels.
        last_stride: see ``Backbone``.

    Raises:
        InputError: a size that the network does not take.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        stage_names: Sequence[str],
        size: Size,
        last_stride: int | None = None,
    ) -> None:
        super().__init__(name, size, last_stride)
        self.net = net
        self.stage_names = tuple(stage_names)
        # input size -> shapes of the stages, and of the output
        self._traced: dict[Size, list[tuple[int, ...]]] = {}
        self._tracing = False
        self._checkpointing = False

    def insert_attention(self, attention: AttentionFactory | None, stages: Sequence[int] | None) -> None:
        """Build the attention modules after the chosen stages, see ``add_attention``."""
        shapes = self.trace(self.size)[:-1]
        self.add_attention(attention, stages, [(shape[1], (shape[2], shape[3])) for shape in shapes])
        for stage in self.attention_stages():
            module = self.net.get_submodule(self.stage_names[stage - 1])
            module.register_forward_hook(partial(_attend, self, stage))

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(n, C, h, w)`` of normalised float images ``(n, 3, H, W)``."""
        return self.net(images)

    def stage_map(self, stage: int, output: Tensor) -> Tensor:
        """Return the output of a stage as a map ``(n, C, h, w)``; its own inverse for such maps."""
        return output

    def stage_output(self, stage: int, maps: Tensor) -> Tensor:
        """Return a map ``(n, C, h, w)`` in the format of a stage's output."""
        return maps

    def trace(self, size: Size) -> list[tuple[int, ...]]:
        """Return the shapes of the stages' maps and of the output for one image, computed without memory.

        Raises:
            InputError: the network does not take images of this size.
        """
        if size not in self._traced:
            shapes: dict[int, tuple[int, ...]] = {}

            def record(stage: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
                shapes[stage] = tuple(self.stage_map(stage, output).shape)

            handles = [
                self.net.get_submodule(name).register_forward_hook(partial(record, stage))
                for stage, name in enumerate(self.stage_names, 1)
            ]
            self._tracing = True
            try:
                with torch.no_grad():
                    output = self.meta_forward(size)
            finally:
                self._tracing = False
                for handle in handles:
                    handle.remove()
            self._traced[size] = [*(shapes[stage] for stage in sorted(shapes)), tuple(output.shape)]
        return self._traced[size]

    def meta_forward(self, size: Size, parameters: dict[str, Tensor] | None = None) -> Any:
        """Return the output of ``forward`` for one image of ``size``, on tensors without memory.

        Args:
            size: (H, W) in pixels.
            parameters: meta tensors to use for the parameters of these names.

        Raises:
            InputError: the network does not take images of this size.
        """
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        meta = {key: torch.empty_like(value, device="meta") for key, value in tensors.items()}
        try:
            with eval_mode(self):
                return functional_call(
                    self, {**meta, **(parameters or {})}, (torch.empty(1, 3, *size, device="meta"),)
                )
        except Exception as error:  # networks raise any type
            height, width = size
            raise InputError(
                f"size: the backbone {self.name} does not take images of {height}x{width} ({truncate(error)})"
            ) from None

    def map_sizes(self, size: Size) -> list[Size]:
        """Return the (H, W) of the stages' outputs for an input of ``size`` pixels; the last is the output map."""
        sizes = [(shape[2], shape[3]) for shape in self.trace((size[0], size[1]))]
        return sizes[:-1] if len(sizes) > 1 and sizes[-1] == sizes[-2] else sizes

    def set_input_size(self, size: Size) -> None:
        """Take inputs of ``size`` from now on, adapting attention modules that are tied to a map size.

        Raises:
            InputError: the network does not take images of this size.
        """
        self.map_sizes(size)
        super().set_input_size(size)

    def parts(self) -> list[tuple[str, list[str]]]:
        """Return the name of each part and its submodules, for costs."""
        if not self.stage_names:
            return [("network", ["net"])]
        parts: list[tuple[str, list[str]]] = []
        names: list[str] = []
        for name in self._units():
            names.append(f"net.{name}")
            if name in self.stage_names:
                part = self.stage_names.index(name) + 1
                if part == 1 and len(names) > 1:
                    parts.append(("stem", names[:-1]))
                    names = names[-1:]
                parts.append((f"stage {part}", names))
                names = []
        return [*parts, ("head", names)] if names else parts

    def _units(self, inside: str = "") -> Iterator[str]:
        """Iterate over submodules, none within another, of which some end stages."""
        for name, module in self.net.get_submodule(inside).named_children():
            path = f"{inside}.{name}" if inside else name
            if next(module.parameters(), None) is None and path not in self.stage_names:
                continue
            if any(stage.startswith(f"{path}.") for stage in self.stage_names):
                yield from self._units(path)
            else:
                yield path

    def adapt_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state_dict with the keys of ``net``, without its classifier."""
        return state

    def load_published(self, state: dict[str, Tensor], source: str) -> None:
        """Load published weights of the network.

        Args:
            state: with the network's own keys; a classifier is left out.
            source: name of the weights in error messages.

        Raises:
            InputError: a missing or unexpected key, or another shape.
        """
        try:
            state = self.adapt_published(dict(state))
        except Exception as error:  # a state_dict of another network
            raise InputError(
                f"weights {source}: not of the backbone {self.name} ({truncate(error)})"
            ) from None
        own = self.net.state_dict()
        wrong = diff_state_dicts(own, state := with_counters(own, state))
        if wrong:
            raise InputError(f"weights {source}: do not fit the backbone {self.name}: {wrong}")
        self.net.load_state_dict(state)

    def recomputed_modules(self) -> list[nn.Module]:
        """Return the modules whose activations are recomputed in the backward pass with ``checkpointing``."""
        names = [name for part, names in self.parts() if part.startswith("stage") for name in names]
        return [self.get_submodule(name) for name in names]

    @property
    def checkpointing(self) -> bool:
        """True if activations are recomputed in the backward pass instead of stored.

        Raises:
            InputError: when set to true, if the network has no stages.
        """
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self._checkpointing = value
        if not value:
            return
        modules = self.recomputed_modules()
        if not modules:
            raise InputError(f"checkpointing: the backbone {self.name} has no stages to recompute")
        for module in modules:
            module.forward = partial(_recompute, self, module)


def _attend(backbone: NetworkBackbone, stage: int, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Apply the attention module of a stage to the stage's output, as a forward hook."""
    if backbone._tracing:
        return output
    attention = getattr(backbone, f"attention{stage}")
    maps = backbone.run_stage(attention, (attention,), backbone.stage_map(stage, output))
    return backbone.stage_output(stage, maps)


def _recompute(backbone: NetworkBackbone, module: nn.Module, x: Tensor, *others: Any, **options: Any) -> Any:
    """Run a module as ``Backbone.run_stage`` does, in place of its ``forward``."""
    forward = type(module).forward
    return backbone.run_stage(lambda x: forward(module, x, *others, **options), (module,), x)


class UserBackbone(NetworkBackbone):
    """A network of the user's own class.

    Args:
        name: its class path.
        net: has ``channels``, ``map_sizes(size)`` and ``forward(images) -> (n, C, h, w)``; optionally
            ``stage_names``, the submodules that attention modules may follow, ``set_input_size(size)`` and
            ``last_stride``.
        size: input (H, W) in pixels.

    Raises:
        InputError: a network without ``channels`` or ``map_sizes``, or whose output has another shape.
    """

    net: Any

    def __init__(self, name: str, net: nn.Module, size: Size) -> None:
        for needed in ("channels", "map_sizes"):
            if not hasattr(net, needed):
                raise InputError(
                    f"backbone {name}: expected a class with channels, map_sizes and forward; "
                    f"it has no {needed}"
                )
        super().__init__(name, net, getattr(net, "stage_names", ()), size, getattr(net, "last_stride", None))
        self.channels = self.net.channels
        self.set_input_size(self.size)
        shape, expected = self.trace(self.size)[-1], (1, self.channels, *self.map_sizes(self.size)[-1])
        if shape != expected:
            raise InputError(
                f"backbone {name}: expected an output of shape {expected}, from channels and "
                f"map_sizes, got {shape}"
            )

    def map_sizes(self, size: Size) -> list[Size]:
        """Return the (H, W) of the stages' outputs for an input of ``size`` pixels; the last is the output map."""
        return [(height, width) for height, width in self.net.map_sizes(size)]

    def set_input_size(self, size: Size) -> None:
        """Take inputs of ``size`` from now on, as far as the network can."""
        if hasattr(self.net, "set_input_size"):
            self.net.set_input_size(size)
        super().set_input_size(size)
