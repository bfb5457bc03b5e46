"""Corrupt valid content at places that hypothesis draws; the simplest draw changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

LONG = "a" * 20_000
ESCAPES = "\x1b[2J\x1b]0;title\x07"

#: Values to put where something else is expected, in JSON.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1.5, float("nan"), float("inf"), float("-inf"),
    "", " ", "a", LONG, "\x00", ESCAPES, "💥", "\ud800", "é\u202e", "$x_$", "%s%n", "{{7*7}}", "<script>",
    "'", '"', "../../outside", "/dev/zero", "/dev/null", "pipe", ".", "/", "~", "C:\\x", "null", "1e400", "0x1g",
    [], [[]], [None], [1, 2, 3], ["a", "b"], {}, {"a": 1}, {"class_path": "os.system"}, {"class_path": "rga"},
    {"class_path": "rga_reid.attention.RGA", "init_args": {"in_channels": 3}},
)  # fmt: skip

#: Pieces to put into a text: CSV, JSON, list files.
PIECES: tuple[str, ...] = (
    "", "\n", "\r", "\r\n", "\t", " ", ",", ",,", ";", ":", "#", "|", "'", '"', '"""', "\\", "/", "..", "../",
    "\x00", "\x1a", "\ufeff", "\u2028", "\x85", ESCAPES, "💥", "-", "+", "=1+1", "@", "%", "`",
    "0", "-1", "1.0", "1e9", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "٣", "0x", "1_0", "2001-99-99",
    "null", "true", "[", "]", "{", "}", "[" * 3000, "(" * 500, LONG, "a,b\n" * 500,
)  # fmt: skip

#: Lengths, offsets and sizes for binary headers.
NUMBERS = (0, 1, 127, 255, 2**15 - 1, 2**16 - 1, 10**6, 10**9, 2**31, 2**32 - 1, 10**12, 2**62, 2**64 - 1)

#: Contents to put in place of a whole file.
CONTENTS = (b"", b"\0", b"\n", b"text", b"\x93NUMPY", b"PK\x03\x04", b"\xff\xd8\xff", b"PAR1PAR1", b"{}")


def pick(draw: Draw, *values: Any) -> Any:
    """Draw one of the values."""
    return draw(st.sampled_from(values))


def draw_count(draw: Draw) -> int:
    """Draw the number of corruptions: usually one, and none in a tenth of the cases."""
    return pick(draw, 0, 1, 1, 1, 1, 1, 2, 2, 3, 5)


def corrupt_bytes(draw: Draw, content: bytes) -> bytes:
    """Corrupt a binary file, more often near its beginning and end, where headers are."""
    data = bytearray(content)
    for _ in range(draw_count(draw)):
        kind = pick(draw, "bit", "byte", "number", "cut", "remove", "repeat", "insert", "append", "all")
        place, size = draw_place(draw, len(data)), pick(draw, 1, 2, 4, 16, 100)
        if kind == "bit" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[place] = pick(draw, 0, 255, 127, 128, 1, 32, 10, 44)
        elif kind == "number":
            width, order = pick(draw, 2, 4, 8), pick(draw, "little", "big")
            data[place : place + width] = (pick(draw, *NUMBERS) % (1 << 8 * width)).to_bytes(width, order)
        elif kind == "cut":
            del data[place:]
        elif kind == "remove":
            del data[place : place + size]
        elif kind == "repeat":
            data[place:place] = data[place : place + size]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=6))
        elif kind == "append":
            data += pick(draw, b"\0", b"\0" * 100, b"PK\x05\x06", bytes(data[:200]))
        elif kind == "all":
            data[:] = pick(draw, *CONTENTS)
    return bytes(data)


def draw_place(draw: Draw, length: int) -> int:
    last = max(0, length - 1)
    where = pick(draw, "front", "back", "front", "back", "any")
    if where == "any":
        return draw(st.integers(0, last))
    step = draw(st.integers(0, min(300, last)))
    return step if where == "front" else last - step


def corrupt_text(draw: Draw, text: str) -> bytes:
    """Corrupt a text; the result is usually still UTF-8."""
    for _ in range(draw_count(draw)):
        kind = pick(draw, "replace", "insert", "remove", "double", "swap", "line", "cut")
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + pick(draw, 1, 2, 3, 5, 10, 40))
        piece = pick(draw, *PIECES)
        if kind in ("swap", "line"):
            lines = text.splitlines(keepends=True) or [""]
            one, two = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            if kind == "swap":
                lines[one], lines[two] = lines[two], lines[one]
            else:
                lines[one] = f"{piece}\n"
            text = "".join(lines)
        else:
            text = {
                "replace": text[:start] + piece + text[stop:],
                "insert": text[:start] + piece + text[start:],
                "remove": text[:start] + text[stop:],
                "double": text[:stop] + text[start:],
                "cut": text[:start],
            }[kind]
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 9:
        return pick(draw, data[::-1], text.encode("utf-16", "surrogatepass"), data + b"\xff\xfe\x80", b"")
    return data


def corrupt_tree(draw: Draw, value: Any, values: Sequence[Any] = VALUES) -> Any:
    """Corrupt the content of a JSON file: values, keys, lists, nesting."""
    value = copy.deepcopy(value)
    for _ in range(draw_count(draw)):
        places = list(iter_places(value))
        if not places:
            return copy.deepcopy(pick(draw, *values))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind, other = (
            pick(draw, "value", "value", "value", "remove", "rename", "wrap", "nest", "add"),
            pick(draw, *values),
        )
        if kind == "value":
            holder[key] = copy.deepcopy(other)
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[pick(draw, f"{key}s", str(key)[1:], "", "é", "__class__", LONG)] = holder.pop(key)
        elif kind == "wrap":
            holder[key] = pick(draw, [holder[key]], {"a": holder[key]}, [holder[key]] * 3)
        elif kind == "nest":
            for _ in range(pick(draw, 3, 50, 150)):
                holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            holder[pick(draw, "name", "x", "class_path", "path")] = copy.deepcopy(other)
        else:
            holder.append(copy.deepcopy(other))
    return value


def iter_places(value: Any) -> Any:
    """Iterate over each (mapping or list, key or index) in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from iter_places(inner)


def corrupt_json(draw: Draw, value: Any) -> bytes:
    """Return a JSON file of the value, corrupted as a tree or as a text."""
    if draw(st.booleans()):
        return corrupt_text(draw, json.dumps(value))
    return json.dumps(corrupt_tree(draw, value)).encode()
