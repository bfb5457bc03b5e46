"""Ways to spoil what is valid, drawn by hypothesis; the simplest draw leaves it as it is."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

LONG = "a" * 20_000
ESCAPES = "\x1b[2J\x1b]0;title\x07"

#: Values that stand where something else is expected, in YAML and, as far as it has them, in JSON.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1.5, float("nan"), float("inf"), float("-inf"),
    "", " ", "a", LONG, "\x00", ESCAPES, "💥", "\ud800", "é\u202e", "$x_$", "%s%n", "{{7*7}}", "<script>",
    "'", '"',
    "../../outside", "/dev/zero", "/dev/null", "pipe", ".", "/", "~", "C:\\x", "null", "1e400", "0x1g",
    [], [[]], [None], [1, 2, 3], ["a", "b"], {}, {"a": 1}, {"class_path": "os.system"}, {"class_path": "rga"},
    {"class_path": "rga_reid.attention.RGA", "init_args": {"in_channels": 3}},
    datetime.date(2001, 2, 3), b"bytes",
)  # fmt: skip

#: Those that JSON has, too.
PLAIN = tuple(value for value in VALUES if not isinstance(value, bytes) and type(value).__name__ != "date")

#: Pieces that are put into a text: of CSV, YAML, JSON, list files.
PIECES: tuple[str, ...] = (
    "", "\n", "\r", "\r\n", "\t", " ", ",", ",,", ";", ":", ": ", "- ", "#", "|", ">", "&a ", "*a", "!!",
    "'", '"', '"""',
    "\\", "/", "..", "../", "\x00", "\x1a", "\ufeff", "\u2028", "\x85", ESCAPES, "💥", "-", "+", "=1+1", "@",
    "%", "`",
    "0", "-1", "1.0", "1e9", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "٣", "0x", "0b", "1_0",
    "2001-99-99", "12:99:99",
    "null", "true", "~", "[", "]", "{", "}", "[" * 3000, "{a: " * 3000, "(" * 500, "- " * 3000, LONG,
    "a,b\n" * 500,
    "!!python/object/apply:os.system ['true']", "!!binary x", "!!int x", "!!float x", "!!timestamp x",
    "!!set {a}",
    "&a [*a]", "<<: 3", "<<: *a", "? [a]", "--- ", "...", "%YAML 9.9\n---\n",
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
    "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
    "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n"
    "g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f]\nh: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g]\n",
)  # fmt: skip

#: Numbers that headers state lengths, offsets and sizes with.
_NUMBERS = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    10**6,
    10**9,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    10**12,
    2**62,
    2**64 - 1,
)


def times(draw: Draw) -> int:
    """How often something is spoiled: most often once, in a tenth of the cases not at all."""
    return draw(st.sampled_from((0, 1, 1, 1, 1, 1, 2, 2, 3, 5)))


def spoiled_bytes(draw: Draw, content: bytes, number: int | None = None) -> bytes:
    """A binary file, changed at some places, more often near its beginning and end, where headers are."""
    data = bytearray(content)
    for _ in range(times(draw) if number is None else number):
        _spoil_once(draw, data)
    return bytes(data)


def _spoil_once(draw: Draw, data: bytearray) -> None:
    kind = draw(
        st.sampled_from(("bit", "byte", "number", "cut", "remove", "repeat", "insert", "append", "all"))
    )
    place = _place(draw, len(data))
    if kind == "bit" and data:
        data[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == "byte" and data:
        data[place] = draw(st.sampled_from((0, 255, 127, 128, 1, 32, 10, 44)))
    elif kind == "number":
        width = draw(st.sampled_from((2, 4, 8)))
        number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * width)
        data[place : place + width] = number.to_bytes(width, draw(st.sampled_from(("little", "big"))))
    elif kind == "cut":
        del data[place:]
    elif kind == "remove":
        del data[place : place + draw(st.sampled_from((1, 2, 4, 16, 100)))]
    elif kind == "repeat":
        data[place:place] = data[place : place + draw(st.sampled_from((1, 2, 4, 16, 100)))]
    elif kind == "insert":
        data[place:place] = draw(st.binary(min_size=1, max_size=6))
    elif kind == "append":
        data += draw(st.sampled_from((b"\0", b"\0" * 100, b"PK\x05\x06", bytes(data[:200]))))
    else:
        data[:] = draw(
            st.sampled_from(
                (b"", b"\0", b"\n", b"text", b"\x93NUMPY", b"PK\x03\x04", b"\xff\xd8\xff", b"PAR1PAR1", b"{}")
            )
        )


def _place(draw: Draw, length: int) -> int:
    near = min(300, max(0, length - 1))
    where = draw(st.sampled_from(("front", "back", "front", "back", "any")))
    if where == "any":
        return draw(st.integers(0, max(0, length - 1)))
    step = draw(st.integers(0, near))
    return step if where == "front" else max(0, length - 1 - step)


def spoiled_text(draw: Draw, text: str, number: int | None = None, pieces: Sequence[str] = PIECES) -> bytes:
    """A text in UTF-8 (unless that was spoiled too), changed at some places."""
    for _ in range(times(draw) if number is None else number):
        kind = draw(st.sampled_from(("replace", "insert", "remove", "double", "swap", "line", "cut")))
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from((1, 2, 3, 5, 10, 40))))
        if kind == "replace":
            text = text[:start] + draw(st.sampled_from(pieces)) + text[stop:]
        elif kind == "insert":
            text = text[:start] + draw(st.sampled_from(pieces)) + text[start:]
        elif kind == "remove":
            text = text[:start] + text[stop:]
        elif kind == "double":
            text = text[:stop] + text[start:]
        elif kind == "cut":
            text = text[:start]
        else:
            lines = text.splitlines(keepends=True) or [""]
            one, two = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            if kind == "swap":
                lines[one], lines[two] = lines[two], lines[one]
            else:
                lines[one] = draw(st.sampled_from(pieces)) + "\n"
            text = "".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    if number is None and draw(st.sampled_from((False,) * 9 + (True,))):
        return draw(
            st.sampled_from(
                (
                    data[::-1],
                    b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass"),
                    data + b"\xff\xfe\x80",
                    b"",
                )
            )
        )
    return data


def spoiled_tree(draw: Draw, value: Any, values: Sequence[Any] = VALUES, number: int | None = None) -> Any:
    """What a YAML or JSON file holds, changed at some places: values, keys, lists, nesting."""
    value = copy.deepcopy(value)
    for _ in range(times(draw) if number is None else number):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(draw(st.sampled_from(values)))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(
            st.sampled_from(("value", "value", "value", "remove", "rename", "wrap", "move", "nest", "add"))
        )
        if kind == "value":
            holder[key] = copy.deepcopy(draw(st.sampled_from(values)))
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from((f"{key}s", str(key)[1:], "", "é", 3, None, "__class__", LONG)))] = (
                holder.pop(key)
            )
        elif kind == "wrap":
            holder[key] = draw(st.sampled_from(([holder[key]], {"a": holder[key]}, [holder[key]] * 3)))
        elif kind == "move":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            if (isinstance(other, dict) and place in other) or (
                isinstance(other, list) and place < len(other)
            ):
                holder[key] = copy.deepcopy(other[place])
        elif kind == "nest":
            for _ in range(draw(st.sampled_from((3, 50, 150)))):
                holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            name = draw(st.sampled_from(("name", "x", "base", "class_path", "path")))
            holder[name] = copy.deepcopy(draw(st.sampled_from(values)))
        else:
            holder.append(copy.deepcopy(draw(st.sampled_from(values))))
    return value


def _places(value: Any) -> Any:
    """Each (mapping or list, key or index) below a value."""
    if isinstance(value, dict):
        items: Any = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def spoiled_yaml(draw: Draw, value: Any, how: str) -> bytes:
    """A YAML file of the value, spoiled as a ``tree`` or as a ``text``."""
    if how == "text":
        return spoiled_text(draw, yaml.safe_dump(value, sort_keys=False))
    spoiled = spoiled_tree(draw, value)
    try:
        return yaml.safe_dump(spoiled, sort_keys=False, allow_unicode=draw(st.booleans())).encode(
            "utf-8", "surrogatepass"
        )
    except (yaml.YAMLError, RecursionError):
        return repr(spoiled).encode("utf-8", "surrogatepass")


def spoiled_json(draw: Draw, value: Any) -> bytes:
    """A JSON file of the value, spoiled as a tree or as a text."""
    if draw(st.booleans()):
        return spoiled_text(draw, json.dumps(value))
    return json.dumps(spoiled_tree(draw, value, PLAIN)).encode()
