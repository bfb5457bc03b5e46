"""YAML that somebody else may have made, in bounded memory and time."""

from __future__ import annotations

from typing import Any

import yaml

from rga_reid.errors import InputError

MOST_VALUES = 100_000  #: values in a text, those of an alias counted each time it stands there
DEEPEST = 100  #: lists and mappings inside each other
LONGEST_NUMBER = 1000  #: characters of one: base 60 takes the square of their number in time

_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_OF_NUMBERS = "0123456789abcdefABCDEFxX_+-.:"


def parsed_yaml(text: str, name: str) -> Any:
    """The value that a YAML text stands for, of plain types: no tag makes an object.

    Args:
        text: YAML.
        name: where it is from; what is refused here begins with it.

    Raises:
        InputError: more than ``MOST_VALUES`` values or ``DEEPEST`` levels (a few aliases of aliases can stand
            for more values than fit into memory), or a number of more than ``LONGEST_NUMBER`` characters.
        Exception: not YAML; PyYAML raises nearly anything on a damaged number, date or tag.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, name, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML tells what a plain scalar is by patterns that take a hundred bytes for each character."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and len(value) > LONGEST_NUMBER:
            number = value.lstrip("+-.")[:1].isdecimal() and not value.strip(_OF_NUMBERS)
            return _INTEGER if number else self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def _measure(node: yaml.Node, name: str, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Number of values and of levels that a node stands for, before anything is made of it.

    ``known`` keeps them for nodes that aliases name again; None for one that is being measured.
    """
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise InputError(f"{name}: a value that contains itself")
        return measured
    known[id(node)] = None
    if isinstance(node.value, str):
        if len(node.value) > LONGEST_NUMBER and node.tag in (_INTEGER, _FLOAT):
            raise InputError(f"{name}: a number of {len(node.value):,} characters")
        node.value.encode()  # half a character, which an escape can make
    values, levels = 1, 0
    items: Any = node.value if isinstance(node.value, list) else ()
    for item in items:
        for inner in item if isinstance(item, tuple) else (item,):
            inner_values, inner_levels = _measure(inner, name, known)
            values, levels = values + inner_values, max(levels, inner_levels)
    if values > MOST_VALUES:
        raise InputError(f"{name}: more than {MOST_VALUES:,} values, those of aliases counted each time")
    if levels >= DEEPEST:
        raise InputError(f"{name}: more than {DEEPEST} levels of lists and mappings")
    known[id(node)] = values, levels + 1
    return values, levels + 1
