"""Reads msgspec's sentences about what is wrong with a value, and where.

They may contain what a client has sent, of any length and unescaped, so nothing is searched for in
them that could be found in many ways.
"""

from protocol.errors import shortened

_BEFORE_PATH = " - at `$"
MAX_CHARACTERS = 300
"""Of a sentence or a path. What is longer repeats what the client has sent."""


def split_error(sentence: str) -> tuple[str, str]:
    """Splits ``Expected `str` - at `$.model``` into the problem and the path of the field, which
    may be empty; both shortened."""
    problem, mark, path = sentence.rpartition(_BEFORE_PATH)
    if not (mark and path.endswith("`")):
        problem, path = sentence, ""
    path = path.removesuffix("`").removeprefix(".")
    return shortened(problem, MAX_CHARACTERS), shortened(path, MAX_CHARACTERS)
