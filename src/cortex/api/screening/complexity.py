"""Counts the values of a JSON body, and says which field has too many. Pure.

A body that cannot have many values is told from others by a pass over its bytes, which takes half a
millisecond per megabyte; text looks like structure to them, so the others are looked at closely.
"""

import re
from collections.abc import Mapping

import msgspec

from protocol.errors import MAX_PARAM, shortened

QUICK_SIGNS = 32_768
"""Bodies with fewer brackets, braces and commas are decoded at once, in 20 ms at most."""
MAX_VALUES = 32_768
"""Values in a field: about 10,900 messages, or parts of messages."""
MAX_TOOL_VALUES = 262_144
"""Values in the tools, whose schemas are passed on as they are."""
MAX_TOKENS = 1 << 19
"""Tokens of a prompt that is sent as tokens."""
MAX_OTHER_VALUES = 8_192
"""Values in any other field."""
_BOUNDS: Mapping[str, int] = {
    "messages": MAX_VALUES,
    "input": MAX_VALUES,
    "system": MAX_VALUES,
    "tools": MAX_TOOL_VALUES,
    "functions": MAX_TOOL_VALUES,
    "prompt": MAX_TOKENS,
    "tokens": MAX_TOKENS,
}
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A text, or one that the body's end cuts. Possessive, so that its time grows with the body only:
what has matched is never tried again."""


def signs(body: bytes) -> int:
    """Counts brackets, braces and commas, also those in texts."""
    return len(body) - len(body.translate(None, b",{["))


def too_complex(body: bytes) -> tuple[str, str]:
    """Returns the field of *body* that has too many values, and what is wrong with it; both empty
    if none has, or if the body cannot be read, which is told when it is decoded."""
    outside = _TEXT.sub(b'""', body)
    brackets = outside.count(b"{") + outside.count(b"[")
    if brackets + outside.count(b",") > sum(_BOUNDS.values()):
        return "", f"The body has more than {sum(_BOUNDS.values()):,} values."
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "", ""
    if not isinstance(found, dict):
        return "", ""
    seen = 1
    for field, value in found.items():
        values, containers = _count(value)
        seen += containers
        bound = _BOUNDS.get(field, MAX_OTHER_VALUES)
        if values > bound:
            field = shortened(field, MAX_PARAM)
            return field, f"{field}: it has {values:,} values; at most {bound:,} are read."
    if seen < brackets:  # they would be decoded all the same
        return "", "The body has a field twice. Send every field once."
    return "", ""


def _count(value: object) -> tuple[int, int]:
    """Counts the values inside *value*, and the arrays and objects among them and itself."""
    values = containers = 0
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            inside = list(one.values())
        elif isinstance(one, list):
            inside = one
        else:
            continue
        containers += 1
        values += len(inside)
        left += [value for value in inside if isinstance(value, dict | list)]
    return values, containers
