"""Measure the memory that NumPy and Python allocate in a block of code, and its largest tensor."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Memory:
    """Bytes, set at the end of the block. tracemalloc does not see what torch allocates."""

    peak: int = 0
    largest_tensor: int = 0


@contextmanager
def measured() -> Iterator[Memory]:
    """Trace the allocations of a block: ``with measured() as memory``."""
    memory = Memory()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for value in tree_leaves(made):
                if isinstance(value, torch.Tensor):
                    memory.largest_tensor = max(memory.largest_tensor, value.untyped_storage().nbytes())
            return made

    with Watch():
        torch.zeros(1)  # torch imports modules for its first dispatch mode
    memory.largest_tensor = 0
    tracemalloc.start()
    try:
        with Watch():
            yield memory
        memory.peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
